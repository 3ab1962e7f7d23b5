"""Layers of the Reformer: modules that hold parameters and call the pure functions.

An attention layer has three parts, project, attend and combine, because its positions
mix in the second only, which has no parameters. It starts with a layer norm and ends
with a dropout; the sums are the stack's (reversible.py). Dropout follows the paper's
code: one mask of channels per sequence, shared over the length.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import PartitionSpec as P

from reformer_jax import attention
from reformer_jax import sharding
from reformer_jax.attention import choice
from reformer_jax.attention import hashing
from reformer_jax.model import config as model_config
from reformer_jax.stack import linear
from reformer_jax.stack import reversible

ModelConfig = model_config.ModelConfig

_BATCH = sharding.BATCH_AXES
_BLHK = P(_BATCH, None, 'model', None)
_glorot = jax.nn.initializers.glorot_uniform


class HeadGroup(NamedTuple):
    """One of `groups` equal groups of heads; `which` may be traced."""

    which: jax.Array | int
    groups: int


def _of_group(group: HeadGroup, x: Any, *, axis: int) -> jax.Array:
    """The slice of an array that belongs to a group of heads.

    Heads of a group are `groups` apart, so that a sharded axis over heads stays
    sharded.
    """
    if group.groups == 1:
        return x[...]
    shape = (*x.shape[:axis], -1, group.groups, *x.shape[axis + 1 :])
    return lax.dynamic_index_in_dim(
        x[...].reshape(shape), group.which, axis + 1, keepdims=False
    )


class LSHSelfAttention(nnx.Module):
    """Norm, shared-QK LSH attention, output projection (paper section 2)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        self.norm = norm(config.d_model, config.norm_epsilon, rngs)
        self.query_key = _projection(config, rngs)
        self.value = _projection(config, rngs)
        self.output = _output_projection(config, rngs)

    def project(self, x_BLD: jax.Array, group: HeadGroup):
        """Shared queries and keys, and values, of a group of heads, [B, L, h, K]."""
        return _project(self, x_BLD, (self.query_key, self.value), group)

    def attend(
        self,
        heads: tuple[jax.Array, jax.Array],
        key: jax.Array,
        *,
        mask: jax.Array | None = None,
        train: bool = False,
        rotations: jax.Array | None = None,
        saved_buckets: jax.Array | None = None,
        rounds: int | None = None,
        group: HeadGroup,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Attention output [B, L, h, K] and bucket ids [B, h, R, L].

        The ids are None on the dense path.

        Args:
          heads: what `project` returned.
          key: random key of hashing and dropout.
          mask: [B, L], True for a real token.
          train: whether dropout is on.
          rotations: [H, K, R, S] instead of random ones.
          saved_buckets: ids to use instead of hashing.
          rounds: hash rounds instead of the module's.
          group: which heads.
        """
        hash_key, dropout_key = jax.random.split(key)
        qk_BLHK, v_BLHK = heads
        length = qk_BLHK.shape[1]
        config = self.config
        rate = config.attention_dropout if train else 0.0
        rounds = config.rounds if rounds is None else rounds
        if self.is_dense(length, rounds):
            out_BLHK = attention.full_attention(
                qk_BLHK,
                qk_BLHK,
                v_BLHK,
                causal=config.causal,
                mask=mask,
                shared_qk=True,
                dropout_rate=rate,
                key=dropout_key,
            )
            return out_BLHK, None
        if rotations is None and saved_buckets is None:
            rotations = hashing.random_rotations(
                hash_key,
                heads=config.heads,
                head_size=config.head_size,
                rounds=rounds,
                buckets=model_config.hash_buckets(config),
            )
        if rotations is not None:
            rotations = _of_group(group, rotations, axis=0)
        return self._hash_and_attend(rate)(
            qk_BLHK, v_BLHK, mask, rotations, saved_buckets, dropout_key
        )

    def is_dense(self, length: int, rounds: int) -> bool:
        """Whether a sequence gets exact attention, with so many hash rounds.

        What decides is the longest sequence of the model, so that padding changes
        nothing; except with the trax rule, as in Hugging Face's models. Up to one chunk
        exact attention is what the reformer rule comes to.
        """
        config = self.config
        if config.rule == 'strict':
            return False  # one function of the past, whatever the length
        chunk_length = config.lsh_chunk_length
        chunks = config.lsh_chunks_before + 1 + config.lsh_chunks_after
        longest = max(config.dense_length, chunk_length)
        if config.dense_length < 0:
            longest = attention.dense_crossover(rounds, chunk_length * chunks)
        if config.rule == 'trax':
            return length <= longest
        one_chunk = length <= chunk_length and not config.within_bucket
        return one_chunk or config.length <= longest

    def best_implementation(self, qk_BLHK: jax.Array) -> str:
        """The module's implementation, or the fastest, if it takes such arrays."""
        config = self.config
        chunk_length = min(config.lsh_chunk_length, qk_BLHK.shape[1])
        sizes = qk_BLHK.dtype, config.head_size, chunk_length
        return choice.choose(config.implementation, *sizes)

    def _hash_and_attend(self, dropout_rate: float):
        """Function of [B, L, H, K] that returns the output and the bucket ids."""
        config = self.config
        buckets = model_config.hash_buckets(config)
        num_buckets = hashing.bucket_count(buckets)
        # Stored per layer for the backward pass, so as small as the ids allow.
        dtype = jnp.uint16 if num_buckets <= 2**16 else jnp.int32

        def hash_and_attend(qk, v, mask, rotations, saved_buckets, key):
            ids = saved_buckets
            if ids is None:
                ids = hashing.hash_vectors(qk, rotations, buckets=buckets)
                ids = ids.astype(dtype)
            out = attention.lsh_attention(
                qk,
                v,
                ids.astype(jnp.int32),
                chunk_length=config.lsh_chunk_length,
                chunks_before=config.lsh_chunks_before,
                chunks_after=config.lsh_chunks_after,
                causal=config.causal,
                mask=mask,
                rule=config.rule,
                within_bucket=config.within_bucket,
                num_buckets=num_buckets,
                dropout_rate=dropout_rate,
                key=key,
                implementation=self.best_implementation(qk),
            )
            return out, ids

        ids_spec = P(_BATCH, 'model', None, None)
        return sharding.over_batch_and_heads(
            hash_and_attend,
            (_BLHK, _BLHK, P(_BATCH), P('model'), ids_spec, P()),
            (_BLHK, ids_spec),
        )


class LocalSelfAttention(nnx.Module):
    """Norm, chunked local attention, output projection."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        self.norm = norm(config.d_model, config.norm_epsilon, rngs)
        self.query = _projection(config, rngs)
        self.key = _projection(config, rngs)
        self.value = _projection(config, rngs)
        self.output = _output_projection(config, rngs)

    def project(self, x_BLD: jax.Array, group: HeadGroup):
        """Queries, keys and values of a group of heads, [B, L, h, K] each."""
        return _project(self, x_BLD, (self.query, self.key, self.value), group)

    def attend(
        self,
        heads: tuple[jax.Array, jax.Array, jax.Array],
        key: jax.Array,
        *,
        mask: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Attention output [B, L, h, K]; arguments as in LSHSelfAttention."""
        config = self.config

        def attend(q, k, v, mask, key):
            return attention.local_attention(
                q,
                k,
                v,
                chunk_length=config.local_chunk_length,
                chunks_before=config.local_chunks_before,
                chunks_after=config.local_chunks_after,
                causal=config.causal,
                circular=config.rule == 'trax',
                mask=mask,
                dropout_rate=config.local_attention_dropout if train else 0.0,
                key=key,
            )

        return sharding.over_batch_and_heads(
            attend, (_BLHK, _BLHK, _BLHK, P(_BATCH), P()), _BLHK
        )(*heads, mask, key)


class FullSelfAttention(nnx.Module):
    """Norm, exact attention with separate or shared queries and keys, projection."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        self.norm = norm(config.d_model, config.norm_epsilon, rngs)
        if config.shared_qk:
            self.query_key = _projection(config, rngs)
        else:
            self.query = _projection(config, rngs)
            self.key = _projection(config, rngs)
        self.value = _projection(config, rngs)
        self.output = _output_projection(config, rngs)

    def project(self, x_BLD: jax.Array, group: HeadGroup):
        """Queries, keys unless shared, and values of a group of heads, [B, L, h, K]."""
        queries = (self.query_key,) if self.config.shared_qk else (self.query, self.key)
        return _project(self, x_BLD, (*queries, self.value), group)

    def attend(
        self,
        heads: tuple[jax.Array, ...],
        key: jax.Array,
        *,
        mask: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Attention output [B, L, h, K]; arguments as in LSHSelfAttention."""
        config = self.config
        *queries_and_keys, v_BLHK = heads
        return attention.full_attention(
            queries_and_keys[0],
            queries_and_keys[-1],
            v_BLHK,
            causal=config.causal,
            mask=mask,
            shared_qk=config.shared_qk,
            dropout_rate=config.attention_dropout if train else 0.0,
            key=key,
        )


def dropout(x_BLD: jax.Array, rate: float, key: jax.Array) -> jax.Array:
    """Drops channels of a sequence, the same at all its positions."""
    if not rate:
        return x_BLD
    shape = (x_BLD.shape[0], *(1,) * (x_BLD.ndim - 2), x_BLD.shape[-1])
    keep = jax.random.bernoulli(key, 1 - rate, shape)
    return x_BLD * (keep / (1 - rate)).astype(x_BLD.dtype)


def norm(size: int, epsilon: float, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Layer norm in float32."""
    return nnx.LayerNorm(size, epsilon=epsilon, dtype=jnp.float32, rngs=rngs)


def _projection(config: ModelConfig, rngs: nnx.Rngs) -> nnx.Param:
    kernel = _glorot()(rngs.params(), (config.d_model, config.heads * config.head_size))
    return nnx.Param(kernel.reshape(config.d_model, config.heads, config.head_size))


def _output_projection(config: ModelConfig, rngs: nnx.Rngs) -> nnx.Param:
    kernel = _glorot()(rngs.params(), (config.heads * config.head_size, config.d_model))
    return nnx.Param(kernel.reshape(config.heads, config.head_size, config.d_model))


def _project(layer, x_BLD, kernels_DHK, group) -> tuple[jax.Array, ...]:
    dtype = layer.config.dtype
    x_BLD = sharding.constrain(layer.norm(x_BLD).astype(dtype), P(_BATCH))
    return tuple(
        jnp.einsum(
            'bld,dhk->blhk',
            x_BLD,
            sharding.constrain(
                _of_group(group, kernel, axis=1), P(None, 'model')
            ).astype(dtype),
        )
        for kernel in kernels_DHK
    )


def combine(
    layer: Any,
    out_BLHK: jax.Array,
    key: jax.Array,
    group: HeadGroup,
    train: bool,
) -> jax.Array:
    """What a group of heads of an attention layer adds to the stream, [B, L, D]."""
    kernel_HKD = _of_group(group, layer.output, axis=0)
    kernel_HKD = sharding.constrain(kernel_HKD, P('model')).astype(layer.config.dtype)
    out_BLD = jnp.einsum('blhk,hkd->bld', out_BLHK, kernel_HKD)
    out_BLD = sharding.constrain(out_BLD, P(_BATCH))
    return dropout(out_BLD, layer.config.dropout if train else 0.0, key)


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
        hidden_DF = sharding.constrain(self.hidden[...], P(None, 'model'))
        output_FD = sharding.constrain(self.output[...], P('model'))
        x_BLD = sharding.constrain(
            self.norm(x_BLD).astype(dtype), P(sharding.BATCH_AXES)
        )
        h_BLF = linear.linear(x_BLD, hidden_DF.astype(dtype))
        h_BLF += self.hidden_bias.astype(dtype)
        h_BLF = dropout(h_BLF, rate, hidden_key)
        h_BLF = model_config.ACTIVATIONS[config.activation](h_BLF)
        out_BLD = linear.linear(h_BLF, output_FD.astype(dtype))
        out_BLD += self.output_bias.astype(dtype)
        out_BLD = sharding.constrain(out_BLD, P(sharding.BATCH_AXES))
        return dropout(out_BLD, rate, output_key)


_KINDS: dict[str, Any] = {
    'lsh': LSHSelfAttention,
    'local': LocalSelfAttention,
    'full': FullSelfAttention,
}


class Block(nnx.Module):
    """One layer: an attention and a feed-forward branch."""

    def __init__(self, config: ModelConfig, kind: str, rngs: nnx.Rngs):
        self.attention = _KINDS[kind](config, rngs)
        self.feed_forward = FeedForward(config, rngs)


def as_functions(
    config: ModelConfig, layer: Block, train: bool, rounds: int | None
) -> reversible.Block:
    """A layer as functions; of `layer` itself only the settings are used."""
    groups = config.heads // (config.heads_at_once or config.heads)

    def project(module, x, group):
        return module.project(x, HeadGroup(group, groups))

    def attend(heads, key, rotations, mask, group, saved):
        if not isinstance(layer.attention, LSHSelfAttention):
            return layer.attention.attend(heads, key, mask=mask, train=train), None
        return layer.attention.attend(
            heads,
            key,
            mask=mask,
            train=train,
            rotations=rotations,
            saved_buckets=saved,
            rounds=rounds,
            group=HeadGroup(group, groups),
        )

    def combine_heads(module, out, key, group):
        return combine(module, out, key, HeadGroup(group, groups), train)

    def feed_forward(module, x, key):
        return module(x, key, train=train)

    return reversible.Block(
        project,
        attend,
        combine_heads,
        groups,
        feed_forward,
        config.feed_forward_chunk_length,
    )


def stack(config: ModelConfig, kind: str, rngs: nnx.Rngs) -> Block:
    """`repeats` blocks in one, each parameter with a leading axis over them."""
    keys = jax.random.split(rngs.params(), config.repeats)
    return jax.vmap(lambda key: Block(config, kind, nnx.Rngs(key)))(keys)
