"""LSH attention on NVIDIA GPUs: Pallas kernels in Triton.

A program owns one tile of the sorted order of one (batch, head) and round. It gathers
the rows of its queries by their sorted positions, goes over the tiles of keys in their
window with an online softmax, and writes the round's output and log-sum-exp straight to
the rows they belong to: nothing is ever copied into sorted order. Another kernel
combines the rounds. In the backward pass the program of a tile owns the gradients of
its keys and values, over all queries that see them, and of its queries, over all keys
that they see: no two programs write to the same place.

Sizes of tiles and numbers of warps were chosen by compiling for sm_90: all fit into
shared memory; of the backward pass head size 128 and float32 spill some registers.

Shape letters are those of the package and tiles.py.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from reformer_jax.attention import numerics
from reformer_jax.attention import windows
from reformer_jax.attention.kernels import rounds
from reformer_jax.attention.kernels import tiles

SUPPORTED = 'float32 or bfloat16, head sizes up to 128, chunks that 16 divides'

# Matrix products take at least so many rows and columns, and powers of two.
_LEAST_TILE = 16
_MOST_HEAD_SIZE = 128

# With longer rows larger tiles would not fit into shared memory.
_MOST_ROW_BYTES = 256


def supports(dtype: Any, head_size: int, chunk_length: int) -> bool:
    """Whether the kernels take such arrays, see SUPPORTED."""
    return (
        jnp.dtype(dtype) in (jnp.float32, jnp.bfloat16)
        and head_size <= _MOST_HEAD_SIZE
        and chunk_length % _LEAST_TILE == 0
    )


def _attend_forward(plan, qk_BLHK, v_BLHK, *sorting_and_dropout):
    order_BHRL, _, _, dropout_RCW = sorting_and_dropout
    head_size = qk_BLHK.shape[-1]
    inputs = _inputs(qk_BLHK, v_BLHK, *sorting_and_dropout)
    share_BHL = rounds.share_of_itself(plan, order_BHRL, dropout_RCW)
    forward = functools.partial(_forward, plan, head_size)
    out_BHRLK, lse_BHRL = rounds.on_this_platform(forward, inputs)
    out_BLHK, lse_BHL = rounds.on_this_platform(
        _combine, out_BHRLK, lse_BHRL, inputs.v, share_BHL
    )
    out_BLHK = out_BLHK[..., :head_size]
    return out_BLHK, (qk_BLHK, v_BLHK, *sorting_and_dropout, out_BLHK, lse_BHL)


def _attend_backward(plan, saved, dout_BLHK):
    qk_BLHK, v_BLHK, *sorting_and_dropout, out_BLHK, lse_BHL = saved
    order_BHRL, _, _, dropout_RCW = sorting_and_dropout
    head_size = qk_BLHK.shape[-1]
    upstream = tiles.Upstream(
        dout=_padded(dout_BLHK),
        lse=rounds.lse_for_backward(lse_BHL),
        delta=rounds.delta(out_BLHK, dout_BLHK),
    )
    inputs = _inputs(qk_BLHK, v_BLHK, *sorting_and_dropout)
    backward = functools.partial(_backward, plan, head_size)
    dqk_BHRLK, dv_BHRLK = rounds.on_this_platform(backward, inputs, upstream)
    share_BHL = rounds.share_of_itself(plan, order_BHRL, dropout_RCW)
    dqk_BLHK, dv_BLHK = rounds.sum_gradients(
        dqk_BHRLK[..., :head_size],
        dv_BHRLK[..., :head_size],
        lse_BHL,
        rounds.own(dout_BLHK, share_BHL),
    )
    dqk_BLHK, dv_BLHK = dqk_BLHK.astype(qk_BLHK.dtype), dv_BLHK.astype(v_BLHK.dtype)
    return dqk_BLHK, dv_BLHK, None, None, None, None


attend = rounds.differentiable(_attend_forward, _attend_backward)


def _inputs(
    qk_BLHK, v_BLHK, order_BHRL, codes_BHRL, real_BL, dropout_RCW
) -> tiles.Inputs:
    return tiles.Inputs(
        qk=_padded(qk_BLHK),
        v=_padded(v_BLHK),
        order=order_BHRL.reshape(*order_BHRL.shape[:2], -1),
        codes=None if codes_BHRL is None else jnp.swapaxes(codes_BHRL, 2, 3),
        reals=None if real_BL is None else real_BL.sum(-1, dtype=jnp.int32),
        dropout=dropout_RCW,
    )


def _padded(x: jax.Array) -> jax.Array:
    """Head size made a power of two with zeros."""
    head_size = max(_LEAST_TILE, pl.next_power_of_2(x.shape[-1]))
    return jnp.pad(x, [(0, 0)] * 3 + [(0, head_size - x.shape[-1])])


# --- Forward ----------------------------------------------------------------------


def _forward(plan: windows.Plan, head_size: int, inputs: tiles.Inputs, *, interpret):
    """Output [B, H, R, L, K] and log-sum-exp [B, H, R, L] of every round."""
    batch, length, heads, width = inputs.v.shape
    hash_rounds = inputs.order.shape[-1] // length
    row_bytes = width * inputs.v.dtype.itemsize
    most = (128, 64) if row_bytes <= _MOST_ROW_BYTES else (64, 32)
    query_tile, key_tile = (_tile(plan, tokens) for tokens in most)
    lse = jax.ShapeDtypeStruct((batch, heads, hash_rounds, length), jnp.float32)
    out = jax.ShapeDtypeStruct((*lse.shape, width), inputs.v.dtype)
    return pl.pallas_call(
        functools.partial(_forward_kernel, plan, head_size, query_tile, key_tile),
        grid=(length // query_tile, hash_rounds, batch * heads),
        out_shape=(out, lse),
        compiler_params=plt.CompilerParams(
            num_warps=8 if query_tile == 128 else 4, num_stages=2
        ),
        interpret=interpret,
        name='lsh_attention_forward',
    )(inputs)


def _tile(plan: windows.Plan, most: int) -> int:
    """Tokens of a tile: the greatest power of two, to a most, that divides a chunk."""
    return min(plan.chunk_length & -plan.chunk_length, most)


def _forward_kernel(
    plan, head_size, query_tile, key_tile, inputs: tiles.Inputs, out_ref, lse_ref
):
    row = tiles.row(plan, head_size, inputs)
    place = pl.program_id(0) * query_tile
    in_chunk = lax.rem(place, plan.chunk_length)
    window = place - in_chunk - plan.chunks_before * plan.chunk_length
    queries = tiles.queries(row, place, query_tile, None)

    def attend(step, carry):
        out_TK, highest_T, total_T = carry
        keys = tiles.keys(row, window + step * key_tile, key_tile)
        logits = tiles.logits(row, queries, keys, keys_first=False)
        new_highest_T = jnp.maximum(highest_T, logits.max(1))
        shrink_T = jnp.exp2(highest_T - new_highest_T)
        p = jnp.exp2(logits - new_highest_T[:, None])
        total_T = total_T * shrink_T + p.sum(1)
        factors = tiles.dropout(
            row, queries, in_chunk, step * key_tile, key_tile, keys_first=False
        )
        p = p if factors is None else p * factors
        out_TK *= shrink_T[:, None]
        out_TK += numerics.product(p.astype(keys.values.dtype), keys.values, 1, 0)
        return out_TK, new_highest_T, total_T

    # Above the logits of hidden keys, so that those have no probability.
    lowest_T = jnp.full((query_tile,), numerics.MASKED / 2)
    nothing = jnp.zeros(queries.rows.shape, jnp.float32), lowest_T, 0 * lowest_T
    first, last = tiles.steps_inside(row, window, key_tile)
    out_TK, highest_T, total_T = lax.fori_loop(first, last, attend, nothing)
    alone_T = total_T == 0
    total_T = jnp.where(alone_T, 1.0, total_T)
    lse_T = (highest_T + jnp.log2(total_T)) / tiles.LOG2_E
    here = row.batch, row.head, row.hash_round, queries.positions
    out_ref[*here, :] = (out_TK / total_T[:, None]).astype(out_ref.dtype)
    lse_ref[here] = jnp.where(alone_T, numerics.MASKED, lse_T)


def _combine(out_BHRLK, lse_BHRL, v_BLHK, share_BHL, *, interpret: bool):
    """Output [B, L, H, K] and log-sum-exp [B, H, L] of all rounds together."""
    batch, heads, _, length = lse_BHRL.shape
    tile = math.gcd(length, 64)
    return pl.pallas_call(
        functools.partial(_combine_kernel, tile),
        grid=(length // tile, heads, batch),
        out_shape=(
            jax.ShapeDtypeStruct(v_BLHK.shape, v_BLHK.dtype),
            jax.ShapeDtypeStruct((batch, heads, length), jnp.float32),
        ),
        compiler_params=plt.CompilerParams(num_warps=4, num_stages=1),
        interpret=interpret,
        name='lsh_attention_combine',
    )(out_BHRLK, lse_BHRL, v_BLHK, share_BHL)


def _combine_kernel(tile, outs_ref, lses_ref, v_ref, share_ref, out_ref, lse_ref):
    tokens = pl.ds(pl.program_id(0) * tile, tile)
    head, batch = pl.program_id(1), pl.program_id(2)
    own_TK = v_ref[batch, tokens, head, :].astype(jnp.float32)
    if share_ref is not None:
        own_TK *= share_ref[batch, head, tokens][:, None]
    hash_rounds = range(lses_ref.shape[2])
    out_TK, lse_T = rounds.merge(
        [outs_ref[batch, head, r, tokens, :] for r in hash_rounds],
        [lses_ref[batch, head, r, tokens] for r in hash_rounds],
        own_TK,
    )
    out_ref[batch, tokens, head, :] = out_TK.astype(out_ref.dtype)
    lse_ref[batch, head, tokens] = lse_T


# --- Backward ---------------------------------------------------------------------


def _backward(
    plan: windows.Plan,
    head_size: int,
    inputs: tiles.Inputs,
    upstream: tiles.Upstream,
    *,
    interpret,
):
    """Gradients of queries and keys together and of values, [B, H, R, L, K] each."""
    batch, length, heads, width = inputs.v.shape
    hash_rounds = inputs.order.shape[-1] // length
    row_bytes = width * inputs.v.dtype.itemsize
    tile = _tile(plan, 64 if row_bytes <= _MOST_ROW_BYTES else 32)
    gradient = jax.ShapeDtypeStruct(
        (batch, heads, hash_rounds, length, width), inputs.v.dtype
    )
    return pl.pallas_call(
        functools.partial(_backward_kernel, plan, head_size, tile),
        grid=(length // tile, hash_rounds, batch * heads),
        out_shape=(gradient, gradient),
        compiler_params=plt.CompilerParams(
            num_warps=8 if width > 64 and tile > 32 else 4, num_stages=1
        ),
        interpret=interpret,
        name='lsh_attention_backward',
    )(inputs, upstream)


def _backward_kernel(
    plan,
    head_size,
    tile,
    inputs: tiles.Inputs,
    upstream: tiles.Upstream,
    dqk_ref,
    dv_ref,
):
    row = tiles.row(plan, head_size, inputs)
    place = pl.program_id(0) * tile
    in_chunk = lax.rem(place, plan.chunk_length)
    chunk = place - in_chunk
    before, after = (
        chunks * plan.chunk_length for chunks in (plan.chunks_before, plan.chunks_after)
    )
    queries = tiles.queries(row, place, tile, upstream)
    keys = tiles.keys(row, place, tile)

    def add_key_gradients(step, gradients):
        """Of the tile's keys, from a tile of queries that see them."""
        dk_TK, dv_TK = gradients
        others = tiles.queries(row, chunk - after + step * tile, tile, upstream)
        query_place = lax.rem(step * tile, plan.chunk_length)
        key_place = before + after + in_chunk - (step * tile - query_place)
        p, ds = _gradient(row, others, keys, query_place, key_place, keys_first=True)
        dk_TK += numerics.product(ds.astype(keys.rows.dtype), others.rows, 1, 0)
        dv_TK += numerics.product(p.astype(keys.values.dtype), others.dout, 1, 0)
        return dk_TK, dv_TK

    def add_query_gradients(step, dq_TK):
        """Of the tile's queries, from a tile of keys that they see."""
        others = tiles.keys(row, chunk - before + step * tile, tile)
        _, ds = _gradient(row, queries, others, in_chunk, step * tile, keys_first=False)
        ds *= others.scale[None, :]
        return dq_TK + numerics.product(ds.astype(others.rows.dtype), others.rows, 1, 0)

    # The tile's own keys and queries once for both.
    own = before + in_chunk
    p, ds = _gradient(row, queries, keys, in_chunk, own, keys_first=True)
    dv_TK = numerics.product(p.astype(keys.values.dtype), queries.dout, 1, 0)
    dk_TK = numerics.product(ds.astype(keys.rows.dtype), queries.rows, 1, 0)
    ds *= keys.scale[:, None]
    dq_TK = numerics.product(ds.astype(keys.rows.dtype), keys.rows, 0, 0)
    dk_TK, dv_TK = _for_others(
        row, place, -after, tile, add_key_gradients, (dk_TK, dv_TK)
    )
    here = row.batch, row.head, row.hash_round, queries.positions
    dv_ref[*here, :] = dv_TK.astype(dv_ref.dtype)
    dq_TK += _through_unit_length(row, keys, dk_TK)
    dq_TK = _for_others(row, place, -before, tile, add_query_gradients, dq_TK)
    dqk_ref[*here, :] = dq_TK.astype(dqk_ref.dtype)


