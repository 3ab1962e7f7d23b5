"""Classification of texts or of pairs of texts, and regression on them."""

import dataclasses
import functools
import math
from typing import Any

import numpy as np

from reformer_jax.data import batching
from reformer_jax.data import dataset as dataset_lib
from reformer_jax.data import tokenizers
from reformer_jax.data.tasks import cells
from reformer_jax.data.tasks import rows
from reformer_jax.data.tasks import scores
from reformer_jax.data.tasks import tables

_SCORES = {
    'single': scores.single,
    'multi': scores.multi,
    'regression': scores.regression,
}
_FLAGS = frozenset(('0', '1', '0.0', '1.0', 'True', 'False'))
# As of tags, but 'a,b' and 'a|b' are two labels.
_NO_LABELS = rf'\S[,;|]|{rows.IN_BRACKETS}'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classification(rows.Labelled):
    """Texts with labels or numbers.

    'labels' are int32 [B]; of 'multi', float32 [B, classes], 0 or 1; of 'regression',
    float32 [B]. 'weights' are [B].

    Attributes:
      text_columns: the column of the text, or the two of a pair, which are joined by
        the tokenizer's separator.
      label_column: column of the labels.
      kind: 'single', one label a row; 'multi', any number of them, in a list, or in a
        string with spaces between them; 'regression', a number.
    """

    text_columns: tuple[str, ...]
    label_column: str
    kind: str

    def __post_init__(self):
        super().__post_init__()
        columns = self.text_columns
        if isinstance(columns, str) or len(columns) not in (1, 2):
            raise ValueError(
                f'text_columns={columns!r}: give a tuple of one column, or of two'
            )
        object.__setattr__(self, 'text_columns', tuple(columns))
        if self.kind not in _SCORES:
            raise ValueError(f'kind={self.kind!r}: give one of {", ".join(_SCORES)}')
        if self.kind == 'regression' and self.labels:
            raise ValueError(f'labels={self.labels}: regression has none, give ()')

    @property
    def spec(self) -> batching.Spec:
        row = (self.batch_size,)
        labels = (*row, self.classes) if self.kind == 'multi' else row
        dtype = batching.INT if self.kind == 'single' else batching.FLOAT
        return super().spec | {
            'labels': (labels, dtype),
            'weights': (row, batching.FLOAT),
        }

    @property
    def labels_column(self) -> str:
        return self.label_column

    @property
    def names(self) -> tuple[str, ...]:
        return () if self.kind == 'regression' else super().names

    @property
    def classes(self) -> int:
        return 1 if self.kind == 'regression' else len(self.names)

    def label_lists(self, table: tables.Table) -> list[list[Any]]:
        if self.kind == 'multi':
            lists = table.lists(self.label_column, _NO_LABELS)
            for index, labels in enumerate(lists):
                if len(labels) > 2 and _FLAGS.issuperset(map(str, labels)):
                    raise ValueError(
                        f'{table.where(index)}: {labels!r} tells of each label whether '
                        'it is there: give the names or the numbers of those that are'
                    )
            return lists
        return [
            [cells.printed(value, table.where(index))]
            if isinstance(value, str)
            else [value]
            for index, value in enumerate(table.column(self.label_column))
        ]

    def score(self, split: str, predictions: np.ndarray) -> dict[str, float]:
        targets = _targets(self, split)
        scores.check(predictions, len(targets), (self.classes,))
        return _SCORES[self.kind](predictions, targets[: len(predictions)])

    def _stream(self, split: str) -> dataset_lib.Stream:
        targets, texts = _targets(self, split), _texts(self, split)

        def fill(batch: batching.Batch, place: int, row: int) -> None:
            batch['labels'][place] = targets[row]
            batch['weights'][place] = 1

        return self._pad_rows(split, texts, fill)


@functools.lru_cache(maxsize=3)
def _targets(dataset: Classification, split: str) -> np.ndarray:
    """The labels of a split: int32 [n], float32 [n, classes] or float32 [n]."""
    if dataset.kind == 'regression':
        table = dataset.table(split)
        values = enumerate(table.column(dataset.label_column))
        numbers = [_number(value, table.where(row)) for row, value in values]
        return np.array(numbers, np.float32)
    found = dataset.label_classes(split)
    if dataset.kind == 'single':
        return np.array(found, np.int32)[:, 0]
    targets = np.zeros((len(found), dataset.classes), np.float32)
    for row, members in enumerate(found):
        targets[row, members] = 1
    return targets


def _number(value: Any, where: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not abs(number) <= np.finfo(np.float32).max:
        raise ValueError(
            f'{where}: label {value!r} is no number that float32 holds, as regression '
            'needs'
        )
    return number


@functools.lru_cache(maxsize=3)
def _texts(dataset: Classification, split: str) -> list[np.ndarray]:
    """The tokens of a split's texts, each int32 [<= L]."""
    tokenizer = tokenizers.load(dataset.tokenizer)

    def encode(where: str, *parts: Any) -> np.ndarray:
        strings = all(isinstance(part, str) for part in parts)
        if not (strings and any(part.strip() for part in parts)):
            raise ValueError(
                f'{where}: {" and ".join(map(repr, parts))} is no text, or an empty '
                'one; remove the row, or choose other text_columns'
            )
        tokens = [tokenizer.encode(part) for part in parts]
        dataset.check_tokens(np.concatenate(tokens), parts, where)
        if len(parts) > 1:
            tokens.insert(1, np.array([tokenizer.separator_id], np.int32))
        return np.concatenate(tokens)[: dataset.length]

    columns = [dataset.table(split).column(name) for name in dataset.text_columns]
    return dataset.encoded(split, columns, encode)
