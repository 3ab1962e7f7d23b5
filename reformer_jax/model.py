"""ReformerLM: embeddings, a stack of two-stream layers, logits (paper section 3)."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from reformer_jax import attention
from reformer_jax import hashing
from reformer_jax import layers
from reformer_jax import positions
from reformer_jax import reversible

ATTENTIONS = ('lsh', 'local', 'full')
POSITIONS = ('axial', 'learned', 'sinusoidal', 'none')
STACKS = ('reversible', 'residual', 'checkpoint')
COMBINES = ('concatenate', 'average')
DTYPES = ('float32', 'bfloat16')


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Everything that makes a ReformerLM; checked when made.

    Attributes:
      vocab_size: number of token ids.
      length: longest sequence.
      d_model: width of each of the two streams.
      d_ff: hidden units of the feed-forward layers.
      heads: attention heads.
      head_size: size of a head's queries, keys and values.
      layers: attention and feed-forward pairs; a multiple of the pattern's length.
      pattern: attention of the layers, repeated: 'lsh', 'local' or 'full' each.
      causal: whether tokens see only earlier ones.
      local_chunk_length: chunk of local attention, in tokens.
      local_chunks_before: chunks looked back at.
      local_chunks_after: chunks looked ahead at.
      lsh_chunk_length: chunk of LSH attention, in tokens.
      lsh_chunks_before: chunks looked back at in the sorted order.
      lsh_chunks_after: chunks looked ahead at in the sorted order.
      buckets: even factors of the number of hash buckets; () chooses by the length of
        the sequence.
      rounds: hash rounds.
      rule: which keys an LSH query sees, see attention.lsh_attention.
      within_bucket: for rule 'reformer', only keys of the query's own bucket.
      dense_length: sequences up to this long get exact shared-QK attention in LSH
        layers (as do those of at most one chunk).
      shared_qk: whether full attention shares queries and keys, as LSH does.
      activation: 'relu', 'gelu' or 'swish'.
      positions: 'axial', 'learned', 'sinusoidal' or 'none'.
      axial_shape: positions along each axis, last axis fastest.
      axial_sizes: width of each axis's embeddings; they add up to d_model.
      dropout: rate for embeddings and the outputs of the branches.
      attention_dropout: rate for attention probabilities.
      stack: 'reversible'; 'residual', the same function with saved activations; or
        'checkpoint', the same with recomputation from each repeat's inputs.
      grid_bits: streams are multiples of 2**-grid_bits, which makes the reversible
        stack exact (see reversible.py); 0 for plain float32.
      combine: the streams at the end, 'concatenate' or 'average'.
      tie_output: whether the logits use the embedding; with concatenated streams
        through a projection to d_model.
      feed_forward_chunk_length: tokens at a time in feed-forward layers, 0 for all.
      loss_chunk_length: tokens at a time in logits and loss, 0 for all.
      dtype: of matrix operands; parameters and streams are float32.
    """

    vocab_size: int
    length: int
    d_model: int
    d_ff: int
    heads: int
    head_size: int
    layers: int
    pattern: tuple[str, ...]
    causal: bool = True
    local_chunk_length: int = 64
    local_chunks_before: int = 1
    local_chunks_after: int = 0
    lsh_chunk_length: int = 64
    lsh_chunks_before: int = 1
    lsh_chunks_after: int = 0
    buckets: tuple[int, ...] = ()
    rounds: int = 2
    rule: str = 'reformer'
    within_bucket: bool = False
    dense_length: int = 0
    shared_qk: bool = False
    activation: str = 'relu'
    positions: str = 'axial'
    axial_shape: tuple[int, ...] = ()
    axial_sizes: tuple[int, ...] = ()
    dropout: float = 0.0
    attention_dropout: float = 0.0
    stack: str = 'reversible'
    grid_bits: int = 14
    combine: str = 'concatenate'
    tie_output: bool = False
    feed_forward_chunk_length: int = 0
    loss_chunk_length: int = 0
    dtype: str = 'float32'

    def __post_init__(self):
        for name in ('pattern', 'buckets', 'axial_shape', 'axial_sizes'):
            value = getattr(self, name)
            several = value if isinstance(value, tuple | list) else (value,)
            object.__setattr__(self, name, tuple(several))
        _check_sizes(self)
        _check_choices(self)
        _check_attention(self)
        _check_positions(self)

    @property
    def repeats(self) -> int:
        """How often the pattern is repeated."""
        return self.layers // len(self.pattern)


