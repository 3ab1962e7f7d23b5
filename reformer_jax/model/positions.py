"""Position embeddings as pure functions: axial, sinusoidal (learned is a plain table).

Axial embeddings (paper, "Experiments"; trax AxialPositionalEncoding) factor the
positions 0 .. n1 * n2 * ... - 1 over axes, last axis fastest: a position gets the
concatenation of one row of each axis's table, so that half a million positions take a
few thousand vectors.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp


def axial(tables: Sequence[jax.Array], length: int) -> jax.Array:
    """Embeddings [L, sum(d)] of the first `length` positions.

    Args:
      tables: one [n, d] table per axis, slowest axis first.
      length: at most the product of the n.
    """
    shape = [table.shape[0] for table in tables]
    if length > math.prod(shape):
        raise ValueError(
            f'length {length} exceeds the {math.prod(shape)} positions of the axial '
            f'shape {tuple(shape)}: enlarge the shape or shorten the sequence.'
        )
    # Only the rows of the first axis that are needed: memory follows the length.
    shape[0] = -(-length // math.prod(shape[1:]))
    parts = []
    for axis, table in enumerate(tables):
        around = [1] * len(shape)
        around[axis] = shape[axis]
        table = table[: shape[axis]].reshape(*around, table.shape[1])
        parts.append(jnp.broadcast_to(table, (*shape, table.shape[-1])))
    embeddings = jnp.concatenate(parts, axis=-1)
    return embeddings.reshape(-1, embeddings.shape[-1])[:length]


def axial_at(tables: Sequence[jax.Array], positions: jax.Array) -> jax.Array:
    """Embeddings [..., sum(d)] of single positions, as in `axial`."""
    parts = []
    for table in reversed(tables):
        parts.append(table[positions % table.shape[0]])
        positions = positions // table.shape[0]
    return jnp.concatenate(parts[::-1], axis=-1)


def sinusoidal(positions: jax.Array, size: int) -> jax.Array:
    """Sines and cosines [..., size] of Vaswani et al. 2017, section 3.5; even size."""
    if size % 2:
        raise ValueError(f'sinusoidal positions need an even size, not {size}.')
    frequencies = 10000.0 ** (-jnp.arange(0, size, 2) / size)
    angles = positions[..., None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
