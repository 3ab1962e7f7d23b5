"""Exact attention in blocks of queries by blocks of keys, as one custom_vjp.

The softmax of a query is built up block by block from a running maximum and sum (Rabe
and Staats 2021); only the output and these two are kept, and the backward pass
recomputes the probabilities (Dao et al. 2022; from maximum and sum, since the rounding
of their log-sum-exp would be that of all probabilities of a query). So the memory
beside the arrays themselves is a block of logits and copies of a few rows, whatever the
lengths. Blocks above the diagonal of causal attention are not computed, nor those of
keys behind the last that is no padding.

Logits are [N, J, I], keys first: so maximum and sum run along whole vectors of queries,
and all products have the forms that XLA computes fastest on a CPU.

Shape letters are explained in the package; further T queries, S keys, I queries and J
keys of a block, N rows (b * h) at a time.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from reformer_jax.attention import kinds
from reformer_jax.attention import numerics
from reformer_jax.attention import rows as rows_lib


@dataclasses.dataclass(frozen=True)
class Plan:
    """The static half of a call.

    Attributes:
      kind: what is computed.
      queries: of a block; divides T.
      keys: of a block; divides S.
      rows: attended at once.
    """

    kind: kinds.Full
    queries: int
    keys: int
    rows: rows_lib.Rows


class _Row(NamedTuple):
    """Some rows: queries, keys and values, and which keys are no padding, [N, S], or
    which of them each query may see, [N, T, S]."""

    q_NTK: jax.Array
    k_NSK: jax.Array
    v_NSK: jax.Array
    real: jax.Array | None
    key: jax.Array | None


class _Softmax(NamedTuple):
    """Of each query the highest logit, infinite where nothing could be seen, and the
    sum of what the exponential makes of the others relative to it."""

    highest_NT: jax.Array
    total_NT: jax.Array

    @property
    def alone_NT(self) -> jax.Array:
        return jnp.isinf(self.highest_NT)


def attend(
    kind: kinds.Full,
    q_BTHK: jax.Array,
    k_BSHK: jax.Array,
    v_BSHK: jax.Array,
    real: jax.Array | None,
    key: jax.Array | None,
) -> jax.Array:
    """Attention, [B, T, H, K] in the dtype of v; logits are not scaled here.

    `real` is [B, S] or [B, T, S]. With shared queries and keys, keys have unit length
    already.
    """
    batch, length, heads, _ = q_BTHK.shape
    most, rows = _most(max(length, k_BSHK.shape[1]))
    queries, keys = _block(length, most), _block(k_BSHK.shape[1], most)
    missing = -k_BSHK.shape[1] % keys
    if missing and real is None and not kind.causal:
        real = jnp.ones(k_BSHK.shape[:2], bool)
    if real is not None:
        of_queries = [(0, -length % queries)] * (real.ndim - 2)
        real = jnp.pad(real, [(0, 0), *of_queries, (0, missing)])
    plan = Plan(kind, queries, keys, rows_lib.at_most(rows, batch, heads))
    q_BTHK = _padded(q_BTHK, -length % queries)
    k_BSHK, v_BSHK = (_padded(x, missing) for x in (k_BSHK, v_BSHK))
    return _attend(plan, q_BTHK, k_BSHK, v_BSHK, real, key)[:, :length]


def _most(length: int) -> tuple[int, int]:
    """Most queries and keys of a block, and most rows at once, as measured fastest.

    More rows make larger products, but more copies, too.
    """
    if jax.default_backend() != 'cpu':
        size = 512
        return size, max(1, numerics.logits_per_step() // size**2)
    if numerics.BATCHED_PRODUCTS_ON_ALL_CORES:
        size, rows = 256, 2**15 // length
    else:
        size, rows = 512, 2**13 // length
    if rows < 2:
        return 512, 1
    return size, min(rows, max(1, 4 * size**2 // min(size, length) ** 2))


def _block(length: int, most: int) -> int:
    """Size of the blocks of a sequence: as few as allowed, and as equal."""
    return -(-length // -(-length // most))


def _padded(x_BLHK: jax.Array, missing: int) -> jax.Array:
    if not missing:
        return x_BLHK
    return jnp.pad(x_BLHK, ((0, 0), (0, missing), (0, 0), (0, 0)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plan: Plan, q_BTHK, k_BSHK, v_BSHK, real, key):
    return _attend_forward(plan, q_BTHK, k_BSHK, v_BSHK, real, key)[0]


def _attend_forward(plan: Plan, q_BTHK, k_BSHK, v_BSHK, real, key):
    inputs = q_BTHK, k_BSHK, v_BSHK, real, key

    def forward(out_BTHK, index):
        out_NTK, softmax = _forward_rows(plan, _take(plan, index, *inputs))
        return rows_lib.put(plan.rows, index, out_BTHK, out_NTK), softmax

    nothing = jnp.zeros(q_BTHK.shape, v_BSHK.dtype)
    steps = rows_lib.steps(plan.rows, q_BTHK)
    out_BTHK, softmax = lax.scan(forward, nothing, steps)
    return out_BTHK, (*inputs, out_BTHK, softmax)


def _attend_backward(plan: Plan, saved, dout_BTHK):
    *inputs, out_BTHK, softmax = saved

    def backward(gradients, step):
        index, of_rows = step
        out_NTK, dout_NTK = (
            rows_lib.take(plan.rows, index, x) for x in (out_BTHK, dout_BTHK)
        )
        row = _take(plan, index, *inputs)
        new = _backward_rows(plan, row, out_NTK, of_rows, dout_NTK)
        put = functools.partial(rows_lib.put, plan.rows, index)
        return jax.tree.map(put, gradients, new), None

    nothing = tuple(jnp.zeros_like(x) for x in inputs[:3])
    steps = rows_lib.steps(plan.rows, out_BTHK), softmax
    gradients, _ = lax.scan(backward, nothing, steps)
    return *gradients, None, None


_attend.defvjp(_attend_forward, _attend_backward)


def _take(plan: Plan, index, q_BTHK, k_BSHK, v_BSHK, real, key) -> _Row:
    q_NTK, k_NSK, v_NSK = (
        rows_lib.take(plan.rows, index, x) for x in (q_BTHK, k_BSHK, v_BSHK)
    )
    if real is not None:
        real = rows_lib.take_mask(plan.rows, index, real, q_BTHK.shape[2])
    return _Row(q_NTK, k_NSK, v_NSK, real, key)


# --- Forward ----------------------------------------------------------------------


def _forward_rows(plan: Plan, row: _Row) -> tuple[jax.Array, _Softmax]:
    """Output [N, T, K], and what its softmax was made with."""
    count, length, head_size = row.q_NTK.shape
    q_NKT, v_NKS = _columns(row.q_NTK), _columns(row.v_NSK)
    used = _used_blocks(plan, row)
    # Two blocks of keys at once are faster; dropout has a mask for each.
    wide = 2 if row.key is None and length > plan.queries else 1

    def block(i):
        q_NKI = _cut(q_NKT, i, plan.queries, axis=2)

        def add(j, so_far, *, crosses, keys=plan.keys):
            highest_NI, total_NI, out_NKI = so_far
            k_NJK = _cut(row.k_NSK, j, keys, axis=1)
            v_NKJ = _cut(v_NKS, j, keys, axis=2)
            logits_NJI = numerics.contract('njk,nki->nji', k_NJK, q_NKI)
            logits_NJI = _hide(plan, row, logits_NJI, (i, j), crosses=crosses)
            new_NI = jnp.maximum(highest_NI, logits_NJI.max(1))
            p_NJI = jnp.exp(logits_NJI - new_NI[:, None])
            faded_NI = jnp.exp(highest_NI - new_NI)
            total_NI = total_NI * faded_NI + p_NJI.sum(1)
            if row.key is not None:
                p_NJI *= _dropout(plan, row, i, j)
            p_NJI = p_NJI.astype(v_NKJ.dtype)
            out_NKI *= faded_NI[:, None]
            out_NKI += numerics.contract('nkj,nji->nki', v_NKJ, p_NJI)
            return new_NI, total_NI, out_NKI

        so_far = (
            jnp.full((count, plan.queries), numerics.MASKED),
            jnp.zeros((count, plan.queries)),
            jnp.zeros((count, head_size, plan.queries)),
        )
        first: jax.Array | int = 0
        end = used
        if plan.kind.causal:
            pairs = jnp.minimum(i, used) // wide
            whole = functools.partial(add, crosses=False, keys=wide * plan.keys)
            so_far = lax.fori_loop(0, pairs, whole, so_far)
            first, end = wide * pairs, jnp.minimum(i + 1, used)
        crossing = functools.partial(add, crosses=True)
        highest_NI, total_NI, out_NKI = lax.fori_loop(first, end, crossing, so_far)
        out_NIK = jnp.swapaxes(out_NKI / total_NI[:, None], 1, 2)
        alone_NI = highest_NI < numerics.MASKED / 2
        highest_NI = jnp.where(alone_NI, jnp.inf, highest_NI)
        return out_NIK, (highest_NI, jnp.where(alone_NI, 1.0, total_NI))

    out_ANIK, parts = lax.map(block, jnp.arange(length // plan.queries))
    out_NTK, softmax = _joined(out_ANIK), _Softmax(*map(_joined, parts))
    own_NTK = _own_values(plan, row) if plan.kind.shared_qk else 0.0
    return jnp.where(softmax.alone_NT[..., None], own_NTK, out_NTK), softmax


# --- Backward ---------------------------------------------------------------------


def _backward_rows(plan: Plan, row: _Row, out_NTK, softmax: _Softmax, dout_NTK):
    """Gradients of queries [N, T, K], keys and values [N, S, K] in float32.

    By blocks of keys, whose gradients are complete after one pass over the queries;
    those of the queries, as columns, are added to from each.
    """
    count, length, head_size = row.q_NTK.shape
    # The probabilities' sum divides the few numbers that they are multiplied with.
    part_NTK = dout_NTK.astype(jnp.float32) / softmax.total_NT[..., None]
    delta_NT = (part_NTK * out_NTK.astype(jnp.float32)).sum(-1)
    part_NTK = part_NTK.astype(dout_NTK.dtype)
    q_NKT, dout_NKT = _columns(row.q_NTK), _columns(part_NTK)
    used = _used_blocks(plan, row)
    queries = length // plan.queries

    def block(dq_NKT, j):
        k_NJK, v_NJK = (_cut(x, j, plan.keys, axis=1) for x in (row.k_NSK, row.v_NSK))
        k_NKJ = _columns(k_NJK)

        def add(i, so_far, *, crosses):
            dq_NKT, dk_NJK, dv_NJK = so_far
            q_NIK, dout_NIK, highest_NI, delta_NI = (
                _cut(x, i, plan.queries, axis=1)
                for x in (row.q_NTK, part_NTK, softmax.highest_NT, delta_NT)
            )
            q_NKI, dout_NKI = (
                _cut(x, i, plan.queries, axis=2) for x in (q_NKT, dout_NKT)
            )
            logits_NJI = numerics.contract('njk,nki->nji', k_NJK, q_NKI)
            logits_NJI = _hide(plan, row, logits_NJI, (i, j), crosses=crosses)
            p_NJI = jnp.exp(logits_NJI - highest_NI[:, None])
            dp_NJI = numerics.contract('njk,nki->nji', v_NJK, dout_NKI)
            dropped_NJI = p_NJI
            if row.key is not None:
                factors_JI = _dropout(plan, row, i, j)
                dp_NJI *= factors_JI
                dropped_NJI = p_NJI * factors_JI
            ds_NJI = (p_NJI * (dp_NJI - delta_NI[:, None])).astype(q_NIK.dtype)
            dropped_NJI = dropped_NJI.astype(dout_NIK.dtype)
            dv_NJK += numerics.contract('nji,nik->njk', dropped_NJI, dout_NIK)
            dk_NJK += numerics.contract('nji,nik->njk', ds_NJI, q_NIK)
            dq_NKI = _cut(dq_NKT, i, plan.queries, axis=2)
            dq_NKI += numerics.contract('nkj,nji->nki', k_NKJ, ds_NJI)
            dq_NKT = lax.dynamic_update_slice_in_dim(
                dq_NKT, dq_NKI, i * plan.queries, axis=2
            )
            return dq_NKT, dk_NJK, dv_NJK

        nothing = jnp.zeros((count, plan.keys, head_size))
        so_far = dq_NKT, nothing, nothing
        crossing = functools.partial(add, crosses=True)
        end = jnp.where(j < used, queries, 0)
        if plan.kind.causal:
            after = jnp.minimum(j + 1, end)
            so_far = lax.fori_loop(j, after, crossing, so_far)
            whole = functools.partial(add, crosses=False)
            so_far = lax.fori_loop(j + 1, end, whole, so_far)
        else:
            so_far = lax.fori_loop(0, end, crossing, so_far)
        dq_NKT, *key_gradients = so_far
        return dq_NKT, key_gradients

    nothing = jnp.zeros((count, head_size, length))
    blocks = jnp.arange(row.k_NSK.shape[1] // plan.keys)
    dq_NKT, key_gradients = lax.scan(block, nothing, blocks)
    dk_NSK, dv_NSK = (_joined(x) for x in key_gradients)
    if plan.kind.shared_qk:
        _, pullback = jax.vjp(
            lambda v_NSK: _own_values(plan, row._replace(v_NSK=v_NSK)), row.v_NSK
        )
        alone_NT1 = softmax.alone_NT[..., None]
        dv_NSK += pullback(jnp.where(alone_NT1, dout_NTK, 0).astype(row.v_NSK.dtype))[0]
    return jnp.swapaxes(dq_NKT, 1, 2), dk_NSK, dv_NSK


# --- Both -------------------------------------------------------------------------


def _cut(x: jax.Array, which, size: int, *, axis: int) -> jax.Array:
    """A block along an axis."""
    return lax.dynamic_slice_in_dim(x, which * size, size, axis=axis)


def _columns(x_NLK: jax.Array) -> jax.Array:
    """[N, K, L], made once: XLA would rather transpose within each product, and has no
    such product of bfloat16 on CPUs."""
    return lax.optimization_barrier(jnp.swapaxes(x_NLK, 1, 2))


def _joined(x_ANI: jax.Array) -> jax.Array:
    """[A, N, I, ...] -> [N, A * I, ...]."""
    x_NAI = jnp.moveaxis(x_ANI, 0, 1)
    return x_NAI.reshape(x_NAI.shape[0], -1, *x_NAI.shape[3:])


def _used_blocks(plan: Plan, row: _Row):
    """Blocks of keys up to the last key that is no padding."""
    blocks = row.k_NSK.shape[1] // plan.keys
    if row.real is None:
        return blocks
    real_A = row.real.reshape(-1, blocks, plan.keys).any((0, 2))
    return jnp.max(jnp.where(real_A, jnp.arange(blocks) + 1, 0))


def _hide(plan: Plan, row: _Row, logits_NJI, block, *, crosses: bool):
    """Logits of a block with MASKED where a query may not see a key.

    Args:
      plan: of the call.
      row: the rows.
      logits_NJI: logits.
      block: which block of I queries, and of J keys.
      crosses: whether it may lie on the diagonal.
    """
    kind, allowed, (i, j) = plan.kind, None, block
    _, keys, queries = logits_NJI.shape
    if crosses and (kind.causal or kind.shared_qk):
        queries_I = i * queries + jnp.arange(queries)
        keys_J1 = j * keys + jnp.arange(keys)[:, None]
        if not kind.causal:
            allowed = keys_J1 != queries_I
        elif kind.shared_qk:
            allowed = keys_J1 < queries_I
        else:
            allowed = keys_J1 <= queries_I
    if row.real is not None:
        real = _cut(row.real, j, keys, axis=-1)
        if real.ndim == 3:
            real = _cut(real, i, queries, axis=1)
        else:
            real = real[:, None]
        real_NJI = jnp.swapaxes(real, 1, 2)
        allowed = real_NJI if allowed is None else allowed & real_NJI
    if allowed is None:
        return logits_NJI
    return jnp.where(allowed, logits_NJI, numerics.MASKED)


def _dropout(plan: Plan, row: _Row, i, j) -> jax.Array:
    """Factors of the probabilities of a block, [J, I], the same for all rows."""
    assert row.key is not None
    block = i * (row.k_NSK.shape[1] // plan.keys) + j
    return numerics.dropout_mask(
        jax.random.fold_in(row.key, block), plan.kind.dropout, (plan.keys, plan.queries)
    )


def _own_values(plan: Plan, row: _Row) -> jax.Array:
    """What a token gets that sees only itself: its own value, [N, T, K]."""
    if row.key is None:
        return row.v_NSK
    blocks = jnp.arange(row.q_NTK.shape[1] // plan.queries)
    factors_AI = lax.map(lambda i: jnp.diagonal(_dropout(plan, row, i, i)), blocks)
    return row.v_NSK * factors_AI.reshape(-1, 1).astype(row.v_NSK.dtype)
