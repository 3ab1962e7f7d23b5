"""Tiles of the sorted order, as the programs of the Triton kernels read them.

A place is a number in the sorted order of a round, a position one in the sequence; T
are the tokens of a tile. Other shape letters are those of the package.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from reformer_jax.attention import numerics
from reformer_jax.attention import windows

LOG2_E = math.log2(math.e)


class Inputs(NamedTuple):
    """Arrays, or references to them in a kernel, that both passes read.

    `order` [B, H, R * L] has the rounds one after the other, `codes` [B, H, L, R] those
    of a token side by side. `reals` [B] are numbers of real tokens, which stand first
    in every round.
    """

    qk: Any
    v: Any
    order: Any
    codes: Any
    reals: Any
    dropout: Any


class Upstream(NamedTuple):
    """What the backward pass starts from: [B, L, H, K], [B, H, L], [B, H, L]."""

    dout: Any
    lse: Any
    delta: Any


class Row(NamedTuple):
    """One round of one (batch, head), as seen by a program."""

    plan: windows.Plan
    head_size: int
    inputs: Inputs
    batch: Any
    head: Any
    hash_round: Any

    @property
    def length(self) -> int:
        return self.inputs.qk.shape[1]


class Queries(NamedTuple):
    """A tile of queries: positions [T], rows [T, K], and what comes from upstream."""

    hash_round: jax.Array
    positions: jax.Array
    rows: jax.Array
    dout: Any = None
    lse: Any = None
    delta: Any = None


class Keys(NamedTuple):
    """A tile of keys: positions [T], those that queries compare with, rows, values.

    A key times its `scale` [T] has unit length; `inverse_rms` is of its numbers.
    """

    positions: jax.Array
    visible: jax.Array
    rows: jax.Array
    values: jax.Array
    inverse_rms: jax.Array
    scale: jax.Array


def row(plan: windows.Plan, head_size: int, inputs: Inputs) -> Row:
    heads = inputs.qk.shape[2]
    row = pl.program_id(2)
    batch, head = lax.div(row, heads), lax.rem(row, heads)
    return Row(plan, head_size, inputs, batch, head, pl.program_id(1))


def _positions(row: Row, place, tile: int):
    """Positions of the tile that starts at a place, its round, and the place there.

    A place beyond the ends of a round is one of the round before or behind it.
    """
    place += row.hash_round * row.length
    if row.plan.circular:
        ring = row.inputs.order.shape[-1]
        reach = row.plan.window_chunks * row.plan.chunk_length
        place = lax.rem(place + ring * pl.cdiv(reach, ring), ring)
    positions_T = row.inputs.order[row.batch, row.head, pl.ds(place, tile)]
    return positions_T, lax.div(place, row.length), lax.rem(place, row.length)


def queries(row: Row, place, tile: int, upstream: Upstream | None) -> Queries:
    positions_T, hash_round, _ = _positions(row, place, tile)
    rows_TK = row.inputs.qk[row.batch, positions_T, row.head, :]
    if upstream is None:
        return Queries(hash_round, positions_T, rows_TK)
    return Queries(
        hash_round,
        positions_T,
        rows_TK,
        dout=upstream.dout[row.batch, positions_T, row.head, :],
        lse=upstream.lse[row.batch, row.head, positions_T],
        delta=upstream.delta[row.batch, row.head, positions_T],
    )


def keys(row: Row, place, tile: int) -> Keys:
    positions_T, _, first = _positions(row, place, tile)
    visible_T = positions_T
    if row.inputs.reals is not None:
        real_T = first + jnp.arange(tile) < row.inputs.reals[row.batch]
        visible_T = jnp.where(real_T, positions_T, windows.HIDDEN)
    rows_TK = row.inputs.qk[row.batch, positions_T, row.head, :]
    squares_TK = jnp.square(rows_TK.astype(jnp.float32))
    mean_square_T = jnp.sum(squares_TK, axis=1) / row.head_size
    inverse_rms_T = lax.rsqrt(mean_square_T + numerics.EPSILON)
    return Keys(
        positions=positions_T,
        visible=visible_T,
        rows=rows_TK,
        values=row.inputs.v[row.batch, positions_T, row.head, :],
        inverse_rms=inverse_rms_T,
        scale=inverse_rms_T * row.head_size**-0.5,
    )


def logits(row: Row, queries: Queries, keys: Keys, *, keys_first: bool):
    """Logits in base 2, numerics.MASKED where the query does not see the key."""
    plan = row.plan
    rows = (keys.rows, queries.rows) if keys_first else (queries.rows, keys.rows)
    _, scale = windows.pairs(queries.positions, keys.scale * LOG2_E, keys_first)
    logits = numerics.product(*rows, 1, 1) * scale
    allowed = windows.may_see(
        plan, *windows.pairs(queries.positions, keys.visible, keys_first)
    )
    if plan.band is not None:

        def codes(hash_round):
            of_all, at = row.inputs.codes, (row.batch, row.head)
            return (
                of_all[*at, queries.positions, hash_round],
                of_all[*at, keys.positions, hash_round],
            )

        rounds = row.inputs.codes.shape[-1]
        allowed &= windows.first_met(plan, codes, row.hash_round, rounds, keys_first)
    return jnp.where(allowed, logits, numerics.MASKED)


def dropout(
    row: Row, queries: Queries, query_place, key_place, tile, *, keys_first: bool
):
    """Factors of probabilities from places in a chunk and its window; None without."""
    if row.inputs.dropout is None:
        return None
    query_places = pl.ds(query_place, queries.positions.size)
    factors = row.inputs.dropout[
        queries.hash_round, query_places, pl.ds(key_place, tile)
    ]
    return factors.T if keys_first else factors


def steps_inside(row: Row, place, tile: int):
    """First and last (exclusive) of the tiles of a window that are in the round."""
    steps = row.plan.window_chunks * row.plan.chunk_length // tile
    if row.plan.circular:
        return 0, steps
    first = jnp.maximum(0, lax.div(-place, tile))
    last = jnp.minimum(steps, lax.div(row.length - place, tile))
    return first, last
