"""Windows of a long text: the order that language modelling reads one in."""

import sys
from collections.abc import Callable

import grain
import numpy as np

from reformer_jax.data import batching


def iterate(
    text: np.ndarray,
    split: str,
    assemble: Callable[[np.ndarray, list[np.ndarray]], dict[str, np.ndarray]],
    *,
    length: int,
    batch_size: int,
    seed: int,
    unit: str,
) -> grain.DatasetIterator:
    """Iterates over windows of one split of a text.

    Training is endless: each epoch takes windows side by side from a fresh offset in
    [0, L), so that the model sees every alignment, each once in a fresh order; at most
    2 L - 2 tokens at the two ends of the text are left out of an epoch. Validation and
    test are one pass in order, in which every token is in one window.

    Args:
      text: integers [n], the tokens (or bytes) of the split.
      split: 'train', 'validation' or 'test'.
      assemble: pure function from at most B example numbers, int64 [<= B], and their
        windows, views of `text` [<= L], to the batch. Numbers count through all
        epochs; only the last window of an evaluation can be shorter than L.
      length: L, tokens per example.
      batch_size: B, examples per batch.
      seed: of the order and the offsets, in [0, 2**32).
      unit: what the text consists of, 'bytes' or 'tokens', for errors.

    Returns:
      Iterator with get_state/set_state, as of `batching.iterate`.

    Raises:
      ValueError: if the text is shorter than one training window, or empty.
    """
    train = split == 'train'
    needed = length if train else 1
    if text.size < needed:
        whole = -(-length * 100 // 90) if train else 20
        raise ValueError(
            f'the {split} split has {text.size} {unit} and needs at least {needed} '
            f'(length={length}): give a corpus of at least {whole} {unit}, or a '
            'smaller --config.data.length'
        )
    if train:
        starts = _training_starts(text.size, length, seed)
        numbers = grain.MapDataset.range(sys.maxsize)
    else:
        starts = _side_by_side(length)
        numbers = grain.MapDataset.range(-(-text.size // length))

    def batch(numbers: np.ndarray) -> dict[str, np.ndarray]:
        windows = [text[start : start + length] for start in starts(numbers)]
        return assemble(numbers, windows)

    return batching.iterate(numbers, batch, batch_size=batch_size, endless=train)


def _training_starts(
    size: int, length: int, seed: int
) -> Callable[[np.ndarray], np.ndarray]:
    """Window starts of example numbers; a pure function of (seed, number)."""
    # The largest number of windows that fits behind every offset, and at least one.
    windows = max(1, (size - length + 1) // length)
    offsets = min(length, size - windows * length + 1)

    def order(generator: np.random.Generator) -> np.ndarray:
        return generator.integers(offsets) + length * generator.permutation(windows)

    return batching.endless_order(windows, order, seed)


def _side_by_side(length: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda numbers: length * numbers