class Block(nnx.Module):
    """One layer: an attention and a feed-forward branch."""

    def __init__(self, config: ModelConfig, kind: str, rngs: nnx.Rngs):
        self.attention = _attention(config, kind, rngs)
        self.feed_forward = layers.FeedForward(
            config.d_model,
            config.d_ff,
            activation=config.activation,
            dropout=config.dropout,
            chunk_length=config.feed_forward_chunk_length,
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
        hidden_BLX = self.hidden(
            tokens_BL,
            mask_BL,
            key=key,
            train=train,
            hash_rotations=hash_rotations,
            rounds=rounds,
        )
        return self.logits(hidden_BLX, key=key, train=train)

    def hidden(
        self,
        tokens_BL: jax.Array,
        mask_BL: jax.Array | None = None,
        *,
        key: jax.Array | None = None,
        train: bool = False,
        hash_rotations: list[jax.Array | None] | None = None,
        rounds: int | None = None,
    ) -> jax.Array:
        """The last streams, combined, [B, L, 2 D] or [B, L, D]; before the norm."""
        config = self.config
        length = tokens_BL.shape[1]
        _check_call(config, length, key, train, hash_rotations)
        key = jax.random.key(0) if key is None else key
        rate = config.dropout if train else 0.0
        token_key, position_key, stack_key = jax.random.split(key, 3)
        x_BLD = layers.dropout(self.embedding[...][tokens_BL], rate, token_key)
        positions_1LD = self._positions(length)
        if positions_1LD is not None:
            x_BLD = x_BLD + layers.dropout(positions_1LD, rate, position_key)
        y1_BLD, y2_BLD = self._scan()(
            tuple(_block(kind, train, rounds) for kind in config.pattern),
            tuple((stack.attention, stack.feed_forward) for stack in self.layers),
            (x_BLD, x_BLD),
            stack_key,
            _rotations_by_block(config, hash_rotations),
            mask_BL,
            config.grid_bits,
        )
        if config.combine == 'average':
            return (y1_BLD + y2_BLD) / 2
        return jnp.concatenate([y1_BLD, y2_BLD], axis=-1)

    def logits(
        self,
        hidden_BLX: jax.Array,
        *,
        key: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Norm, dropout and output layer: logits [B, L, V] in float32."""
        config = self.config
        x_BLX = self.norm(hidden_BLX)
        if train and key is not None:
            x_BLX = layers.dropout(x_BLX, config.dropout, jax.random.fold_in(key, 2))
        x_BLX = x_BLX.astype(config.dtype)
        if config.tie_output:
            if config.combine == 'concatenate':
                x_BLX = x_BLX @ self.tie_projection.astype(config.dtype)
            kernel_XV = self.embedding[...].T
        else:
            kernel_XV = self.output[...]
        logits_BLV = jnp.matmul(
            x_BLX, kernel_XV.astype(config.dtype), preferred_element_type=jnp.float32
        )
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


def check_length(config: ModelConfig, length: int) -> None:
    """Raises a ValueError if sequences of this length do not fit the model."""
    if length > config.length:
        raise ValueError(
            f'a sequence of {length} tokens is longer than the model, which has '
            f'length={config.length}: shorten it or enlarge config.model.length.'
        )
    for kind in ('local', 'lsh'):
        chunk_length = getattr(config, f'{kind}_chunk_length')
        if kind in config.pattern and length > chunk_length:
            attention.check_chunks(
                length,
                chunk_length,
                getattr(config, f'{kind}_chunks_before'),
                getattr(config, f'{kind}_chunks_after'),
                config.causal,
            )


def parameter_count(model: Any) -> int:
    """Number of parameters of a model or of its abstract shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model))


