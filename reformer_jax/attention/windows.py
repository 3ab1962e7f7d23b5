"""Windows of sorted chunks: which keys the queries of a group of chunks see.

The static half of an LSH attention call (Plan), one row (batch, head) of its arrays
(Row), and one step over a group of chunks of a hash round (Step). Shape letters are
those of the package and of xla.py.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from reformer_jax.attention import hashing
from reformer_jax.attention import kinds
from reformer_jax.attention import numerics
from reformer_jax.attention import ring as rings
from reformer_jax.attention import rows as rows_lib

# Spacing of float32 around -1e5, which is a token's logit of itself in trax and
# Hugging Face: what the trax rule rounds the log-sum-exp of lonely tokens to.
_SELF_LOGIT_STEP = 2.0**-7

# Position of a key that no query may see.
HIDDEN = 2**31 - 1

# A query's code so far below all others that it meets no key.
MEETS_NONE = -(2**30)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The static half of one LSH attention call.

    Attributes:
      chunk_length: queries in a chunk.
      chunks_before: chunks looked back at.
      chunks_after: chunks looked ahead at.
      causal: whether keys must lie before their query.
      circular: look around the ends and across the rounds (the trax rule).
      band: lowest and highest code difference (query minus key) at which a key is met
        in a round; None if keys are counted as often as they are met (trax).
      band_in_round: whether the band also limits the keys within a window.
      chunks_per_step: chunks attended at once; divides the number of chunks.
      rows: attended at once.
      order_free: the same bits wherever in its window a key stands (the strict rule,
        where later tokens move it).
      ring: the mesh axis that splits positions, and the sorted order of each round, in
        shard_map; '' if each device has them all.
    """

    chunk_length: int
    chunks_before: int
    chunks_after: int
    causal: bool
    circular: bool
    band: tuple[int, int] | None
    band_in_round: bool
    chunks_per_step: int
    rows: rows_lib.Rows
    order_free: bool
    ring: str = ''

    @property
    def window_chunks(self) -> int:
        """Chunks that a query's chunk sees, itself among them."""
        return self.chunks_before + 1 + self.chunks_after

    @property
    def own(self) -> slice:
        """Where in its window a chunk has its own keys."""
        start = self.chunks_before * self.chunk_length
        return slice(start, start + self.chunk_length)


class Row(NamedTuple):
    """One (batch, head): queries, values, sorted positions, codes.

    In a ring queries, values and ranks are of the device's positions and the order is
    that of its chunks; codes and mask are of all positions.
    """

    q_LK: jax.Array
    v_LK: jax.Array
    order_REC: jax.Array
    ranks_RL: jax.Array
    codes_RL: jax.Array | None
    real_L: jax.Array | None


class Step(NamedTuple):
    """The queries of one group of chunks in one round, and the keys of their windows.

    Both are places in the arrays that `of_round` gives. `allowed` is [G, C, W], or
    [G, W, C] in the backward pass, and never true for the query's own position.
    """

    queries_GC: jax.Array
    keys_GW: jax.Array
    allowed: jax.Array


