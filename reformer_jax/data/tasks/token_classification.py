"""Classification of words, such as named entities."""

import dataclasses
import functools
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

vocab_size = text.vocab_size
encode = text.encode
decode = text.decode

_OUTSIDE = 'O'


@dataclasses.dataclass(frozen=True)
class _Sentence:
    """Tokens, int32 [<= L]; the place of each word's first token, int64 [words].

    A place is L where the word is cut off, or has no token of its own.
    """

    tokens: np.ndarray
    places: np.ndarray


def batch_spec(*, batch_size: int, length: int, **_: Any) -> batching.Spec:
    """Shapes and dtypes of a batch."""
    shape = (batch_size, length)
    return {
        'tokens': (shape, np.dtype(np.int32)),
        'mask': (shape, np.dtype(bool)),
        'labels': (shape, np.dtype(np.int32)),
        'weights': (shape, np.dtype(np.float32)),
    }


def classes(**fields: Any) -> int:
    """Number of logits of a token."""
    return len(resolve(**fields)['labels'])


def resolve(**fields: Any) -> dict[str, Any]:
    """Returns the fields of `build` with the labels filled in that were found.

    Raises:
      FileNotFoundError, ValueError: as `build`.
    """
    labels = label_names.given(fields['labels'])
    return {**fields, 'labels': labels or _find_labels(*_origin(fields))}


def build(
    split: str,
    *,
    source: str,
    words_column: str,
    tags_column: str,
    labels: Sequence[str],
    tokenizer: str,
    length: int,
    batch_size: int,
    seed: int,
    data_dir: str | None = None,
) -> grain.DatasetIterator:
    """Iterates over the rows of one split; see `batching.iterate_rows` for the order.

    The words of a row are joined by spaces. The label of a word stands at its first
    token; all other places have weight 0.

    Args:
      split: 'train', 'validation' or 'test', one of `tables.splits`.
      source: file, folder or 'tfds:NAME', see `tables`.
      words_column: column of the words, a list, or a string with spaces between them.
      tags_column: column of their labels, as many, likewise.
      labels: names in the order of the classes, such as ('O', 'B-PER', 'I-PER'); ()
        means those of the train split ('0' to the greatest, or sorted names), or the
        classes of tfds.
      tokenizer: 'bytes', or the path of a SentencePiece model.
      length: tokens per example, L; longer rows are cut.
      batch_size: examples per batch, B.
      seed: of the training order, in [0, 2**32).
      data_dir: folder of prepared tfds datasets; None or empty means that of tfds.

    Returns:
      Iterator over {'tokens': int32 [B, L], 'mask': bool [B, L], True at tokens,
      'labels': int32 [B, L], 'weights': float32 [B, L]}.

    Raises:
      FileNotFoundError: if nothing is at `source` or `tokenizer`, or a download fails.
      ValueError: for a bad argument, a malformed file, a row without words or with
        another number of labels, a wrong label.
    """
    batching.check_arguments(split, seed=seed, length=length, batch_size=batch_size)
    fields = {'source': source, 'tags_column': tags_column, 'data_dir': data_dir}
    labels = resolve(**fields, labels=labels)['labels']
    tags = _tags(split, source, words_column, tags_column, labels, data_dir or None)
    sentences = _sentences(
        split, source, words_column, tokenizer, length, data_dir or None
    )
    return batching.iterate_rows(
        [sentence.tokens for sentence in sentences],
        functools.partial(_labels_of_words, sentences, tags),
        split,
        batch_size=batch_size,
        length=length,
        pad_id=tokenizers.load(tokenizer).pad_id,
        seed=seed,
    )


def _labels_of_words(
    sentences: list[_Sentence],
    tags: list[np.ndarray],
    rows: np.ndarray,
    mask: np.ndarray,
) -> dict[str, np.ndarray]:
    labels = np.zeros(mask.shape, np.int32)
    weights = np.zeros(mask.shape, np.float32)
    for place, row in enumerate(rows):
        kept = sentences[row].places < mask.shape[1]
        at = sentences[row].places[kept]
        labels[place, at] = tags[row][kept]
        weights[place, at] = 1
    return {'labels': labels, 'weights': weights}


