"""Attention of one new token at a time, from caches of the tokens before it.

A cache is a pytree of static shape for B sequences, each at its own length. For each
kind of attention (those of LSH are in lsh_caches.py) a `..._prompt` function attends
all tokens of a prompt at once, as training does, and makes the cache, and a `step`
function adds one token. Prompts are [B, P], row b filled up to its own length, and
self-attention is causal.

What a decoder keeps of its source never changes, and rows that continue one source,
beams or samples, share it: memory_prompt makes it, memory_step only reads it.

Shape letters are explained in attention; further P prompt tokens (padded), S the
capacity of a cache in tokens or the length of a source, E rows of one source, N = B * E
rows, W here the slots of a cache or the keys of a step.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from reformer_jax import attention
from reformer_jax.attention import numerics


class Cache(NamedTuple):
    """Keys and values of the latest W positions, position p in slot p % W."""

    k_BHWK: jax.Array
    v_BHWK: jax.Array


def full_prompt(kind: attention.Full, heads, capacity: int):
    """Attention output [B, P, H, K] of a prompt, and its cache.

    Args:
      kind: causal, so that what stands behind a prompt is never seen.
      heads: queries, keys (unless shared) and values, [B, P, H, K] each.
      capacity: tokens that the cache can hold.
    """
    out_BPHK = attention.full_attention(kind, heads[0], heads[-2], heads[-1])
    k_BPHK, v_BPHK = _kept(heads)
    return out_BPHK, Cache(by_position(k_BPHK, capacity), by_position(v_BPHK, capacity))


def local_prompt(kind: attention.Local, heads, lengths_B):
    """As full_prompt; the cache is that of prompts of such lengths."""
    out_BPHK = attention.local_attention(kind, *heads)
    slots_W = jnp.arange((kind.chunks_before + 1) * kind.chunk_length)
    positions_BW = jnp.maximum(latest_in_slots(lengths_B[:, None] - 1, slots_W), 0)

    def latest(x_BPHK):
        x_BWHK = jnp.take_along_axis(x_BPHK, positions_BW[:, :, None, None], axis=1)
        return jnp.moveaxis(x_BWHK, 2, 1)

    k_BPHK, v_BPHK = _kept(heads)
    return out_BPHK, Cache(latest(k_BPHK), latest(v_BPHK))


def step(kind: attention.Full | attention.Local, cache: Cache, heads, positions_B):
    """Attention output [B, 1, H, K] of the tokens at `positions_B`, and the cache."""
    heads_BHK = [x_B1HK[:, 0] for x_B1HK in heads]
    q_BHK, (k_BHK, v_BHK) = heads_BHK[0], _kept(heads_BHK)
    slots_W = jnp.arange(cache.k_BHWK.shape[2])
    slots_B = positions_B % slots_W.size
    cache = Cache(put(cache.k_BHWK, slots_B, k_BHK), put(cache.v_BHWK, slots_B, v_BHK))
    own_B1 = positions_B[:, None]
    if isinstance(kind, attention.Local):
        size = kind.chunk_length
        first_B1 = jnp.maximum(own_B1 // size - kind.chunks_before, 0) * size
        allowed_BW = latest_in_slots(own_B1, slots_W) >= first_B1
    else:
        allowed_BW = slots_W <= own_B1
    if _is_shared(heads):
        allowed_BW &= (slots_W != own_B1) | (own_B1 == 0)
    else:
        q_BHK = q_BHK * q_BHK.shape[-1] ** -0.5
    return softmax_sum(q_BHK, cache.k_BHWK, cache.v_BHWK, allowed_BW[:, None]), cache


def memory_prompt(kind: attention.Full, heads, mask_BS):
    """Attention output [B, P, H, K] to sources, and their keys and values, W = S.

    Args:
      kind: neither causal nor shared.
      heads: queries [B, P, H, K]; keys and values [B, S, H, K] each.
      mask_BS: True for real tokens; zeros where there are none.
    """
    q_BPHK, (k_BSHK, v_BSHK) = heads
    out_BPHK = attention.full_attention(kind, q_BPHK, k_BSHK, v_BSHK, mask=mask_BS)
    size = k_BSHK.shape[1]
    return out_BPHK, Cache(by_position(k_BSHK, size), by_position(v_BSHK, size))


def memory_step(memory: Cache, q_N1HK: jax.Array, mask_BS) -> jax.Array:
    """Attention output [N, 1, H, K] of a token each; the E rows of a source together.

    So the keys of a source are read once for all its rows.
    """
    q_BEHK = q_N1HK.reshape(len(mask_BS), -1, *q_N1HK.shape[2:])
    q_BEHK = q_BEHK * q_BEHK.shape[-1] ** -0.5
    logits_BHEW = numerics.contract('behk,bhwk->bhew', q_BEHK, memory.k_BHWK)
    p_BHEW = numerics.softmax(logits_BHEW, mask_BS[:, None, None], None)
    v_BHWK = memory.v_BHWK
    out_BEHK = jnp.einsum('bhew,bhwk->behk', p_BHEW.astype(v_BHWK.dtype), v_BHWK)
    return out_BEHK.reshape(q_N1HK.shape)


def _is_shared(heads) -> bool:
    return len(heads) == 2


def _kept(heads):
    """Keys and values as a cache has them; shared queries as keys of unit length."""
    k, v = heads[-2:]
    return (numerics.unit_keys(k).astype(k.dtype) if _is_shared(heads) else k), v


def latest_in_slots(last: jax.Array, slots: jax.Array) -> jax.Array:
    """The latest number up to `last` that each slot of a ring holds; may be negative.

    Slots are 0 .. n - 1 along the last axis, number i stands in slot i % n.
    """
    return last - (last - slots) % slots.shape[-1]


def indices(shape: tuple[int, ...]) -> tuple[jax.Array, ...]:
    """Indices along each axis, to be broadcast against each other."""
    return tuple(jnp.ix_(*(jnp.arange(size) for size in shape)))


def by_position(x_BPHK: jax.Array, capacity: int) -> jax.Array:
    """[B, P, H, K] as [B, H, S, K], zeros behind."""
    padding = [(0, 0), (0, 0), (0, capacity - x_BPHK.shape[1]), (0, 0)]
    return jnp.pad(jnp.moveaxis(x_BPHK, 2, 1), padding)


def put(x_BHSK: jax.Array, slots_B: jax.Array, new_BHK: jax.Array) -> jax.Array:
    """x with one row of each head replaced."""
    b_B1, h_1H = indices(x_BHSK.shape[:2])
    return x_BHSK.at[b_B1, h_1H, slots_B[:, None]].set(
        new_BHK, mode='promise_in_bounds', unique_indices=True
    )


def softmax_sum(q_BHK, k_BHWK, v_BHWK, allowed) -> jax.Array:
    """Attention output [B, 1, H, K] in the dtype of v; softmax in float32."""
    logits_BHW = jnp.einsum(
        'bhk,bhwk->bhw', q_BHK, k_BHWK, preferred_element_type=jnp.float32
    )
    p_BHW = jax.nn.softmax(jnp.where(allowed, logits_BHW, numerics.MASKED), axis=-1)
    out_BHK = jnp.einsum('bhw,bhwk->bhk', p_BHW.astype(v_BHWK.dtype), v_BHWK)
    return out_BHK[:, None]
