"""The XLA path of LSH attention: sorted chunks, one custom_vjp, bounded memory.

A few rows (batch, head) are taken at a time. Within them the hash rounds are scanned,
and within a round groups of chunks, so that the temporaries are a few blocks of
[chunks, C, W] logits whatever the length. A round's results are written in sorted order
and brought back by one gather with the inverse order: XLA scatters rows on one core,
one number at a time. The backward pass keeps its inputs, the output and its
log-sum-exp, and recomputes the probabilities.

Rounds are combined exactly: attention over the union of the rounds is one softmax, so
that with the total log-sum-exp the gradient of each (round, key) pair is the usual
p * (dp - delta). A key met in several rounds is counted in the first of them, which
gives the same sum as the paper's log-count correction (eq. 16) and costs half.

Shape letters are explained in the package; further G chunks in a step, E chunks with
the look-around at both ends, W keys in the window of a chunk, N rows (b * h) at a time.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from reformer_jax.attention import hashing
from reformer_jax.attention import numerics
from reformer_jax.attention import rows as rows_lib
from reformer_jax.attention import windows

# A CPU's matrix product adds the terms of so many columns at a time in order.
_COLUMNS = 32


class _Upstream(NamedTuple):
    """What the backward pass of a row starts from, by query.

    `delta` is the inner product of the output and its gradient.
    """

    dout_LK: jax.Array
    lse_L: jax.Array
    alone_L: jax.Array
    delta_L: jax.Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend(
    plan: windows.Plan,
    qk_BLHK: jax.Array,
    v_BLHK: jax.Array,
    order_BHRL: jax.Array,
    codes_BHRL: jax.Array | None,
    real_BL: jax.Array | None,
    dropout_RCW: jax.Array | None,
) -> jax.Array:
    """LSH attention, [B, L, H, K] in the dtype of v."""
    return _attend_forward(
        plan, qk_BLHK, v_BLHK, order_BHRL, codes_BHRL, real_BL, dropout_RCW
    )[0]


def _attend_forward(plan, qk_BLHK, v_BLHK, *sorting_and_dropout):
    *sorting, dropout_RCW = sorting_and_dropout
    forward_row = functools.partial(_forward_row, plan, dropout_RCW)

    def forward_rows(out_BLHK, index):
        rows = _rows(plan, index, qk_BLHK, v_BLHK, *sorting)
        out_NLK, lse_NL, alone_NL = jax.vmap(forward_row)(rows)
        out_BLHK = rows_lib.put(plan.rows, index, out_BLHK, out_NLK)
        return out_BLHK, (lse_NL, alone_NL)

    steps = rows_lib.steps(plan.rows, v_BLHK)
    out_BLHK, softmax = lax.scan(forward_rows, jnp.zeros_like(v_BLHK), steps)
    return out_BLHK, (qk_BLHK, v_BLHK, *sorting_and_dropout, out_BLHK, softmax)


def _attend_backward(plan, saved, dout_BLHK):
    qk_BLHK, v_BLHK, *sorting, dropout_RCW, out_BLHK, softmax = saved

    def backward_row(row, dout_LK, out_LK, lse_L, alone_L):
        products_LK = dout_LK.astype(jnp.float32) * out_LK.astype(jnp.float32)
        upstream = _Upstream(dout_LK, lse_L, alone_L, jnp.sum(products_LK, axis=-1))
        dq_LK, dk_LK, dv_LK = _backward_row(plan, row, dropout_RCW, upstream)
        _, keys_vjp = jax.vjp(numerics.unit_keys, row.q_LK)
        return dq_LK + keys_vjp(dk_LK)[0].astype(jnp.float32), dv_LK

    def backward_rows(gradients, inputs):
        index, (lse_NL, alone_NL) = inputs
        rows = _rows(plan, index, qk_BLHK, v_BLHK, *sorting)
        take = functools.partial(rows_lib.take, plan.rows, index)
        dout_NLK, out_NLK = take(dout_BLHK), take(out_BLHK)
        new = jax.vmap(backward_row)(rows, dout_NLK, out_NLK, lse_NL, alone_NL)
        put = functools.partial(rows_lib.put, plan.rows, index)
        return jax.tree.map(put, gradients, new), None

    inputs = rows_lib.steps(plan.rows, v_BLHK), softmax
    nothing = jnp.zeros_like(qk_BLHK), jnp.zeros_like(v_BLHK)
    (dqk_BLHK, dv_BLHK), _ = lax.scan(backward_rows, nothing, inputs)
    return dqk_BLHK, dv_BLHK, None, None, None, None


attend.defvjp(_attend_forward, _attend_backward)


# --- Rows -------------------------------------------------------------------------


def _rows(plan, index, qk_BLHK, v_BLHK, order_BHRL, codes_BHRL, real_BL) -> windows.Row:
    """The rows of a step, each array with a leading axis N."""
    heads, rounds, length = order_BHRL.shape[1:]
    b, h = rows_lib.corner(plan.rows, index, heads)

    def take(x_BHRL):
        sizes = *plan.rows, rounds, length
        x_bhRL = lax.dynamic_slice(x_BHRL, (b, h, 0, 0), sizes)
        return x_bhRL.reshape(-1, rounds, length)

    order_NRL = take(order_BHRL)
    q_NLK = rows_lib.take(plan.rows, index, qk_BLHK)
    real_NL = None
    if real_BL is not None:
        real_NL = rows_lib.take_mask(plan.rows, index, real_BL, heads)
    return windows.Row(
        q_LK=q_NLK,
        k_LK=numerics.unit_keys(q_NLK).astype(q_NLK.dtype),
        v_LK=rows_lib.take(plan.rows, index, v_BLHK),
        order_REC=jax.vmap(functools.partial(windows.with_look_around, plan))(
            order_NRL
        ),
        ranks_RL=hashing.inverse_order(order_NRL),
        codes_RL=None if codes_BHRL is None else take(codes_BHRL),
        real_L=real_NL,
    )


# --- Forward ----------------------------------------------------------------------


def _forward_row(plan: windows.Plan, dropout_RCW, row: windows.Row):
    """Output [L, K], log-sum-exp [L], and which queries had only themselves [L].

    The log-sum-exp of a query with nothing but itself is relative to its own key.
    """
    length, head_size = row.v_LK.shape

    def attend_round(carry, hash_round):
        dropout_CW = None if dropout_RCW is None else dropout_RCW[hash_round]
        step = functools.partial(_forward_step, plan, row, dropout_CW, hash_round)
        in_order = lax.map(step, windows.first_chunks(plan, length))
        ranks_L = row.ranks_RL[hash_round]
        new = jax.tree.map(lambda x_SGC: windows.at(_flat(x_SGC, 3), ranks_L), in_order)
        return (new if row.ranks_RL.shape[0] == 1 else _merge(carry, new)), None

    nothing = (
        jnp.zeros((length, head_size), jnp.float32),
        jnp.full((length,), -jnp.inf),
        jnp.ones((length,), bool),
    )
    rounds = row.ranks_RL.shape[0]
    out_LK, lse_L, alone_L = lax.scan(attend_round, nothing, jnp.arange(rounds))[0]
    if plan.circular:
        total_L = windows.probability_of_itself(plan, row.ranks_RL)
        out_LK *= jnp.where(alone_L, total_L, 1.0)[:, None]
        lse_L = jnp.where(alone_L, jnp.log(rounds / total_L), lse_L)
    return out_LK, lse_L, alone_L


def _forward_step(plan: windows.Plan, row: windows.Row, dropout_CW, hash_round, first):
    """Output [G, C, K], log-sum-exp [G, C] and alone [G, C] of a group of chunks."""
    step = windows.step(plan, row, hash_round, first, keys_first=False)
    k_GWK, v_GWK = (
        windows.at(row.k_LK, step.keys_GW),
        windows.at(row.v_LK, step.keys_GW),
    )
    logits_GCW = numerics.contract(
        'gck,gwk->gcw', windows.at(row.q_LK, step.queries_GC), k_GWK
    )
    logits_GCW = jnp.where(step.allowed, logits_GCW, numerics.MASKED)
    highest_GC = logits_GCW.max(-1)
    alone_GC = highest_GC < numerics.MASKED / 2
    highest_GC = jnp.where(alone_GC, 0.0, highest_GC)
    p_GCW = jnp.exp(logits_GCW - highest_GC[..., None])
    sum_GC = _order_free_sum(p_GCW) if plan.order_free else p_GCW.sum(-1)
    sum_GC = jnp.where(alone_GC, 1.0, sum_GC)
    own_GCK = v_GWK[:, plan.own].astype(jnp.float32)
    if dropout_CW is not None:
        p_GCW *= dropout_CW
        own_GCK *= windows.own_dropout(plan, dropout_CW)[:, None]
    out_GCK = _weighted_values(plan, p_GCW.astype(v_GWK.dtype), v_GWK)
    out_GCK = jnp.where(alone_GC[..., None], own_GCK, out_GCK / sum_GC[..., None])
    return out_GCK, highest_GC + jnp.log(sum_GC), alone_GC


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
    return high_GCW.sum(-1) / coarse + low_GCW.sum(-1) / fine


def _weighted_values(plan: windows.Plan, p_GCW: jax.Array, v_GWK: jax.Array):
    """Sum over the window of p * v, [G, C, K] in float32."""
    head_size = v_GWK.shape[-1]
    if plan.order_free:
        # The columns left over it would add in several interleaved sums; in order, the
        # zeros of hidden keys leave no trace. (So measured up to W = 512; of wider
        # windows and on accelerators the last bit may depend on a key's place.)
        v_GWK = jnp.pad(v_GWK, ((0, 0), (0, 0), (0, -head_size % _COLUMNS)))
    return numerics.contract('gcw,gwk->gck', p_GCW, v_GWK)[..., :head_size]


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


# --- Backward ---------------------------------------------------------------------


def _backward_row(
    plan: windows.Plan, row: windows.Row, dropout_RCW, upstream: _Upstream
):
    """Gradients of queries, unit keys and values, [L, K] in float32."""
    length, head_size = row.v_LK.shape
    before, chunks = plan.chunks_before, length // plan.chunk_length
    around = before + plan.chunks_after

    def backward_round(gradients, hash_round):
        dropout_CW = None if dropout_RCW is None else dropout_RCW[hash_round]

        def backward_step(key_gradients, first):
            step = windows.step(plan, row, hash_round, first, keys_first=True)
            new = _backward_step(plan, row, dropout_CW, upstream, step)
            dq_GCK, dk_GWK, dv_GWK, own_GCK = new
            dk_ECK, dv_ECK = key_gradients
            dk_ECK = _add_windows(plan, dk_ECK, dk_GWK, first)
            dv_ECK = _add_windows(plan, dv_ECK, dv_GWK, first)
            dv_ECK = _add_chunks(dv_ECK, own_GCK, first + before)
            return (dk_ECK, dv_ECK), dq_GCK

        nothing = jnp.zeros((chunks + around, plan.chunk_length, head_size))
        key_gradients, dq_SGCK = lax.scan(
            backward_step, (nothing, nothing), windows.first_chunks(plan, length)
        )
        in_order = _flat(dq_SGCK, 3), *(_flat(x, 2) for x in key_gradients)
        ranks_L = row.ranks_RL[hash_round]
        shifts = 0, before * plan.chunk_length, before * plan.chunk_length
        gradients = tuple(
            gradient + windows.at(x, ranks_L + shift)
            for gradient, x, shift in zip(gradients, in_order, shifts, strict=True)
        )
        if plan.circular:
            gradients = _add_ends(plan, row, hash_round, gradients, key_gradients)
        return gradients, None

    nothing = (jnp.zeros((length, head_size)),) * 3
    return lax.scan(backward_round, nothing, jnp.arange(row.ranks_RL.shape[0]))[0]


def _backward_step(
    plan: windows.Plan,
    row: windows.Row,
    dropout_CW,
    upstream: _Upstream,
    step: windows.Step,
):
    """Gradients of queries, and of the keys and values in their windows.

    The last, [G, C, K], is of the values of queries that have only themselves.

    Logits are [G, W, C] here, and their gradient is transposed once for the queries: so
    all five products have the forms that XLA runs on several cores. The barriers keep
    the mask from being computed again within the exponential, and the transposition
    from being folded into the product.
    """
    q_GCK = windows.at(row.q_LK, step.queries_GC)
    k_GWK = windows.at(row.k_LK, step.keys_GW)
    v_GWK = windows.at(row.v_LK, step.keys_GW)
    dout_GCK, lse_GC, alone_GC, delta_GC = (
        windows.at(x, step.queries_GC) for x in upstream
    )
    logits_GWC = numerics.contract('gwk,gck->gwc', k_GWK, q_GCK)
    logits_GWC = lax.optimization_barrier(
        jnp.where(step.allowed, logits_GWC, numerics.MASKED)
    )
    p_GWC = jnp.exp(logits_GWC - lse_GC[:, None])
    dp_GWC = numerics.contract('gwk,gck->gwc', v_GWK, dout_GCK)
    dropped_GWC = p_GWC
    # Where a query has only itself its probability of itself is constant.
    own_GC = jnp.where(alone_GC, jnp.exp(-lse_GC), 0.0)
    if dropout_CW is not None:
        dp_GWC *= dropout_CW.T
        dropped_GWC = p_GWC * dropout_CW.T
        own_GC *= windows.own_dropout(plan, dropout_CW)
    ds_GWC = (p_GWC * (dp_GWC - delta_GC[:, None])).astype(q_GCK.dtype)
    ds_GCW = lax.optimization_barrier(jnp.swapaxes(ds_GWC, 1, 2))
    dq_GCK = numerics.contract('gcw,gwk->gck', ds_GCW, k_GWK)
    dk_GWK = numerics.contract('gwc,gck->gwk', ds_GWC, q_GCK)
    dv_GWK = numerics.contract(
        'gwc,gck->gwk', dropped_GWC.astype(dout_GCK.dtype), dout_GCK
    )
    return dq_GCK, dk_GWK, dv_GWK, own_GC[..., None] * dout_GCK


def _add_windows(plan: windows.Plan, x_ECK, windows_GWK, first):
    """Adds the chunks of each window to where they stand in the sorted order."""
    for place in range(plan.window_chunks):
        start = place * plan.chunk_length
        chunks_GCK = windows_GWK[:, start : start + plan.chunk_length]
        x_ECK = _add_chunks(x_ECK, chunks_GCK, first + place)
    return x_ECK


def _add_chunks(x_ECK, chunks_GCK, first):
    there = lax.dynamic_slice_in_dim(x_ECK, first, chunks_GCK.shape[0])
    return lax.dynamic_update_slice_in_dim(x_ECK, there + chunks_GCK, first, axis=0)


def _add_ends(
    plan: windows.Plan, row: windows.Row, hash_round, gradients, key_gradients
):
    """Adds the gradients of the chunks that a round looks at beyond its ends."""
    dq_LK, *others = gradients
    before, after = plan.chunks_before, plan.chunks_after
    order_EC = row.order_REC[hash_round]
    ends = [slice(0, before), slice(order_EC.shape[0] - after, None)]
    for end in ends:
        others = [
            x_LK.at[order_EC[end]].add(x_ECK[end])
            for x_LK, x_ECK in zip(others, key_gradients, strict=True)
        ]
    return dq_LK, *others


def _flat(x: jax.Array, axes: int) -> jax.Array:
    """The first axes made one."""
    return x.reshape(-1, *x.shape[axes:])
