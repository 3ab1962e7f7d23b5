"""A model run token by token: prefill reads prompts at once, decode_step one token.

Both compute what the model itself computes, layer by layer, with attention from
caches.py in place of the layers' own; what is exact there is exact here. The hash
buckets are those of the longest sequence that the model can read. A source is read
once, by prefill.
"""

import dataclasses
import functools
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from reformer_jax import attention
from reformer_jax import model as model_lib
from reformer_jax.attention import arguments
from reformer_jax.attention import fields
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

    Of a model with an encoder they continue b sources, B / b of each, which stand
    together.

    Attributes:
      lengths_B: tokens read of each; the next one gets this position.
      caches: for each layer and branch its cache, None for those without one of their
        own sequence.
      rotations: for each layer its hash rotations, None for those that do not hash.
      memories: for each layer and branch the keys and values [b, H, S, K] of the
        sources, None for those that read none.
      memory_mask_BS: [b, S], True for real tokens of the sources; None without an
        encoder.
      capacity: tokens that each can have.
    """

    lengths_B: jax.Array
    caches: list[Any]
    rotations: list[jax.Array | None]
    memories: list[Any]
    memory_mask_BS: jax.Array | None
    capacity: int = dataclasses.field(metadata={'static': True})


def prefill(
    model: model_lib.Reformer,
    tokens_BP: jax.Array,
    lengths_B: jax.Array,
    *,
    capacity: int,
    source: tuple[jax.Array, jax.Array] | None = None,
) -> tuple[jax.Array, State]:
    """Reads prompts in one parallel pass, and before it their sources.

    Args:
      model: causal.
      tokens_BP: P can be cut into chunks (model_config.padded_length); row b counts up
        to lengths_B[b].
      lengths_B: at least 1 each.
      capacity: tokens a sequence can have in the end.
      source: of a model with an encoder: token ids [B, S], and a mask [B, S] with True
        for the real ones, which may stand anywhere.

    Returns:
      Logits [B, V] of the token after each prompt, and the state.

    Raises:
      ValueError: the model is not causal, the capacity is less than P or more than the
        model has, or there is a source and no encoder or the reverse.
    """
    fields.check_whole(1, capacity=capacity)
    _check(model, tokens_BP, lengths_B)
    prompts = prompts_lib.Prompts(tokens_BP, jnp.asarray(lengths_B), capacity, source)
    streams, state = read(model, prompts)
    last_B11 = state.lengths_B[:, None, None] - 1
    last = [jnp.take_along_axis(y_BPD, last_B11, axis=1) for y_BPD in streams]
    return model.logits((last[0], last[1]))[:, 0], state


def _check(model: model_lib.Reformer, tokens_BP: Any, lengths_B: Any) -> None:
    """Raises a ValueError for what are no tokens or lengths; for wrong values only
    outside of compiled functions."""
    arguments.check_class('model', model, model_lib.Reformer, 'a Reformer')
    arguments.check_integers('tokens', tokens_BP, 'BP')
    arguments.check_integers('lengths', lengths_B, 'B')
    shape, batch = tokens_BP.shape, tokens_BP.shape[:1]
    if lengths_B.shape != batch:
        raise ValueError(
            f'lengths of shape {lengths_B.shape} and tokens of shape {shape}: '
            f'they must be [B] and [B, P], as {batch} for these.'
        )
    tokens, lengths = arguments.at_hand(tokens_BP), arguments.at_hand(lengths_B)
    if tokens is None or lengths is None:
        return
    model_config.check_tokens(model.config, tokens)
    for length in lengths.tolist():
        if not 1 <= length <= shape[1]:
            raise ValueError(f'a prompt of {length} tokens is not in [1, {shape[1]}].')


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
    prompts_lib.check_goes_with(config, prompts.source)
    states_BSX = mask_BS = None
    if prompts.source is not None:
        states_BSX, mask_BS = model.read_source(*prompts.source)
    rotations = model_lib.hash_rotations(model)
    streams, saved = model.streams_and_saved(
        prompts.tokens_BP,
        functools.partial(_saving, capacity=prompts.capacity),
        rotations,
        _Shared(prompts.lengths_B, mask_BS),
        states_BSX,
    )
    layer_caches, memories = _by_layer(model, saved)
    state = State(
        prompts.lengths_B, layer_caches, rotations, memories, mask_BS, prompts.capacity
    )
    return streams, state


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
      Logits [B, V] of the token after it, and the new state. Of a token that is none,
      or has no room, in compiled functions NaN.

    Raises:
      ValueError: there is no such token, or no room.
    """
    _check_step(model, state, tokens_B)
    x_BD = model.embed_at(tokens_B, state.lengths_B)
    has_room_B1 = state.lengths_B[:, None] < state.capacity
    x_B1D = jnp.where(has_room_B1, x_BD, jnp.nan)[:, None]
    key = jax.random.key(0)  # of dropout, which is off
    streams, single = (x_B1D, x_B1D), model.config.streams == 1
    new_caches = []
    for number, layer in enumerate(unstacked_layers or model.unstacked()):
        of_layer = list(state.caches[number])
        for place, branch in enumerate(layer.branches):
            target, source = streams
            if reversible.reads_memory(branch):
                q_B1HK = branch.project(source, _ALL_HEADS)
                memory = state.memories[number][place]
                out_B1HK = caches.memory_step(memory, q_B1HK, state.memory_mask_BS)
                added = branch.combine(out_B1HK, key, _ALL_HEADS)
            elif reversible.is_attention(branch):
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
    lengths_B = state.lengths_B + 1
    state = dataclasses.replace(state, lengths_B=lengths_B, caches=new_caches)
    return logits_B1V[:, 0], state


