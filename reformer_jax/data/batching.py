"""What batches are made with: splits, orders, padding; and checks of sizes."""

import functools
from collections.abc import Callable, Sequence

import numpy as np

SPLITS = ('train', 'validation', 'test')

Batch = dict[str, np.ndarray]
Rows = Sequence[np.ndarray] | np.ndarray
# Shape and dtype of every array of a batch.
Spec = dict[str, tuple[tuple[int, ...], np.dtype]]
INT, FLOAT, BOOL = np.dtype(np.int32), np.dtype(np.float32), np.dtype(bool)


def check_sizes(**sizes: int) -> None:
    """Raises a ValueError unless all are positive integers."""
    for name, size in sizes.items():
        if not is_integer(size) or size < 1:
            raise ValueError(f'{name}={size!r}: give a positive integer')


def is_integer(value: object) -> bool:
    """Whether it is a whole number, of Python or numpy, and no bool."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def take_split(
    array: np.ndarray, split: str, percent: tuple[int, int] = (90, 95)
) -> np.ndarray:
    """A part of an array [n], as a view: 'train' and 'validation' end at these shares
    of it, 'test' is the rest."""
    parts = np.split(array, [array.size * share // 100 for share in percent])
    return parts[SPLITS.index(split)]


def endless_order(
    count: int, order: Callable[[np.random.Generator], np.ndarray], *seeds: int
) -> Callable[[np.ndarray], np.ndarray]:
    """Returns what stands at each place of a training stream that never ends.

    Args:
      count: examples in an epoch.
      order: gives the `count` examples of an epoch in a fresh order, int64 [count].
      *seeds: in [0, 2**32); other ones for another stream.

    Returns:
      Pure function from example numbers [n], from 0 without end, to examples [n].
    """

    @functools.lru_cache(maxsize=2)  # a batch may begin in one epoch, end in the next
    def epoch(number: int) -> np.ndarray:
        return order(np.random.default_rng((*seeds, number)))

    # Not grain's shuffle: it took 2.5 ms an example for a text of 13 windows.
    def look_up(numbers: np.ndarray) -> np.ndarray:
        epochs, places = np.divmod(numbers, count)
        return np.array([epoch(int(e))[p] for e, p in zip(epochs, places, strict=True)])

    return look_up


def pad(
    rows: Rows, shape: tuple[int, int], value: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Puts at most B rows of integers [<= L] into one array, each at the left.

    Args:
      rows: the rows.
      shape: B and L.
      value: what stands behind the rows, and in missing ones.

    Returns:
      int32 [B, L], and bool [B, L], True where a row has a value.
    """
    widest = max(map(len, rows), default=0)
    if len(rows) > shape[0] or widest > shape[1]:
        raise ValueError(
            f'{len(rows)} rows of at most {widest} values do not fit into {shape}.'
        )
    padded = np.full(shape, value, np.int32)
    mask = np.zeros(shape, bool)
    for row, values in enumerate(rows):
        padded[row, : len(values)] = values
        mask[row, : len(values)] = True
    return padded, mask


def language_model_spec(batch_size: int, length: int) -> Spec:
    """Shapes and dtypes of the batches of causal language modelling."""
    shape = (batch_size, length)
    return {'tokens': (shape, INT), 'weights': (shape, FLOAT)}


def pairs_spec(rows: int, source: int, target: int) -> Spec:
    """Shapes and dtypes of batches of sources and targets, see `pad_pairs`."""
    return {
        'source': ((rows, source), INT),
        'source_mask': ((rows, source), BOOL),
        **language_model_spec(rows, target),
    }


def pad_pairs(sources: Rows, targets: Rows, spec: Spec, value: int = 0) -> Batch:
    """A batch of at most B sources and as many targets, of the shapes of a spec:
    'source_mask' is True at tokens, 'weights' are 1 there."""
    source, source_mask = pad(sources, _rectangle(spec, 'source'), value)
    target, target_mask = pad(targets, _rectangle(spec, 'tokens'), value)
    return {
        'source': source,
        'source_mask': source_mask,
        'tokens': target,
        'weights': target_mask.astype(np.float32),
    }


def _rectangle(spec: Spec, name: str) -> tuple[int, int]:
    rows, length = spec[name][0]
    return rows, length


def as_numbers(tokens: np.ndarray) -> bytes:
    """Token ids [n] as a text, each with a space after it."""
    return b''.join(b'%d ' % token for token in tokens)
