"""What every dataset is: its settings as fields, and what training asks of it."""

import abc
import dataclasses
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import grain
import numpy as np

from reformer_jax.data import batching
from reformer_jax.data import tokenizers

# Batches built ahead of the training loop. grain's default of 500 would hold 2 GB
# of batches of 8 x 65536 tokens, and fill all of it before giving the first one.
_READ = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)


# From numbers of examples, int64 [n] with 1 <= n <= B, and the spec of the batch to the
# batch of B rows, those that are missing at its end with weight 0. A pure function.
Assemble = Callable[[np.ndarray, batching.Spec], batching.Batch]


class Stream(NamedTuple):
    """The batches of a split; only their numbers go through grain, which takes about 5
    us for each and stage.

    Attributes:
      chosen: gives the spec of the batch of a number and its examples, int64 [<= B].
      assemble: makes it.
      batches: how many there are; None for a stream that never ends.
    """

    chosen: Callable[[int], tuple[batching.Spec, np.ndarray]]
    assemble: Assemble
    batches: int | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset(abc.ABC):
    """Batches of a task, and what they mean.

    The fields are those of config.data, checked when the dataset is made, before any
    file is read. What is read is kept, and shared by datasets of equal fields.

    Attributes:
      dataset: its name.
      batch_size: B, examples per batch.
      seed: of all that is random in training, in [0, 2**32).
    """

    dataset: str
    batch_size: int
    seed: int

    def __post_init__(self):
        batching.check_sizes(batch_size=self.batch_size)
        if not batching.is_integer(self.seed) or not 0 <= self.seed < 2**32:
            raise ValueError(f'seed={self.seed!r}: give an integer in [0, 2**32)')

    @property
    @abc.abstractmethod
    def vocab_size(self) -> int:
        """Number of token ids."""

    @property
    @abc.abstractmethod
    def spec(self) -> batching.Spec:
        """Name -> (shape, dtype) of every array of a batch, of the longest sequences
        where batches differ."""

    @property
    def specs(self) -> tuple[batching.Spec, ...]:
        """The spec of every shape of batch, that of the longest sequences last."""
        return (self.spec,)

    @property
    def told(self) -> str:
        """What is to be known of the training data, in words; '' for nothing."""
        return ''

    @property
    def numbers(self) -> bool:
        """Whether texts of `decode` are the numbers of tokens, each with a space."""
        return False

    @property
    def head(self) -> str:
        """What the model has to predict: 'lm', 'masked_lm', 'classification',
        'token_classification' or 'question_answering'."""
        return 'lm'

    @property
    def classes(self) -> int:
        """Number of logits of a row or token; 0 for language modelling."""
        return 0

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits there are: 'train', 'validation' and most often 'test'."""
        return batching.SPLITS

    @property
    def files(self) -> Sequence[pathlib.Path]:
        """The files that training reads, in their order; none of generated data, nor
        of those that tensorflow_datasets has prepared."""
        return ()

    def resolved(self) -> 'Dataset':
        """The dataset with all that was found in the data (labels) among its fields."""
        return self

    def batches(
        self, split: str, wanted: Callable[[int], np.ndarray] = np.arange
    ) -> grain.DatasetIterator:
        """Returns the iterator over one split.

        'train' never ends; 'validation' and 'test' are one pass in order, the last
        batch padded with rows of weight 0. get_state and set_state (and orbax) save and
        restore the place in the stream, which is the same whichever rows are wanted.

        Args:
          split: 'train', 'validation' or 'test', one of `splits`.
          wanted: gives the rows [<= B] of a batch of B, ascending, that are made at all
            (sharding.rows_here: those of this process); all without it.

        Returns:
          Iterator over dicts of the arrays that one of `specs` describes, or of these
          rows of them, 'tokens' [B, L] and 'weights' ([B, L] or [B], 0 for what does
          not count) among them. Data for an encoder-decoder have 'source' [B, S] too.

        Raises:
          ValueError: for a split that there is not, data that are damaged or too few.
          FileNotFoundError: if the data are not there and cannot be fetched.
        """
        if split not in batching.SPLITS:
            raise ValueError(
                f'unknown split {split!r}: use one of {", ".join(batching.SPLITS)}'
            )
        stream = self._stream(split)
        numbers = grain.MapDataset.range(
            sys.maxsize if stream.batches is None else stream.batches
        )

        def make(number: int) -> batching.Batch:
            spec, examples = stream.chosen(int(number))
            rows = wanted(spec['tokens'][0][0])
            there = rows[rows < examples.size]
            if not there.size:
                return {
                    name: np.zeros((rows.size, *shape[1:]), dtype)
                    for name, (shape, dtype) in spec.items()
                }
            batch = stream.assemble(examples[there], spec)
            return {name: x[: rows.size] for name, x in batch.items()}

        return iter(numbers.map(make).to_iter_dataset(_READ))

    @abc.abstractmethod
    def _stream(self, split: str) -> 'Stream':
        """The batches of a split, whose name is one of a split."""

    def _in_order(self, count: int | None, assemble: Assemble) -> 'Stream':
        """Batches of examples 0, 1, ...: `count`, or without an end."""

        def chosen(number: int) -> tuple[batching.Spec, np.ndarray]:
            first, size = number * self.batch_size, self.batch_size
            if count is not None:
                size = min(size, count - first)
            return self.spec, np.arange(first, first + size)

        batches = None if count is None else -(-count // self.batch_size)
        return Stream(chosen, assemble, batches)

    def _epochs(self, split: str, count: int, assemble: Assemble) -> 'Stream':
        """As `_in_order` of `count` examples; but in training endlessly, each epoch all
        once in an order that is a function of (seed, epoch)."""
        if split != 'train':
            return self._in_order(count, assemble)
        order = batching.endless_order(
            count, lambda generator: generator.permutation(count), self.seed
        )
        return self._in_order(
            None, lambda numbers, spec: assemble(order(numbers), spec)
        )

    def score(self, split: str, predictions: np.ndarray) -> dict[str, float]:
        """Scores predictions for the first rows of a split as the task's benchmarks do.

        Args:
          split: 'train', 'validation' or 'test'.
          predictions: for N rows in the order of an evaluation, without padding rows:
            logits [N, classes] of 'classification', classes int [N, L] of
            'token_classification', first and last token int [N, 2] of
            'question_answering'.

        Returns:
          Name -> score; {} for language modelling.

        Raises:
          ValueError: for predictions of another shape; as `batches`.
        """
        del split, predictions
        return {}

    @abc.abstractmethod
    def encode(self, text: bytes) -> np.ndarray:
        """The token ids [n] of a text, as the dataset would give them.

        Raises:
          ValueError: for a text that has no tokens here.
        """

    @abc.abstractmethod
    def decode(self, tokens: np.ndarray) -> bytes:
        """The text of token ids [n]; what two parts give, joined, is what both do."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokenized(Dataset):
    """A dataset of texts.

    Attributes:
      length: L, tokens per example; longer rows are cut.
      tokenizer: 'bytes', or the path of a SentencePiece model or a tokenizer.json.
    """

    length: int
    tokenizer: str = tokenizers.BYTES

    def __post_init__(self):
        super().__post_init__()
        batching.check_sizes(length=self.length)

    @property
    def vocab_size(self) -> int:
        return tokenizers.load(self.tokenizer).vocab_size

    @property
    def pad_id(self) -> int:
        """The token that fills rows up."""
        return tokenizers.load(self.tokenizer).pad_id

    def encode(self, text: bytes) -> np.ndarray:
        return tokenizers.load(self.tokenizer).encode(text)

    def decode(self, tokens: np.ndarray) -> bytes:
        return tokenizers.load(self.tokenizer).decode(tokens)

    def _pad(self, rows: batching.Rows) -> tuple[np.ndarray, np.ndarray]:
        """Rows [<= L] as int32 [B, L], and where they are, bool [B, L]."""
        return batching.pad(rows, (self.batch_size, self.length), self.pad_id)