def _check_step(model: model_lib.Reformer, state: State, tokens_B: Any) -> None:
    arguments.check_class('model', model, model_lib.Reformer, 'a Reformer')
    arguments.check_class('state', state, State, 'what prefill made')
    arguments.check_integers('tokens', tokens_B, 'B')
    if tokens_B.shape != state.lengths_B.shape:
        raise ValueError(
            f'tokens of shape {tokens_B.shape} for a state of shape '
            f'{state.lengths_B.shape}: give one for each of its sequences.'
        )
    remedy = 'the state is full: give prefill more capacity'
    arguments.check_range('position', state.lengths_B, state.capacity, remedy)


def take_rows(state: State, rows: jax.Array) -> State:
    """The state of some of the sequences, in the order of `rows`.

    What is kept of sources is not copied: each has as many of the rows as the others,
    and they stand in the order of the sources. A ValueError if there is no such row.
    """
    arguments.check_integers('rows', rows, 'B')
    arguments.check_range('row', rows, state.lengths_B.size, 'the state has no other')
    caches = jax.tree.map(operator.itemgetter(rows), state.caches)
    return dataclasses.replace(state, lengths_B=state.lengths_B[rows], caches=caches)


class _Shared(NamedTuple):
    """What all attentions that read prompts get."""

    lengths_B: jax.Array
    memory_mask_BS: jax.Array | None


def _saving(branch: Any, capacity: int) -> Any:
    """The attention that takes the place of a layer's own in prefill."""
    reads = reversible.reads_memory(branch)
    return _Source(branch) if reads else _Prompt(branch, capacity)


def _by_layer(model: model_lib.Reformer, saved: Any) -> tuple[list[Any], list[Any]]:
    """Caches and memories of a State, of what the branches of the pattern saved."""
    own, memories, reads = [], [], reversible.reads_memory
    for repeat in range(model.config.repeats):
        for layer, of_layer in zip(model.layers, saved, strict=True):
            # Stacked over repeats and over one group of all heads.
            kept = jax.tree.map(operator.itemgetter((repeat, 0)), of_layer)
            pairs = list(zip(layer.branches, kept, strict=True))
            own.append([None if reads(branch) else k for branch, k in pairs])
            memories.append([k if reads(branch) else None for branch, k in pairs])
    return own, memories


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
        lengths_B = inputs.shared.lengths_B
        match kind := _computed(self.branch.kind):
            case attention.Local():
                return caches.local_prompt(kind, heads, lengths_B)
            case attention.Full():
                return caches.full_prompt(kind, heads, self.capacity)
        return lsh_caches.prompt(kind, heads, lengths_B, inputs.extra, self.capacity)

    def combine(self, out_BPHK, key, group, *, train):
        return self.branch.combine(out_BPHK, key, group, train=train)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Source:
    """An attention of prompts to their sources, which saves what it remembers."""

    branch: Any  # layers.CrossAttention

    def project(self, x_BPD, group):
        return self.branch.project(x_BPD, group)

    def remember(self, memory_BSX, group):
        return self.branch.remember(memory_BSX, group)

    def attend(self, heads, inputs: reversible.Inputs, *, train):
        return caches.memory_prompt(
            self.branch.kind, heads, inputs.shared.memory_mask_BS
        )

    def combine(self, out_BPHK, key, group, *, train):
        return self.branch.combine(out_BPHK, key, group, train=train)


def _computed(kind: attention.Kind) -> attention.Kind:
    """Exact LSH as the full attention that it is."""
    return kind.full if isinstance(kind, attention.LSH) and kind.exact else kind
