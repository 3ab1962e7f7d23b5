"""ReformerLM: embeddings, a stack of two-stream layers, logits (paper section 3)."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

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
            for shape in _position_shapes(config)
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
          train: whether dropout is on.
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
        key = jax.random.key(0) if key is None else key
        rate = config.dropout if train else 0.0
        token_key, position_key, stack_key, _ = jax.random.split(key, 4)
        embedding_VD = sharding.constrain(self.embedding[...], P())
        x_BLD = sharding.constrain(embedding_VD[tokens_BL], P(sharding.BATCH_AXES))
        x_BLD = layers.dropout(x_BLD, rate, token_key)
        positions_1LD = self._positions(length)
        if positions_1LD is not None:
            x_BLD = x_BLD + layers.dropout(positions_1LD, rate, position_key)
        return self._scan()(
            tuple(_block(config, layer, train, rounds) for layer in self.layers),
            tuple((stack.attention, stack.feed_forward) for stack in self.layers),
            (x_BLD, x_BLD),
            stack_key,
            _rotations_by_block(config, hash_rotations),
            mask_BL,
            config.grid_bits,
        )

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
            # The fourth of the keys that `streams` splits.
            output_key = jax.random.split(key, 4)[3]
            x_BLX = layers.dropout(x_BLX, config.dropout, output_key)
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

    def _positions(self, length: int) -> jax.Array | None:
        match self.config.positions:
            case 'axial':
                tables = [table[...] for table in self.position_tables]
                return positions.axial(tables, length)[None]
            case 'learned':
                return self.position_tables[0][:length][None]
            case 'sinusoidal':
                return positions.sinusoidal(length, self.config.d_model)[None]
        return None

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
    return layers.LSHSelfAttention(
        config.d_model,
        chunk_length=config.lsh_chunk_length,
        chunks_before=config.lsh_chunks_before,
        chunks_after=config.lsh_chunks_after,
        buckets=config.buckets,
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


def _position_shapes(config: ModelConfig) -> list[tuple[int, int]]:
    if config.positions == 'axial':
        return list(zip(config.axial_shape, config.axial_sizes, strict=True))
    if config.positions == 'learned':
        return [(config.length, config.d_model)]
    return []


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
