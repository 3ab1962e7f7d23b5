"""Classification of texts or of pairs of texts, and regression on them."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np

from reformer_jax.data import batching
from reformer_jax.data import text
from reformer_jax.data import tokenizers
from reformer_jax.data.tasks import labels as label_names
from reformer_jax.data.tasks import scores
from reformer_jax.data.tasks import tables

KINDS = ('single', 'multi', 'regression')

_HIDDEN = '-1'

vocab_size = text.vocab_size
encode = text.encode
decode = text.decode


def batch_spec(
    *, batch_size: int, length: int, kind: str, **fields: Any
) -> batching.Spec:
    """Shapes and dtypes of a batch; reads the labels for 'multi'."""
    shape: tuple[int, ...] = (batch_size,)
    if kind == 'multi':
        shape = (batch_size, classes(kind=kind, **fields))
    return {
        'tokens': ((batch_size, length), np.dtype(np.int32)),
        'mask': ((batch_size, length), np.dtype(bool)),
        'labels': (shape, np.dtype(np.int32 if kind == 'single' else np.float32)),
        'weights': ((batch_size,), np.dtype(np.float32)),
    }


def classes(**fields: Any) -> int:
    """Number of logits: the classes, or 1 for regression."""
    return 1 if fields['kind'] == 'regression' else len(resolve(**fields)['labels'])


def resolve(**fields: Any) -> dict[str, Any]:
    """Returns the fields of `build` with the labels filled in that were found.

    Raises:
      FileNotFoundError, ValueError: as `build`.
    """
    source, column, data_dir = _origin(fields)
    labels = _labels(
        source, column, fields['kind'], label_names.given(fields['labels']), data_dir
    )
    return {**fields, 'labels': labels}


def build(
    split: str,
    *,
    source: str,
    text_columns: Sequence[str],
    label_column: str,
    kind: str,
    labels: Sequence[str],
    tokenizer: str,
    length: int,
    batch_size: int,
    seed: int,
    data_dir: str | None = None,
) -> grain.DatasetIterator:
    """Iterates over the rows of one split; see `batching.iterate_rows` for the order.

    Args:
      split: 'train', 'validation' or 'test', one of `tables.splits`.
      source: file, folder or 'tfds:NAME', see `tables`.
      text_columns: the column of the text, or the two of a pair, which are joined by
        the tokenizer's separator.
      label_column: column of the labels.
      kind: 'single', one label a row; 'multi', any number of them, in a list, or in a
        string with spaces between them; 'regression', a number.
      labels: names in the order of the classes; () means those of the train split
        ('0' to the greatest, or sorted names), or the classes of tfds.
      tokenizer: 'bytes', or the path of a SentencePiece model.
      length: tokens per example, L; longer texts are cut.
      batch_size: examples per batch, B.
      seed: of the training order, in [0, 2**32).
      data_dir: folder of prepared tfds datasets; None or empty means that of tfds.

    Returns:
      Iterator over {'tokens': int32 [B, L], 'mask': bool [B, L], True at tokens,
      'labels', 'weights': float32 [B]}. Labels are int32 [B]; of 'multi', float32
      [B, classes], 0 or 1; of 'regression', float32 [B].

    Raises:
      FileNotFoundError: if nothing is at `source` or `tokenizer`, or a download fails.
      ValueError: for a bad argument, a malformed file, an empty text, a wrong label.
    """
    batching.check_arguments(split, seed=seed, length=length, batch_size=batch_size)
    fields = {'source': source, 'label_column': label_column, 'kind': kind}
    labels = resolve(**fields, labels=labels, data_dir=data_dir)['labels']
    columns = _text_columns(text_columns)
    targets = _targets(split, source, label_column, kind, labels, data_dir or None)
    texts = _texts(split, source, columns, tokenizer, length, data_dir or None)
    return batching.iterate_rows(
        texts,
        functools.partial(_labels_of_rows, targets),
        split,
        batch_size=batch_size,
        length=length,
        pad_id=tokenizers.load(tokenizer).pad_id,
        seed=seed,
    )


def _labels_of_rows(
    targets: np.ndarray, rows: np.ndarray, mask: np.ndarray
) -> dict[str, np.ndarray]:
    labels = np.zeros((len(mask), *targets.shape[1:]), targets.dtype)
    labels[: len(rows)] = targets[rows]
    weights = (np.arange(len(mask)) < len(rows)).astype(np.float32)
    return {'labels': labels, 'weights': weights}


def score(split: str, predictions: np.ndarray, **fields: Any) -> dict[str, float]:
    """Scores the logits of the first rows of a split.

    Args:
      split: 'train', 'validation' or 'test'.
      predictions: float [N, classes], of N rows in order; [N, 1] for regression.
      **fields: those of `build`.

    Returns:
      'accuracy' and 'f1', or 'pearson' for regression; see `scores`.

    Raises:
      FileNotFoundError, ValueError: as `build`; for predictions of another shape.
    """
    kind, labels = fields['kind'], resolve(**fields)['labels']
    source, column, data_dir = _origin(fields)
    targets = _targets(split, source, column, kind, labels, data_dir)
    scores.check(predictions, len(targets), (classes(**fields),))
    targets = targets[: len(predictions)]
    if kind == 'regression':
        return scores.regression(predictions[:, 0], targets)
    return {'single': scores.single, 'multi': scores.multi}[kind](predictions, targets)


def is_hidden(split: str, **fields: Any) -> bool:
    """Whether a split has -1 for every label, as GLUE's test splits."""
    source, column, data_dir = _origin(fields)
    rows = tables.read(source, split, data_dir=data_dir)
    found = tables.column(rows, column, source)
    return all(str(label) == _HIDDEN for label in found)


