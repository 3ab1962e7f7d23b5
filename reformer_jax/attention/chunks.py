"""Attention of chunks of queries, each to a window of keys: a step of LSH and local.

Queries are [G, C, K], keys and values [G, W, K], for G chunks; shape letters are
explained in the package.
"""

import jax
import jax.numpy as jnp
from jax import lax

from reformer_jax.attention import numerics

# A CPU's matrix product adds the terms of so many columns at a time in order.
_COLUMNS = 32


def weigh(logits_GCW, v_GWK, allowed_GCW, dropout_CW, *, order_free: bool = False):
    """Output [G, C, K] and log-sum-exp [G, C] in float32, and where no key was seen.

    Args:
      logits_GCW: products of queries and keys.
      v_GWK: values.
      allowed_GCW: which keys a query may see.
      dropout_CW: factors of the probabilities, or None.
      order_free: whether the same keys in another order give the same bits.
    """
    logits_GCW = jnp.where(allowed_GCW, logits_GCW, numerics.MASKED)
    highest_GC = logits_GCW.max(-1)
    alone_GC = highest_GC < numerics.MASKED / 2
    highest_GC = jnp.where(alone_GC, 0.0, highest_GC)
    p_GCW = jnp.exp(logits_GCW - highest_GC[..., None])
    sum_GC = _order_free_sum(p_GCW) if order_free else p_GCW.sum(-1)
    sum_GC = jnp.where(alone_GC, 1.0, sum_GC)
    if dropout_CW is not None:
        p_GCW *= dropout_CW
    p_GCW = p_GCW.astype(v_GWK.dtype)
    out_GCK = _weighted_values(p_GCW, v_GWK, order_free=order_free)
    return out_GCK / sum_GC[..., None], highest_GC + jnp.log(sum_GC), alone_GC


def backward(qkv, allowed_GWC, dropout_CW, upstream):
    """Gradients of queries, keys and values in float32.

    Logits are [G, W, C] here, and their gradient is transposed once for the queries: so
    all five products have the forms that XLA runs on several cores. The barriers keep
    the mask from being computed again within the exponential, and the transposition
    from being folded into the product.

    Args:
      qkv: queries, keys and values.
      allowed_GWC: which keys a query may see.
      dropout_CW: factors of the probabilities, or None.
      upstream: the gradient of the output [G, C, K], the log-sum-exp [G, C], and the
        inner products of the output and its gradient [G, C].
    """
    (q_GCK, k_GWK, v_GWK), (dout_GCK, lse_GC, delta_GC) = qkv, upstream
    logits_GWC = numerics.contract('gwk,gck->gwc', k_GWK, q_GCK)
    logits_GWC = lax.optimization_barrier(
        jnp.where(allowed_GWC, logits_GWC, numerics.MASKED)
    )
    p_GWC = jnp.exp(logits_GWC - lse_GC[:, None])
    dp_GWC = numerics.contract('gwk,gck->gwc', v_GWK, dout_GCK)
    dropped_GWC = p_GWC
    if dropout_CW is not None:
        dp_GWC *= dropout_CW.T
        dropped_GWC = p_GWC * dropout_CW.T
    ds_GWC = (p_GWC * (dp_GWC - delta_GC[:, None])).astype(q_GCK.dtype)
    ds_GCW = lax.optimization_barrier(jnp.swapaxes(ds_GWC, 1, 2))
    dq_GCK = numerics.contract('gcw,gwk->gck', ds_GCW, k_GWK)
    dk_GWK = numerics.contract('gwc,gck->gwk', ds_GWC, q_GCK)
    dropped_GWC = dropped_GWC.astype(dout_GCK.dtype)
    dv_GWK = numerics.contract('gwc,gck->gwk', dropped_GWC, dout_GCK)
    return dq_GCK, dk_GWK, dv_GWK


def add_windows(x_ECK: jax.Array, windows_GWK: jax.Array, first) -> jax.Array:
    """x with the chunks of windows added where they stand, that of the first first."""
    size = x_ECK.shape[1]
    for place in range(windows_GWK.shape[1] // size):
        chunks_GCK = windows_GWK[:, place * size : (place + 1) * size]
        x_ECK = add(x_ECK, chunks_GCK, first + place)
    return x_ECK


def add(x_ECK: jax.Array, chunks_GCK: jax.Array, first) -> jax.Array:
    """x with chunks added to those from the first on."""
    there = lax.dynamic_slice_in_dim(x_ECK, first, chunks_GCK.shape[0])
    return lax.dynamic_update_slice_in_dim(x_ECK, there + chunks_GCK, first, axis=0)


def _order_free_sum(p_GCW: jax.Array) -> jax.Array:
    """Sums over W of numbers in [0, 1] that do not depend on the order of addition.

    Each number is split in two parts on grids so coarse that float32 adds W of them
    without rounding; at most W**2 / 2**50 of it is left out (reproducible summation,
    Demmel and Nguyen 2013).
    """
    width_bits = (p_GCW.shape[-1] - 1).bit_length()
    coarse = 2.0 ** (24 - width_bits)
    fine = coarse * 2.0 ** (25 - width_bits)
    high_GCW = jnp.round(p_GCW * coarse)
    low_GCW = jnp.round((p_GCW - high_GCW / coarse) * fine)
    # Within one reduction XLA's CPU rounds one number at a time.
    low_GCW = lax.optimization_barrier(low_GCW)
    return high_GCW.sum(-1) / coarse + low_GCW.sum(-1) / fine


def _weighted_values(p_GCW: jax.Array, v_GWK: jax.Array, *, order_free: bool):
    """Sum over the window of p * v, [G, C, K] in float32."""
    head_size = v_GWK.shape[-1]
    if order_free:
        # The columns left over it would add in several interleaved sums; in order, the
        # zeros of hidden keys leave no trace. (So measured up to W = 512; of wider
        # windows and on accelerators the last bit may depend on a key's place.)
        v_GWK = jnp.pad(v_GWK, ((0, 0), (0, 0), (0, -head_size % _COLUMNS)))
    return numerics.contract('gcw,gwk->gck', p_GCW, v_GWK)[..., :head_size]
