"""ReformerLM: embeddings, a stack of two-stream layers, logits (paper section 3)."""

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from reformer_jax import hashing
from reformer_jax import head_groups
from reformer_jax import layers
from reformer_jax import linear
from reformer_jax import model_config
from reformer_jax import positions
from reformer_jax import reversible
from reformer_jax import sharding

ModelConfig = model_config.ModelConfig


class Block(nnx.Module):
    """One layer: an attention and a feed-forward branch."""

    def __init__(self, config: ModelConfig, kind: str, rngs: nnx.Rngs):
        self.attention = _attention(config, kind, rngs)
        self.feed_forward = layers.FeedForward(
            config.d_model,
            config.d_ff,
            activation=config.activation,
            dropout=config.dropout,
            dtype=jnp.dtype(config.dtype),
            rngs=rngs,
        )


class ReformerLM(nnx.Module):
    """A language model; a pytree whose leaves are its parameters."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        normal = jax.nn.initializers.normal
        self.config = config
        self.embedding = nnx.Param(
            normal(1.0)(rngs.params(), (config.vocab_size, config.d_model))
        )
        self.position_tables = nnx.List(
            nnx.Param(normal(1.0)(rngs.params(), shape))
            for shape in model_config.position_table_shapes(config)
        )
        self.layers = nnx.List(_stack(config, kind, rngs) for kind in config.pattern)
        width = config.d_model * (2 if config.combine == 'concatenate' else 1)
        glorot = jax.nn.initializers.glorot_uniform()
        self.norm = nnx.LayerNorm(width, epsilon=1e-6, dtype=jnp.float32, rngs=rngs)
        if not config.tie_output:
            self.output = nnx.Param(glorot(rngs.params(), (width, config.vocab_size)))
        elif width != config.d_model:
            self.tie_projection = nnx.Param(
                glorot(rngs.params(), (width, config.d_model))
            )
        self.output_bias = nnx.Param(jnp.zeros((config.vocab_size,)))

    def __call__(
        self,
        tokens_BL: jax.Array,
        mask_BL: jax.Array | None = None,
        *,
        key: jax.Array | None = None,
        train: bool = False,
        hash_rotations: list[jax.Array | None] | None = None,
        rounds: int | None = None,
    ) -> jax.Array:
        """Logits [B, L, V] in float32; a causal model's predict the next token.

        Args:
          tokens_BL: ids in [0, vocab_size).
          mask_BL: True for real tokens, None if all are.
          key: random key of hashing and dropout. Needed to train; without one the
            hashes are the same in every call.
          train: whether dropout is on, and streams are on the grid that makes a
            reversible stack's gradients exact (config.grid_bits).
          hash_rotations: for each layer its rotations [H, K, R, S], None for layers
            that do not hash.
          rounds: hash rounds instead of the config's.
        """
        streams = self.streams(
            tokens_BL,
            mask_BL,
            key=key,
            train=train,
            hash_rotations=hash_rotations,
            rounds=rounds,
        )
        return self.logits(streams, key=key, train=train)

    def streams(
        self,
        tokens_BL: jax.Array,
        mask_BL: jax.Array | None = None,
        *,
        key: jax.Array | None = None,
        train: bool = False,
        hash_rotations: list[jax.Array | None] | None = None,
        rounds: int | None = None,
    ) -> reversible.Streams:
        """The two streams [B, L, D] after the last layer."""
        config = self.config
        length = tokens_BL.shape[1]
        _check_call(config, length, key, train, hash_rotations)
        rate = config.dropout if train else 0.0
        token_key, position_key, stack_key, _ = _split(key)
        x_BLD = self._embed(tokens_BL, rate, token_key, position_key)
        return self._scan()(
            tuple(_block(config, layer, train, rounds) for layer in self.layers),
            self._params(),
            (x_BLD, x_BLD),
            stack_key,
            _rotations_by_block(config, hash_rotations),
            mask_BL,
            config.grid_bits if train else 0,
        )

    def streams_and_saved(
        self,
        tokens_BL: jax.Array,
        attends: Sequence[Callable[..., tuple[jax.Array, Any]]],
        hash_rotations: list[jax.Array | None],
        shared: Any,
    ) -> tuple[reversible.Streams, Any]:
        """The last streams of an inference pass with other attention functions.

        Args:
          tokens_BL: ids in [0, vocab_size).
          attends: for each place in the pattern, as `attend` in reversible.Block, for
            all heads at once; `extra` is the layer's rotations.
          hash_rotations: as in a call of the model.
          shared: what all attentions get.

        Returns:
          The streams, and what the attentions save (reversible.forward_scan).
        """
        config = dataclasses.replace(self.config, heads_at_once=0)
        key = jax.random.key(0)  # of dropout, which is off
        x_BLD = self._embed(tokens_BL, 0.0, key, key)
        blocks = (
            _block(config, layer, False, None)._replace(attend=attend)
            for layer, attend in zip(self.layers, attends, strict=True)
        )
        return reversible.forward_scan(
            tuple(blocks),
            self._params(),
            (x_BLD, x_BLD),
            key,
            _rotations_by_block(config, hash_rotations),
            shared,
            0,
        )

    def embed_at(self, tokens_B: jax.Array, positions_B: jax.Array) -> jax.Array:
        """Embeddings [B, D] of single tokens at their positions."""
        x_BD = self.embedding[...][tokens_B]
        match self.config.positions:
            case 'axial':
                tables = [table[...] for table in self.position_tables]
                return x_BD + positions.axial_at(tables, positions_B)
            case 'learned':
                return x_BD + self.position_tables[0][positions_B]
            case 'sinusoidal':
                return x_BD + positions.sinusoidal(positions_B, self.config.d_model)
        return x_BD

    def unstacked(self) -> list[Block]:
        """The layers one by one, from first to last."""
        return [
            jax.tree.map(operator.itemgetter(repeat), stack)
            for repeat in range(self.config.repeats)
            for stack in self.layers
        ]

    def logits(
        self,
        streams: reversible.Streams,
        *,
        key: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Combination, norm, dropout and output layer: logits [B, L, V] in float32."""
        config = self.config
        y1_BLD, y2_BLD = streams
        if config.combine == 'average':
            x_BLX = (y1_BLD + y2_BLD) / 2
        else:
            x_BLX = jnp.concatenate([y1_BLD, y2_BLD], axis=-1)
        x_BLX = self.norm(x_BLX)
        if train and key is not None:
            x_BLX = layers.dropout(x_BLX, config.dropout, _split(key)[3])
        x_BLX = x_BLX.astype(config.dtype)
        if config.tie_output:
            if config.combine == 'concatenate':
                projection_XD = self.tie_projection.astype(config.dtype)
                x_BLX = linear.linear(x_BLX, projection_XD)
            kernel_XV = self.embedding[...].T
        else:
            kernel_XV = sharding.constrain(self.output[...], P(None, 'model'))
        kernel_XV = kernel_XV.astype(config.dtype)
        logits_BLV = linear.linear(x_BLX, kernel_XV, jnp.float32)
        return logits_BLV + self.output_bias

    def _embed(self, tokens_BL, dropout, token_key, position_key) -> jax.Array:
        embedding_VD = sharding.constrain(self.embedding[...], P())
        x_BLD = sharding.constrain(embedding_VD[tokens_BL], P(sharding.BATCH_AXES))
        x_BLD = layers.dropout(x_BLD, dropout, token_key)
        positions_1LD = self._positions(tokens_BL.shape[1])
        if positions_1LD is None:
            return x_BLD
        return x_BLD + layers.dropout(positions_1LD, dropout, position_key)

    def _positions(self, length: int) -> jax.Array | None:
        match self.config.positions:
            case 'axial':
                tables = [table[...] for table in self.position_tables]
                return positions.axial(tables, length)[None]
            case 'learned':
                return self.position_tables[0][:length][None]
            case 'sinusoidal':
                positions_L = jnp.arange(length)
                return positions.sinusoidal(positions_L, self.config.d_model)[None]
        return None

    def _params(self):
        return tuple((stack.attention, stack.feed_forward) for stack in self.layers)

    def _scan(self):
        match self.config.stack:
            case 'reversible':
                return reversible.reversible_scan
            case 'residual':
                return reversible.residual_scan
        return functools.partial(reversible.residual_scan, checkpoint=True)


