"""Groups of sorted chunks, as the steps of the Mosaic kernels read them.

Chunks of a step are counted from the first of its group; those around the group are
below 0 or from G on. Shape letters are those of the package and of mosaic_tpu.py.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from reformer_jax.attention import numerics
from reformer_jax.attention import windows

# Tokens of a group of chunks; a single chunk would not be worth its step.
_GROUP_TOKENS = 512


class Chunks(NamedTuple):
    """Sorted arrays, references to them in a kernel, or one chunk of them.

    The numbers of a token are its position, its code in this round and its codes in
    the others: [N, Q, C, X] for queries, [N, Q, X, C] for keys. Where a key is hidden
    so is its position; a query's codes of later rounds meet no key. `softmax`
    [N, Q, C, 2] are the log-sum-exp and the delta of the backward pass.
    """

    qk: Any
    v: Any
    queries: Any
    keys: Any
    dout: Any = None
    softmax: Any = None


class Inputs(NamedTuple):
    chunks: Chunks
    dropout: Any


class Step(NamedTuple):
    """What the kernel of one step works on; the same for all steps.

    `pairs` are the chunks (of queries, of keys) that may meet, `around` those of them
    outside the group.
    """

    plan: windows.Plan
    hash_rounds: int
    chunks: int
    group: int
    pairs: Sequence[tuple[int, int]]

    @property
    def around(self) -> list[int]:
        used = {chunk for pair in self.pairs for chunk in pair}
        return sorted(used - set(range(self.group)))

    def in_group(self, chunk: int) -> bool:
        return 0 <= chunk < self.group


def step(plan: windows.Plan, hash_rounds: int, all_chunks: int, reach: int) -> Step:
    """A step whose queries are the group, and `reach` chunks at both sides of it."""
    chunks = all_chunks // hash_rounds
    most = max(1, _GROUP_TOKENS // plan.chunk_length)
    group = next(g for g in range(min(most, chunks), 0, -1) if chunks % g == 0)
    pairs = [
        (query, query + offset)
        for query in range(-reach, group + reach)
        for offset in range(-plan.chunks_before, plan.chunks_after + 1)
        if 0 <= query < group or 0 <= query + offset < group
    ]
    if not reach:
        pairs = [pair for pair in pairs if 0 <= pair[0] < group]
    return Step(plan, hash_rounds, chunks, group, pairs)


def _place(step: Step, hash_round, first, chunk: int):
    """Where a chunk of a step stands among the chunks of all rounds."""
    all_chunks = _all_chunks(step)
    place = hash_round * step.chunks + first + chunk
    if step.plan.circular:
        return place % all_chunks
    return jnp.clip(place, 0, all_chunks - 1)  # those outside their round never meet


def _all_chunks(step: Step) -> int:
    return step.hash_rounds * step.chunks


def _may_meet(step: Step, chunks: Chunks) -> jax.Array:
    """For every step, whether its pairs have anything to compute: [N * Q / G, 1, P]."""
    plan, first_Q1 = step.plan, jnp.arange(0, _all_chunks(step), step.group)
    hash_round, first = jnp.divmod(first_Q1, step.chunks)
    highest, lowest = chunks.queries.max(2), chunks.queries.min(2)  # [N, Q, X]
    highest_key, lowest_key = chunks.keys.max(3), chunks.keys.min(3)
    meet = []
    for query, key in step.pairs:
        q, k = (_place(step, hash_round, first, chunk) for chunk in (query, key))
        visible = lowest_key[:, k, 0] < (
            highest[:, q, 0] if plan.causal else windows.HIDDEN
        )
        if not plan.circular:
            for chunk in (query, key):
                visible &= (first + chunk >= 0) & (first + chunk < step.chunks)
        if plan.band_in_round:
            assert plan.band is not None
            visible &= highest[:, q, 1] - lowest_key[:, k, 1] >= plan.band[0]
            visible &= lowest[:, q, 1] - highest_key[:, k, 1] <= plan.band[1]
        meet.append(visible)
    return jnp.stack(meet, axis=-1).astype(jnp.int32).reshape(-1, 1, len(meet))


def call(step: Step, kernel, inputs: Inputs, results, interpret: bool, name: str):
    """Runs a kernel of (group, around, dropout, meet, *results) over all steps.

    Args:
      step: what a step works on.
      kernel: gets the chunks of the group, of each chunk around it, the dropout of all
        of these, and which pairs meet.
      inputs: sorted arrays.
      results: shapes [N, Q, ...] of what the kernel writes of its group.
      interpret: whether to interpret it.
      name: of the kernel.
    """
    rows, groups_of_round = inputs.chunks.qk.shape[0], step.chunks // step.group

    def of_step(row, hash_round, group):
        steps = step.hash_rounds * groups_of_round
        return row * steps + hash_round * groups_of_round + group, 0, 0

    def specs(spec, places, arrays):
        return [
            jax.tree.map(functools.partial(spec, step, place), arrays)
            for place in places
        ]

    meet, around = _may_meet(step, inputs.chunks), step.around
    group = functools.partial(_group_spec, step)
    return pl.pallas_call(
        functools.partial(kernel, step),
        grid=(rows, step.hash_rounds, groups_of_round),
        in_specs=(
            jax.tree.map(group, inputs.chunks),
            specs(_chunk_spec, around, inputs.chunks),
            specs(_round_spec, [0, *around], inputs.dropout),
            pl.BlockSpec((1, 1, meet.shape[-1]), of_step, memory_space=pltpu.SMEM),
        ),
        out_specs=jax.tree.map(group, results),
        out_shape=results,
        interpret=interpret,
        name=name,
    )(
        inputs.chunks,
        [inputs.chunks] * len(around),
        [inputs.dropout] * (1 + len(around)),
        meet,
    )


def _group_spec(step: Step, array) -> pl.BlockSpec:
    """The chunks of a group, of an array [N, Q, ...]."""
    groups_of_round = step.chunks // step.group

    def index(row, hash_round, group):
        return row, hash_round * groups_of_round + group, *(0,) * (array.ndim - 2)

    return pl.BlockSpec((1, step.group, *array.shape[2:]), index)


def _chunk_spec(step: Step, chunk: int, array) -> pl.BlockSpec:
    """One chunk of a step, of an array [N, Q, ...]."""

    def index(row, hash_round, group):
        place = _place(step, hash_round, group * step.group, chunk)
        return row, place, *(0,) * (array.ndim - 2)

    return pl.BlockSpec((1, 1, *array.shape[2:]), index)


def _round_spec(step: Step, chunk: int, array) -> pl.BlockSpec:
    """The dropout [1, C, W] of the round that a chunk of a step is of."""

    def index(row, hash_round, group):
        place = _place(step, hash_round, group * step.group, chunk)
        return lax.div(place, step.chunks), 0, 0

    return pl.BlockSpec((1, *array.shape[1:]), index)


def chunk(step: Step, group: Chunks, around: Sequence[Chunks], chunk: int):
    """The arrays of one chunk of a step."""
    if step.in_group(chunk):
        return jax.tree.map(lambda ref: ref[0, chunk], group)
    return jax.tree.map(lambda ref: ref[0, 0], around[step.around.index(chunk)])


def dropout(step: Step, dropout, query: int, key: int):
    """Dropout of a pair of chunks, [C, C]; None without."""
    ref = dropout[0 if step.in_group(query) else 1 + step.around.index(query)]
    if ref is None:
        return None
    length = step.plan.chunk_length
    start = (key - query + step.plan.chunks_before) * length
    return ref[0, :, start : start + length]


def logits(plan: windows.Plan, queries: Chunks, keys: Chunks, units) -> jax.Array:
    """Logits [C, C], numerics.MASKED where a query does not see a key."""
    query_XC1 = [queries.queries[:, x : x + 1] for x in range(keys.keys.shape[0])]
    key_X1C = [keys.keys[x : x + 1] for x in range(keys.keys.shape[0])]
    allowed = windows.may_see(plan, query_XC1[0], key_X1C[0])
    codes = list(zip(query_XC1[1:], key_X1C[1:], strict=True))
    if plan.band_in_round:
        allowed &= windows.meets(plan, *codes.pop(0))
    for earlier in codes:
        allowed &= ~windows.meets(plan, *earlier)
    return jnp.where(
        allowed, numerics.product(queries.qk, units, 1, 1), numerics.MASKED
    )


def units(keys: Chunks) -> jax.Array:
    return numerics.unit_keys(keys.qk).astype(keys.qk.dtype)
