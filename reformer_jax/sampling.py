"""Drawing tokens from logits: temperature, top-k, top-p (nucleus) sampling."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax import lax

# Below these float32 runs out; nothing changes by then.
_LEAST_TOP_P = 1e-6
_GREEDY = 1e-6


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sampling:
    """How to draw; made by `sampling`.

    Attributes:
      temperature: divides the logits; None takes the likeliest token.
      top_p: the likeliest tokens that together have this probability; None for all.
      top_k: so many likeliest tokens; None for all.
    """

    temperature: jax.Array | None
    top_p: jax.Array | None
    top_k: int | None = dataclasses.field(metadata={'static': True})


def sampling(
    *, temperature: float, top_k: int | None, top_p: float | None, vocab_size: int
) -> Sampling:
    """Checked settings; temperature 0 is greedy.

    Raises:
      ValueError: temperature negative or not finite, top_k outside [1, vocab_size],
        top_p outside (0, 1].
    """
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ValueError(
            f'temperature={temperature} must be at least 0: 0 takes the likeliest '
            'token, 1 samples from the model as it is.'
        )
    if top_k is not None and not 1 <= top_k <= vocab_size:
        raise ValueError(
            f'top_k={top_k} is not in [1, {vocab_size}], the size of the vocabulary: '
            'leave it out to sample from all tokens.'
        )
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(
            f'top_p={top_p} is not in (0, 1]: it is the probability of the tokens to '
            'sample from; leave it out, or use 1, for all.'
        )
    if top_p is not None and top_p < _LEAST_TOP_P:
        top_p = _LEAST_TOP_P  # still one token
    return Sampling(
        jnp.float32(temperature) if temperature > _GREEDY else None,
        None if top_p is None or top_p == 1 else jnp.float32(top_p),
        top_k,
    )


def draw(sampling: Sampling, keys_B: jax.Array, logits_BV: jax.Array) -> jax.Array:
    """One token of each row, int32 [B], each drawn with its own key."""
    if sampling.temperature is None:
        return logits_BV.argmax(-1).astype(jnp.int32)
    logits_BV -= logits_BV.max(-1, keepdims=True)  # else low temperatures overflow
    logits_BV = restrict(sampling, logits_BV / sampling.temperature)
    return jax.vmap(jax.random.categorical)(keys_B, logits_BV).astype(jnp.int32)


def restrict(sampling: Sampling, logits_BV: jax.Array) -> jax.Array:
    """Logits with -inf for the tokens that top_k and then top_p leave out.

    Tokens as likely as the last one that stays stay too.
    """
    if sampling.top_k is not None:
        lowest_B1 = lax.top_k(logits_BV, sampling.top_k)[0][:, -1:]
        logits_BV = jnp.where(logits_BV < lowest_B1, -jnp.inf, logits_BV)
    if sampling.top_p is not None:
        sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
        p_BV = jax.nn.softmax(sorted_BV, axis=-1)
        # A token stays if those before it have less than top_p.
        stays_BV = jnp.cumsum(p_BV, axis=-1) - p_BV < sampling.top_p
        lowest_B1 = jnp.where(stays_BV, sorted_BV, jnp.inf).min(-1, keepdims=True)
        logits_BV = jnp.where(logits_BV < lowest_B1, -jnp.inf, logits_BV)
    return logits_BV
