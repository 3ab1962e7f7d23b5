"""Cached LSH attention: the strict rule exactly, the others as they allow.

Strict: a token sees the last C tokens of its bucket in each round, which the cache
keeps; the cost of a step does not depend on the length. With the other rules a later
token moves the chunks of earlier ones, so that no cache gives the outputs of the whole
sequence. There a new token sees the chunk that the tokens up to itself put it in (as in
transformers' cached decoding), and earlier tokens keep what they saw.

Functions and shape letters are those of caches.py.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from reformer_jax import attention
from reformer_jax.attention import hashing
from reformer_jax.attention import numerics
from reformer_jax.generation import caches

# Position of an empty slot.
_NONE = 2**31 - 1


class Cache(NamedTuple):
    """What the rule of the kind can show a new token.

    The strict rule shows the last C tokens of its bucket. With the others its chunk, of
    whose bucket it is the last, and the chunks before it reach back to the last W
    tokens of buckets and forward to the first C of them.

    Attributes:
      kv_BHSX: by position a token's unit key and value in one row, X = 2 * K, so that
        it takes one access to memory.
      counts_BHRN: tokens of each bucket.
      latest_BHRNW: last positions of each bucket, its i-th token in slot i % W; W is C
        for the strict rule.
      earliest_BHRNC: first positions of each bucket, its i-th token in slot i; no slots
        for the strict rule.
    """

    kv_BHSX: jax.Array
    counts_BHRN: jax.Array
    latest_BHRNW: jax.Array
    earliest_BHRNC: jax.Array


def prompt(kind: attention.LSH, heads, lengths_B, rotations, capacity: int):
    """Attention output [B, P, H, K] of a prompt, and its cache; see caches.full_prompt.

    Rotations are those of the layer, [H, K, R, S].
    """
    out_BPHK, order_BHRP, counts_BHRN = _attend_prompt(
        kind, heads, lengths_B, rotations
    )
    kv_BHSX = caches.by_position(_keys_and_values(*heads), capacity)
    size = kind.chunk_length
    last, first = (kind.chunks_before + 1) * size, size
    if kind.rule == 'strict':
        last, first = size, 0
    places_BHRNW = caches.latest_in_slots(counts_BHRN[..., None] - 1, jnp.arange(last))
    return out_BPHK, Cache(
        kv_BHSX,
        counts_BHRN,
        _of_buckets(order_BHRP, counts_BHRN, places_BHRNW),
        _of_buckets(order_BHRP, counts_BHRN, jnp.arange(first)),
    )


def step(kind: attention.LSH, cache: Cache, heads, positions_B, rotations):
    """Attention output [B, 1, H, K] of the tokens at `positions_B`, and the cache."""
    ids_BHR = hashing.hash_vectors(heads[0], rotations, buckets=kind.buckets)[..., 0]
    bucket = (*caches.indices(ids_BHR.shape), ids_BHR)
    counts_BHR = cache.counts_BHRN[bucket]
    kv_B1HX = _keys_and_values(*heads)
    cache = cache._replace(
        kv_BHSX=caches.put(cache.kv_BHSX, positions_B, kv_B1HX[:, 0]),
        counts_BHRN=_set(cache.counts_BHRN, bucket, counts_BHR + 1),
    )
    add = _add_strict if kind.rule == 'strict' else _add_sorted
    cache, keys_BHRW = add(kind, cache, bucket, counts_BHR, positions_B)
    keys_BHW = keys_BHRW.reshape(*keys_BHRW.shape[:2], -1)
    q_BHK = heads[0][:, 0]
    return _attend(kind, cache.kv_BHSX, q_BHK, positions_B, keys_BHW), cache


def _add_strict(kind, cache: Cache, bucket, counts_BHR, positions_B):
    """The cache with the tokens, which were the buckets' counts-th; keys they see."""
    latest_BHRC = cache.latest_BHRNW[bucket]
    slots_C = jnp.arange(kind.chunk_length)
    keys_BHRC = jnp.where(slots_C < counts_BHR[..., None], latest_BHRC, _NONE)
    # Whole rows, made from those that were read: so XLA writes them in place instead
    # of into a copy of the array.
    written_BHRC = slots_C == (counts_BHR % slots_C.size)[..., None]
    latest_BHRC = jnp.where(written_BHRC, positions_B[:, None, None, None], latest_BHRC)
    latest_BHRNC = _set(cache.latest_BHRNW, bucket, latest_BHRC)
    return cache._replace(latest_BHRNW=latest_BHRNC), keys_BHRC


