"""Layers of the Reformer: modules that hold parameters and call the pure functions.

An attention layer has three parts, project, attend and combine, because its positions
mix in the second only, which has no parameters. It starts with a layer norm and ends
with a dropout; the sums are the stack's (reversible.py). Dropout follows the paper's
code: one mask of channels per sequence, shared over the length.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from reformer_jax import attention
from reformer_jax import hashing
from reformer_jax import head_groups
from reformer_jax import sharding
from reformer_jax.kernels import choice

_BATCH = sharding.BATCH_AXES
_BLHK = P(_BATCH, None, 'model', None)
_glorot = jax.nn.initializers.glorot_uniform


class LSHSelfAttention(nnx.Module):
    """Norm, shared-QK LSH attention, output projection (paper section 2)."""

    def __init__(
        self,
        d_model: int,
        *,
        heads: int,
        head_size: int,
        chunk_length: int,
        chunks_before: int,
        chunks_after: int,
        causal: bool,
        buckets: hashing.Buckets,
        rounds: int,
        rule: str,
        within_bucket: bool,
        dense_length: int,
        model_length: int,
        implementation: str,
        attention_dropout: float,
        dropout: float,
        norm_epsilon: float,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        self.norm = norm(d_model, norm_epsilon, rngs)
        self.query_key = _projection(rngs, d_model, heads, head_size)
        self.value = _projection(rngs, d_model, heads, head_size)
        self.output = _output_projection(rngs, d_model, heads, head_size)
        self.heads = heads
        self.head_size = head_size
        self.buckets = buckets
        self.rounds = rounds
        self.chunk_length = chunk_length
        self.dense_length = dense_length
        self.model_length = model_length
        self.look_around = (chunks_before, chunks_after)
        self.causal = causal
        self.rule = rule
        self.within_bucket = within_bucket
        self.implementation = implementation
        self.attention_dropout = attention_dropout
        self.dropout = dropout
        self.dtype = dtype

    def project(self, x_BLD: jax.Array, group: head_groups.HeadGroup):
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
        group: head_groups.HeadGroup,
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
        rate = self.attention_dropout if train else 0.0
        rounds = self.rounds if rounds is None else rounds
        if self.is_dense(length, rounds):
            out_BLHK = attention.full_attention(
                qk_BLHK,
                qk_BLHK,
                v_BLHK,
                causal=self.causal,
                mask=mask,
                shared_qk=True,
                dropout_rate=rate,
                key=dropout_key,
            )
            return out_BLHK, None
        if rotations is None and saved_buckets is None:
            rotations = hashing.random_rotations(
                hash_key,
                heads=self.heads,
                head_size=self.head_size,
                rounds=rounds,
                buckets=self.buckets,
            )
        if rotations is not None:
            rotations = head_groups.take(group, rotations, axis=0)
        return self._hash_and_attend(rate)(
            qk_BLHK, v_BLHK, mask, rotations, saved_buckets, dropout_key
        )

    def is_dense(self, length: int, rounds: int) -> bool:
        """Whether a sequence gets exact attention, with so many hash rounds.

        What decides is the longest sequence of the model, so that padding changes
        nothing; except with the trax rule, as in Hugging Face's models. Up to one chunk
        exact attention is what the reformer rule comes to.
        """
        if self.rule == 'strict':
            return False  # one function of the past, whatever the length
        window = self.chunk_length * (1 + sum(self.look_around))
        longest = max(self.dense_length, self.chunk_length)
        if self.dense_length < 0:
            longest = attention.dense_crossover(rounds, window)
        if self.rule == 'trax':
            return length <= longest
        one_chunk = length <= self.chunk_length and not self.within_bucket
        return one_chunk or self.model_length <= longest

    def best_implementation(self, qk_BLHK: jax.Array) -> str:
        """The module's implementation, or the fastest, if it takes such arrays."""
        chunk_length = min(self.chunk_length, qk_BLHK.shape[1])
        sizes = qk_BLHK.dtype, self.head_size, chunk_length
        return choice.choose(self.implementation, *sizes)

    def _hash_and_attend(self, dropout_rate: float):
        """Function of [B, L, H, K] that returns the output and the bucket ids."""
        num_buckets = hashing.bucket_count(self.buckets)
        # Stored per layer for the backward pass, so as small as the ids allow.
        dtype = jnp.uint16 if num_buckets <= 2**16 else jnp.int32

        def hash_and_attend(qk, v, mask, rotations, saved_buckets, key):
            ids = saved_buckets
            if ids is None:
                ids = hashing.hash_vectors(qk, rotations, buckets=self.buckets)
                ids = ids.astype(dtype)
            out = attention.lsh_attention(
                qk,
                v,
                ids.astype(jnp.int32),
                chunk_length=self.chunk_length,
                chunks_before=self.look_around[0],
                chunks_after=self.look_around[1],
                causal=self.causal,
                mask=mask,
                rule=self.rule,
                within_bucket=self.within_bucket,
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

    def __init__(
        self,
        d_model: int,
        *,
        heads: int,
        head_size: int,
        chunk_length: int,
        chunks_before: int,
        chunks_after: int,
        causal: bool,
        circular: bool,
        attention_dropout: float,
        dropout: float,
        norm_epsilon: float,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        self.norm = norm(d_model, norm_epsilon, rngs)
        self.query = _projection(rngs, d_model, heads, head_size)
        self.key = _projection(rngs, d_model, heads, head_size)
        self.value = _projection(rngs, d_model, heads, head_size)
        self.output = _output_projection(rngs, d_model, heads, head_size)
        self.chunk_length = chunk_length
        self.look_around = (chunks_before, chunks_after)
        self.causal = causal
        self.circular = circular
        self.attention_dropout = attention_dropout
        self.dropout = dropout
        self.dtype = dtype

    def project(self, x_BLD: jax.Array, group: head_groups.HeadGroup):
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

        def attend(q, k, v, mask, key):
            return attention.local_attention(
                q,
                k,
                v,
                chunk_length=self.chunk_length,
                chunks_before=self.look_around[0],
                chunks_after=self.look_around[1],
                causal=self.causal,
                circular=self.circular,
                mask=mask,
                dropout_rate=self.attention_dropout if train else 0.0,
                key=key,
            )

        return sharding.over_batch_and_heads(
            attend, (_BLHK, _BLHK, _BLHK, P(_BATCH), P()), _BLHK
        )(*heads, mask, key)


class FullSelfAttention(nnx.Module):
    """Norm, exact attention with separate or shared queries and keys, projection."""

    def __init__(
        self,
        d_model: int,
        *,
        heads: int,
        head_size: int,
        causal: bool,
        shared_qk: bool,
        attention_dropout: float,
        dropout: float,
        norm_epsilon: float,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        self.norm = norm(d_model, norm_epsilon, rngs)
        if shared_qk:
            self.query_key = _projection(rngs, d_model, heads, head_size)
        else:
            self.query = _projection(rngs, d_model, heads, head_size)
            self.key = _projection(rngs, d_model, heads, head_size)
        self.value = _projection(rngs, d_model, heads, head_size)
        self.output = _output_projection(rngs, d_model, heads, head_size)
        self.shared_qk = shared_qk
        self.causal = causal
        self.attention_dropout = attention_dropout
        self.dropout = dropout
        self.dtype = dtype

    def project(self, x_BLD: jax.Array, group: head_groups.HeadGroup):
        """Queries, keys unless shared, and values of a group of heads, [B, L, h, K]."""
        queries = (self.query_key,) if self.shared_qk else (self.query, self.key)
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
        *queries_and_keys, v_BLHK = heads
        return attention.full_attention(
            queries_and_keys[0],
            queries_and_keys[-1],
            v_BLHK,
            causal=self.causal,
            mask=mask,
            shared_qk=self.shared_qk,
            dropout_rate=self.attention_dropout if train else 0.0,
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


def _projection(rngs, d_model, heads, head_size) -> nnx.Param:
    kernel = _glorot()(rngs.params(), (d_model, heads * head_size))
    return nnx.Param(kernel.reshape(d_model, heads, head_size))


def _output_projection(rngs, d_model, heads, head_size) -> nnx.Param:
    kernel = _glorot()(rngs.params(), (heads * head_size, d_model))
    return nnx.Param(kernel.reshape(heads, head_size, d_model))


def _project(layer, x_BLD, kernels_DHK, group) -> tuple[jax.Array, ...]:
    x_BLD = sharding.constrain(layer.norm(x_BLD).astype(layer.dtype), P(_BATCH))
    return tuple(
        jnp.einsum(
            'bld,dhk->blhk',
            x_BLD,
            sharding.constrain(
                head_groups.take(group, kernel, axis=1), P(None, 'model')
            ).astype(layer.dtype),
        )
        for kernel in kernels_DHK
    )


def combine(
    layer: Any,
    out_BLHK: jax.Array,
    key: jax.Array,
    group: head_groups.HeadGroup,
    train: bool,
) -> jax.Array:
    """What a group of heads of an attention layer adds to the stream, [B, L, D]."""
    kernel_HKD = head_groups.take(group, layer.output, axis=0)
    kernel_HKD = sharding.constrain(kernel_HKD, P('model')).astype(layer.dtype)
    out_BLD = jnp.einsum('blhk,hkd->bld', out_BLHK, kernel_HKD)
    out_BLD = sharding.constrain(out_BLD, P(_BATCH))
    return dropout(out_BLD, layer.dropout if train else 0.0, key)