def build(config: ModelConfig, rngs: nnx.Rngs) -> ReformerLM:
    """A freshly initialised model."""
    return ReformerLM(config, rngs)


def shift_right(tokens_BL: jax.Array) -> jax.Array:
    """What a model reads to predict each token: the start token, all but the last."""
    starts = jnp.full_like(tokens_BL[:, :1], model_config.START_TOKEN)
    return jnp.concatenate([starts, tokens_BL[:, :-1]], axis=1)


def hash_rotations(
    config: ModelConfig,
    key: jax.Array | None = None,
    *,
    length: int,
    rounds: int | None = None,
) -> list[jax.Array | None]:
    """The rotations that a call with this key draws, in the form it takes them."""
    buckets = model_config.hash_buckets(config, length)

    def rotations(layer):
        if config.pattern[layer % len(config.pattern)] != 'lsh':
            return None
        attention_key, *_ = reversible.layer_keys(_split(key)[2], layer)
        return hashing.random_rotations(
            jax.random.split(attention_key)[0],
            heads=config.heads,
            head_size=config.head_size,
            rounds=config.rounds if rounds is None else rounds,
            buckets=buckets,
        )

    return [rotations(layer) for layer in range(config.layers)]


def _split(key: jax.Array | None) -> jax.Array:
    """Keys of the tokens', positions', stack's and output's randomness."""
    return jax.random.split(jax.random.key(0) if key is None else key, 4)