def _add_sorted(kind: attention.LSH, cache: Cache, bucket, counts_BHR, positions_B):
    """As _add_strict. The trax rule looks around the ends of a round, not across."""
    position_B11 = positions_B[:, None, None]
    latest_BHRNW, earliest_BHRNC = cache.latest_BHRNW, cache.earliest_BHRNC
    place = (*bucket, counts_BHR % latest_BHRNW.shape[-1])
    cache = cache._replace(
        latest_BHRNW=_set(latest_BHRNW, place, position_B11),
        # Out of bounds, and so left out, unless among the first.
        earliest_BHRNC=earliest_BHRNC.at[(*bucket, counts_BHR)].set(
            position_B11, mode='drop'
        ),
    )
    size, before = kind.chunk_length, kind.chunks_before
    ends_BHRN = jnp.cumsum(cache.counts_BHRN, axis=-1)
    rank_BHR1 = ends_BHRN[bucket][..., None] - 1
    offsets_W = jnp.arange((before + 1) * size)
    ranks_BHRW = (rank_BHR1 // size - before) * size + offsets_W
    tokens_B111 = position_B11[..., None] + 1
    if kind.rule == 'trax':
        ranks_BHRW %= tokens_B111
        inside_BHRW = offsets_W < tokens_B111
    else:
        inside_BHRW = (ranks_BHRW >= 0) & (ranks_BHRW < tokens_B111)
    inside_BHRW &= ranks_BHRW != rank_BHR1
    if kind.rule == 'bucket':
        inside_BHRW &= ranks_BHRW < rank_BHR1
        inside_BHRW &= ranks_BHRW >= rank_BHR1 - counts_BHR[..., None]
    keys_BHRW = _at_ranks(cache, ends_BHRN, jnp.where(inside_BHRW, ranks_BHRW, 0))
    return cache, jnp.where(inside_BHRW, keys_BHRW, _NONE)


def _at_ranks(cache: Cache, ends_BHRN, ranks_BHRW) -> jax.Array:
    """Positions of those ranks in the sorted order that the cache can tell."""
    find = functools.partial(jnp.searchsorted, side='right')
    ids_BHRW = jnp.vectorize(find, signature='(n),(w)->(w)')(ends_BHRN, ranks_BHRW)
    bucket = (*(i[..., None] for i in caches.indices(ids_BHRW.shape[:3])), ids_BHRW)
    counts_BHRW = cache.counts_BHRN[bucket]
    places_BHRW = ranks_BHRW - (ends_BHRN[bucket] - counts_BHRW)
    slots = cache.latest_BHRNW.shape[-1]
    first_C = cache.earliest_BHRNC.shape[-1]
    return jnp.where(
        places_BHRW >= counts_BHRW - slots,
        cache.latest_BHRNW[(*bucket, places_BHRW % slots)],
        cache.earliest_BHRNC[(*bucket, jnp.minimum(places_BHRW, first_C - 1))],
    )


def _attend_prompt(kind: attention.LSH, heads, lengths_B, rotations):
    """Output [B, P, H, K], sorted positions [B, H, R, P], bucket sizes [B, H, R, N].

    Padding gets a bucket of its own behind the others. As it also stands behind all
    real tokens, causal attention needs no mask.
    """
    qk_BPHK, v_BPHK = heads
    count = kind.num_buckets
    real_BP = jnp.arange(qk_BPHK.shape[1]) < lengths_B[:, None]
    ids_BHRP = hashing.hash_vectors(qk_BPHK, rotations, buckets=kind.buckets)
    ids_BHRP = jnp.where(real_BP[:, None, None], ids_BHRP, count)
    with_padding = dataclasses.replace(kind, buckets=count + 2)  # an even number
    order_BHRP = attention.sorted_order(with_padding, ids_BHRP, None)
    out_BPHK = attention.lsh_attention(
        with_padding, qk_BPHK, v_BPHK, ids_BHRP, order=order_BHRP
    )
    rows = (index[..., None] for index in caches.indices(ids_BHRP.shape[:3]))
    counts_BHRN = jnp.zeros((*ids_BHRP.shape[:3], count + 1), jnp.int32)
    counts_BHRN = counts_BHRN.at[(*rows, ids_BHRP)].add(1, mode='promise_in_bounds')
    return out_BPHK, order_BHRP, counts_BHRN[..., :-1]


def _of_buckets(order_BHRP, counts_BHRN, places) -> jax.Array:
    """Positions [B, H, R, N, ...] of the tokens at some places of each bucket.

    Anything where there is no such place.
    """
    starts_BHRN = jnp.cumsum(counts_BHRN, axis=-1) - counts_BHRN
    ranks = jnp.clip(starts_BHRN[..., None] + places, 0, order_BHRP.shape[-1] - 1)
    return jnp.take_along_axis(order_BHRP[..., None, :], ranks, axis=-1)


def _set(x_BHRN: jax.Array, bucket, values: jax.Array) -> jax.Array:
    return x_BHRN.at[bucket].set(values, mode='promise_in_bounds', unique_indices=True)


def _keys_and_values(qk_BLHK, v_BLHK) -> jax.Array:
    k_BLHK = numerics.unit_keys(qk_BLHK).astype(v_BLHK.dtype)
    return jnp.concatenate([k_BLHK, v_BLHK], axis=-1)


def _attend(kind: attention.LSH, kv_BHSX, q_BHK, positions_B, keys_BHW) -> jax.Array:
    """Shared-QK attention to the keys at some positions, [B, 1, H, K].

    The token itself, which is in the cache, is seen where there is nothing else.
    """
    count_once = kind.rule != 'trax'
    if count_once:
        keys_BHW = jnp.sort(keys_BHW, axis=-1)
    hidden_BHW = keys_BHW == _NONE
    if count_once:
        hidden_BHW |= keys_BHW == jnp.roll(keys_BHW, 1, axis=-1).at[..., 0].set(-1)
    alone_BH1 = jnp.all(hidden_BHW, axis=-1, keepdims=True)
    # The token itself stands in every hidden place; the first is seen if all are.
    keys_BHW = jnp.where(hidden_BHW, positions_B[:, None, None], keys_BHW)
    first_W = jnp.arange(keys_BHW.shape[-1]) == 0
    allowed_BHW = ~hidden_BHW | (alone_BH1 & first_W)
    b_B11, h_1H1, _ = caches.indices((*kv_BHSX.shape[:2], 1))
    kv_BHWX = kv_BHSX.at[b_B11, h_1H1, keys_BHW].get(mode='promise_in_bounds')
    # The whole rows twice, rather than copies of their halves.
    q_BHX = jnp.concatenate([q_BHK, jnp.zeros_like(q_BHK)], axis=-1)
    out_B1HX = caches.softmax_sum(q_BHX, kv_BHWX, kv_BHWX, allowed_BHW)
    return out_B1HX[..., q_BHK.shape[-1] :]
