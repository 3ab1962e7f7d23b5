"""A model run token by token: prefill reads prompts at once, decode_step one token.

Both compute what the model itself computes, layer by layer, with attention from
caches.py in place of the layers' own; what is exact there is exact here. The hash
buckets are those of the longest sequence that the model can read.
"""

import dataclasses
import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp

from reformer_jax import attention
from reformer_jax import model as model_lib
from reformer_jax.generation import caches
from reformer_jax.generation import lsh_caches
from reformer_jax.generation import prompts as prompts_lib
from reformer_jax.model import config as model_config
from reformer_jax.model import layers
from reformer_jax.stack import reversible

_ALL_HEADS = reversible.HeadGroup()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """What has been read, of B sequences.

    Attributes:
      lengths_B: tokens read of each; the next one gets this position.
      caches: for each layer and branch its cache, None for a feed-forward.
      rotations: for each layer its hash rotations, None for those that do not hash.
    """

    lengths_B: jax.Array
    caches: list[Any]
    rotations: list[jax.Array | None]


def prefill(
    model: model_lib.Reformer,
    tokens_BP: jax.Array,
    lengths_B: jax.Array,
    *,
    capacity: int,
) -> tuple[jax.Array, State]:
    """Reads prompts in one parallel pass.

    Args:
      model: causal.
      tokens_BP: P can be cut into chunks (model_config.padded_length); row b counts up
        to lengths_B[b].
      lengths_B: at least 1 each.
      capacity: tokens a sequence can have in the end.

    Returns:
      Logits [B, V] of the token after each prompt, and the state.

    Raises:
      ValueError: the model is not causal, or the capacity is less than P or more than
        the model has.
    """
    prompts = prompts_lib.Prompts(tokens_BP, jnp.asarray(lengths_B), capacity)
    streams, state = read(model, prompts)
    last_B11 = state.lengths_B[:, None, None] - 1
    last = [jnp.take_along_axis(y_BPD, last_B11, axis=1) for y_BPD in streams]
    return model.logits((last[0], last[1]))[:, 0], state


def read(
    model: model_lib.Reformer, prompts: prompts_lib.Prompts
) -> tuple[reversible.Streams, State]:
    """The last streams [B, P, D] of prompts, and the state; otherwise as prefill."""
    config = model.config
    if not config.causal:
        raise ValueError(
            'the model is bidirectional (model.causal=False): only a causal one reads '
            'token by token.'
        )
    most = model_config.padded_length(config, config.length)
    longest = prompts.tokens_BP.shape[1]
    if not longest <= prompts.capacity <= most:
        raise ValueError(
            f'capacity={prompts.capacity} must be at least the {longest} tokens of the '
            f'prompts and at most the {most} of the model.'
        )
    prompts_lib.check_has_no_encoder(config)
    rotations = model_lib.hash_rotations(model)
    streams, saved = model.streams_and_saved(
        prompts.tokens_BP,
        functools.partial(_Prompt, capacity=prompts.capacity),
        rotations,
        prompts.lengths_B,
    )
    # Stacked over repeats and over one group of all heads.
    layer_caches = [
        [jax.tree.map(operator.itemgetter((repeat, 0)), cache) for cache in of_layer]
        for repeat in range(config.repeats)
        for of_layer in saved
    ]
    return streams, State(prompts.lengths_B, layer_caches, rotations)


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
    x_B1D = model.embed_at(tokens_B, state.lengths_B)[:, None]
    key = jax.random.key(0)  # of dropout, which is off
    streams, single = (x_B1D, x_B1D), model.config.streams == 1
    new_caches = []
    for number, layer in enumerate(unstacked_layers or model.unstacked()):
        of_layer = list(state.caches[number])
        for place, branch in enumerate(layer.branches):
            target, source = streams
            if reversible.is_attention(branch):
                heads = branch.project(source, _ALL_HEADS)
                given = of_layer[place], heads, state.lengths_B
                match kind := _computed(branch.kind):
                    case attention.LSH():
                        stepped = lsh_caches.step(kind, *given, state.rotations[number])
                    case _:
                        stepped = caches.step(kind, *given)
                out_B1HK, of_layer[place] = stepped
                added = branch.combine(out_B1HK, key, _ALL_HEADS)
            else:
                added = branch(source, key)
            streams = reversible.half_step(streams, target + added, single=single)
        new_caches.append(of_layer)
    logits_B1V = model.logits(streams)
    return logits_B1V[:, 0], State(state.lengths_B + 1, new_caches, state.rotations)


def take_rows(state: State, rows: jax.Array) -> State:
    """The state of some of the sequences, in the order of `rows`."""
    caches = jax.tree.map(operator.itemgetter(rows), state.caches)
    return State(state.lengths_B[rows], caches, state.rotations)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=['branch'],
    meta_fields=['capacity'],
)
@dataclasses.dataclass(frozen=True)
class _Prompt:
    """An attention that reads prompts, and saves the cache of their tokens."""

    branch: Any  # layers.SelfAttention
    capacity: int

    def project(self, x_BPD, group):
        return self.branch.project(x_BPD, group)

    def attend(self, heads, inputs: reversible.Inputs, *, train):
        lengths_B = inputs.shared
        match kind := _computed(self.branch.kind):
            case attention.Local():
                return caches.local_prompt(kind, heads, lengths_B)
            case attention.Full():
                return caches.full_prompt(kind, heads, self.capacity)
        return lsh_caches.prompt(kind, heads, lengths_B, inputs.extra, self.capacity)

    def combine(self, out_BPHK, key, group, *, train):
        return self.branch.combine(out_BPHK, key, group, train=train)


def _computed(kind: attention.Kind) -> attention.Kind:
    """Exact LSH as the full attention that it is."""
    return kind.full if isinstance(kind, attention.LSH) and kind.exact else kind
