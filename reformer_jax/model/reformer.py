"""Reformer: embeddings, a stack of two-stream layers, a head (paper section 3)."""

import functools
import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from reformer_jax import attention
from reformer_jax import sharding
from reformer_jax.attention import arguments
from reformer_jax.model import config as model_config
from reformer_jax.model import heads
from reformer_jax.model import layers
from reformer_jax.model import padding
from reformer_jax.model import positions
from reformer_jax.stack import reversible

ModelConfig = model_config.ModelConfig

# What the encoder's key is folded with: behind those that _split makes of it.
_ENCODER = 5


class Memory(NamedTuple):
    """What a decoder reads of its source.

    Attributes:
      states_BSX: hidden states of the encoder, float32.
      mask: [B, S], True for real tokens, None if all are; or [B, T, S], True for those
        that a target may read, for which `_replace(mask=...)` is there.
    """

    states_BSX: jax.Array
    mask: jax.Array | None = None


class Reformer(nnx.Module):
    """A model with its head; a pytree whose leaves are its parameters."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, *, embeds: bool = True):
        """embeds: whether it has an embedding of its own, and is not given one."""
        normal = jax.nn.initializers.normal
        self.config = config
        shape = config.vocab_size, config.d_model
        self.embedding = (
            nnx.Param(normal(1.0)(rngs.params(), shape)) if embeds else None
        )
        self.position_tables = nnx.List(
            nnx.Param(normal(1.0)(rngs.params(), shape))
            for shape in model_config.position_table_shapes(config)
        )
        self.layers = nnx.List(
            layers.stack(config.kind(name), config, rngs) for name in config.pattern
        )
        # Else tied logits, of embeddings of deviation 1, would start with sqrt(D).
        scale = config.d_model**-0.5 if config.tie_output else 1.0
        self.norm = layers.norm(config.output_width, config.norm_epsilon, rngs, scale)
        self.head = heads.build(config, rngs)
        self.encoder = _encoder(config, rngs)

    def __call__(
        self,
        tokens_BL: jax.Array,
        mask_BL: jax.Array | None = None,
        *,
        key: jax.Array | None = None,
        train: bool = False,
        hash_rotations: list[jax.Array | None] | None = None,
        memory: Memory | None = None,
    ) -> jax.Array:
        """What the head makes of a batch of sequences, in float32.

        Logits [B, L, V] of the next token ('lm') or of the token itself ('masked_lm');
        [B, classes] of the sequence ('classification'); [B, L, classes] of each token;
        [B, L, 2] of its being the first and the last of the answer.

        With the rules reformer and strict, real tokens give what they give alone,
        wherever padding stands; with trax, padding takes up positions.

        Args:
          tokens_BL: ids in [0, vocab_size), of any length L up to config.length.
          mask_BL: True for real tokens, None if all are.
          key: random key of hashing and dropout. Needed to train; without one the
            hashes are the same in every call.
          train: whether dropout is on, and streams are on the grid that makes a
            reversible stack's gradients exact (config.grid_bits).
          hash_rotations: for each layer its rotations [H, K, R, S], None for layers
            that do not hash.
          memory: what read_source made of the sources, of a model with an encoder.
        """
        streams = self.streams(
            tokens_BL,
            mask_BL,
            key=key,
            train=train,
            hash_rotations=hash_rotations,
            memory=memory,
        )
        return self.logits(streams, mask_BL, key=key, train=train)

    def read_source(
        self,
        tokens_BS: jax.Array,
        mask_BS: jax.Array | None = None,
        *,
        key: jax.Array | None = None,
        train: bool = False,
        hash_rotations: list[jax.Array | None] | None = None,
        watch: jax.Array | None = None,
    ) -> Memory:
        """What the decoder's layers attend to; arguments as in `streams`.

        Padding may stand anywhere, and has no influence. The encoder's randomness is
        other than the decoder's of the same key. On a mesh there may be any number of
        sources: rows that are left out again fill it.

        Raises:
          ValueError: the model has no encoder.
        """
        if self.encoder is None:
            raise ValueError(
                'the model has no encoder to read a source: build it with '
                'model.encoder, the fields in which that differs.'
            )
        if key is not None:
            key = jax.random.fold_in(key, _ENCODER)
        table_VD = self._table if self.config.share_embedding else None
        assert self.config.encoder is not None
        _check_tokens(self.config.encoder, tokens_BS, mask_BS)
        batch = tokens_BS.shape[0]
        fill = (0, sharding.missing_rows(batch)), (0, 0)
        streams = self.encoder.streams(
            jnp.pad(tokens_BS, fill),
            None if mask_BS is None else jnp.pad(mask_BS, fill),
            key=key,
            train=train,
            hash_rotations=hash_rotations,
            watch=watch,
            embedding_VD=table_VD,
        )
        return Memory(self.encoder._hidden(streams, None, False)[:batch], mask_BS)

    def encode(
        self,
        tokens_BL: jax.Array,
        mask_BL: jax.Array | None = None,
        *,
        hash_rotations: list[jax.Array | None] | None = None,
    ) -> jax.Array:
        """Hidden states [B, L, X] in float32: the embeddings of a text.

        X is 2 * D where the streams are concatenated. Arguments as in a call. Where
        there is an encoder they are the encoder's.
        """
        if self.encoder is not None:
            memory = self.read_source(tokens_BL, mask_BL, hash_rotations=hash_rotations)
            return memory.states_BSX
        streams = self.streams(tokens_BL, mask_BL, hash_rotations=hash_rotations)
        return self._hidden(streams, None, False)

    def streams(
        self,
        tokens_BL: jax.Array,
        mask_BL: jax.Array | None = None,
        *,
        key: jax.Array | None = None,
        train: bool = False,
        hash_rotations: list[jax.Array | None] | None = None,
        watch: jax.Array | None = None,
        memory: Memory | None = None,
        embedding_VD: jax.Array | None = None,
    ) -> reversible.Streams:
        """The two streams [B, L, D] after the last layer; arguments as in a call.

        The gradient of `watch` counts where a reversible stack missed its inputs. An
        encoder without an embedding is given one.
        """
        config = self.config
        _check_tokens(config, tokens_BL, mask_BL)
        length = tokens_BL.shape[1]
        _check_call(config, length, key, train, hash_rotations)
        _check_memory(config, tokens_BL, memory)
        order = None
        if mask_BL is not None and config.rule != 'trax':
            order = padding.real_first(mask_BL)
            tokens_BL = padding.take(tokens_BL, order)
            mask_BL = padding.take(mask_BL, order)
        tokens_BP, mask_BP = padding.to_length(
            tokens_BL, mask_BL, model_config.padded_length(config, length)
        )
        rate = config.dropout if train else 0.0
        token_key, position_key, stack_key, *_ = _split(key)
        table_VD = self._table if embedding_VD is None else embedding_VD
        x_BPD = self._embed(table_VD, tokens_BP, rate, token_key, position_key)
        groups = config.heads // (config.heads_at_once or config.heads)
        branches = tuple(layer.branches for layer in self.layers)
        rotations = _rotations_by_layer(config, hash_rotations)
        states_BSX, memory_mask = memory or (None, None)
        how = self._pass(train, groups, x_BPD, states_BSX)
        if memory_mask is not None and memory_mask.ndim == 3:  # as the targets
            if order is not None:
                memory_mask = padding.take(memory_mask, order)
            behind = tokens_BP.shape[1] - length
            memory_mask = jnp.pad(memory_mask, ((0, 0), (0, behind), (0, 0)))
        masks = layers.Masks(mask_BP, memory_mask)
        scanned = how, branches, (x_BPD, x_BPD), stack_key, rotations, masks
        if config.stack == 'reversible':
            y1, y2 = reversible.reversible_scan(*scanned, watch, states_BSX)
        else:
            checkpoint = config.stack == 'checkpoint'
            y1, y2 = reversible.residual_scan(*scanned, checkpoint, states_BSX)
        y1, y2 = y1[:, :length], y2[:, :length]
        if order is not None:
            y1, y2 = (padding.take(y, order.inverse) for y in (y1, y2))
        return y1, y2

    def streams_and_saved(
        self,
        tokens_BL: jax.Array,
        replace: Callable[[Any], Any],
        hash_rotations: list[jax.Array | None],
        shared: Any,
        memory_BSX: jax.Array | None = None,
    ) -> tuple[reversible.Streams, Any]:
        """The last streams of an inference pass with other attention functions.

        Args:
          tokens_BL: ids in [0, vocab_size).
          replace: makes of a layer's attention the branch to run instead; it gets
            all heads at once, and as `extra` the layer's rotations.
          hash_rotations: as in a call of the model.
          shared: what all attentions get.
          memory_BSX: the states that read_source made, of a model with an encoder.

        Returns:
          The streams, and what the branches save (reversible.forward_scan).
        """
        key = jax.random.key(0)  # of dropout, which is off
        x_BLD = self._embed(self._table, tokens_BL, 0.0, key, key)
        branches = tuple(
            tuple(
                replace(branch) if reversible.is_attention(branch) else branch
                for branch in layer.branches
            )
            for layer in self.layers
        )
        rotations = _rotations_by_layer(self.config, hash_rotations)
        how, both = self._pass(False, 1, x_BLD, memory_BSX), (x_BLD, x_BLD)
        return reversible.forward_scan(
            how, branches, both, key, rotations, shared, memory_BSX
        )

    def with_rounds(self, rounds: int) -> 'Reformer':
        """The same parameters with other hash rounds.

        What the model computes exactly, if anything, it still does.
        """
        config = self.config.with_rounds(rounds)
        other = jax.eval_shape(lambda: Reformer(config, nnx.Rngs(0)))
        return jax.tree.unflatten(jax.tree.structure(other), jax.tree.leaves(self))

    def embed_at(self, tokens_B: jax.Array, positions_B: jax.Array) -> jax.Array:
        """Embeddings [B, D] of single tokens at their positions; NaN for one that the
        model does not have."""
        _check_single(self.config, tokens_B, positions_B)
        x_BD = _rows(self._table, tokens_B)
        match self.config.positions:
            case 'axial':
                tables = [table[...] for table in self.position_tables]
                x_BD += positions.axial_at(tables, positions_B)
            case 'learned':
                x_BD += self.position_tables[0][positions_B]
            case 'sinusoidal':
                x_BD += positions.sinusoidal(positions_B, self.config.d_model)
        exists_B = (0 <= positions_B) & (positions_B < self.config.length)
        return jnp.where(exists_B[:, None], x_BD, jnp.nan)

    def unstacked(self) -> list[layers.Block]:
        """The layers one by one, from first to last."""
        return [
            jax.tree.map(operator.itemgetter(repeat), stack)
            for repeat in range(self.config.repeats)
            for stack in self.layers
        ]

    def logits(
        self,
        streams: reversible.Streams,
        mask_BL: jax.Array | None = None,
        *,
        key: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """What the head makes of the last streams; arguments as in a call."""
        config = self.config
        if config.head in ('lm', 'masked_lm'):
            x_BLX = self._hidden(streams, key, train)
            return self.head(x_BLX, self._table)
        if config.head == 'classification':
            x_BX = self._pooled(streams, mask_BL, key, train)
            return self.head(x_BX, _split(key)[4], train=train)
        if config.head == 'none':
            raise ValueError(
                "the model has no head (model.head='none'): use encode, or build it "
                'with another head.'
            )
        return self.head(self._hidden(streams, key, train))

    @property
    def _table(self) -> jax.Array:
        """The embedding of tokens, [V, D]."""
        if self.embedding is None:
            raise ValueError(
                "this encoder has its decoder's embedding: call the decoder's encode "
                'or read_source.'
            )
        return self.embedding[...]

    def _pooled(self, streams, mask_BL, key, train) -> jax.Array:
        """What stands for each sequence, [B, X]."""
        pooling = self.config.pooling
        if mask_BL is None:
            mask_BL = jnp.ones(streams[0].shape[:2], bool)
        if pooling == 'mean':
            return heads.mean_of_real(self._hidden(streams, key, train), mask_BL)
        places_B11 = heads.place_of_pooling(pooling, mask_BL)[..., None]
        y1, y2 = (jnp.take_along_axis(y, places_B11, axis=1) for y in streams)
        return self._hidden((y1, y2), key, train)[:, 0]

    def _hidden(self, streams, key, train) -> jax.Array:
        """Combination, norm and dropout of the last streams, [B, L, X] in float32."""
        y1_BLD, y2_BLD = streams
        if self.config.combine == 'average':
            x_BLX = (y1_BLD + y2_BLD) / 2
        else:
            x_BLX = jnp.concatenate([y1_BLD, y2_BLD], axis=-1)
        x_BLX = self.norm(x_BLX)
        if train and key is not None:
            x_BLX = layers.dropout(x_BLX, self.config.dropout, _split(key)[3])
        return x_BLX

    def _embed(
        self, embedding_VD, tokens_BL, dropout, token_key, position_key
    ) -> jax.Array:
        embedding_VD = sharding.constrain(embedding_VD, P())
        x_BLD = sharding.constrain(_rows(embedding_VD, tokens_BL), sharding.POSITIONS)
        x_BLD = layers.dropout(x_BLD, dropout, token_key)
        positions_BLD = self._positions(tokens_BL)
        if positions_BLD is None:
            return x_BLD
        positions_BLD = sharding.constrain(positions_BLD, sharding.POSITIONS)
        if dropout:  # the same channels in all sequences
            ones_11D = jnp.ones((1, 1, positions_BLD.shape[-1]), positions_BLD.dtype)
            positions_BLD *= layers.dropout(ones_11D, dropout, position_key)
        return x_BLD + positions_BLD

    def _positions(self, tokens_BL: jax.Array) -> jax.Array | None:
        """[B, L, D] or [1, L, D]; zeros for the padding beyond the longest sequence."""
        batch, length = tokens_BL.shape
        real = min(length, self.config.length)
        match self.config.positions:
            case 'axial':
                # For each sequence, lest devices add up gradients of [L, D].
                tables = [
                    jnp.broadcast_to(table[...], (batch, *table.shape))
                    for table in self.position_tables
                ]
                axial = functools.partial(positions.axial, length=real)
                embeddings = jax.vmap(axial)(tables)
            case 'learned':
                embeddings = self.position_tables[0][:real][None]
            case 'sinusoidal':
                positions_1L = jnp.arange(real)[None]
                embeddings = positions.sinusoidal(positions_1L, self.config.d_model)
            case _:
                return None
        return jnp.pad(embeddings, ((0, 0), (0, length - real), (0, 0)))

    def _pass(
        self,
        train: bool,
        head_groups: int,
        x_BLD: jax.Array,
        memory_BSX: jax.Array | None,
    ) -> reversible.Pass:
        config = self.config
        of_memory = P() if memory_BSX is None else sharding.split(memory_BSX.shape)
        return reversible.Pass(
            train=train,
            grid_bits=config.grid_bits if train else 0,
            head_groups=head_groups,
            chunk_length=config.feed_forward_chunk_length,
            split=sharding.split(x_BLD.shape),
            memory_split=of_memory,
            single=config.streams == 1,
        )


def _encoder(config: ModelConfig, rngs: nnx.Rngs) -> Reformer | None:
    if config.encoder is None:
        return None
    return Reformer(config.encoder, rngs, embeds=not config.share_embedding)


def build(config: ModelConfig, rngs: nnx.Rngs) -> Reformer:
    """A freshly initialised model.

    Raises:
      ValueError: config or rngs are of another kind.
    """
    arguments.check_class('config', config, ModelConfig, 'a ModelConfig')
    arguments.check_class('rngs', rngs, nnx.Rngs, 'nnx.Rngs')
    return Reformer(config, rngs)


def shift_right(config: ModelConfig, tokens_BL: jax.Array) -> jax.Array:
    """What a model reads to predict each token: the start token, all but the last."""
    arguments.check_class('config', config, ModelConfig, 'a ModelConfig')
    arguments.check_integers('tokens', tokens_BL, 'BL')
    if config.start_token < 0:
        raise ValueError(
            f'start_token={config.start_token}: the model has none to put in front.'
        )
    starts = jnp.full_like(tokens_BL[:, :1], config.start_token)
    return jnp.concatenate([starts, tokens_BL[:, :-1]], axis=1)


def hash_rotations(
    model: Reformer, key: jax.Array | None = None
) -> list[jax.Array | None]:
    """The rotations that a call with this key draws, in the form it takes them."""
    arguments.check_class('model', model, Reformer, 'a Reformer')
    arguments.check_key(key)
    config = model.config

    def rotations(number):
        layer = model.layers[number % len(config.pattern)]
        kind = layer.attention.kind
        if not isinstance(kind, attention.LSH):
            return None
        keys = reversible.branch_keys(_split(key)[2], number, layer.branches)
        attend_key, _ = keys[0]
        return layers.hash_rotations(kind, config, jax.random.split(attend_key)[0])

    return [rotations(number) for number in range(config.layers)]


def _split(key: jax.Array | None) -> jax.Array:
    """Keys of the tokens', positions', stack's, output's and head's randomness."""
    return jax.random.split(jax.random.key(0) if key is None else key, 5)