def parameter_count(model: Any) -> int:
    """Number of parameters of a model or of its abstract shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model))


def _block(
    config: ModelConfig, layer: Block, train: bool, rounds: int | None
) -> reversible.Block:
    """A layer as functions; of `layer` itself only the settings are used."""
    groups = config.heads // (config.heads_at_once or config.heads)

    def project(module, x, group):
        return module.project(x, head_groups.HeadGroup(group, groups))

    def attend(heads, key, rotations, mask, group, saved):
        if not isinstance(layer.attention, layers.LSHSelfAttention):
            return layer.attention.attend(heads, key, mask=mask, train=train), None
        return layer.attention.attend(
            heads,
            key,
            mask=mask,
            train=train,
            rotations=rotations,
            saved_buckets=saved,
            rounds=rounds,
            group=head_groups.HeadGroup(group, groups),
        )

    def combine(module, out, key, group):
        return layers.combine(
            module, out, key, head_groups.HeadGroup(group, groups), train
        )

    def feed_forward(module, x, key):
        return module(x, key, train=train)

    return reversible.Block(
        project,
        attend,
        combine,
        groups,
        feed_forward,
        config.feed_forward_chunk_length,
    )


def _attention(config: ModelConfig, kind: str, rngs: nnx.Rngs):
    shared: dict[str, Any] = {
        'heads': config.heads,
        'head_size': config.head_size,
        'causal': config.causal,
        'attention_dropout': config.attention_dropout,
        'dropout': config.dropout,
        'dtype': jnp.dtype(config.dtype),
        'rngs': rngs,
    }
    if kind == 'full':
        return layers.FullSelfAttention(
            config.d_model, shared_qk=config.shared_qk, **shared
        )
    if kind == 'local':
        return layers.LocalSelfAttention(
            config.d_model,
            chunk_length=config.local_chunk_length,
            chunks_before=config.local_chunks_before,
            chunks_after=config.local_chunks_after,
            **shared,
        )
    buckets = config.buckets
    if config.rule == 'strict':
        buckets = hashing.bucket_factors(
            model_config.hash_buckets(config, config.length)
        )
    return layers.LSHSelfAttention(
        config.d_model,
        chunk_length=config.lsh_chunk_length,
        chunks_before=config.lsh_chunks_before,
        chunks_after=config.lsh_chunks_after,
        buckets=buckets,
        rounds=config.rounds,
        rule=config.rule,
        within_bucket=config.within_bucket,
        dense_length=config.dense_length,
        **shared,
    )


def _stack(config: ModelConfig, kind: str, rngs: nnx.Rngs) -> Block:
    """`repeats` blocks in one, each parameter with a leading axis over them."""
    keys = jax.random.split(rngs.params(), config.repeats)
    return jax.vmap(lambda key: Block(config, kind, nnx.Rngs(key)))(keys)


def _rotations_by_block(config: ModelConfig, hash_rotations):
    """Per-layer rotations stacked over the repeats, for each block of the pattern."""
    count = len(config.pattern)
    if hash_rotations is None:
        return (None,) * count
    return tuple(
        jnp.stack(hash_rotations[place::count]) if kind == 'lsh' else None
        for place, kind in enumerate(config.pattern)
    )


def _check_call(config, length, key, train, hash_rotations):
    model_config.check_length(config, length)
    if train and key is None:
        raise ValueError('train=True needs a key, for dropout and fresh hashes.')
    if hash_rotations is not None and len(hash_rotations) != config.layers:
        raise ValueError(
            f'hash_rotations has {len(hash_rotations)} entries for {config.layers} '
            'layers: give one per layer, None for those that do not hash.'
        )
