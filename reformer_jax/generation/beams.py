"""Beam search on cached decoding (Wu et al. 2016, section 7), one compiled loop.

Shape letters: E beams, S steps, V vocabulary; rows of the decoding state are [B * E].
Of a source there is one copy for all its beams.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from reformer_jax import model as model_lib
from reformer_jax.generation import prompts as prompts_lib
from reformer_jax.generation import steps as steps_lib


class _Beams(NamedTuple):
    """Continuations followed (log-probabilities) and finished (scores), best first."""

    tokens_BES: jax.Array
    logp_BE: jax.Array
    finished_BES: jax.Array
    scores_BE: jax.Array


def search(
    model: model_lib.Reformer,
    prompts: prompts_lib.Prompts,
    limits_B: jax.Array,
    length_penalty: jax.Array,
    stop: jax.Array,
    *,
    beams: int,
    steps: int,
) -> tuple[jax.Array, jax.Array]:
    """Continuations [B, E, S] and scores [B, E]; arguments as decoding.beam_search.

    Row b gets limits_B[b] tokens at most, no more than `steps`. `stop` is a token that
    never comes if there is none.
    """
    logits_BV, state = steps_lib.prefill(
        model,
        prompts.tokens_BP,
        prompts.lengths_B,
        capacity=prompts.capacity,
        source=prompts.source,
    )
    batch, vocab_size = logits_BV.shape
    layers = model.unstacked()
    state = steps_lib.take_rows(state, jnp.repeat(jnp.arange(batch), beams))
    # Not the token that stands for no stop token.
    filling = jnp.maximum(stop, 0)
    nothing_BES = jnp.full((batch, beams, steps), filling, jnp.int32)
    no_score_BE = jnp.full((batch, beams), -jnp.inf)
    # All beams are alike at first: only one counts.
    found = _Beams(nothing_BES, no_score_BE.at[:, 0].set(0.0), nothing_BES, no_score_BE)
    logits_BEV = jnp.repeat(logits_BV[:, None], beams, axis=1)
    found, origins_BE = _choose(found, logits_BEV, 0, stop, length_penalty)

    # Divided by numpy, so that a limit for each row gives the bits of one for all: XLA
    # makes of a division by a constant what it makes of it in that place.
    sixths_S = jnp.asarray((5 + np.arange(steps + 1)) / 6, jnp.float32)
    penalty_B = sixths_S[limits_B] ** length_penalty

    def goes_on(step, found):
        """Rows with steps left and a beam that can still be among the best, [B]."""
        # The best that a continuation can still get, and the worst that it must beat.
        attainable_B = found.logp_BE[:, 0] / penalty_B
        return (step < limits_B) & (attainable_B > found.scores_BE[:, -1])

    def unfinished(carry):
        step, found, _, _ = carry
        return jnp.any(goes_on(step, found))

    def extend(carry):
        step, found, origins_BE, state = carry
        goes_on_B = goes_on(step, found)
        first_B1 = jnp.arange(batch)[:, None] * beams
        state = steps_lib.take_rows(state, (first_B1 + origins_BE).reshape(-1))
        # Rows that have ended read at position 0: behind their last may be no room.
        lengths_N = jnp.where(jnp.repeat(goes_on_B, beams), state.lengths_B, 0)
        state = dataclasses.replace(state, lengths_B=lengths_N)
        latest_BE = lax.dynamic_index_in_dim(
            found.tokens_BES, step - 1, axis=2, keepdims=False
        )
        logits, state = steps_lib.decode_step(
            model, state, latest_BE.reshape(-1), layers
        )
        logits_BEV = logits.reshape(batch, beams, vocab_size)
        longer, origins_BE = _choose(found, logits_BEV, step, stop, length_penalty)
        choose = jax.vmap(jnp.where)
        found = jax.tree.map(functools.partial(choose, goes_on_B), longer, found)
        return step + 1, found, origins_BE, state

    _, found, _, _ = lax.while_loop(
        unfinished, extend, (jnp.int32(1), found, origins_BE, state)
    )
    cut_off_BE = found.logp_BE / penalty_B[:, None]
    return _best(found, found.tokens_BES, cut_off_BE)


def _choose(found: _Beams, logits_BEV, step, stop, length_penalty):
    """The beams with one token more, and the beams that those followed come from.

    Twice as many candidates as beams: at most one of each beam stops.
    """
    beams, vocab_size = logits_BEV.shape[1:]
    logp_BEV = found.logp_BE[..., None] + jax.nn.log_softmax(logits_BEV)
    logp_BX, index_BX = lax.top_k(logp_BEV.reshape(logp_BEV.shape[0], -1), 2 * beams)
    origins_BX, new_BX = index_BX // vocab_size, index_BX % vocab_size
    tokens_BXS = jnp.take_along_axis(found.tokens_BES, origins_BX[..., None], axis=1)
    tokens_BXS = tokens_BXS.at[:, :, step].set(new_BX)
    stops_BX = new_BX == stop
    scores_BX = jnp.where(
        stops_BX, logp_BX / _penalty(step + 1, length_penalty), -jnp.inf
    )
    finished_BES, scores_BE = _best(found, tokens_BXS, scores_BX)
    logp_BE, chosen_BE = lax.top_k(jnp.where(stops_BX, -jnp.inf, logp_BX), beams)
    tokens_BES = jnp.take_along_axis(tokens_BXS, chosen_BE[..., None], axis=1)
    origins_BE = jnp.take_along_axis(origins_BX, chosen_BE, axis=1)
    return _Beams(tokens_BES, logp_BE, finished_BES, scores_BE), origins_BE


def _best(found: _Beams, tokens_BXS, scores_BX):
    """The best of those that have finished and of others."""
    tokens_BXS = jnp.concatenate([found.finished_BES, tokens_BXS], axis=1)
    scores_BX = jnp.concatenate([found.scores_BE, scores_BX], axis=1)
    scores_BE, chosen_BE = lax.top_k(scores_BX, found.scores_BE.shape[1])
    return jnp.take_along_axis(tokens_BXS, chosen_BE[..., None], axis=1), scores_BE


def _penalty(length, exponent) -> jax.Array:
    return ((5 + length) / 6) ** exponent