def _block(kind: str, train: bool, rounds: int | None) -> reversible.Block:
    def attend(module, x, key, rotations, mask, saved):
        if kind == 'lsh':
            return module(
                x,
                key,
                mask=mask,
                train=train,
                rotations=rotations,
                saved_buckets=saved,
                rounds=rounds,
            )
        return module(x, key, mask=mask, train=train), None

    def feed_forward(module, x, key):
        return module(x, key, train=train)

    return reversible.Block(attend, feed_forward)


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
    check_length(config, length)
    if train and key is None:
        raise ValueError('train=True needs a key, for dropout and fresh hashes.')
    if hash_rotations is not None and len(hash_rotations) != config.layers:
        raise ValueError(
            f'hash_rotations has {len(hash_rotations)} entries for {config.layers} '
            'layers: give one per layer, None for those that do not hash.'
        )


def _check_sizes(config: ModelConfig) -> None:
    for name in (
        'vocab_size',
        'length',
        'd_model',
        'd_ff',
        'heads',
        'head_size',
        'layers',
        'local_chunk_length',
        'lsh_chunk_length',
        'rounds',
    ):
        if getattr(config, name) < 1:
            raise ValueError(
                f'model.{name}={getattr(config, name)} must be at least 1.'
            )
    for name in ('dropout', 'attention_dropout'):
        if not 0 <= getattr(config, name) < 1:
            raise ValueError(
                f'model.{name}={getattr(config, name)} is no rate in [0, 1).'
            )
    if not config.pattern or config.layers % len(config.pattern):
        raise ValueError(
            f'model.layers={config.layers} is no multiple of the pattern '
            f'{config.pattern} of {len(config.pattern)}: change one of them.'
        )
    if not 0 <= config.grid_bits <= 22:
        raise ValueError(
            f'model.grid_bits={config.grid_bits} is not in [0, 22]: float32 has 24 '
            'bits; 14 leaves room for streams up to 1,024.'
        )


def _check_choices(config: ModelConfig) -> None:
    choices = {
        'activation': tuple(layers.ACTIVATIONS),
        'positions': POSITIONS,
        'rule': attention.RULES,
        'stack': STACKS,
        'combine': COMBINES,
        'dtype': DTYPES,
    }
    for name, allowed in choices.items():
        if getattr(config, name) not in allowed:
            raise ValueError(
                f'model.{name}={getattr(config, name)!r} is none of {allowed}.'
            )
    for kind in config.pattern:
        if kind not in ATTENTIONS:
            raise ValueError(
                f'model.pattern has {kind!r}, which is none of {ATTENTIONS}.'
            )


def _check_attention(config: ModelConfig) -> None:
    check_length(config, config.length)
    if 'lsh' in config.pattern:
        attention.check_rule(
            config.rule,
            config.within_bucket,
            config.lsh_chunks_before,
            config.lsh_chunks_after,
            config.causal,
        )
    if config.buckets:
        hashing.bucket_factors(config.buckets)


def _check_positions(config: ModelConfig) -> None:
    if config.positions == 'sinusoidal' and config.d_model % 2:
        raise ValueError(
            f'sinusoidal positions need an even d_model, not {config.d_model}.'
        )
    if config.positions != 'axial':
        return
    shape, sizes = config.axial_shape, config.axial_sizes
    if len(shape) < 2 or len(shape) != len(sizes) or min(*shape, *sizes) < 1:
        raise ValueError(
            f'axial_shape={shape} and axial_sizes={sizes} need two or more axes each, '
            'as many of one as of the other.'
        )
    if sum(sizes) != config.d_model:
        raise ValueError(
            f'axial_sizes={sizes} add up to {sum(sizes)}, not to '
            f'd_model={config.d_model}: they are concatenated, so they must.'
        )
    if math.prod(shape) < config.length:
        raise ValueError(
            f'axial_shape={shape} has {math.prod(shape)} positions for '
            f'length={config.length}: enlarge an axis.'
        )