def parameter_count(model: Any) -> int:
    """Number of parameters of a model or of its abstract shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model))


def _rotations_by_layer(config: ModelConfig, hash_rotations):
    """Rotations stacked over the repeats, for each layer of the pattern."""
    count = len(config.pattern)
    if hash_rotations is None:
        return (None,) * count
    return tuple(
        jnp.stack(hash_rotations[place::count]) if kind == 'lsh' else None
        for place, kind in enumerate(config.pattern)
    )


def _rows(table_VD: jax.Array, tokens: jax.Array) -> jax.Array:
    """Embeddings of token ids; NaN for one that is none, not another token's."""
    beyond = jnp.where(tokens < 0, table_VD.shape[0], tokens)
    return table_VD.at[beyond].get(mode='fill', fill_value=jnp.nan)


def _check_tokens(config: ModelConfig, tokens_BL: Any, mask_BL: Any) -> None:
    """Of any call; the ids themselves only outside of compiled functions, where the
    wrong ones give NaN."""
    arguments.check_integers('tokens', tokens_BL, 'BL')
    arguments.check_mask(mask_BL, tokens_BL.shape)
    values = arguments.at_hand(tokens_BL)
    if values is not None:
        model_config.check_tokens(config, values)


def _check_single(config: ModelConfig, tokens_B: Any, positions_B: Any) -> None:
    arguments.check_integers('tokens', tokens_B, 'B')
    arguments.check_integers('positions', positions_B, 'B')
    if tokens_B.shape != positions_B.shape:
        raise ValueError(
            f'tokens have shape {tokens_B.shape} and positions {positions_B.shape}: '
            'they must be alike.'
        )
    for name, x, limit in (
        ('token', tokens_B, config.vocab_size),
        ('position', positions_B, config.length),
    ):
        arguments.check_range(name, x, limit, 'as many has the model')


