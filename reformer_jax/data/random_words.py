"""What tasks of random words share: words that never end, and tokens as numbers."""

import abc
import dataclasses
import functools

import numpy as np

from reformer_jax.data import batching
from reformer_jax.data import dataset


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomWords(dataset.Dataset):
    """Examples made of words, uniform over 1..symbols.

    Training examples never end and never repeat; example i depends on (seed, i) alone.
    Validation and test are fixed, whatever the seed, so that runs can be compared.

    Attributes:
      symbols: number of different symbols; the paper has 127.
      eval_examples: number of examples in validation, and in test.
    """

    symbols: int
    eval_examples: int

    def __post_init__(self):
        super().__post_init__()
        batching.check_sizes(symbols=self.symbols, eval_examples=self.eval_examples)
        if self.symbols >= 2**31:
            raise ValueError(
                f'symbols={self.symbols!r}: tokens are int32, give less than 2**31'
            )

    @property
    def vocab_size(self) -> int:
        return self.symbols + 1  # and the marker 0

    @property
    def numbers(self) -> bool:
        return True

    @property
    @abc.abstractmethod
    def _word_length(self) -> int:
        """Symbols of a word."""

    @abc.abstractmethod
    def _batch(self, words: np.ndarray) -> batching.Batch:
        """The batch of at most B words [<= B, word length]."""

    def encode(self, text: bytes) -> np.ndarray:
        words = text.decode('utf-8', 'replace').split()
        for word in words:
            if not (word.isascii() and word.isdigit() and int(word) <= self.symbols):
                raise ValueError(
                    f'{word!r} is no token of the {self.dataset} task: list numbers '
                    f'from 0, the marker, to {self.symbols}, separated by white space.'
                )
        return np.array([int(word) for word in words], np.int32)

    def decode(self, tokens: np.ndarray) -> bytes:
        return batching.as_numbers(tokens)

    def _stream(self, split: str) -> dataset.Stream:
        train = split == 'train'
        # Each split has its own spawn key, so that no seed meets an evaluation stream.
        stream = np.random.SeedSequence(
            self.seed if train else 0, spawn_key=(batching.SPLITS.index(split),)
        )
        key = stream.generate_state(2, np.uint64)
        assemble = functools.partial(self._assemble, key)
        return self._in_order(None if train else self.eval_examples, assemble)

    def _assemble(
        self, key: np.ndarray, numbers: np.ndarray, _: batching.Spec
    ) -> batching.Batch:
        # Numbers of a batch follow each other, or nearly, and Philox counts in blocks
        # of four 64-bit draws, so one generator gives every example its own blocks: 6
        # times faster than one generator each.
        blocks = -(-self._word_length // 4)
        first, last = int(numbers[0]), int(numbers[-1])
        philox = np.random.Philox(key=key, counter=first * blocks)
        draws = philox.random_raw((last - first + 1, 4 * blocks))[numbers - first]
        draws = draws[:, : self._word_length]
        # Scaled, not rejected, so that an example takes as many draws as any other: the
        # chances of two symbols differ by less than symbols / 2**32 of their value.
        scaled = (draws >> np.uint64(32)) * np.uint64(self.symbols)
        return self._batch(1 + (scaled >> np.uint64(32)))
