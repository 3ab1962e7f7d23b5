"""A model run token by token: prefill reads prompts at once, decode_step one token.

Both compute what the model itself computes, layer by layer, with attention from
caches.py in place of the layers' own; what is exact there is exact here. The hash
buckets are those of the longest sequence that the model can read.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from reformer_jax import model as model_lib
from reformer_jax.generation import caches
from reformer_jax.generation import lsh_caches
from reformer_jax.model import config as model_config
from reformer_jax.model import layers
from reformer_jax.stack import reversible

_ALL_HEADS = layers.HeadGroup(0, 1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """What has been read, of B sequences.

    Attributes:
      lengths_B: tokens read of each; the next one gets this position.
      caches: for each layer its cache.
      rotations: for each layer its hash rotations, None for those that do not hash.
    """

    lengths_B: jax.Array
    caches: list[Any]
    rotations: list[jax.Array | None]


class _Attention(NamedTuple):
    """The two functions of caches.py for one kind of layer, their settings bound."""

    prompt: Callable[..., Any]
    step: Callable[..., Any]


def prefill(
    model: model_lib.Reformer,
    tokens_BP: jax.Array,
    lengths_B: jax.Array,
    *,
    capacity: int,
    rounds: int | None = None,
) -> tuple[jax.Array, State]:
    """Reads prompts in one parallel pass.

    Args:
      model: causal.
      tokens_BP: P can be cut into chunks (model_config.padded_length); row b counts up
        to lengths_B[b].
      lengths_B: at least 1 each.
      capacity: tokens a sequence can have in the end.
      rounds: hash rounds instead of the config's.

    Returns:
      Logits [B, V] of the token after each prompt, and the state.

    Raises:
      ValueError: the model is not causal, or the capacity is less than P or more than
        the model has.
    """
    lengths_B = jnp.asarray(lengths_B)
    streams, state = read(model, tokens_BP, lengths_B, capacity=capacity, rounds=rounds)
    last = [
        jnp.take_along_axis(y_BPD, (lengths_B - 1)[:, None, None], axis=1)
        for y_BPD in streams
    ]
    return model.logits((last[0], last[1]))[:, 0], state


def read(
    model: model_lib.Reformer,
    tokens_BP: jax.Array,
    lengths_B: jax.Array,
    *,
    capacity: int,
    rounds: int | None = None,
) -> tuple[reversible.Streams, State]:
    """The last streams [B, P, D] of prompts, and the state; otherwise as prefill."""
    config = model.config
    if not config.causal:
        raise ValueError(
            'the model is bidirectional (model.causal=False): only a causal one reads '
            'token by token.'
        )
    most = model_config.padded_length(config, config.length)
    if not tokens_BP.shape[1] <= capacity <= most:
        raise ValueError(
            f'capacity={capacity} must be at least the {tokens_BP.shape[1]} tokens of '
            f'the prompts and at most the {most} of the model.'
        )
    rotations = model_lib.hash_rotations(config, rounds=rounds)

    def prompt_attention(layer):
        prompt = _attention(config, layer.attention, rounds).prompt

        def attend(heads, key, rotations, lengths_B, group, saved):
            return prompt(heads, lengths_B, rotations, capacity)

        return attend

    attends = [prompt_attention(layer) for layer in model.layers]
    streams, stacked = model.streams_and_saved(tokens_BP, attends, rotations, lengths_B)
    # Stacked over repeats and over one group of all heads.
    layer_caches = [
        jax.tree.map(operator.itemgetter((repeat, 0)), cache)
        for repeat in range(config.repeats)
        for cache in stacked
    ]
    return streams, State(lengths_B, layer_caches, rotations)


def decode_step(
    model: model_lib.Reformer,
    state: State,
    tokens_B: jax.Array,
    unstacked_layers: list[layers.Block] | None = None,
) -> tuple[jax.Array, State]:
    """Reads one more token of each sequence.

    Args:
      model: the one that made the state.
      state: with room for the token: lengths_B below the capacity.
      tokens_B: ids in [0, V).
      unstacked_layers: model.unstacked(), made outside of a loop over tokens.

    Returns:
      Logits [B, V] of the token after it, and the new state.
    """
    config = model.config
    x_B1D = model.embed_at(tokens_B, state.lengths_B)[:, None]
    key = jax.random.key(0)  # of dropout, which is off
    y1, y2 = x_B1D, x_B1D
    new_caches = []
    for number, layer in enumerate(unstacked_layers or model.unstacked()):
        rotations = state.rotations[number]
        rounds = None if rotations is None else rotations.shape[2]
        heads = layer.attention.project(y2, _ALL_HEADS)
        out_B1HK, cache = _attention(config, layer.attention, rounds).step(
            state.caches[number], heads, state.lengths_B, rotations
        )
        new_caches.append(cache)
        y1 += layers.combine(layer.attention, out_B1HK, key, _ALL_HEADS, False)
        added = layer.feed_forward(y1, key)
        y1, y2 = (y1 + added,) * 2 if config.streams == 1 else (y1, y2 + added)
    logits_B1V = model.logits((y1, y2))
    return logits_B1V[:, 0], State(state.lengths_B + 1, new_caches, state.rotations)


def take_rows(state: State, rows: jax.Array) -> State:
    """The state of some of the sequences, in the order of `rows`."""
    caches = jax.tree.map(operator.itemgetter(rows), state.caches)
    return State(state.lengths_B[rows], caches, state.rotations)


def _attention(
    config: model_config.ModelConfig, layer: Any, rounds: int | None
) -> _Attention:
    """For an attention layer of a model; rounds None for the config's."""
    if isinstance(layer, layers.FullSelfAttention):
        return _full(config.shared_qk)
    if isinstance(layer, layers.LocalSelfAttention):
        settings: dict[str, Any] = {
            'chunk_length': config.local_chunk_length,
            'chunks_before': config.local_chunks_before,
        }
        return _Attention(
            functools.partial(caches.local_prompt, **settings),
            functools.partial(caches.local_step, **settings),
        )
    if layer.is_dense(config.length, rounds or config.rounds):
        return _full(shared_qk=True)
    buckets = model_config.hash_buckets(config)
    if config.rule == 'strict':
        return _Attention(
            functools.partial(
                lsh_caches.strict_prompt,
                chunk_length=config.lsh_chunk_length,
                buckets=buckets,
                implementation=config.implementation,
            ),
            functools.partial(lsh_caches.strict_step, buckets=buckets),
        )
    settings = {
        'chunk_length': config.lsh_chunk_length,
        'chunks_before': config.lsh_chunks_before,
        'buckets': buckets,
        'rule': config.rule,
        'within_bucket': config.within_bucket,
    }
    return _Attention(
        functools.partial(
            lsh_caches.sorted_prompt, implementation=config.implementation, **settings
        ),
        functools.partial(lsh_caches.sorted_step, **settings),
    )


def _full(shared_qk: bool) -> _Attention:
    return _Attention(
        functools.partial(caches.full_prompt, shared_qk=shared_qk),
        functools.partial(caches.full_step, shared_qk=shared_qk),
    )
