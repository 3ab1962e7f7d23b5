"""Layers of the Reformer: modules that hold parameters and call the pure functions.

They are the branches that the stack adds to its streams (stack/reversible.py). Each
starts with a layer norm and ends with a dropout, which follows the paper's code: one
mask of channels per sequence, shared over the length.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import PartitionSpec as P

from reformer_jax import attention
from reformer_jax import sharding
from reformer_jax.attention import hashing
from reformer_jax.attention import kinds
from reformer_jax.attention import numerics
from reformer_jax.attention import ring as rings
from reformer_jax.model import config as model_config
from reformer_jax.stack import linear
from reformer_jax.stack import reversible

ModelConfig = model_config.ModelConfig
HeadGroup = reversible.HeadGroup

_BATCH = sharding.BATCH_AXES
_BLHK = P(_BATCH, 'ring', sharding.HEAD_AXES, None)
_BY_POSITION = P(_BATCH, sharding.POSITION_AXES, 'model', None)
_IDS = P(_BATCH, sharding.HEAD_AXES, None, 'ring')
_glorot = jax.nn.initializers.glorot_uniform


class Masks(NamedTuple):
    """What all attentions of a stack get: True for real tokens, None if all are."""

    own_BL: jax.Array | None = None
    memory: jax.Array | None = None  # [B, S], or [B, T, S] of each target


class _Heads(nnx.Module):
    """Norm, projections to heads, and one from the heads' outputs."""

    def __init__(self, widths: Mapping[str, int], config: ModelConfig, rngs: nnx.Rngs):
        """Projections by name, of inputs so wide."""
        width = config.heads * config.head_size
        self.config = config
        self.norm = norm(config.d_model, config.norm_epsilon, rngs)
        for name, inputs in widths.items():
            kernel = _glorot()(rngs.params(), (inputs, width))
            shape = inputs, config.heads, config.head_size
            setattr(self, name, nnx.Param(kernel.reshape(shape)))
        kernel = _glorot()(rngs.params(), (width, config.d_model))
        shape = config.heads, config.head_size, config.d_model
        self.output = nnx.Param(kernel.reshape(shape))

    def _projected(self, names, x_BLX, group: HeadGroup) -> tuple[jax.Array, ...]:
        """[B, L, h, K] for each of the projections, of a group of heads."""
        dtype = self.config.dtype
        x_BLX = sharding.constrain(x_BLX.astype(dtype), sharding.POSITIONS)
        heads = []
        for name in names:
            kernel_XHK = group.of(getattr(self, name)[...], axis=1)
            kernel_XHK = sharding.constrain(kernel_XHK, P(None, 'model'))
            kernel_XHK = kernel_XHK.astype(dtype)
            x_BLHK = jnp.einsum('bld,dhk->blhk', x_BLX, kernel_XHK)
            heads.append(sharding.constrain(x_BLHK, _BY_POSITION))
        return tuple(heads)

    def combine(
        self,
        out_BLHK: jax.Array,
        key: jax.Array,
        group: HeadGroup,
        *,
        train: bool = False,
    ) -> jax.Array:
        """What a group of heads adds to the stream, [B, L, D]."""
        with jax.named_scope('combine'):
            kernel_HKD = group.of(self.output[...], axis=0)
            kernel_HKD = sharding.constrain(kernel_HKD, P('model'))
            kernel_HKD = kernel_HKD.astype(self.config.dtype)
            out_BLD = jnp.einsum('blhk,hkd->bld', out_BLHK, kernel_HKD)
            out_BLD = sharding.constrain(out_BLD, sharding.POSITIONS)
            return dropout(out_BLD, self.config.dropout if train else 0.0, key)