def _origin(fields: dict[str, Any]) -> tuple[str, str, str | None]:
    return fields['source'], fields['label_column'], fields.get('data_dir') or None


def _text_columns(columns: Sequence[str]) -> tuple[str, ...]:
    if isinstance(columns, str) or len(columns) not in (1, 2):
        raise ValueError(
            f'text_columns={columns!r}: give a tuple of one column, or of two for pairs'
        )
    return tuple(columns)


@functools.lru_cache(maxsize=4)
def _labels(
    source: str, column: str, kind: str, labels: tuple[str, ...], data_dir: str | None
) -> tuple[str, ...]:
    """The labels given, or found."""
    if kind not in KINDS:
        raise ValueError(f'kind={kind!r}: give one of {", ".join(KINDS)}')
    if kind == 'regression' and labels:
        raise ValueError(f'labels={labels}: regression has none, give ()')
    if kind == 'regression' or labels:
        return labels
    known = tables.label_names(source, column, data_dir)
    return known or label_names.find(
        _label_lists('train', source, column, kind, data_dir), column
    )


def _label_lists(
    split: str, source: str, column: str, kind: str, data_dir: str | None
) -> list[list[Any]]:
    rows = tables.read(source, split, data_dir=data_dir)
    values = tables.column(rows, column, source)
    if kind == 'single':
        return [[value] for value in values]
    return [
        label_names.split_list(value, tables.where(source, split, index, data_dir))
        for index, value in enumerate(values)
    ]


@functools.lru_cache(maxsize=3)
def _targets(
    split: str,
    source: str,
    column: str,
    kind: str,
    labels: tuple[str, ...],
    data_dir: str | None,
) -> np.ndarray:
    """The labels of a split: int32 [n], float32 [n, classes] or float32 [n]."""

    def where(row: int) -> str:
        return tables.where(source, split, row, data_dir)

    if kind == 'regression':
        rows = tables.read(source, split, data_dir=data_dir)
        values = tables.column(rows, column, source)
        numbers = [_number(value, where(row)) for row, value in enumerate(values)]
        return np.array(numbers, np.float32)
    lists = _label_lists(split, source, column, kind, data_dir)
    found = label_names.classes(lists, labels, where)
    if kind == 'single':
        return np.array(found, np.int32)[:, 0]
    targets = np.zeros((len(found), len(labels)), np.float32)
    for row, members in enumerate(found):
        targets[row, members] = 1
    return targets


def _number(value: Any, where: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f'{where}: label {value!r} is no number, as regression needs')
    return number


@functools.lru_cache(maxsize=3)
def _texts(
    split: str,
    source: str,
    columns: tuple[str, ...],
    tokenizer: str,
    length: int,
    data_dir: str | None,
) -> list[np.ndarray]:
    """The tokens of a split's texts, each int32 [<= length]."""
    rows = tables.read(source, split, data_dir=data_dir)
    texts = zip(*(tables.column(rows, name, source) for name in columns), strict=True)
    loaded = tokenizers.load(tokenizer)
    separator = np.array([loaded.separator_id], np.int32)
    found = []
    for row, parts in enumerate(texts):
        strings = all(isinstance(part, str) for part in parts)
        if not (strings and any(part.strip() for part in parts)):
            where = tables.where(source, split, row, data_dir)
            raise ValueError(
                f'{where}: {" and ".join(map(repr, parts))} is no text, or an empty '
                'one; remove the row, or choose other text_columns'
            )
        tokens = [loaded.encode(part) for part in parts]
        if not any(part.size for part in tokens):
            where = tables.where(source, split, row, data_dir)
            raise ValueError(
                f'{where}: {parts!r} has no token for tokenizer {tokenizer!r}: remove '
                'the row'
            )
        joined = tokens if len(parts) == 1 else [tokens[0], separator, tokens[1]]
        found.append(np.concatenate(joined)[:length])
    return found