def score(
    split: str,
    predictions: np.ndarray,
    *,
    words_column: str,
    tokenizer: str,
    length: int,
    **fields: Any,
) -> dict[str, float]:
    """Scores the classes predicted for the first rows of a split.

    Words that were cut off count as predicted to be 'O'.

    Args:
      split: 'train', 'validation' or 'test'.
      predictions: int [N, L], a class for each token of N rows in order.
      words_column, tokenizer, length: as for `build`.
      **fields: the others of `build`.

    Returns:
      'accuracy' of the words; if all labels are O, B-TYPE or I-TYPE, also 'precision',
      'recall' and 'f1' of the entities, see `scores.named_entities`.

    Raises:
      FileNotFoundError, ValueError: as `build`; for predictions of another shape.
    """
    labels = resolve(**fields)['labels']
    source, tags_column, data_dir = _origin(fields)
    tags = _tags(split, source, words_column, tags_column, labels, data_dir)
    sentences = _sentences(split, source, words_column, tokenizer, length, data_dir)
    scores.check(predictions, len(sentences), (length,))
    predicted, true = [], []
    for row, sentence, wanted in zip(predictions, sentences, tags, strict=False):
        predicted.append(
            [labels[row[p]] if p < length else _OUTSIDE for p in sentence.places]
        )
        true.append([labels[index] for index in wanted])
    right = [
        one == other
        for pair in zip(predicted, true, strict=True)
        for one, other in zip(*pair, strict=True)
    ]
    accuracy = {'accuracy': sum(right) / len(right)}
    if not scores.has_entities(labels):
        return accuracy
    return accuracy | scores.named_entities(predicted, true)


def _origin(fields: dict[str, Any]) -> tuple[str, str, str | None]:
    return fields['source'], fields['tags_column'], fields.get('data_dir') or None


@functools.lru_cache(maxsize=4)
def _find_labels(source: str, column: str, data_dir: str | None) -> tuple[str, ...]:
    known = tables.label_names(source, column, data_dir)
    return known or label_names.find(_lists('train', source, column, data_dir), column)


def _lists(
    split: str, source: str, column: str, data_dir: str | None
) -> list[list[Any]]:
    rows = tables.read(source, split, data_dir=data_dir)
    return [
        label_names.split_list(value, tables.where(source, split, index, data_dir))
        for index, value in enumerate(tables.column(rows, column, source))
    ]


@functools.lru_cache(maxsize=3)
def _tags(
    split: str,
    source: str,
    words_column: str,
    tags_column: str,
    labels: tuple[str, ...],
    data_dir: str | None,
) -> list[np.ndarray]:
    """The class of each word of a split, int32 [words] a row."""

    def where(row: int) -> str:
        return tables.where(source, split, row, data_dir)

    tags = _lists(split, source, tags_column, data_dir)
    words = _lists(split, source, words_column, data_dir)
    for row, (some, others) in enumerate(zip(words, tags, strict=True)):
        if len(some) != len(others):
            raise ValueError(
                f'{where(row)}: {words_column!r} has {len(some)} words, but '
                f'{tags_column!r} has {len(others)} labels'
            )
    found = label_names.classes(tags, labels, where)
    return [np.array(row, np.int32) for row in found]


@functools.lru_cache(maxsize=3)
def _sentences(
    split: str,
    source: str,
    words_column: str,
    tokenizer: str,
    length: int,
    data_dir: str | None,
) -> list[_Sentence]:
    loaded = tokenizers.load(tokenizer)
    sentences = []
    for row, words in enumerate(_lists(split, source, words_column, data_dir)):
        if not words or not all(isinstance(word, str) for word in words):
            where = tables.where(source, split, row, data_dir)
            raise ValueError(f'{where}: {words!r} are no words: remove the row')
        sentence = _sentence(words, loaded, length)
        if not sentence.tokens.size:
            where = tables.where(source, split, row, data_dir)
            raise ValueError(
                f'{where}: {words!r} has no token for tokenizer {tokenizer!r}: remove '
                'the row'
            )
        sentences.append(sentence)
    return sentences


def _sentence(
    words: list[str],
    tokenizer: tokenizers.Bytes | tokenizers.SentencePiece,
    length: int,
) -> _Sentence:
    tokens, starts, ends = tokenizer.encode_with_offsets(' '.join(words))
    word_ends = np.cumsum([len(word) + 1 for word in words]) - 1
    word_starts = word_ends - [len(word) for word in words]
    # The first token that reaches into each word. It is not the word's own if it
    # begins behind the word, which is then made of characters that the tokenizer
    # ignores, or is already the first of a word before.
    reaching = np.searchsorted(ends, word_starts, side='right')
    places = np.full(len(words), length)
    before = -1
    for word, place in enumerate(reaching):
        if place < len(tokens) and starts[place] < word_ends[word] and place > before:
            before = place
            places[word] = min(place, length)
    return _Sentence(tokens[:length], places)