def _for_others(row: tiles.Row, place, start: int, tile: int, body, carry):
    """Loop over the tiles of a window around a chunk, but for the tile at `place`.

    The window starts `start` places from the chunk of the tile.
    """
    in_chunk = lax.rem(place, row.plan.chunk_length)
    first, last = tiles.steps_inside(row, place - in_chunk + start, tile)
    own = lax.div(in_chunk - start, tile)

    def skip_own(step, carry):
        return body(step + (step >= own).astype(jnp.int32), carry)

    return lax.fori_loop(first, last - 1, skip_own, carry)


def _gradient(
    row: tiles.Row,
    queries: tiles.Queries,
    keys: tiles.Keys,
    query_place,
    key_place,
    *,
    keys_first: bool,
):
    """Probabilities after dropout, and the gradient of the logits."""
    lse, _ = windows.pairs(queries.lse * tiles.LOG2_E, keys.scale, keys_first)
    delta, _ = windows.pairs(queries.delta, keys.scale, keys_first)
    p = jnp.exp2(tiles.logits(row, queries, keys, keys_first=keys_first) - lse)
    left, right = (
        (keys.values, queries.dout) if keys_first else (queries.dout, keys.values)
    )
    dp = numerics.product(left, right, 1, 1)
    tile = keys.positions.size
    factors = tiles.dropout(
        row, queries, query_place, key_place, tile, keys_first=keys_first
    )
    if factors is None:
        return p, p * (dp - delta)
    return p * factors, p * (dp * factors - delta)


def _through_unit_length(row: tiles.Row, keys: tiles.Keys, dk_TK):
    """Gradient of the keys as they are, from that of the keys of unit length."""
    rows_TK = keys.rows.astype(jnp.float32)
    along_T = jnp.sum(dk_TK * rows_TK, axis=1)
    along_T *= jnp.square(keys.inverse_rms) / row.head_size
    return keys.scale[:, None] * (dk_TK - along_T[:, None] * rows_TK)
