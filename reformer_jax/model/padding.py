"""Padding that leaves no trace: real tokens to the front, whole chunks behind them.

With its real tokens at the front of a row, whatever stood around them, a sequence has
the positions, chunks and buckets that it has alone; what fills up the last chunk is
masked. Results go back to where the tokens came from.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from reformer_jax.attention import hashing


class Order(NamedTuple):
    """A permutation of the places of each row, and its inverse, int32 [B, L]."""

    order_BL: jax.Array
    ranks_BL: jax.Array

    @property
    def inverse(self) -> 'Order':
        """The way back."""
        return Order(self.ranks_BL, self.order_BL)


def real_first(mask_BL: jax.Array) -> Order:
    """Real tokens (True) in their order, then the others."""
    order_BL = jnp.argsort(~mask_BL, axis=1, stable=True)
    return Order(order_BL, hashing.inverse_order(order_BL))


@functools.partial(jax.custom_vjp)
def take(x_BL: jax.Array, order: Order) -> jax.Array:
    """Rows [B, L, ...] in another order.

    The gradient goes back by the inverse: autodiff would scatter it, which XLA does one
    number at a time on a CPU.
    """
    rows = jax.vmap(lambda x, order: x.at[order].get(mode='promise_in_bounds'))
    return rows(x_BL, order.order_BL)


def _take_forward(x_BL, order):
    return take(x_BL, order), order


def _take_backward(order, dx_BL):
    return take(dx_BL, order.inverse), None


take.defvjp(_take_forward, _take_backward)


def to_length(
    tokens_BL: jax.Array, mask_BL: jax.Array | None, length: int
) -> tuple[jax.Array, jax.Array | None]:
    """Tokens and mask filled up to a length; if nothing is missing, as they are."""
    missing = length - tokens_BL.shape[1]
    if not missing:
        return tokens_BL, mask_BL
    if mask_BL is None:
        mask_BL = jnp.ones(tokens_BL.shape, bool)
    fill = [(0, 0), (0, missing)]
    return jnp.pad(tokens_BL, fill), jnp.pad(mask_BL, fill)
