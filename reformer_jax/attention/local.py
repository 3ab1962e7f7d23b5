"""Local attention: within a chunk and its neighbours, as one custom_vjp.

As in xla.py a few rows are taken at a time, and of them groups of chunks; the backward
pass recomputes the probabilities from the log-sum-exp. Shape letters are explained
there and in the package.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from reformer_jax.attention import arguments
from reformer_jax.attention import chunks
from reformer_jax.attention import full
from reformer_jax.attention import kinds
from reformer_jax.attention import numerics
from reformer_jax.attention import ring as rings
from reformer_jax.attention import rows as rows_lib
from reformer_jax.attention import windows


def local_attention(
    kind: kinds.Local,
    q_BLHK: jax.Array,
    k_BLHK: jax.Array,
    v_BLHK: jax.Array,
    *,
    mask: jax.Array | None = None,
    key: jax.Array | None = None,
    ring: str = '',
) -> jax.Array:
    """Attention within a chunk and its neighbours, [B, L, H, K] in the dtype of v.

    A sequence of at most one chunk gets full attention. Logits are scaled by
    1 / sqrt(K).

    Args:
      kind: settings; chunk_length divides L, unless L is shorter.
      q_BLHK: queries.
      k_BLHK: keys.
      v_BLHK: values.
      mask: [B, L], True for a real token.
      key: random key of dropout.
      ring: within shard_map, the mesh axis that splits the positions. Arrays then are
        of each device's part, which is one of whole chunks.
    """
    arguments.check_class('kind', kind, kinds.Local, 'an attention.Local')
    kinds.check_shapes(q_BLHK, k_BLHK, v_BLHK)
    batch, length, heads, _ = q_BLHK.shape
    if ring:
        kinds.check_part(kind, length)
    kinds.check_length(kind, length)
    arguments.check_mask(mask, (batch, length))
    arguments.check_key(key)
    if length <= kind.chunk_length and not ring:
        exact = kinds.Full(kind.causal, dropout=kind.dropout)
        return full.full_attention(exact, q_BLHK, k_BLHK, v_BLHK, mask=mask, key=key)
    size, logits = kind.chunk_length, kind.chunk_length * kind.window
    group = numerics.divisor_at_most(
        length // size, numerics.logits_per_step() // logits
    )
    count = max(1, numerics.logits_per_step() // (group * logits))
    plan = _Plan(kind, group, rows_lib.at_most(count, batch, heads), bool(ring))
    dropout_CW = numerics.attention_dropout(key, kind.dropout, (size, kind.window))
    mask = None if mask is None else jnp.asarray(mask)
    if ring:
        k_BLHK, v_BLHK, mask = _with_neighbours(kind, ring, k_BLHK, v_BLHK, mask)
    return _attend(plan, q_BLHK, k_BLHK, v_BLHK, mask, dropout_CW)


def _with_neighbours(kind: kinds.Local, ring: str, k_BLHK, v_BLHK, real_BL):
    """Keys, values and mask of a part, between the chunks that its ends look at."""
    if real_BL is None:
        real_BL = jnp.ones(k_BLHK.shape[:2], bool)
    before, after = (
        count * kind.chunk_length for count in (kind.chunks_before, kind.chunks_after)
    )
    k_BEHK, v_BEHK, real_BE = (
        rings.beside(ring, x, before=before, after=after, dim=1)
        for x in (k_BLHK, v_BLHK, real_BL)
    )
    if kind.causal or not kind.circular:
        own = k_BLHK.shape[1]
        place_E = own * rings.index(ring) - before + jnp.arange(real_BE.shape[1])
        real_BE &= (place_E >= 0) & (place_E < own * rings.size(ring))
    return k_BEHK, v_BEHK, real_BE


@dataclasses.dataclass(frozen=True)
class _Plan:
    """The static half of a call: so many chunks of so many rows at once.

    With `neighbours` keys, values and mask begin and end with the chunks that the
    first and the last chunk of queries look at.
    """

    kind: kinds.Local
    chunks_per_step: int
    rows: rows_lib.Rows
    neighbours: bool

    @property
    def around(self) -> int:
        """Chunks that a chunk sees beside itself."""
        return self.kind.chunks_before + self.kind.chunks_after


class _Row(NamedTuple):
    """One (batch, head): queries, keys and values, and which keys are no padding."""

    q_LK: jax.Array
    k_LK: jax.Array
    v_LK: jax.Array
    real_L: jax.Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plan: _Plan, q_BLHK, k_BLHK, v_BLHK, real_BL, dropout_CW):
    return _attend_forward(plan, q_BLHK, k_BLHK, v_BLHK, real_BL, dropout_CW)[0]


def _attend_forward(plan: _Plan, q_BLHK, k_BLHK, v_BLHK, real_BL, dropout_CW):
    inputs = q_BLHK, k_BLHK, v_BLHK, real_BL
    forward_row = functools.partial(_forward_row, plan, dropout_CW)

    def forward_rows(out_BLHK, index):
        out_NLK, lse_NL = jax.vmap(forward_row)(_rows(plan, index, *inputs))
        return rows_lib.put(plan.rows, index, out_BLHK, out_NLK), lse_NL

    steps = rows_lib.steps(plan.rows, q_BLHK)
    nothing = jnp.zeros(q_BLHK.shape, v_BLHK.dtype)
    out_BLHK, lse_ANL = lax.scan(forward_rows, nothing, steps)
    return out_BLHK, (*inputs, dropout_CW, out_BLHK, lse_ANL)


def _attend_backward(plan: _Plan, saved, dout_BLHK):
    *inputs, dropout_CW, out_BLHK, lse_ANL = saved
    backward_row = functools.partial(_backward_row, plan, dropout_CW)

    def backward_rows(gradients, step):
        index, lse_NL = step
        take = functools.partial(rows_lib.take, plan.rows, index)
        rows = _rows(plan, index, *inputs)
        new = jax.vmap(backward_row)(rows, take(dout_BLHK), take(out_BLHK), lse_NL)
        put = functools.partial(rows_lib.put, plan.rows, index)
        return jax.tree.map(put, gradients, new), None

    steps = rows_lib.steps(plan.rows, out_BLHK), lse_ANL
    nothing = tuple(jnp.zeros_like(x) for x in inputs[:3])
    gradients, _ = lax.scan(backward_rows, nothing, steps)
    return *gradients, None, None


_attend.defvjp(_attend_forward, _attend_backward)


def _rows(plan: _Plan, index, q_BLHK, k_BLHK, v_BLHK, real_BL) -> _Row:
    """The rows of a step, each array with a leading axis N."""
    if real_BL is None:
        real_BL = jnp.ones(k_BLHK.shape[:2], bool)
    take = functools.partial(rows_lib.take, plan.rows, index)
    real_NL = rows_lib.take_mask(plan.rows, index, real_BL, q_BLHK.shape[2])
    return _Row(take(q_BLHK), take(k_BLHK), take(v_BLHK), real_NL)


def _forward_row(plan: _Plan, dropout_CW, row: _Row):
    """Output [L, K] and log-sum-exp [L], infinite where a query sees only padding."""

    def forward_step(first):
        (q_GCK, k_GWK, v_GWK), allowed = _step(plan, row, first, keys_first=False)
        logits_GCW = numerics.contract('gck,gwk->gcw', q_GCK, k_GWK)
        weighed = chunks.weigh(logits_GCW, v_GWK, allowed, dropout_CW)
        out_GCK, lse_GC, alone_GC = weighed
        out_GCK = jnp.where(alone_GC[..., None], 0.0, out_GCK)
        return out_GCK.astype(row.v_LK.dtype), jnp.where(alone_GC, jnp.inf, lse_GC)

    out, lse = lax.map(forward_step, _firsts(plan, row))
    return out.reshape(row.q_LK.shape), lse.reshape(-1)


def _backward_row(plan: _Plan, dropout_CW, row: _Row, dout_LK, out_LK, lse_L):
    """Gradients of queries, keys and values, [L, K] in float32."""
    delta_L = (dout_LK.astype(jnp.float32) * out_LK.astype(jnp.float32)).sum(-1)

    def backward_step(gradients, first):
        qkv, allowed = _step(plan, row, first, keys_first=True)
        upstream = tuple(_queries(plan, x, first) for x in (dout_LK, lse_L, delta_L))
        dq_MCK, *key_gradients = gradients
        dq_GCK, *new = chunks.backward(qkv, allowed, dropout_CW, upstream)
        add = functools.partial(chunks.add_windows, first=first)
        # Not as the scan's second result, whose zeros it would keep for all layers.
        dq_MCK = lax.dynamic_update_slice_in_dim(dq_MCK, dq_GCK, first, axis=0)
        return (dq_MCK, *map(add, key_gradients, new)), None

    length, head_size = row.q_LK.shape
    size, before = plan.kind.chunk_length, plan.kind.chunks_before
    count = length // size
    around_ECK = numerics.zeros((count + plan.around, size, head_size), row.q_LK)
    nothing = numerics.zeros((count, size, head_size), row.q_LK), around_ECK, around_ECK
    gradients, _ = lax.scan(backward_step, nothing, _firsts(plan, row))
    dq_MCK, *key_gradients = gradients
    if plan.around and not plan.neighbours:  # beyond an end are the chunks of the other
        wanted = jnp.arange(-before, count + plan.around - before) % count
        beyond = jnp.array([*range(before), *range(before + count, wanted.size)])
        dk_ECK, dv_ECK = key_gradients
        key_gradients = [
            dk_ECK[before : before + count].at[wanted[beyond]].add(dk_ECK[beyond]),
            dv_ECK[before : before + count].at[wanted[beyond]].add(dv_ECK[beyond]),
        ]
    dq_LK = dq_MCK.reshape(length, head_size) * head_size**-0.5
    return dq_LK, *(x_MCK.reshape(-1, head_size) for x_MCK in key_gradients)


def _firsts(plan: _Plan, row: _Row) -> jax.Array:
    """The first chunk of each step."""
    count = row.q_LK.shape[0] // plan.kind.chunk_length
    return jnp.arange(0, count, plan.chunks_per_step)


def _queries(plan: _Plan, x_LX: jax.Array, first) -> jax.Array:
    """The chunks of a step, [G, C, ...]."""
    size, group = plan.kind.chunk_length, plan.chunks_per_step
    x = lax.dynamic_slice_in_dim(numerics.bits(x_LX), first * size, group * size)
    x = lax.bitcast_convert_type(x, x_LX.dtype)
    return x.reshape(group, size, *x_LX.shape[1:])


def _step(plan: _Plan, row: _Row, first, *, keys_first: bool):
    """Queries [G, C, K], keys and values [G, W, K], and which may be seen.

    The last is [G, C, W], or [G, W, C] with keys_first.
    """
    kind, group, size = plan.kind, plan.chunks_per_step, plan.kind.chunk_length
    count = row.real_L.shape[0] // size
    wanted_E = first + jnp.arange(group + plan.around)
    if not plan.neighbours:
        wanted_E -= kind.chunks_before

    def around(x_LX):  # beyond an end are the chunks of the other
        return numerics.at(x_LX.reshape(count, size, *x_LX.shape[1:]), wanted_E % count)

    k_ECK, v_ECK, real_EC = (around(x) for x in (row.k_LK, row.v_LK, row.real_L))
    if not plan.neighbours and (kind.causal or not kind.circular):
        real_EC &= ((wanted_E >= 0) & (wanted_E < count))[:, None]
    k_GWK, v_GWK, real_GW = (windows.windows(x, group) for x in (k_ECK, v_ECK, real_EC))
    own_C = kind.chunks_before * size + jnp.arange(size)
    query, key = windows.pairs(own_C, jnp.arange(kind.window), keys_first)
    allowed = real_GW[..., :, None] if keys_first else real_GW[..., None, :]
    if kind.causal:
        allowed &= key <= query
    q_GCK = _queries(plan, row.q_LK, first) * row.q_LK.shape[-1] ** -0.5
    return (q_GCK, k_GWK, v_GWK), allowed
