"""The duplication task of the paper (section 5): repeat a random word, 0 w 0 w."""

import dataclasses

import numpy as np

from reformer_jax.data import batching
from reformer_jax.data import random_words


@dataclasses.dataclass(frozen=True, kw_only=True)
class Duplication(random_words.RandomWords):
    """Sequences 0 w 0 w with random words w.

    Only the second w counts in the loss: the first cannot be predicted.

    Attributes:
      half_length: length of w. An example has L = 2 * (half_length + 1) tokens, so the
        paper's 1024 tokens are half_length=511.
    """

    half_length: int

    def __post_init__(self):
        super().__post_init__()
        batching.check_sizes(half_length=self.half_length)

    @property
    def spec(self) -> batching.Spec:
        return batching.language_model_spec(self.batch_size, 2 * (self.half_length + 1))

    @property
    def _word_length(self) -> int:
        return self.half_length

    def _batch(self, words: np.ndarray) -> batching.Batch:
        shape = (self.batch_size, 2, 1 + self.half_length)
        tokens, weights = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
        tokens[: len(words), :, 1:] = words[:, None]
        weights[: len(words), 1, 1:] = 1
        rows = (self.batch_size, -1)
        return {'tokens': tokens.reshape(rows), 'weights': weights.reshape(rows)}
