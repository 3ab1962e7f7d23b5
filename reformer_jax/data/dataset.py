"""What every dataset is: its settings as fields, and what training asks of it."""

import abc
import dataclasses
import pathlib
import sys
from collections.abc import Callable, Sequence, Sized

import grain
import numpy as np

from reformer_jax.data import batching
from reformer_jax.data import tokenizers

# Batches built ahead of the training loop. grain's default of 500 would hold 2 GB
# of batches of 8 x 65536 tokens, and fill all of it before giving the first one.
_READ = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)


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

    def batches(self, split: str) -> grain.DatasetIterator:
        """Returns the iterator over one split.

        'train' never ends; 'validation' and 'test' are one pass in order, the last
        batch padded with rows of weight 0. get_state and set_state (and orbax) save and
        restore the place in the stream.

        Args:
          split: 'train', 'validation' or 'test', one of `splits`.

        Returns:
          Iterator over dicts of the arrays that one of `specs` describes, 'tokens'
          [B, L] and 'weights' ([B, L] or [B], 0 for what does not count) among them.
          Data for an encoder-decoder have 'source' [B, S] too.

        Raises:
          ValueError: for a split that there is not, data that are damaged or too few.
          FileNotFoundError: if the data are not there and cannot be fetched.
        """
        if split not in batching.SPLITS:
            raise ValueError(
                f'unknown split {split!r}: use one of {", ".join(batching.SPLITS)}'
            )
        return self._iterate(split)

    @abc.abstractmethod
    def _iterate(self, split: str) -> grain.DatasetIterator:
        """As `batches`, of a name that is one of a split."""

    def _stream(
        self, assemble: Callable[[np.ndarray], batching.Batch], count: int | None = None
    ) -> grain.DatasetIterator:
        """Batches numbers that stand for examples, then makes the arrays of each batch.

        Only integers go through grain one at a time: about 5 us each and stage, which
        would be the largest cost of all if whole examples did.

        Args:
          assemble: pure function from at most B numbers of examples, int64 [<= B], to
            the batch; it pads missing rows with weight 0.
          count: number of examples, of which the last batch may have fewer than B; None
            for a stream that never ends.

        Returns:
          Iterator with get_state/set_state; its state is the number of batches given.
        """
        numbers = grain.MapDataset.range(sys.maxsize if count is None else count)
        batches = numbers.batch(self.batch_size, drop_remainder=count is None)
        return iter(batches.map(assemble).to_iter_dataset(_READ))

    def _numbered(
        self, assemble: Callable[[int], batching.Batch], batches: Sized | None = None
    ) -> grain.DatasetIterator:
        """As `_stream`, for data whose batches are not of equal shape.

        Args:
          assemble: pure function from the number of a batch to the batch.
          batches: as many as there are; None for a stream that never ends.
        """
        numbers = grain.MapDataset.range(
            sys.maxsize if batches is None else len(batches)
        )
        return iter(numbers.map(assemble).to_iter_dataset(_READ))

    def _epochs(
        self, split: str, count: int, assemble: Callable[[np.ndarray], batching.Batch]
    ) -> grain.DatasetIterator:
        """As `_stream` of `count` examples: once in order; but in training endlessly,
        each epoch all once in an order that is a function of (seed, epoch)."""
        if split != 'train':
            return self._stream(assemble, count)
        order = batching.endless_order(
            count, lambda generator: generator.permutation(count), self.seed
        )
        return self._stream(lambda numbers: assemble(order(numbers)))

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
