"""What all datasets share: checks of their arguments, the end of the grain pipeline."""

from collections.abc import Callable

import grain
import numpy as np

SPLITS = ('train', 'validation', 'test')

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
