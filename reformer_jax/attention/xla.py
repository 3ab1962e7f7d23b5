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

In a ring (ring.py) each device has a part of the positions and of every round's sorted
order: rows are brought to where their chunks are, and results to where their positions
are, instead of the gathers.

Shape letters are explained in the package; further G chunks in a step, E chunks with
the look-around at both ends, W keys in the window of a chunk, N rows (b * h) at a time.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from reformer_jax.attention import chunks
from reformer_jax.attention import hashing
from reformer_jax.attention import numerics
from reformer_jax.attention import ring
from reformer_jax.attention import rows as rows_lib
from reformer_jax.attention import windows


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

    products_BLHK = dout_BLHK.astype(jnp.float32) * out_BLHK.astype(jnp.float32)
    delta_BLH = jnp.sum(products_BLHK, axis=-1)  # so the output need not stay

    def backward_row(row, *upstream):
        return _backward_row(plan, row, dropout_RCW, _Upstream(*upstream))

    def backward_rows(gradients, inputs):
        index, softmax = inputs
        rows = _rows(plan, index, qk_BLHK, v_BLHK, *sorting)
        take = functools.partial(rows_lib.take, plan.rows, index)
        delta_NL = take(delta_BLH[..., None])[..., 0]
        new = jax.vmap(backward_row)(rows, take(dout_BLHK), *softmax, delta_NL)
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

    def chunks_here(order_RL):
        chunks_REC = windows.with_look_around(plan, order_RL)
        around = plan.window_chunks - 1
        return ring.part(plan.ring, chunks_REC, dim=1, beside=around)

    order_NRL = take(order_BHRL)
    real_NL = None
    if real_BL is not None:
        real_NL = rows_lib.take_mask(plan.rows, index, real_BL, heads)
    ranks_NRL = hashing.inverse_order(order_NRL)
    return windows.Row(
        q_LK=rows_lib.take(plan.rows, index, qk_BLHK),
        v_LK=rows_lib.take(plan.rows, index, v_BLHK),
        order_REC=jax.vmap(chunks_here)(order_NRL),
        ranks_RL=ring.part(plan.ring, ranks_NRL, dim=2),
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
        q_LK, v_LK = windows.of_round(plan, row, hash_round, (row.q_LK, row.v_LK))
        qkv = q_LK, numerics.unit_keys(q_LK).astype(q_LK.dtype), v_LK
        step = functools.partial(_forward_step, plan, row, qkv, dropout_CW, hash_round)
        in_order = lax.map(step, windows.first_chunks(plan, length))
        in_order = jax.tree.map(lambda x_SGC: _flat(x_SGC, 3), in_order)
        new = ring.take(plan.ring, in_order, row.ranks_RL[hash_round])
        return (new if row.ranks_RL.shape[0] == 1 else _merge(carry, new)), None

    nothing = (
        numerics.zeros((length, head_size), row.q_LK),
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


def _forward_step(
    plan: windows.Plan, row: windows.Row, qkv, dropout_CW, hash_round, first
):
    """Output [G, C, K], log-sum-exp [G, C] and alone [G, C] of a group of chunks."""
    step = windows.step(plan, row, hash_round, first, keys_first=False)
    q_LK, k_LK, v_LK = qkv
    q_GCK = numerics.at(q_LK, step.queries_GC)
    k_GWK, v_GWK = (numerics.at(x, step.keys_GW) for x in (k_LK, v_LK))
    logits_GCW = numerics.contract('gck,gwk->gcw', q_GCK, k_GWK)
    out_GCK, lse_GC, alone_GC = chunks.weigh(
        logits_GCW, v_GWK, step.allowed, dropout_CW, order_free=plan.order_free
    )
    own_GCK = v_GWK[:, plan.own].astype(jnp.float32)
    if dropout_CW is not None:
        own_GCK *= windows.own_dropout(plan, dropout_CW)[:, None]
    out_GCK = jnp.where(alone_GC[..., None], own_GCK, out_GCK)
    return out_GCK, lse_GC, alone_GC


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
    """Gradients of shared queries and keys, and of values, [L, K] in float32."""
    length, head_size = row.v_LK.shape
    before, count = plan.chunks_before, length // plan.chunk_length
    around = plan.window_chunks - 1
    own = slice(before * plan.chunk_length, (before + count) * plan.chunk_length)

    def backward_round(gradients, hash_round):
        dropout_CW = None if dropout_RCW is None else dropout_RCW[hash_round]
        arrays = windows.of_round(plan, row, hash_round, (row.q_LK, row.v_LK, upstream))

        def backward_step(in_order, first):
            step = windows.step(plan, row, hash_round, first, keys_first=True)
            dq_GCK, dk_GWK, dv_GWK, own_GCK = _backward_step(
                plan, arrays, dropout_CW, step
            )
            dqk_ECK, dv_ECK = in_order
            dqk_ECK = chunks.add_windows(dqk_ECK, dk_GWK, first)
            dqk_ECK = chunks.add(dqk_ECK, dq_GCK, first + before)
            dv_ECK = chunks.add_windows(dv_ECK, dv_GWK, first)
            dv_ECK = chunks.add(dv_ECK, own_GCK, first + before)
            return (dqk_ECK, dv_ECK), None

        shape = count + around, plan.chunk_length, head_size
        nothing = numerics.zeros(shape, row.q_LK)
        in_order, _ = lax.scan(
            backward_step, (nothing, nothing), windows.first_chunks(plan, length)
        )
        ranks_L = row.ranks_RL[hash_round]
        gradients = tuple(  # one after the other: a ring holds two blocks of each
            gradient + ring.take(plan.ring, _flat(x_ECK, 2), ranks_L, own=own)
            for gradient, x_ECK in zip(gradients, in_order, strict=True)
        )
        if plan.circular or plan.ring:
            gradients = _add_ends(plan, row, hash_round, gradients, in_order)
        return gradients, None

    nothing = (numerics.zeros((length, head_size), row.q_LK),) * 2
    return lax.scan(backward_round, nothing, jnp.arange(row.ranks_RL.shape[0]))[0]


def _backward_step(plan: windows.Plan, arrays, dropout_CW, step: windows.Step):
    """Gradients of queries, and of the keys and values in their windows.

    That of the keys is one of what they were made of. The last, [G, C, K], is of the
    values of queries that have only themselves.
    """
    q_LK, v_LK, upstream = arrays
    q_GWK, v_GWK = (numerics.at(x, step.keys_GW) for x in (q_LK, v_LK))
    keys, keys_vjp = jax.vjp(numerics.unit_keys, q_GWK.astype(jnp.float32))
    dout_GCK, lse_GC, alone_GC, delta_GC = (
        numerics.at(x, step.queries_GC) for x in upstream
    )
    dq_GCK, dk_GWK, dv_GWK = chunks.backward(
        (q_GWK[:, plan.own], keys.astype(q_GWK.dtype), v_GWK),
        step.allowed,
        dropout_CW,
        (dout_GCK, lse_GC, delta_GC),
    )
    # Where a query has only itself its probability of itself is constant.
    own_GC = jnp.where(alone_GC, jnp.exp(-lse_GC), 0.0)
    if dropout_CW is not None:
        own_GC *= windows.own_dropout(plan, dropout_CW)
    return dq_GCK, *keys_vjp(dk_GWK), dv_GWK, own_GC[..., None] * dout_GCK


def _add_ends(plan: windows.Plan, row: windows.Row, hash_round, gradients, in_order):
    """Adds the gradients of the chunks that are looked at beyond the ends.

    Of a round, or of each device's part of it in a ring.
    """
    before, after = plan.chunks_before, plan.chunks_after
    order_EC = row.order_REC[hash_round]
    for end in (slice(0, before), slice(order_EC.shape[0] - after, None)):
        positions = ring.gather(plan.ring, order_EC[end].ravel())
        beyond = [ring.gather(plan.ring, _flat(x_ECK[end], 2)) for x_ECK in in_order]
        if positions.size:
            gradients = tuple(
                ring.add(plan.ring, x_LK, positions, rows)
                for x_LK, rows in zip(gradients, beyond, strict=True)
            )
    return gradients


def _flat(x: jax.Array, axes: int) -> jax.Array:
    """The first axes made one."""
    return x.reshape(-1, *x.shape[axes:])
