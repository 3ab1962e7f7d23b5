"""Buckets of pairs of about the same length: batches with little padding.

A pair goes to the first bucket that holds both of its sides. Which bucket a training
batch is of, and which of its pairs it has, is a function of the seed and the batch's
number, so that the number is all that has to be saved.
"""

import functools
import itertools
from collections.abc import Callable, Sequence

import numpy as np

from reformer_jax.data import batching

Lengths = tuple[tuple[int, int], ...]


def check(lengths: object) -> Lengths:
    """Lengths of the buckets as pairs (source, target), ascending.

    Args:
      lengths: one or several; a number stands for both sides.

    Raises:
      ValueError: they are none, or do not ascend.
    """
    several = lengths if isinstance(lengths, tuple | list) else (lengths,)
    pairs = tuple(tuple(x) if isinstance(x, tuple | list) else (x, x) for x in several)
    sizes = [size for pair in pairs for size in pair]
    whole = all(batching.is_integer(size) and size > 0 for size in sizes)
    two = all(len(pair) == 2 for pair in pairs)
    if not (pairs and whole and two and _ascend(pairs)):
        raise ValueError(
            f'lengths={lengths!r}: give ascending numbers of tokens, such as (16, 24, '
            '48), or pairs (source, target) of them, such as ((4096, 512),)'
        )
    return pairs


def rows(lengths: Lengths, batch_size: int) -> list[int]:
    """Pairs of a batch of each bucket: so many of the longest, and of shorter ones as
    many times more as fit, so that what divides one number divides all."""
    longest = max(lengths[-1])
    return [batch_size * (longest // max(pair)) for pair in lengths]


def members(lengths: Lengths, sizes_N2: np.ndarray) -> list[np.ndarray]:
    """The pairs of each bucket, in order; those too long for all are in none.

    Args:
      lengths: of the buckets.
      sizes_N2: tokens of both sides of each pair.
    """
    fits_NK = np.all(np.less_equal(sizes_N2[:, None], np.array(lengths)), axis=-1)
    first_N = np.where(fits_NK.any(axis=1), fits_NK.argmax(axis=1), len(lengths))
    return [np.flatnonzero(first_N == k) for k in range(len(lengths))]


def training_batches(
    counts: Sequence[int], rows: Sequence[int], seed: int
) -> Callable[[int], tuple[int, np.ndarray]]:
    """What training batches are made of; endless.

    In an epoch each bucket has as many batches as its pairs fill, the last one with
    those of its next pass. The order of batches, and that of the pairs of a bucket, is
    fresh in each.

    Args:
      counts: pairs of each bucket.
      rows: pairs of a batch of each.
      seed: in [0, 2**32).

    Returns:
      Pure function from the number of a batch to its bucket, and which of the pairs of
      that it has.
    """
    batches = [-(-count // size) for count, size in zip(counts, rows, strict=True)]
    which = np.repeat(np.arange(len(batches)), batches)
    place_of = batching.endless_order(
        which.size, lambda generator: generator.permutation(which.size), seed
    )
    places = np.arange(which.size) - np.repeat(np.cumsum([0, *batches])[:-1], batches)
    orders = [
        batching.endless_order(
            max(count, 1), functools.partial(_permuted, count), seed, bucket
        )
        for bucket, count in enumerate(counts)
    ]

    def batch(number: int) -> tuple[int, np.ndarray]:
        (place,) = place_of(np.array([number]))
        bucket = int(which[place])
        passed = number // which.size * batches[bucket] + places[place]
        size = rows[bucket]
        return bucket, orders[bucket](passed * size + np.arange(size))

    return batch


def _permuted(count: int, generator: np.random.Generator) -> np.ndarray:
    return generator.permutation(count)


def _ascend(pairs: Lengths) -> bool:
    return all(
        first != second and all(a <= b for a, b in zip(first, second, strict=True))
        for first, second in itertools.pairwise(pairs)
    )
