"""Position-wise functions over chunks of the sequence (paper section 3, "Chunking")."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def map_chunks(
    function: Callable[[Any], Any], inputs: Any, *, chunk_length: int
) -> Any:
    """function(inputs) in the memory of one chunk, forward and backward.

    Args:
      function: maps a pytree of [B, c, ...] to a pytree of [B, c, ...], each position
        on its own. It is recomputed in the backward pass.
      inputs: pytree of arrays [B, L, ...].
      chunk_length: positions at a time, the last chunk takes the rest; 0 or at least L
        applies the function to all at once.
    """
    length = jax.tree.leaves(inputs)[0].shape[1]
    if not 0 < chunk_length < length:
        return function(inputs)
    function = jax.checkpoint(function)
    whole = length - length % chunk_length

    def split(x):
        x = x[:, :whole].reshape(x.shape[0], -1, chunk_length, *x.shape[2:])
        return jnp.moveaxis(x, 1, 0)

    def join(x):
        x = jnp.moveaxis(x, 0, 1)
        return x.reshape(x.shape[0], whole, *x.shape[3:])

    outputs = jax.tree.map(join, lax.map(function, jax.tree.map(split, inputs)))
    if whole == length:
        return outputs
    rest = function(jax.tree.map(lambda x: x[:, whole:], inputs))
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b], 1), outputs, rest)