class SelfAttention(_Heads):
    """Norm, projections, attention of some kind, output projection."""

    def __init__(self, kind: attention.Kind, config: ModelConfig, rngs: nnx.Rngs):
        self.kind = kind
        super().__init__(dict.fromkeys(kind.projections, config.d_model), config, rngs)

    def project(self, x_BLD: jax.Array, group: HeadGroup) -> tuple[jax.Array, ...]:
        """[B, L, h, K] for each of the kind's projections, of a group of heads."""
        with jax.named_scope('project'):
            return self._projected(self.kind.projections, self.norm(x_BLD), group)

    def attend(
        self,
        heads: tuple[jax.Array, ...],
        inputs: reversible.Inputs,
        *,
        train: bool = False,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Attention output [B, L, h, K], and bucket ids [B, h, R, L] if it hashed.

        Args:
          heads: what `project` returned.
          inputs: `extra` are rotations [H, K, R, S] instead of random ones, `shared`
            are the Masks, `saved` are bucket ids to use instead of hashing.
          train: whether dropout is on.
        """
        kind, mask, key = self.kind, inputs.shared.own_BL, inputs.key
        if isinstance(kind, attention.LSH):
            hash_key, key = jax.random.split(key)
        dropout_key = key if train else None
        if isinstance(kind, attention.LSH) and not kind.is_exact(heads[0].shape[1]):
            rotations = inputs.extra
            if rotations is None and inputs.saved is None:
                rotations = hash_rotations(kind, self.config, hash_key)
            if rotations is not None:
                rotations = inputs.group.of(rotations, axis=0)
            of_tokens = P(_BATCH, 'ring')
            specs = _BLHK, _BLHK, of_tokens, P(sharding.HEAD_AXES), _IDS, P()
            hash_and_attend = sharding.over_batch_and_heads(
                functools.partial(_hash_and_attend, kind, sharding.ring()),
                specs,
                (_BLHK, _IDS),
            )
            qk, v = (_exchanged(x, _BY_POSITION, _BLHK) for x in heads)
            out, ids = hash_and_attend(
                qk, v, mask, rotations, inputs.saved, dropout_key
            )
            return _exchanged(out, _BLHK, _BY_POSITION), ids
        if isinstance(kind, attention.LSH):
            kind = kind.full
        qkv = heads[0], heads[-2], heads[-1]  # queries are the keys where shared
        with jax.named_scope('attend'):
            return _attend(kind, qkv, mask, dropout_key), None


class CrossAttention(_Heads):
    """Norm, exact attention to the encoder's hidden states, output projection.

    LSH needs queries that are the keys. A target whose source is padding only gets
    zeros.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        assert config.encoder is not None
        self.kind = attention.Full(causal=False, dropout=config.attention_dropout)
        width = config.encoder.output_width
        widths = {'query': config.d_model, 'key': width, 'value': width}
        super().__init__(widths, config, rngs)

    def project(self, x_BTD: jax.Array, group: HeadGroup) -> jax.Array:
        """Queries [B, T, h, K] of a group of heads."""
        with jax.named_scope('project'):
            return self._projected(('query',), self.norm(x_BTD), group)[0]

    def remember(
        self, memory_BSX: jax.Array, group: HeadGroup
    ) -> tuple[jax.Array, ...]:
        """Keys and values [B, S, h, K] of a group of heads."""
        with jax.named_scope('remember'):
            return self._projected(('key', 'value'), memory_BSX, group)

    def attend(
        self, heads: Any, inputs: reversible.Inputs, *, train: bool = False
    ) -> tuple[jax.Array, None]:
        """Attention output [B, T, h, K]; arguments as in SelfAttention."""
        q_BTHK, (k_BSHK, v_BSHK) = heads
        qkv, key = (q_BTHK, k_BSHK, v_BSHK), inputs.key if train else None
        with jax.named_scope('attend'):
            return _attend(self.kind, qkv, inputs.shared.memory, key), None


def _hash_and_attend(kind: attention.LSH, ring: str, qk, v, mask, rotations, ids, key):
    """Attention output [B, L, h, K] and bucket ids, which may be given."""
    if ids is None:
        # Stored per layer for the backward pass, so as small as the ids allow.
        dtype = jnp.uint16 if kind.num_buckets <= 2**16 else jnp.int32
        with jax.named_scope('hash'):
            ids = hashing.hash_vectors(qk, rotations, buckets=kind.buckets)
            ids = ids.astype(dtype)
    out = attention.lsh_attention(kind, qk, v, ids, mask=mask, key=key, ring=ring)
    return out, ids


def _attend(kind: attention.Full | attention.Local, qkv, mask, key) -> jax.Array:
    ring = sharding.ring()

    def attend(q, k, v, mask, key):
        if isinstance(kind, attention.Local):
            return attention.local_attention(
                kind, q, k, v, mask=mask, key=key, ring=ring
            )
        if ring:
            kinds.check_part(kind, q.shape[1])
            k, v = (rings.gather(ring, x, dim=1) for x in (k, v))
        return attention.full_attention(kind, q, k, v, mask=mask, key=key)

    of_tokens = P(_BATCH, 'ring')
    if isinstance(kind, attention.Full) and (mask is None or mask.ndim == 2):
        of_tokens = P(_BATCH)  # every query's keys
    specs = _BLHK, _BLHK, _BLHK, of_tokens, P()
    qkv = (_exchanged(x, _BY_POSITION, _BLHK) for x in qkv)
    out = sharding.over_batch_and_heads(attend, specs, _BLHK)(*qkv, mask, key)
    return _exchanged(out, _BLHK, _BY_POSITION)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _exchanged(x: jax.Array, before: P, after: P) -> jax.Array:
    """x with another layout on the current mesh, and so its gradient."""
    bits = sharding.constrain(numerics.bits(x), before)
    return lax.bitcast_convert_type(sharding.constrain(bits, after), x.dtype)


def _exchanged_forward(x, before, after):
    return _exchanged(x, before, after), None


def _exchanged_backward(before, after, _, dx):
    return (_exchanged(dx, after, before),)


_exchanged.defvjp(_exchanged_forward, _exchanged_backward)


def hash_rotations(
    kind: attention.LSH, config: ModelConfig, key: jax.Array
) -> jax.Array:
    """Random rotations of a layer, [H, K, R, S]."""
    return hashing.random_rotations(
        key,
        heads=config.heads,
        head_size=config.head_size,
        rounds=kind.rounds,
        buckets=kind.buckets,
    )


def dropout(x_BLD: jax.Array, rate: float, key: jax.Array) -> jax.Array:
    """Drops channels of a sequence, the same at all its positions."""
    if not rate:
        return x_BLD
    # A device that has a part of the batch draws for all and takes its own.
    batch, (part, count) = x_BLD.shape[0], sharding.batch_part()
    shape = (count * batch, *(1,) * (x_BLD.ndim - 2), x_BLD.shape[-1])
    keep = jax.random.bernoulli(key, 1 - rate, shape)
    if count > 1:
        keep = lax.dynamic_slice_in_dim(keep, part * batch, batch)
    return x_BLD * (keep / (1 - rate)).astype(x_BLD.dtype)


def norm(
    size: int, epsilon: float, rngs: nnx.Rngs, scale: float = 1.0
) -> nnx.LayerNorm:
    """Layer norm in float32; `scale` is what its scale starts with."""
    return nnx.LayerNorm(
        size,
        epsilon=epsilon,
        dtype=jnp.float32,
        scale_init=jax.nn.initializers.constant(scale),
        rngs=rngs,
    )


class FeedForward(nnx.Module):
    """Norm, dense layer, activation, dense layer."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        shape = config.d_model, config.d_ff
        self.config = config
        self.norm = norm(config.d_model, config.norm_epsilon, rngs)
        self.hidden = nnx.Param(_glorot()(rngs.params(), shape))
        self.hidden_bias = nnx.Param(jnp.zeros((config.d_ff,)))
        self.output = nnx.Param(_glorot()(rngs.params(), shape[::-1]))
        self.output_bias = nnx.Param(jnp.zeros((config.d_model,)))

    def __call__(
        self, x_BLD: jax.Array, key: jax.Array, *, train: bool = False
    ) -> jax.Array:
        """Output [B, L, D], each position on its own."""
        config, dtype = self.config, self.config.dtype
        hidden_key, output_key = jax.random.split(key)
        rate = config.dropout if train else 0.0
        with jax.named_scope('feed_forward'):
            hidden_DF = sharding.constrain(self.hidden[...], P(None, 'model'))
            output_FD = sharding.constrain(self.output[...], P('model'))
            x_BLD = sharding.constrain(
                self.norm(x_BLD).astype(dtype), sharding.POSITIONS
            )
            h_BLF = linear.linear(x_BLD, hidden_DF.astype(dtype))
            h_BLF += self.hidden_bias.astype(dtype)
            h_BLF = dropout(h_BLF, rate, hidden_key)
            h_BLF = model_config.ACTIVATIONS[config.activation](h_BLF)
            out_BLD = linear.linear(h_BLF, output_FD.astype(dtype))
            out_BLD += self.output_bias.astype(dtype)
            out_BLD = sharding.constrain(out_BLD, sharding.POSITIONS)
            return dropout(out_BLD, rate, output_key)


class Block(nnx.Module):
    """One layer: an attention and a feed-forward branch.

    With an encoder, between the two, one that attends to its hidden states.
    """

    def __init__(self, kind: attention.Kind, config: ModelConfig, rngs: nnx.Rngs):
        self.attention = SelfAttention(kind, config, rngs)
        self.feed_forward = FeedForward(config, rngs)
        reads = config.encoder is not None
        self.cross_attention = CrossAttention(config, rngs) if reads else None

    @property
    def branches(self) -> tuple[Any, ...]:
        """In the order in which the stack adds them."""
        if self.cross_attention is None:
            return self.attention, self.feed_forward
        return self.attention, self.cross_attention, self.feed_forward


def stack(kind: attention.Kind, config: ModelConfig, rngs: nnx.Rngs) -> Block:
    """`repeats` blocks in one, each parameter with a leading axis over them."""
    keys = jax.random.split(rngs.params(), config.repeats)
    return jax.vmap(lambda key: Block(kind, config, nnx.Rngs(key)))(keys)
