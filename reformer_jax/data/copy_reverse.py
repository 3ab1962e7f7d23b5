"""A source and its reverse: the least task of a decoder that reads an encoder."""

import dataclasses

import numpy as np

from reformer_jax.data import batching
from reformer_jax.data import random_words


@dataclasses.dataclass(frozen=True, kw_only=True)
class CopyReverse(random_words.RandomWords):
    """Random words as sources, their symbols from last to first as targets.

    Attributes:
      word_length: symbols of a source, and of a target.
    """

    word_length: int

    def __post_init__(self):
        super().__post_init__()
        batching.check_sizes(word_length=self.word_length)

    @property
    def spec(self) -> batching.Spec:
        spec = batching.language_model_spec(self.batch_size, self.word_length)
        return {'source': spec['tokens'], **spec}

    @property
    def _word_length(self) -> int:
        return self.word_length

    def _batch(self, words: np.ndarray) -> batching.Batch:
        shape = self.batch_size, self.word_length
        source, weights = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
        source[: len(words)] = words
        weights[: len(words)] = 1
        return {'source': source, 'tokens': source[:, ::-1].copy(), 'weights': weights}
