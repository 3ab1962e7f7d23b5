"""Classification of words, such as named entities."""

import dataclasses
import functools
from typing import Any

import numpy as np

from reformer_jax.data import batching
from reformer_jax.data import dataset as dataset_lib
from reformer_jax.data import tokenizers
from reformer_jax.data.tasks import rows
from reformer_jax.data.tasks import scores

_OUTSIDE = 'O'


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenClassification(rows.Labelled):
    """Words with a label each, such as 'O', 'B-PER', 'I-PER'.

    The words of a row are joined by spaces. The label of a word stands at its first
    token; all other places have weight 0. 'labels' and 'weights' are [B, L].

    Attributes:
      words_column: column of the words, a list, or a string with spaces between them.
      tags_column: column of their labels, as many, likewise.
    """

    words_column: str
    tags_column: str

    @property
    def spec(self) -> batching.Spec:
        shape = (self.batch_size, self.length)
        return super().spec | {
            'labels': (shape, batching.INT),
            'weights': (shape, batching.FLOAT),
        }

    @property
    def labels_column(self) -> str:
        return self.tags_column

    def score(self, split: str, predictions: np.ndarray) -> dict[str, float]:
        """The 'accuracy' of words, those that were cut off predicted to be 'O'; and
        `scores.named_entities` if all labels are O, B-TYPE or I-TYPE."""
        names, sentences = self.names, _sentences(self, split)
        scores.check(predictions, len(sentences), (self.length,))
        true = [[names[tag] for tag in row] for row in _tags(self, split)]
        true = true[: len(predictions)]
        predicted = [
            [names[row[p]] if p < self.length else _OUTSIDE for p in sentence.places]
            for row, sentence in zip(predictions, sentences, strict=False)
        ]
        right = np.concatenate(predicted) == np.concatenate(true)
        accuracy = {'accuracy': float(right.mean())}
        if not scores.has_entities(names):
            return accuracy
        return accuracy | scores.named_entities(predicted, true)

    def _stream(self, split: str) -> dataset_lib.Stream:
        tags, sentences = _tags(self, split), _sentences(self, split)

        def fill(batch: batching.Batch, place: int, row: int) -> None:
            kept = sentences[row].places < self.length
            at = sentences[row].places[kept]
            batch['labels'][place, at] = tags[row][kept]
            batch['weights'][place, at] = 1

        tokens = [sentence.tokens for sentence in sentences]
        return self._pad_rows(split, tokens, fill)


@dataclasses.dataclass(frozen=True)
class _Sentence:
    """Tokens, int32 [<= L]; the place of each word's first token, int64 [words].

    A place is L where the word is cut off, or has no token of its own.
    """

    tokens: np.ndarray
    places: np.ndarray


@functools.lru_cache(maxsize=3)
def _tags(dataset: TokenClassification, split: str) -> list[np.ndarray]:
    """The class of each word of a split, int32 [words] a row."""
    table = dataset.table(split)
    words = table.lists(dataset.words_column)
    tags = dataset.label_classes(split)
    for row, (some, others) in enumerate(zip(words, tags, strict=True)):
        if len(some) != len(others):
            raise ValueError(
                f'{table.where(row)}: {dataset.words_column!r} has {len(some)} words, '
                f'but {dataset.tags_column!r} has {len(others)} labels'
            )
    return [np.array(row, np.int32) for row in tags]


@functools.lru_cache(maxsize=3)
def _sentences(dataset: TokenClassification, split: str) -> list[_Sentence]:
    tokenizer = tokenizers.load(dataset.tokenizer)

    def encode(where: str, words: list[Any]) -> _Sentence:
        if not words or not all(isinstance(word, str) for word in words):
            raise ValueError(f'{where}: {words!r} are no words: remove the row')
        sentence = _sentence(words, tokenizer, dataset.length)
        dataset.check_tokens(sentence.tokens, words, where)
        return sentence

    columns = [dataset.table(split).lists(dataset.words_column)]
    return dataset.encoded(split, columns, encode)


def _sentence(
    words: list[str],
    tokenizer: tokenizers.Tokenizer,
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
