"""What all datasets share: checks of their arguments, the end of the grain pipeline."""

import functools
import sys
from collections.abc import Callable, Sequence

import grain
import numpy as np

SPLITS = ('train', 'validation', 'test')

# Shape and dtype of every array of a batch.
Spec = dict[str, tuple[tuple[int, ...], np.dtype]]

# Batches built ahead of the training loop. grain's default of 500 would hold 2 GB
# of batches of 8 x 65536 tokens, and fill all of it before giving the first one.
_READ = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)


def check_arguments(split: str, *, seed: int, **sizes: int) -> None:
    """Checks what every dataset's `build` takes, before any long work.

    Raises:
      ValueError: if `split` is unknown, `seed` is not in [0, 2**32), or one of
        `sizes` is not a positive integer.
    """
    if split not in SPLITS:
        raise ValueError(f'unknown split {split!r}: use one of {", ".join(SPLITS)}')
    for name, size in sizes.items():
        if not _is_integer(size) or size < 1:
            raise ValueError(f'{name}={size!r}: give a positive integer')
    if not _is_integer(seed) or not 0 <= seed < 2**32:
        raise ValueError(f'seed={seed!r}: give an integer in [0, 2**32)')


def _is_integer(value: object) -> bool:
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


def iterate_rows(
    tokens: Sequence[np.ndarray],
    complete: Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]],
    split: str,
    *,
    batch_size: int,
    length: int,
    pad_id: int,
    seed: int,
) -> grain.DatasetIterator:
    """Iterates over the rows of a table, each a sequence of tokens and its labels.

    Training is endless, each epoch all rows once in a fresh order; validation and test
    are one pass in order.

    Args:
      tokens: of each row of the split, int32 [<= length].
      complete: pure function from the indices of at most `batch_size` rows and their
        mask, bool [B, L], to what a batch has besides 'tokens' and 'mask'; missing rows
        get weight 0.
      split: 'train', 'validation' or 'test'.
      batch_size: B.
      length: L.
      pad_id: the token behind the rows.
      seed: of the training order, in [0, 2**32).

    Returns:
      Iterator with get_state/set_state, as of `iterate`.
    """

    def assemble(rows: np.ndarray) -> dict[str, np.ndarray]:
        padded, mask = pad(
            [tokens[row] for row in rows],
            batch_size=batch_size,
            length=length,
            value=pad_id,
        )
        return {'tokens': padded, 'mask': mask, **complete(rows, mask)}

    return iterate_epochs(
        len(tokens), assemble, split, batch_size=batch_size, seed=seed
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
    return {
        'tokens': (shape, np.dtype(np.int32)),
        'weights': (shape, np.dtype(np.float32)),
    }