def _check_call(config, length, key, train, hash_rotations):
    model_config.check_length(config, length)
    arguments.check_key(key)
    if train and key is None:
        raise ValueError('train=True needs a key, for dropout and fresh hashes.')
    if hash_rotations is not None and len(hash_rotations) != config.layers:
        raise ValueError(
            f'hash_rotations has {len(hash_rotations)} entries for {config.layers} '
            'layers: give one per layer, None for those that do not hash.'
        )
    for number, rotations in enumerate(hash_rotations or ()):
        hashes = config.pattern[number % len(config.pattern)] == 'lsh'
        if hashes != (rotations is not None):
            needed = 'rotations' if hashes else 'None, since it does not hash'
            raise ValueError(f'hash_rotations of layer {number} must be {needed}.')


def _check_memory(config: ModelConfig, tokens_BL, memory: Memory | None) -> None:
    if (config.encoder is None) != (memory is None):
        has, remedy = 'an encoder', 'pass memory=model.read_source(source, source_mask)'
        if config.encoder is None:
            has, remedy = 'no encoder', 'leave memory out, or build it with one'
        raise ValueError(
            f'the model has {has}, and the call {"no" if memory is None else "a"} '
            f'memory: {remedy}.'
        )
    if memory is None:
        return
    assert config.encoder is not None
    arguments.check_class('memory', memory, Memory, 'what read_source made')
    states, mask = memory
    arguments.check_floats('states of memory', states, 'BSX')
    batch, width = tokens_BL.shape[0], config.encoder.output_width
    if (states.shape[0], states.shape[2]) != (batch, width):
        raise ValueError(
            f'memory has states of shape {states.shape}: there must be '
            f'[B, S, {width}] for the batch of {batch}.'
        )
    of_each = (*tokens_BL.shape, states.shape[1])
    arguments.check_mask(mask, states.shape[:2], of_each)
