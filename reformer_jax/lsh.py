"""The XLA path of LSH attention: sorted chunks, one custom_vjp, bounded memory.

Rows (batch, head) are taken a few at a time; their hash rounds, and groups of chunks
within a round, are scanned, so that the temporaries are a few blocks of
[chunks, C, W] logits whatever the length. The backward pass keeps its inputs, the
output and its log-sum-exp, and recomputes the probabilities.

Rounds are combined exactly: attention over the union of the rounds is one softmax, so
that with the total log-sum-exp the gradient of each (round, key) pair is the usual
p * (dp - delta). A key met in several rounds is counted in the first of them, which
gives the same sum as the paper's log-count correction (eq. 16) and costs half.

Shape letters are explained in attention.py; further G chunks in a step, E chunks with
the look-around at both ends, W keys in the window of a chunk, N rows (B * H).
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

# Logit of a key that may not be seen; finite, so that no row makes a NaN.
MASKED = -1e9


@dataclasses.dataclass(frozen=True)
class Plan:
    """The static half of one LSH attention call.

    Attributes:
      heads: heads per batch element, to find a row's mask.
      chunk_length: queries in a chunk.
      chunks_before: chunks looked back at.
      chunks_after: chunks looked ahead at.
      causal: whether keys must lie before their query.
      circular: look around the ends and across the rounds (the trax rule).
      band: lowest and highest code difference (query minus key) at which a key is met
        in a round; None if keys are counted as often as they are met (trax).
      band_in_round: whether the band also limits the keys within a window.
      chunks_per_step: chunks attended at once; divides the number of chunks.
      rows_per_step: rows attended at once.
    """

    heads: int
    chunk_length: int
    chunks_before: int
    chunks_after: int
    causal: bool
    circular: bool
    band: tuple[int, int] | None
    band_in_round: bool
    chunks_per_step: int
    rows_per_step: int

    @property
    def window_chunks(self) -> int:
        """Chunks that a query's chunk sees, itself among them."""
        return self.chunks_before + 1 + self.chunks_after


class _Row(NamedTuple):
    """One (batch, head): queries, unit keys, values, sorted positions, codes."""

    q_LK: jax.Array
    k_LK: jax.Array
    v_LK: jax.Array
    order_REC: jax.Array
    codes_RL: jax.Array | None
    real_L: jax.Array | None
    dropout_RCW: jax.Array | None


class _Step(NamedTuple):
    """The keys, queries and visibility of one group of chunks in one round."""

    around_EC: jax.Array  # positions of the chunks and their look-around
    queries_GC: jax.Array
    allowed_GCW: jax.Array  # never the query's own position
    self_GCW: jax.Array
    dropout_CW: jax.Array | None


def unit_keys(qk: jax.Array) -> jax.Array:
    """Keys of shared-QK attention, in float32: qk / ||qk||, safe at zero."""
    qk = qk.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(qk), axis=-1, keepdims=True)
    return qk * lax.rsqrt(mean_square + 1e-6) * (qk.shape[-1] ** -0.5)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend(
    plan: Plan,
    qk_NLK: jax.Array,
    v_NLK: jax.Array,
    order_NRL: jax.Array,
    codes_NRL: jax.Array | None,
    real_BL: jax.Array | None,
    dropout_RCW: jax.Array | None,
) -> jax.Array:
    """LSH attention of every row, [N, L, K] in the dtype of v."""
    return _attend_forward(
        plan, qk_NLK, v_NLK, order_NRL, codes_NRL, real_BL, dropout_RCW
    )[0]


def _attend_forward(plan, qk_NLK, v_NLK, order_NRL, codes_NRL, real_BL, dropout_RCW):
    def attend_row(inputs):
        row = _row(plan, inputs, real_BL, dropout_RCW)
        out_LK, lse_L, alone_L = _forward_row(plan, row)
        return out_LK.astype(v_NLK.dtype), lse_L, alone_L

    rows = (jnp.arange(qk_NLK.shape[0]), qk_NLK, v_NLK, order_NRL, codes_NRL)
    out_NLK, lse_NL, alone_NL = lax.map(attend_row, rows, batch_size=plan.rows_per_step)
    saved = (*rows, real_BL, dropout_RCW, out_NLK, lse_NL, alone_NL)
    return out_NLK, saved


