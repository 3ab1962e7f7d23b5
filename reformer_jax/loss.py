"""Cross-entropy over the vocabulary, a chunk of the sequence at a time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from reformer_jax import chunking


def cross_entropy(
    logits: Callable[[Any], jax.Array],
    hidden: Any,
    targets_BL: jax.Array,
    *,
    chunk_length: int,
) -> tuple[jax.Array, jax.Array]:
    """Negative log-likelihood in nats and whether the target was the likeliest, [B, L].

    Args:
      logits: maps hidden, cut to c positions, to logits [B, c, V].
      hidden: pytree of [B, L, ...] that the logits are computed from.
      targets_BL: ids in [0, V).
      chunk_length: logits of so many positions exist at a time; 0 for all.
    """

    def per_token(inputs):
        hidden, targets = inputs
        logits_BLV = logits(hidden).astype(jnp.float32)
        picked = jnp.take_along_axis(logits_BLV, targets[..., None], axis=-1)[..., 0]
        nll = jax.nn.logsumexp(logits_BLV, axis=-1) - picked
        return nll, logits_BLV.argmax(-1) == targets

    return chunking.map_chunks(
        per_token, (hidden, targets_BL), chunk_length=chunk_length
    )
