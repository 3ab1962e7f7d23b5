"""Local attention: within a chunk and its neighbours."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from reformer_jax.attention import full
from reformer_jax.attention import kinds
from reformer_jax.attention import numerics
from reformer_jax.attention import windows


def local_attention(
    kind: kinds.Local,
    q_BLHK: jax.Array,
    k_BLHK: jax.Array,
    v_BLHK: jax.Array,
    *,
    mask: jax.Array | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """Attention within a chunk and its neighbours, [B, L, H, K] in the dtype of v.

    A sequence of at most one chunk gets full attention. Logits are scaled by
    1 / sqrt(K).
    """
    batch, length, heads, head_size = q_BLHK.shape
    kinds.check_shapes(q_BLHK, k_BLHK, v_BLHK)
    kinds.check_length(kind, length)
    if length <= kind.chunk_length:
        exact = kinds.Full(kind.causal, dropout=kind.dropout)
        return full.full_attention(exact, q_BLHK, k_BLHK, v_BLHK, mask=mask, key=key)
    chunk_length, causal, circular = kind.chunk_length, kind.causal, kind.circular
    chunks_before, chunks_after = kind.chunks_before, kind.chunks_after
    window = chunk_length * (chunks_before + 1 + chunks_after)
    chunks = length // chunk_length
    group = numerics.divisor_at_most(
        chunks, numerics.logits_per_step() // (chunk_length * window)
    )
    dropout_CW = numerics.attention_dropout(key, kind.dropout, (chunk_length, window))
    at_once = max(1, numerics.logits_per_step() // (group * chunk_length * window))
    steps_per_row = chunks // group

    @jax.checkpoint
    def attend(inputs):
        index, q_GCK, k_ECK, v_ECK = inputs
        row, step = jnp.divmod(index, steps_per_row)
        first = (step * group - chunks_before) * chunk_length
        positions_EC = first + jnp.arange(k_ECK[..., 0].size).reshape(-1, chunk_length)
        if circular and not causal:
            positions_EC %= length
        real_L = None if mask is None else jnp.asarray(mask)[row // heads]
        allowed_GCW = _allowed_in_windows(
            positions_EC, real_L, length, group, chunks_before, causal
        )
        return _attend_windows(q_GCK, k_ECK, v_ECK, allowed_GCW, dropout_CW)

    in_steps = functools.partial(_in_steps, chunk_length, group, circular)
    inputs = (
        jnp.arange(batch * heads * steps_per_row),
        in_steps(q_BLHK, 0, 0),
        in_steps(k_BLHK, chunks_before, chunks_after),
        in_steps(v_BLHK, chunks_before, chunks_after),
    )
    out = lax.map(attend, inputs, batch_size=at_once if at_once > 1 else None)
    return _unrows(out.reshape(-1, length, head_size), heads)


def _allowed_in_windows(positions_EC, real_L, length, chunks, before, causal):
    """Which keys of its window a query may see, [G, C or 1, W]: no padding, no ends."""
    real_EC = (positions_EC >= 0) & (positions_EC < length)
    if real_L is not None:
        real_EC &= real_L[jnp.clip(positions_EC, 0, length - 1)]
    allowed_GCW = windows.windows(real_EC, chunks)[:, None, :]
    if causal:
        queries_GC = positions_EC[before : before + chunks]
        keys_GW = windows.windows(positions_EC, chunks)
        allowed_GCW &= queries_GC[:, :, None] >= keys_GW[:, None, :]
    return allowed_GCW


def _in_steps(chunk_length, group, circular, x_BLHK, before, after):
    """[B, L, H, K] -> [N * M / group, before + group + after, C, K].

    Beyond the ends are zeros or, if circular, the chunks at the other end.
    """
    x_NLK = numerics.rows(x_BLHK)
    x_NMCK = x_NLK.reshape(x_NLK.shape[0], -1, chunk_length, x_NLK.shape[-1])
    chunks = x_NMCK.shape[1]
    missing = [(0, 0), (before, after), (0, 0), (0, 0)]
    x_NMCK = jnp.pad(x_NMCK, missing, mode='wrap' if circular else 'constant')
    groups = x_NMCK[:, :chunks].reshape(-1, chunks // group, group, *x_NMCK.shape[2:])
    lasts = [
        x_NMCK[:, group + e :: group][:, : chunks // group, None]
        for e in range(before + after)
    ]
    around = jnp.concatenate([groups, *lasts], axis=2)
    return around.reshape(-1, *around.shape[2:])


def _attend_windows(q_GCK, k_ECK, v_ECK, allowed_GCW, dropout_CW):
    chunks, _, head_size = q_GCK.shape
    logits_GCW = numerics.contract(
        'gck,gwk->gcw', q_GCK * head_size**-0.5, windows.windows(k_ECK, chunks)
    )
    p_GCW = numerics.softmax(logits_GCW, allowed_GCW, None)
    if dropout_CW is not None:
        p_GCW *= dropout_CW
    values_GWK = windows.windows(v_ECK, chunks)
    return jnp.einsum('gcw,gwk->gck', p_GCW.astype(v_ECK.dtype), values_GWK)


def _unrows(x_NLK: jax.Array, heads: int) -> jax.Array:
    return jnp.moveaxis(x_NLK.reshape(-1, heads, *x_NLK.shape[1:]), 1, 2)