def _attend_backward(plan, saved, dout_NLK):
    *rows, real_BL, dropout_RCW, out_NLK, lse_NL, alone_NL = saved

    def backward_row(inputs):
        row_inputs, dout_LK, out_LK, lse_L, alone_L = inputs
        row = _row(plan, row_inputs, real_BL, dropout_RCW)
        delta_L = jnp.sum(
            dout_LK.astype(jnp.float32) * out_LK.astype(jnp.float32), axis=-1
        )
        dq_LK, dk_LK, dv_LK = _backward_row(plan, row, dout_LK, lse_L, alone_L, delta_L)
        _, keys_vjp = jax.vjp(unit_keys, row.q_LK)
        dqk_LK = dq_LK + keys_vjp(dk_LK)[0].astype(jnp.float32)
        return dqk_LK.astype(row.q_LK.dtype), dv_LK.astype(row.v_LK.dtype)

    inputs = (tuple(rows), dout_NLK, out_NLK, lse_NL, alone_NL)
    dqk_NLK, dv_NLK = lax.map(backward_row, inputs, batch_size=plan.rows_per_step)
    return dqk_NLK, dv_NLK, None, None, None, None


attend.defvjp(_attend_forward, _attend_backward)


def _row(plan, inputs, real_BL, dropout_RCW) -> _Row:
    index, qk_LK, v_LK, order_RL, codes_RL = inputs
    return _Row(
        q_LK=qk_LK,
        k_LK=unit_keys(qk_LK).astype(qk_LK.dtype),
        v_LK=v_LK,
        order_REC=_with_look_around(plan, order_RL),
        codes_RL=codes_RL,
        real_L=None if real_BL is None else real_BL[index // plan.heads],
        dropout_RCW=dropout_RCW,
    )


def _with_look_around(plan: Plan, order_RL: jax.Array) -> jax.Array:
    """Order in chunks [R, E, C], each round between the chunks it looks around at."""
    rounds = order_RL.shape[0]
    before, after = plan.chunks_before, plan.chunks_after
    chunks_RMC = order_RL.reshape(rounds, -1, plan.chunk_length)
    count = chunks_RMC.shape[1]
    wanted = jnp.arange(-before, count + after)
    if not plan.circular:
        return chunks_RMC[:, wanted % count]  # _step masks the ends out
    ring = chunks_RMC.reshape(rounds * count, plan.chunk_length)
    starts = jnp.arange(rounds)[:, None] * count
    return ring[(starts + wanted) % (rounds * count)]


def _forward_row(plan: Plan, row: _Row):
    """Output [L, K], log-sum-exp [L], and which queries had only themselves [L].

    The log-sum-exp of a query with nothing but itself is relative to its own key.
    """

    def body(carry, index):
        out_LK, lse_L, alone_L = carry
        step = _step(plan, row, index)
        logits_GCW, _ = _logits(plan, row, step)
        highest_GC = logits_GCW.max(-1)
        alone_GC = highest_GC < MASKED / 2
        highest_GC = jnp.where(alone_GC, 0.0, highest_GC)
        p_GCW = jnp.exp(logits_GCW - highest_GC[..., None])
        p_GCW = jnp.where(step.self_GCW & alone_GC[..., None], 1.0, p_GCW)
        sum_GC = p_GCW.sum(-1)
        if step.dropout_CW is not None:
            p_GCW *= step.dropout_CW
        v_GWK = _windows(plan, row.v_LK[step.around_EC])
        out_GCK = _dot('gcw,gwk->gck', p_GCW.astype(v_GWK.dtype), v_GWK)
        out_GCK /= sum_GC[..., None]
        new = out_GCK, highest_GC + jnp.log(sum_GC), alone_GC
        if row.order_REC.shape[0] > 1:
            at = step.queries_GC
            new = _merge((out_LK[at], lse_L[at], alone_L[at]), new)
        return jax.tree.map(functools.partial(_write, step.queries_GC), carry, new), ()

    length, head_size = row.v_LK.shape
    nothing = (
        jnp.zeros((length, head_size), jnp.float32),
        jnp.full((length,), -jnp.inf),
        jnp.ones((length,), bool),
    )
    return lax.scan(body, nothing, jnp.arange(_steps(plan, row)))[0]


def _merge(old, new):
    """Combine normalised outputs by their log-sum-exp; `alone` gives way to any key."""
    (out_old, lse_old, alone_old), (out_new, lse_new, alone_new) = old, new
    lse_old = jnp.where(alone_old & ~alone_new, -jnp.inf, lse_old)
    lse_new = jnp.where(alone_new & ~alone_old, -jnp.inf, lse_new)
    highest = jnp.maximum(lse_old, lse_new)
    weight_old, weight_new = jnp.exp(lse_old - highest), jnp.exp(lse_new - highest)
    total = weight_old + weight_new
    out = out_old * (weight_old / total)[..., None]
    out += out_new * (weight_new / total)[..., None]
    return out, highest + jnp.log(total), alone_old & alone_new


def _backward_row(plan: Plan, row: _Row, dout_LK, lse_L, alone_L, delta_L):
    """Gradients of queries, unit keys and values, [L, K] in float32."""
    head_size = row.q_LK.shape[-1]

    def body(gradients_LX, index):
        step = _step(plan, row, index)
        at = step.queries_GC
        logits_GCW, (q_GCK, k_GWK) = _logits(plan, row, step)
        # Where a query has only itself its probability of itself is constant.
        alone_GC1 = alone_L[at][..., None]
        p_GCW = jnp.exp(logits_GCW - lse_L[at][..., None])
        p_GCW = jnp.where(
            step.self_GCW & alone_GC1, jnp.exp(-lse_L[at])[..., None], p_GCW
        )
        dout_GCK = dout_LK[at]
        v_GWK = _windows(plan, row.v_LK[step.around_EC])
        dp_GCW = _dot('gck,gwk->gcw', dout_GCK, v_GWK)
        dropped_GCW = p_GCW
        if step.dropout_CW is not None:
            dp_GCW *= step.dropout_CW
            dropped_GCW = p_GCW * step.dropout_CW
        ds_GCW = p_GCW * (dp_GCW - delta_L[at][..., None])
        ds_GCW = jnp.where(step.allowed_GCW, ds_GCW, 0.0).astype(q_GCK.dtype)
        dq_GCK = _dot('gcw,gwk->gck', ds_GCW, k_GWK)
        dk_GWK = _dot('gcw,gck->gwk', ds_GCW, q_GCK)
        dv_GWK = _dot('gcw,gck->gwk', dropped_GCW.astype(dout_GCK.dtype), dout_GCK)
        before, after = plan.chunks_before, plan.chunks_after
        dq_ECK = jnp.pad(dq_GCK, ((before, after), (0, 0), (0, 0)))
        dkv_ECX = _fold_windows(plan, jnp.concatenate([dk_GWK, dv_GWK], -1))
        step_gradient = jnp.concatenate([dq_ECK, dkv_ECX], -1)
        return gradients_LX.at[step.around_EC].add(
            step_gradient, mode='promise_in_bounds'
        ), ()

    gradients = jnp.zeros((row.q_LK.shape[0], 3 * head_size), jnp.float32)
    gradients, _ = lax.scan(body, gradients, jnp.arange(_steps(plan, row)))
    return jnp.split(gradients, 3, axis=-1)


def _steps(plan: Plan, row: _Row) -> int:
    rounds, length = row.order_REC.shape[0], row.q_LK.shape[0]
    return rounds * length // (plan.chunk_length * plan.chunks_per_step)


def _step(plan: Plan, row: _Row, index: jax.Array) -> _Step:
    chunks = row.q_LK.shape[0] // plan.chunk_length
    group = plan.chunks_per_step
    before, around = plan.chunks_before, plan.chunks_before + plan.chunks_after
    hash_round, first = jnp.divmod(index, chunks // group)
    first *= group
    around_EC = lax.dynamic_slice(
        row.order_REC,
        (hash_round, first, 0),
        (1, group + around, plan.chunk_length),
    )[0]
    queries_GC = around_EC[before : before + group]
    keys_GW = _windows(plan, around_EC)
    self_GCW = queries_GC[:, :, None] == keys_GW[:, None, :]
    if plan.causal:
        allowed_GCW = queries_GC[:, :, None] > keys_GW[:, None, :]
    else:
        allowed_GCW = ~self_GCW
    if not plan.circular:
        slot_W = jnp.repeat(
            jnp.arange(-before, plan.chunks_after + 1), plan.chunk_length
        )
        chunk_GW = first + jnp.arange(group)[:, None] + slot_W
        inside_G1W = ((chunk_GW >= 0) & (chunk_GW < chunks))[:, None, :]
        allowed_GCW &= inside_G1W
        self_GCW &= inside_G1W
    if row.real_L is not None:
        allowed_GCW &= _windows(plan, row.real_L[around_EC])[:, None, :]
    if plan.band is not None:
        allowed_GCW &= _first_met(plan, row.codes_RL, around_EC, hash_round)
    dropout_CW = None if row.dropout_RCW is None else row.dropout_RCW[hash_round]
    return _Step(around_EC, queries_GC, allowed_GCW, self_GCW, dropout_CW)


def _first_met(plan: Plan, codes_RL, around_EC, hash_round) -> jax.Array:
    """Whether a query meets a key in this round and did not in an earlier one."""
    assert plan.band is not None
    lowest, highest = plan.band
    before, group = plan.chunks_before, plan.chunks_per_step
    codes_REC = codes_RL[:, around_EC]

    def meets(codes_EC):
        query_GC = codes_EC[before : before + group] - lowest
        difference = query_GC[:, :, None] - _windows(plan, codes_EC)[:, None, :]
        # One unsigned comparison for 0 <= difference <= highest - lowest.
        return lax.bitcast_convert_type(difference, jnp.uint32) <= highest - lowest

    keep = jnp.ones((), bool)
    if plan.band_in_round:
        keep = meets(lax.dynamic_index_in_dim(codes_REC, hash_round, keepdims=False))
    for earlier in range(codes_RL.shape[0] - 1):
        keep &= ~(meets(codes_REC[earlier]) & (earlier < hash_round))
    return keep


def _logits(plan: Plan, row: _Row, step: _Step):
    q_GCK = row.q_LK[step.queries_GC]
    k_GWK = _windows(plan, row.k_LK[step.around_EC])
    logits_GCW = _dot('gck,gwk->gcw', q_GCK, k_GWK)
    return jnp.where(step.allowed_GCW, logits_GCW, MASKED), (q_GCK, k_GWK)


def windows(around: jax.Array, chunks: int) -> jax.Array:
    """[E, C, ...] -> [chunks, W, ...]: each chunk among its neighbours, past first."""
    offsets = range(around.shape[0] - chunks + 1)
    return jnp.concatenate([around[o : o + chunks] for o in offsets], axis=1)


def _windows(plan: Plan, around: jax.Array) -> jax.Array:
    return windows(around, plan.chunks_per_step)


def _fold_windows(plan: Plan, in_windows: jax.Array) -> jax.Array:
    """Transpose of _windows: [G, W, X] -> [E, C, X], overlaps added."""
    around, size = plan.chunks_before + plan.chunks_after, plan.chunk_length
    parts = [
        jnp.pad(
            in_windows[:, o * size : (o + 1) * size],
            ((o, around - o), (0, 0), (0, 0)),
        )
        for o in range(around + 1)
    ]
    return sum(parts[1:], parts[0])


def _write(at: jax.Array, old: jax.Array, new: jax.Array) -> jax.Array:
    return old.at[at].set(new, unique_indices=True, mode='promise_in_bounds')


def _dot(spec: str, left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.einsum(spec, left, right, preferred_element_type=jnp.float32)
