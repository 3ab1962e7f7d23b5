"""LSH attention on TPUs: Pallas kernels in Mosaic.

A TPU reads whole tiles, not rows, so XLA makes sorted copies and the kernels read them
in chunks: a step takes a group of chunks of a round of one (batch, head) as one block,
and each chunk around the group as another block of the same array, so that nothing is
concatenated. Pairs of chunks that cannot meet are skipped. The backward pass owns the
gradients of its group's queries, keys and values. XLA brings the rounds' results back
into the order of the sequence and combines them.

Shape letters are those of the package; further N (batch, head) rows, Q chunks of all
rounds one after the other, G chunks of a group, X numbers of a token.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from reformer_jax.attention import hashing
from reformer_jax.attention import numerics
from reformer_jax.attention import windows
from reformer_jax.attention.kernels import groups
from reformer_jax.attention.kernels import rounds

SUPPORTED = 'float32 or bfloat16, head sizes up to 256, chunks of 16 to 512 by 16'


def supports(dtype: Any, head_size: int, chunk_length: int) -> bool:
    """Whether the kernels take such arrays, see SUPPORTED."""
    return (
        jnp.dtype(dtype) in (jnp.float32, jnp.bfloat16)
        and head_size <= 256
        and chunk_length % 16 == 0
        and chunk_length <= 512
    )


def _attend_forward(plan, qk_BLHK, v_BLHK, *sorting_and_dropout):
    order_BHRL, _, _, dropout_RCW = sorting_and_dropout
    batch, heads, hash_rounds, length = order_BHRL.shape
    inputs = _inputs(plan, qk_BLHK, v_BLHK, *sorting_and_dropout)
    out_NQCK, lse_NQC = rounds.on_this_platform(
        functools.partial(_forward, plan, hash_rounds), inputs
    )
    ranks_BHRL = hashing.inverse_order(order_BHRL)
    out_BHRLK = _unsorted(out_NQCK, ranks_BHRL)
    lse_BHRL = _unsorted(lse_NQC, ranks_BHRL)
    share_BHL = rounds.share_of_itself(plan, order_BHRL, dropout_RCW)
    out_BHLK, lse_BHL = rounds.merge(
        [out_BHRLK[:, :, r] for r in range(hash_rounds)],
        [lse_BHRL[:, :, r] for r in range(hash_rounds)],
        jnp.swapaxes(rounds.own(v_BLHK, share_BHL), 1, 2),
    )
    out_BLHK = jnp.swapaxes(out_BHLK, 1, 2).astype(v_BLHK.dtype)
    return out_BLHK, (qk_BLHK, v_BLHK, *sorting_and_dropout, out_BLHK, lse_BHL)


def _attend_backward(plan, saved, dout_BLHK):
    qk_BLHK, v_BLHK, *sorting_and_dropout, out_BLHK, lse_BHL = saved
    order_BHRL, _, _, dropout_RCW = sorting_and_dropout
    inputs = _inputs(plan, qk_BLHK, v_BLHK, *sorting_and_dropout)
    softmax_BHLX = jnp.stack(
        [rounds.lse_for_backward(lse_BHL), rounds.delta(out_BLHK, dout_BLHK)], axis=-1
    )
    order_NQC = _chunks(plan, order_BHRL)
    chunks = inputs.chunks._replace(
        dout=_sorted(numerics.rows(dout_BLHK), order_NQC),
        softmax=_sorted(softmax_BHLX.reshape(-1, *softmax_BHLX.shape[2:]), order_NQC),
    )
    hash_rounds = order_BHRL.shape[2]
    dqk_NQCK, dv_NQCK = rounds.on_this_platform(
        functools.partial(_backward, plan, hash_rounds), inputs._replace(chunks=chunks)
    )
    ranks_BHRL = hashing.inverse_order(order_BHRL)
    share_BHL = rounds.share_of_itself(plan, order_BHRL, dropout_RCW)
    dqk_BLHK, dv_BLHK = rounds.sum_gradients(
        _unsorted(dqk_NQCK, ranks_BHRL),
        _unsorted(dv_NQCK, ranks_BHRL),
        lse_BHL,
        rounds.own(dout_BLHK, share_BHL),
    )
    dqk_BLHK, dv_BLHK = dqk_BLHK.astype(qk_BLHK.dtype), dv_BLHK.astype(v_BLHK.dtype)
    return dqk_BLHK, dv_BLHK, None, None, None, None


attend = rounds.differentiable(_attend_forward, _attend_backward)


# --- Sorted copies ----------------------------------------------------------------


def _inputs(
    plan, qk_BLHK, v_BLHK, order_BHRL, codes_BHRL, real_BL, dropout_RCW
) -> groups.Inputs:
    order_NQC = _chunks(plan, order_BHRL)
    visible_BHRL = order_BHRL
    if real_BL is not None:
        real_B1R1 = real_BL.sum(-1)[:, None, None, None]
        ranks_L = jnp.arange(order_BHRL.shape[-1])
        visible_BHRL = jnp.where(ranks_L < real_B1R1, order_BHRL, windows.HIDDEN)
    queries, keys = [order_NQC], [_chunks(plan, visible_BHRL)]
    if codes_BHRL is not None:
        hash_rounds = order_BHRL.shape[2]
        this_round_R1 = jnp.arange(hash_rounds)[:, None]
        this_round = [-1] if plan.band_in_round else []
        for earlier in this_round + list(range(hash_rounds - 1)):
            codes_BHrL = codes_BHRL if earlier < 0 else codes_BHRL[:, :, earlier, None]
            codes_BHRl = jnp.take_along_axis(codes_BHrL, order_BHRL, axis=-1)
            keys.append(_chunks(plan, codes_BHRl))
            codes_BHRl = jnp.where(
                earlier < this_round_R1, codes_BHRl, windows.MEETS_NONE
            )
            queries.append(_chunks(plan, codes_BHRl))
    chunks = groups.Chunks(
        qk=_sorted(numerics.rows(qk_BLHK), order_NQC),
        v=_sorted(numerics.rows(v_BLHK), order_NQC),
        queries=jnp.stack(queries, axis=3),
        keys=jnp.stack(keys, axis=2),
    )
    return groups.Inputs(chunks, dropout_RCW)


def _chunks(plan: windows.Plan, x_BHRL: jax.Array) -> jax.Array:
    """[B, H, R, L] -> [N, Q, C]."""
    batch, heads = x_BHRL.shape[:2]
    return x_BHRL.reshape(batch * heads, -1, plan.chunk_length)


def _sorted(x_NLK: jax.Array, order_NQC: jax.Array) -> jax.Array:
    """Rows [N, Q, C, K] in the order of all rounds."""
    return jax.vmap(numerics.at)(x_NLK, order_NQC)


def _unsorted(x_NQC: jax.Array, ranks_BHRL: jax.Array) -> jax.Array:
    """[N, Q, C, ...] back in the order of the sequence, [B, H, R, L, ...]."""
    batch, heads, hash_rounds, length = ranks_BHRL.shape
    after = x_NQC.shape[3:]
    x_SL = x_NQC.reshape(-1, length, *after)
    x_SL = jax.vmap(numerics.at)(x_SL, ranks_BHRL.reshape(-1, length))
    return x_SL.reshape(batch, heads, hash_rounds, length, *after)


# --- Forward ----------------------------------------------------------------------


def _forward(
    plan: windows.Plan, hash_rounds: int, inputs: groups.Inputs, *, interpret: bool
):
    """Output [N, Q, C, K] and log-sum-exp [N, Q, C] of every round."""
    v = inputs.chunks.v
    results = (
        jax.ShapeDtypeStruct(v.shape, v.dtype),
        jax.ShapeDtypeStruct((*v.shape[:3], 1), jnp.float32),
    )
    step = groups.step(plan, hash_rounds, v.shape[1], reach=0)
    name = 'lsh_attention_forward'
    out_NQCK, lse_NQC1 = groups.call(
        step, _forward_kernel, inputs, results, interpret, name
    )
    return out_NQCK, lse_NQC1[..., 0]


def _forward_kernel(step: groups.Step, group, around, dropout, meet, out_ref, lse_ref):
    def attend(query, key, carry):
        out_CK, highest_C1, total_C1 = carry
        queries, keys = (groups.chunk(step, group, around, c) for c in (query, key))
        logits = groups.logits(step.plan, queries, keys, groups.units(keys))
        new_highest_C1 = jnp.maximum(highest_C1, logits.max(1, keepdims=True))
        shrink_C1 = jnp.exp(highest_C1 - new_highest_C1)
        p = jnp.exp(logits - new_highest_C1)
        total_C1 = total_C1 * shrink_C1 + p.sum(1, keepdims=True)
        factors = groups.dropout(step, dropout, query, key)
        p = p if factors is None else p * factors
        out_CK = out_CK * shrink_C1 + numerics.product(
            p.astype(keys.v.dtype), keys.v, 1, 0
        )
        return out_CK, new_highest_C1, total_C1

    for query in range(step.group):
        # Above the logits of hidden keys, so that those have no probability.
        lowest_C1 = jnp.full((step.plan.chunk_length, 1), numerics.MASKED / 2)
        carry = jnp.zeros(out_ref.shape[2:], jnp.float32), lowest_C1, 0 * lowest_C1
        for number, (other, key) in enumerate(step.pairs):
            if other == query:
                attend_pair = functools.partial(attend, query, key)
                carry = _where_they_meet(meet, number, attend_pair, carry)
        out_CK, highest_C1, total_C1 = carry
        alone_C1 = total_C1 == 0
        total_C1 = jnp.where(alone_C1, 1.0, total_C1)
        out_ref[0, query] = (out_CK / total_C1).astype(out_ref.dtype)
        lse_C1 = highest_C1 + jnp.log(total_C1)
        lse_ref[0, query] = jnp.where(alone_C1, numerics.MASKED, lse_C1)


def _where_they_meet(meet, number: int, function, carry):
    return lax.cond(meet[0, 0, number] != 0, function, lambda carry: carry, carry)


# --- Backward ---------------------------------------------------------------------


def _backward(
    plan: windows.Plan, hash_rounds: int, inputs: groups.Inputs, *, interpret: bool
):
    """Gradients of queries and keys together and of values, [N, Q, C, K] each."""
    qk = inputs.chunks.qk
    reach = max(plan.chunks_before, plan.chunks_after)
    results = (jax.ShapeDtypeStruct(qk.shape, qk.dtype),) * 2
    step = groups.step(plan, hash_rounds, qk.shape[1], reach)
    name = 'lsh_attention_backward'
    return groups.call(step, _backward_kernel, inputs, results, interpret, name)


def _backward_kernel(step: groups.Step, group, around, dropout, meet, dqk_ref, dv_ref):
    def add(query, key, gradients):
        dq_CK, dk_CK, dv_CK = gradients
        queries, keys = (groups.chunk(step, group, around, c) for c in (query, key))
        units = groups.units(keys)
        logits = groups.logits(step.plan, queries, keys, units)
        p = jnp.exp(logits - queries.softmax[:, :1])
        dp = numerics.product(queries.dout, keys.v, 1, 1)
        dropped, factors = p, groups.dropout(step, dropout, query, key)
        if factors is not None:
            dropped, dp = p * factors, dp * factors
        ds = (p * (dp - queries.softmax[:, 1:])).astype(units.dtype)
        if step.in_group(query):
            dq_CK += numerics.product(ds, units, 1, 0)
        if step.in_group(key):
            dk_CK += numerics.product(ds, queries.qk, 0, 0)
            dv_CK += numerics.product(
                dropped.astype(queries.dout.dtype), queries.dout, 0, 0
            )
        return dq_CK, dk_CK, dv_CK

    nothing_CK = jnp.zeros(dqk_ref.shape[2:], jnp.float32)
    dq, dk, dv = ({chunk: nothing_CK for chunk in step.around} for _ in range(3))
    for chunk in range(step.group):
        dq[chunk] = dk[chunk] = dv[chunk] = nothing_CK
    for number, (query, key) in enumerate(step.pairs):
        gradients = dq[query], dk[key], dv[key]
        add_pair = functools.partial(add, query, key)
        dq[query], dk[key], dv[key] = _where_they_meet(
            meet, number, add_pair, gradients
        )
    for chunk in range(step.group):
        rows_CK = group.qk[0, chunk].astype(jnp.float32)
        _, through_unit_length = jax.vjp(numerics.unit_keys, rows_CK)
        dqk_CK = dq[chunk] + through_unit_length(dk[chunk])[0]
        dqk_ref[0, chunk] = dqk_CK.astype(dqk_ref.dtype)
        dv_ref[0, chunk] = dv[chunk].astype(dv_ref.dtype)
