"""The feed-forward layer: like attention, from a layer norm to a dropout."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from reformer_jax import layers
from reformer_jax import linear
from reformer_jax import sharding

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    'relu': jax.nn.relu,
    'gelu': jax.nn.gelu,
    'gelu_erf': functools.partial(jax.nn.gelu, approximate=False),
    'swish': jax.nn.swish,
}

_glorot = jax.nn.initializers.glorot_uniform


class FeedForward(nnx.Module):
    """Norm, dense layer, activation, dense layer."""

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        *,
        activation: str,
        dropout: float,
        norm_epsilon: float,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        self.norm = layers.norm(d_model, norm_epsilon, rngs)
        self.hidden = nnx.Param(_glorot()(rngs.params(), (d_model, d_ff)))
        self.hidden_bias = nnx.Param(jnp.zeros((d_ff,)))
        self.output = nnx.Param(_glorot()(rngs.params(), (d_ff, d_model)))
        self.output_bias = nnx.Param(jnp.zeros((d_model,)))
        self.activation = activation
        self.dropout = dropout
        self.dtype = dtype

    def __call__(
        self, x_BLD: jax.Array, key: jax.Array, *, train: bool = False
    ) -> jax.Array:
        """Output [B, L, D], each position on its own."""
        hidden_key, output_key = jax.random.split(key)
        rate = self.dropout if train else 0.0
        hidden_DF = sharding.constrain(self.hidden[...], P(None, 'model'))
        output_FD = sharding.constrain(self.output[...], P('model'))
        x_BLD = sharding.constrain(
            self.norm(x_BLD).astype(self.dtype), P(sharding.BATCH_AXES)
        )
        h_BLF = linear.linear(x_BLD, hidden_DF.astype(self.dtype))
        h_BLF += self.hidden_bias.astype(self.dtype)
        h_BLF = layers.dropout(h_BLF, rate, hidden_key)
        h_BLF = ACTIVATIONS[self.activation](h_BLF)
        out_BLD = linear.linear(h_BLF, output_FD.astype(self.dtype))
        out_BLD += self.output_bias.astype(self.dtype)
        out_BLD = sharding.constrain(out_BLD, P(sharding.BATCH_AXES))
        return layers.dropout(out_BLD, rate, output_key)
