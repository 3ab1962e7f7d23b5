"""What all datasets share: splits, checks of sizes, the end of the grain pipeline."""

import functools
import sys
from collections.abc import Callable, Sequence

import grain
import numpy as np

SPLITS = ('train', 'validation', 'test')

# Shape and dtype of every array of a batch.
Spec = dict[str, tuple[tuple[int, ...], np.dtype]]
INT, FLOAT, BOOL = np.dtype(np.int32), np.dtype(np.float32), np.dtype(bool)

# Batches built ahead of the training loop. grain's default of 500 would hold 2 GB
# of batches of 8 x 65536 tokens, and fill all of it before giving the first one.
_READ = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)


def check_sizes(**sizes: int) -> None:
    """Raises a ValueError unless all are positive integers."""
    for name, size in sizes.items():
        if not is_integer(size) or size < 1:
            raise ValueError(f'{name}={size!r}: give a positive integer')


def is_integer(value: object) -> bool:
    """Whether it is a whole number, of Python or numpy, and no bool."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def take_split(text: np.ndarray, split: str) -> np.ndarray:
    """Returns the first 90 %, next 5 % or last 5 % of `text` [n], as a view."""
    train_end, validation_end = text.size * 90 // 100, text.size * 95 // 100
    return {
        'train': text[:train_end],
        'validation': text[train_end:validation_end],
        'test': text[validation_end:],
    }[split]


def iterate(
    examples: grain.MapDataset,
    assemble: Callable[[np.ndarray], dict[str, np.ndarray]],
    *,
    batch_size: int,
    endless: bool,
) -> grain.DatasetIterator:
    """Batches integers that stand for examples, then makes the arrays of each batch.

    Only integers go through grain one at a time: about 5 us each and stage, which
    would be the largest cost of all if whole examples did.

    Args:
      examples: dataset of integers, one per example (a number, or a position).
      assemble: pure function from at most `batch_size` such integers, int64 [<= B],
        to the batch; it pads missing rows with weight 0.
      batch_size: B.
      endless: whether `examples` never ends; if not, the last batch may be partial.

    Returns:
      Iterator with get_state/set_state; its state is the number of batches given.
    """
    batches = examples.batch(batch_size, drop_remainder=endless).map(assemble)
    return iter(batches.to_iter_dataset(_READ))


def endless_order(
    count: int, order: Callable[[np.random.Generator], np.ndarray], seed: int
) -> Callable[[np.ndarray], np.ndarray]:
    """Returns what stands at each place of a training stream that never ends.

    Args:
      count: examples in an epoch.
      order: gives the `count` examples of an epoch in a fresh order, int64 [count].
      seed: in [0, 2**32).

    Returns:
      Function from example numbers [n], from 0 without end, to examples [n]; what it
      gives for a number depends on (seed, number) alone.
    """

    @functools.lru_cache(maxsize=2)  # a batch may begin in one epoch, end in the next
    def epoch(number: int) -> np.ndarray:
        return order(np.random.default_rng((seed, number)))

    # Not grain's shuffle: it took 2.5 ms an example for a text of 13 windows.
    def look_up(numbers: np.ndarray) -> np.ndarray:
        epochs, places = np.divmod(numbers, count)
        return np.array([epoch(int(e))[p] for e, p in zip(epochs, places, strict=True)])

    return look_up


def iterate_epochs(
    count: int,
    assemble: Callable[[np.ndarray], dict[str, np.ndarray]],
    split: str,
    *,
    batch_size: int,
    seed: int,
) -> grain.DatasetIterator:
    """Iterates over examples that have numbers: training endlessly, else once in order.

    Args:
      count: examples in the split; an epoch of training has each once, in an order that
        is a function of (seed, epoch).
      assemble: as in `iterate`, of the numbers of examples.
      split: 'train', 'validation' or 'test'.
      batch_size: B.
      seed: in [0, 2**32).
    """
    if split != 'train':
        numbers = grain.MapDataset.range(count)
        return iterate(numbers, assemble, batch_size=batch_size, endless=False)
    order = endless_order(count, lambda generator: generator.permutation(count), seed)
    return iterate(
        grain.MapDataset.range(sys.maxsize),
        lambda numbers: assemble(order(numbers)),
        batch_size=batch_size,
        endless=True,
    )


def pad(
    rows: Sequence[np.ndarray], *, batch_size: int, length: int, value: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Puts rows of different lengths into one array, each at the left.

    Args:
      rows: at most `batch_size` arrays of integers [<= length].
      batch_size: B.
      length: L.
      value: what stands behind the rows, and in missing ones.

    Returns:
      int32 [B, L], and bool [B, L], True where a row has a value.
    """
    padded = np.full((batch_size, length), value, np.int32)
    mask = np.zeros((batch_size, length), bool)
    for row, values in enumerate(rows):
        padded[row, : len(values)] = values
        mask[row, : len(values)] = True
    return padded, mask


def language_model_spec(batch_size: int, length: int) -> Spec:
    """Shapes and dtypes of the batches of causal language modelling."""
    shape = (batch_size, length)
    return {'tokens': (shape, INT), 'weights': (shape, FLOAT)}


def as_numbers(tokens: np.ndarray) -> bytes:
    """Token ids [n] as a text, each with a space after it."""
    return b''.join(b'%d ' % token for token in tokens)
