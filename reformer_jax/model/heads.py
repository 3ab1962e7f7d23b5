"""What is made of the last hidden states: tokens, classes, answers.

The heads of Hugging Face's Reformer classes, with the same parameters, and one for
token classification, which it lacks.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from reformer_jax import sharding
from reformer_jax.model import config as model_config
from reformer_jax.model import layers
from reformer_jax.stack import linear

_glorot = jax.nn.initializers.glorot_uniform

# First and last token of the answer.
_ANSWER_ENDS = 2


class VocabularyHead(nnx.Module):
    """Logits over the vocabulary, for causal and masked language modelling."""

    def __init__(self, config: model_config.ModelConfig, rngs: nnx.Rngs):
        width = config.output_width
        if not config.tie_output:
            shape = (width, config.vocab_size)
            self.output = nnx.Param(_glorot()(rngs.params(), shape))
        elif width != config.d_model:
            shape = (width, config.d_model)
            self.tie_projection = nnx.Param(_glorot()(rngs.params(), shape))
        self.output_bias = nnx.Param(jnp.zeros((config.vocab_size,)))
        self.tied = config.tie_output
        self.projected = config.tie_output and width != config.d_model
        self.dtype = jnp.dtype(config.dtype)

    def __call__(self, x_BLX: jax.Array, embedding_VD: jax.Array) -> jax.Array:
        """Logits [B, L, V] in float32; the embedding is used where it is tied."""
        x_BLX = x_BLX.astype(self.dtype)
        if not self.tied:
            kernel_XV = sharding.constrain(self.output[...], P(None, 'model'))
        else:
            kernel_XV = embedding_VD.T
            if self.projected:
                x_BLX = linear.linear(x_BLX, self.tie_projection.astype(self.dtype))
        kernel_XV = kernel_XV.astype(self.dtype)
        return linear.linear(x_BLX, kernel_XV, jnp.float32) + self.output_bias


class SequenceHead(nnx.Module):
    """Dense layer, tanh, dropout, dense layer: logits of a pooled sequence."""

    def __init__(self, config: model_config.ModelConfig, rngs: nnx.Rngs):
        hidden = (config.output_width, config.d_model)
        self.hidden = nnx.Param(_glorot()(rngs.params(), hidden))
        self.hidden_bias = nnx.Param(jnp.zeros((config.d_model,)))
        output = (config.d_model, config.classes)
        self.output = nnx.Param(_glorot()(rngs.params(), output))
        self.output_bias = nnx.Param(jnp.zeros((config.classes,)))
        self.dropout = config.dropout
        self.dtype = jnp.dtype(config.dtype)

    def __call__(
        self, x_BX: jax.Array, key: jax.Array, *, train: bool = False
    ) -> jax.Array:
        """Logits [B, classes] in float32."""
        h_BD = _dense(x_BX, self.hidden, self.hidden_bias, self.dtype)
        h_BD = layers.dropout(jnp.tanh(h_BD), self.dropout if train else 0.0, key)
        return _dense(h_BD, self.output, self.output_bias, self.dtype)


class TokenHead(nnx.Module):
    """A dense layer: logits of each token, or of its being an end of the answer."""

    def __init__(self, config: model_config.ModelConfig, rngs: nnx.Rngs):
        classes = config.classes
        if config.head == 'question_answering':
            classes = _ANSWER_ENDS
        shape = (config.output_width, classes)
        self.output = nnx.Param(_glorot()(rngs.params(), shape))
        self.output_bias = nnx.Param(jnp.zeros((classes,)))
        self.dtype = jnp.dtype(config.dtype)

    def __call__(self, x_BLX: jax.Array) -> jax.Array:
        """Logits [B, L, classes] in float32."""
        return _dense(x_BLX, self.output, self.output_bias, self.dtype)


def build(config: model_config.ModelConfig, rngs: nnx.Rngs) -> Any:
    """The head of a model; None for head 'none'."""
    match config.head:
        case 'lm' | 'masked_lm':
            return VocabularyHead(config, rngs)
        case 'classification':
            return SequenceHead(config, rngs)
        case 'token_classification' | 'question_answering':
            return TokenHead(config, rngs)
    return None


def place_of_pooling(pooling: str, mask_BL: jax.Array) -> jax.Array:
    """Where the 'first' or 'last' real token of each row stands, int32 [B, 1]."""
    if pooling == 'first':
        return jnp.argmax(mask_BL, axis=1, keepdims=True)
    back_B1 = jnp.argmax(mask_BL[:, ::-1], axis=1, keepdims=True)
    return mask_BL.shape[1] - 1 - back_B1


def mean_of_real(x_BLX: jax.Array, mask_BL: jax.Array) -> jax.Array:
    """Mean over the real tokens, [B, X]."""
    weights_BL1 = mask_BL[..., None].astype(x_BLX.dtype)
    return (x_BLX * weights_BL1).sum(1) / jnp.maximum(weights_BL1.sum(1), 1)


def _dense(x, kernel: nnx.Param, bias: nnx.Param, dtype: Any) -> jax.Array:
    out = linear.linear(x.astype(dtype), kernel.astype(dtype), jnp.float32)
    return out + bias[...]
