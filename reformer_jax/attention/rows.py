"""Rows, which are heads of batch elements, taken some at a time.

So a CPU works on arrays that stay in its cache, and copies of a row exist for few rows
at once. Shape letters are explained in the package.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from reformer_jax.attention import numerics


class Rows(NamedTuple):
    """How many batch elements and heads are taken at once; they divide B and H."""

    batch: int
    heads: int


def at_most(count: int, batch: int, heads: int) -> Rows:
    """As many rows as divide the batch and the heads evenly, but no more than count."""
    heads_at_once = numerics.divisor_at_most(heads, count)
    return Rows(numerics.divisor_at_most(batch, count // heads), heads_at_once)


def steps(rows: Rows, x_BLHK: jax.Array) -> jax.Array:
    """The indices of all steps over the rows of an array."""
    batch, _, heads, _ = x_BLHK.shape
    return jnp.arange((batch // rows.batch) * (heads // rows.heads))


def corner(rows: Rows, index: Any, heads: int) -> tuple[jax.Array, jax.Array]:
    """First batch element and first head of a step."""
    b, h = jnp.divmod(index, heads // rows.heads)
    return b * rows.batch, h * rows.heads


def take(rows: Rows, index: Any, x_BLHK: jax.Array) -> jax.Array:
    """The rows of a step, [N, L, K]."""
    length, heads, head_size = x_BLHK.shape[1:]
    b, h = corner(rows, index, heads)
    sizes = rows.batch, length, rows.heads, head_size
    return numerics.rows(lax.dynamic_slice(x_BLHK, (b, 0, h, 0), sizes))


def take_mask(rows: Rows, index: Any, mask: jax.Array, heads: int) -> jax.Array:
    """The mask [B, ...] of the rows of a step, [N, ...]."""
    b, _ = corner(rows, index, heads)
    mask = lax.dynamic_slice_in_dim(mask, b, rows.batch)
    return jnp.repeat(mask, rows.heads, axis=0)


def put(rows: Rows, index: Any, x_BLHK: jax.Array, new_NLK: jax.Array) -> jax.Array:
    """x with the rows of a step replaced."""
    length, heads, head_size = x_BLHK.shape[1:]
    b, h = corner(rows, index, heads)
    new_bhLK = new_NLK.reshape(rows.batch, rows.heads, length, head_size)
    new_bLhK = jnp.moveaxis(new_bhLK, 1, 2).astype(x_BLHK.dtype)
    return lax.dynamic_update_slice(x_BLHK, new_bLhK, (b, 0, h, 0))