def plan(kind: kinds.LSH, shape_BHRL: tuple[int, ...], ring: str = '') -> Plan:
    """The plan for buckets of a shape; a shorter sequence is a chunk.

    In a ring the shape is that of each device's part.
    """
    batch, heads, rounds, length = shape_BHRL
    chunk_length = min(kind.chunk_length, length)
    before, after, rule = kind.chunks_before, kind.chunks_after, kind.rule
    band = None
    if rule == 'strict':
        band = (1, chunk_length)
    elif rule == 'bucket' or (rule == 'reformer' and rounds > 1):
        band = (-after, before)
    chunk_logits = chunk_length**2 * (before + 1 + after)
    group = numerics.divisor_at_most(
        length // chunk_length, numerics.logits_per_step() // chunk_logits
    )
    rows = max(1, numerics.logits_per_step() // (group * chunk_logits))
    return Plan(
        chunk_length=chunk_length,
        chunks_before=before,
        chunks_after=after,
        causal=kind.causal,
        circular=rule == 'trax',
        band=band,
        band_in_round=rule in ('strict', 'bucket'),
        chunks_per_step=group,
        rows=rows_lib.at_most(rows, batch, heads),
        order_free=rule == 'strict',
        ring=ring,
    )


def codes(
    plan: Plan,
    num_buckets: int,
    buckets_BHRL: jax.Array,
    order_BHRL: jax.Array,
    mask: jax.Array | None,
) -> jax.Array | None:
    """The codes that the plan's band is about, one per token and round.

    A query meets a key if the difference of their codes lies in the band. In sorted
    order the bucket never falls, so that adding bucket * (size of the band) pushes
    tokens of different buckets out of each other's band.
    """
    if plan.band is None:
        return None
    codes_BHRL = hashing.inverse_order(order_BHRL)
    lowest, highest = plan.band
    if not plan.order_free:  # the reformer rule's band is one of chunks
        codes_BHRL //= plan.chunk_length
    if plan.band_in_round:
        buckets_BHRL = with_padding(buckets_BHRL, mask, num_buckets)
        codes_BHRL += buckets_BHRL * (highest - lowest + 1)
    return codes_BHRL


def with_padding(
    buckets_BHRL: jax.Array, mask: jax.Array | None, num_buckets: int
) -> jax.Array:
    """The buckets, with one behind all others for padding."""
    if mask is None:
        return buckets_BHRL
    return jnp.where(mask[:, None, None, :], buckets_BHRL, num_buckets)


def with_look_around(plan: Plan, order_RL: jax.Array) -> jax.Array:
    """Order in chunks [R, E, C], each round between the chunks it looks around at."""
    rounds = order_RL.shape[0]
    before, after = plan.chunks_before, plan.chunks_after
    chunks_RMC = order_RL.reshape(rounds, -1, plan.chunk_length)
    count = chunks_RMC.shape[1]
    wanted = jnp.arange(-before, count + after)
    if not plan.circular:
        return chunks_RMC[:, wanted % count]  # step hides the ends
    ring = chunks_RMC.reshape(rounds * count, plan.chunk_length)
    starts = jnp.arange(rounds)[:, None] * count
    return ring[(starts + wanted) % (rounds * count)]


def probability_of_itself(plan: Plan, ranks_RL: jax.Array) -> jax.Array:
    """What the trax rule's probabilities of a token with only itself add up to, [L].

    They should add up to 1. But trax and Hugging Face give a token's logit of itself
    the value -1e5, so that the log-sum-exp, over a round and over the rounds, is
    rounded to multiples of _SELF_LOGIT_STEP: 0.998 with 2 rounds, 1.003 with 4. Their
    models were trained with that, and without it their logits are missed by 0.01.
    """

    def rounded(lse):
        return jnp.round(lse / _SELF_LOGIT_STEP) * _SELF_LOGIT_STEP

    met_RL = _self_meetings(plan, ranks_RL)
    lse_L = rounded(jax.nn.logsumexp(rounded(jnp.log(met_RL)), axis=0))
    return met_RL.sum(0) * jnp.exp(-lse_L)


def _self_meetings(plan: Plan, ranks_RL: jax.Array) -> jax.Array:
    """How often a token stands in its own window of each round, [R, L]; circular.

    More than once where the round before or after has it around the end.
    """
    assert plan.circular
    rounds, length = ranks_RL.shape
    chunks = length * rings.size(plan.ring) // plan.chunk_length
    first_R1 = jnp.arange(rounds)[:, None] * chunks
    places_RL = first_R1 + ranks_RL // plan.chunk_length
    met_RL = jnp.zeros_like(ranks_RL)
    for offset in range(-plan.chunks_before, plan.chunks_after + 1):
        around_RL = (places_RL + offset) % (rounds * chunks)
        met_RL += (around_RL[:, None] == places_RL).sum(1)
    return met_RL


def first_chunks(plan: Plan, length: int) -> jax.Array:
    """The first chunk of each step of a round."""
    return jnp.arange(0, length // plan.chunk_length, plan.chunks_per_step)


def of_round(plan: Plan, row: Row, hash_round, arrays: Any) -> Any:
    """What the steps of a round take rows of: a pytree of arrays [L, ...] by position.

    In a ring it is the rows of this device's chunks and of those around them, in order.
    """
    if not plan.ring:
        return arrays
    return rings.take(plan.ring, arrays, row.order_REC[hash_round].ravel())


def step(plan: Plan, row: Row, hash_round, first, *, keys_first: bool) -> Step:
    """The step that begins with chunk `first` of a round; keys_first is [G, W, C]."""
    group, before = plan.chunks_per_step, plan.chunks_before
    sizes = 1, group + plan.window_chunks - 1, plan.chunk_length
    around_EC = lax.dynamic_slice(row.order_REC, (hash_round, first, 0), sizes)[0]
    places_EC = around_EC
    if plan.ring:
        in_order_EC = lax.iota(jnp.int32, around_EC.size).reshape(around_EC.shape)
        places_EC = first * plan.chunk_length + in_order_EC
    queries_GC = around_EC[before : before + group]
    keys_GW = windows(around_EC, group)
    visible_GW = keys_GW
    if not plan.circular:
        slot_W = jnp.repeat(
            jnp.arange(-before, plan.chunks_after + 1), plan.chunk_length
        )
        own = row.order_REC.shape[1] - plan.window_chunks + 1
        start = first + own * rings.index(plan.ring)
        chunk_GW = start + jnp.arange(group)[:, None] + slot_W
        inside_GW = (chunk_GW >= 0) & (chunk_GW < own * rings.size(plan.ring))
        visible_GW = jnp.where(inside_GW, visible_GW, HIDDEN)
    if row.real_L is not None:
        visible_GW = jnp.where(numerics.at(row.real_L, keys_GW), visible_GW, HIDDEN)
    query, key = pairs(queries_GC, visible_GW, keys_first)
    allowed = may_see(plan, query, key)
    if plan.band is not None:
        assert row.codes_RL is not None
        codes_REC = row.codes_RL[:, around_EC]

        def codes_of(some_round):
            codes_EC = lax.dynamic_index_in_dim(codes_REC, some_round, keepdims=False)
            return codes_EC[before : before + group], windows(codes_EC, group)

        rounds = codes_REC.shape[0]
        allowed &= first_met(plan, codes_of, hash_round, rounds, keys_first)
    return Step(places_EC[before : before + group], windows(places_EC, group), allowed)


def may_see(plan: Plan, query_positions: jax.Array, key_positions: jax.Array):
    """Whether keys are others, not hidden, and before the query if causal."""
    if plan.causal:  # a hidden key lies behind all queries
        return query_positions > key_positions
    return (query_positions != key_positions) & (key_positions != HIDDEN)


def pairs(queries, keys, keys_first: bool):
    """Both broadcast against each other: [..., C] and [..., W] to [..., C, W].

    To [..., W, C] with keys_first.
    """
    if keys_first:
        return queries[..., None, :], keys[..., :, None]
    return queries[..., :, None], keys[..., None, :]


def first_met(
    plan: Plan,
    codes: Callable[[Any], tuple[jax.Array, jax.Array]],
    hash_round: Any,
    rounds: int,
    keys_first: bool,
) -> jax.Array:
    """Whether queries meet keys in this round and did not in an earlier one.

    Args:
      plan: with a band.
      codes: of a round, those of the queries and of the keys.
      hash_round: this one, traced.
      rounds: how many there are.
      keys_first: as in `pairs`.
    """
    met = jnp.ones((), bool)
    if plan.band_in_round:
        met = meets(plan, *pairs(*codes(hash_round), keys_first))
    # Not a loop of as many steps as there are earlier rounds: inside the loop over
    # tiles it would keep Triton from loading the next tile ahead.
    for earlier in range(rounds - 1):
        query, key = codes(earlier)
        query = jnp.where(earlier < hash_round, query, MEETS_NONE)
        met &= ~meets(plan, *pairs(query, key, keys_first))
    return met


def meets(plan: Plan, query_codes: jax.Array, key_codes: jax.Array) -> jax.Array:
    """Whether queries meet keys in a round: their codes' difference is in the band."""
    assert plan.band is not None
    lowest, highest = plan.band
    # One unsigned comparison for 0 <= difference <= highest - lowest.
    difference = query_codes - lowest - key_codes
    return lax.bitcast_convert_type(difference, jnp.uint32) <= highest - lowest


def windows(around: jax.Array, chunks: int) -> jax.Array:
    """[E, C, ...] -> [chunks, W, ...]: each chunk among its neighbours, past first."""
    offsets = range(around.shape[0] - chunks + 1)
    return jnp.concatenate([around[o : o + chunks] for o in offsets], axis=1)


def own_dropout(plan: Plan, dropout_CW: jax.Array) -> jax.Array:
    """The factor that dropout gives a query's own key, [C]."""
    return jnp.diagonal(dropout_CW[:, plan.own])
