"""Layers of the Reformer: modules that hold parameters and call the pure functions.

A layer's attention and feed-forward start with a layer norm and end with a dropout; the
residual sums are the stack's (reversible.py). Dropout follows the paper's code: one
mask of channels per sequence, shared over the length.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from reformer_jax import attention
from reformer_jax import chunking
from reformer_jax import hashing
from reformer_jax import sharding

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    'relu': jax.nn.relu,
    'gelu': jax.nn.gelu,
    'swish': jax.nn.swish,
}

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
        buckets: tuple[int, ...],
        rounds: int,
        rule: str,
        within_bucket: bool,
        dense_length: int,
        attention_dropout: float,
        dropout: float,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        self.norm = _norm(d_model, rngs)
        self.query_key = _projection(rngs, d_model, heads, head_size)
        self.value = _projection(rngs, d_model, heads, head_size)
        self.output = _output_projection(rngs, d_model, heads, head_size)
        self.buckets = buckets
        self.rounds = rounds
        self.chunk_length = chunk_length
        self.dense_length = max(dense_length, chunk_length)
        self.look_around = (chunks_before, chunks_after)
        self.causal = causal
        self.rule = rule
        self.within_bucket = within_bucket
        self.attention_dropout = attention_dropout
        self.dropout = dropout
        self.dtype = dtype

    def __call__(
        self,
        x_BLD: jax.Array,
        key: jax.Array,
        *,
        mask: jax.Array | None = None,
        train: bool = False,
        rotations: jax.Array | None = None,
        saved_buckets: jax.Array | None = None,
        rounds: int | None = None,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Output [B, L, D] and the bucket ids [B, H, R, L] (None on the dense path).

        Args:
          x_BLD: the input stream.
          key: random key of hashing and dropout.
          mask: [B, L], True for a real token.
          train: whether dropout is on.
          rotations: [H, K, R, S] instead of random ones.
          saved_buckets: ids to use instead of hashing.
          rounds: hash rounds instead of the module's.
        """
        hash_key, attention_key, output_key = jax.random.split(key, 3)
        x_BLD = self.norm(x_BLD).astype(self.dtype)
        qk_BLHK = _project(x_BLD, self.query_key)
        v_BLHK = _project(x_BLD, self.value)
        length, heads, head_size = qk_BLHK.shape[1:]
        if length <= self.dense_length:
            out_BLHK = attention.full_attention(
                qk_BLHK,
                qk_BLHK,
                v_BLHK,
                causal=self.causal,
                mask=mask,
                shared_qk=True,
                dropout_rate=self.attention_dropout if train else 0.0,
                key=attention_key,
            )
            buckets_BHRL = None
        else:
            buckets = self.buckets or hashing.default_buckets(length, self.chunk_length)
            if rotations is None and saved_buckets is None:
                rotations = hashing.random_rotations(
                    hash_key,
                    heads=heads,
                    head_size=head_size,
                    rounds=rounds or self.rounds,
                    buckets=buckets,
                )
            out_BLHK, buckets_BHRL = self._hash_and_attend(
                qk_BLHK,
                v_BLHK,
                mask,
                rotations,
                saved_buckets,
                buckets,
                attention_key,
                train,
            )
        out_BLD = _combine_heads(out_BLHK, self.output)
        return dropout(
            out_BLD, self.dropout if train else 0.0, output_key
        ), buckets_BHRL

    def _hash_and_attend(
        self, qk, v, mask, rotations, saved_buckets, buckets, key, train
    ):
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
                chunk_length=self.chunk_length,
                chunks_before=self.look_around[0],
                chunks_after=self.look_around[1],
                causal=self.causal,
                mask=mask,
                rule=self.rule,
                within_bucket=self.within_bucket,
                num_buckets=num_buckets,
                dropout_rate=self.attention_dropout if train else 0.0,
                key=key,
                implementation='xla',
            )
            return out, ids

        ids_spec = P(_BATCH, 'model', None, None)
        return sharding.over_batch_and_heads(
            hash_and_attend,
            (_BLHK, _BLHK, P(_BATCH), P('model'), ids_spec, P()),
            (_BLHK, ids_spec),
        )(qk, v, mask, rotations, saved_buckets, key)


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
        attention_dropout: float,
        dropout: float,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        self.norm = _norm(d_model, rngs)
        self.query = _projection(rngs, d_model, heads, head_size)
        self.key = _projection(rngs, d_model, heads, head_size)
        self.value = _projection(rngs, d_model, heads, head_size)
        self.output = _output_projection(rngs, d_model, heads, head_size)
        self.chunk_length = chunk_length
        self.look_around = (chunks_before, chunks_after)
        self.causal = causal
        self.attention_dropout = attention_dropout
        self.dropout = dropout
        self.dtype = dtype

    def __call__(
        self,
        x_BLD: jax.Array,
        key: jax.Array,
        *,
        mask: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Output [B, L, D]; arguments as in LSHSelfAttention."""
        attention_key, output_key = jax.random.split(key)
        x_BLD = self.norm(x_BLD).astype(self.dtype)

        def attend(q, k, v, mask, key):
            return attention.local_attention(
                q,
                k,
                v,
                chunk_length=self.chunk_length,
                chunks_before=self.look_around[0],
                chunks_after=self.look_around[1],
                causal=self.causal,
                mask=mask,
                dropout_rate=self.attention_dropout if train else 0.0,
                key=key,
            )

        out_BLHK = sharding.over_batch_and_heads(
            attend, (_BLHK, _BLHK, _BLHK, P(_BATCH), P()), _BLHK
        )(
            _project(x_BLD, self.query),
            _project(x_BLD, self.key),
            _project(x_BLD, self.value),
            mask,
            attention_key,
        )
        out_BLD = _combine_heads(out_BLHK, self.output)
        return dropout(out_BLD, self.dropout if train else 0.0, output_key)


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
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        self.norm = _norm(d_model, rngs)
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

    def __call__(
        self,
        x_BLD: jax.Array,
        key: jax.Array,
        *,
        mask: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Output [B, L, D]; arguments as in LSHSelfAttention."""
        attention_key, output_key = jax.random.split(key)
        x_BLD = self.norm(x_BLD).astype(self.dtype)
        q_BLHK = _project(x_BLD, self.query_key if self.shared_qk else self.query)
        k_BLHK = q_BLHK if self.shared_qk else _project(x_BLD, self.key)
        out_BLHK = attention.full_attention(
            q_BLHK,
            k_BLHK,
            _project(x_BLD, self.value),
            causal=self.causal,
            mask=mask,
            shared_qk=self.shared_qk,
            dropout_rate=self.attention_dropout if train else 0.0,
            key=attention_key,
        )
        out_BLD = _combine_heads(out_BLHK, self.output)
        return dropout(out_BLD, self.dropout if train else 0.0, output_key)


class FeedForward(nnx.Module):
    """Norm and two dense layers, a chunk of the sequence at a time (section 3)."""

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        *,
        activation: str,
        dropout: float,
        chunk_length: int,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        self.norm = _norm(d_model, rngs)
        self.hidden = nnx.Param(_glorot()(rngs.params(), (d_model, d_ff)))
        self.hidden_bias = nnx.Param(jnp.zeros((d_ff,)))
        self.output = nnx.Param(_glorot()(rngs.params(), (d_ff, d_model)))
        self.output_bias = nnx.Param(jnp.zeros((d_model,)))
        self.activation = activation
        self.dropout = dropout
        self.chunk_length = chunk_length
        self.dtype = dtype

    def __call__(
        self, x_BLD: jax.Array, key: jax.Array, *, train: bool = False
    ) -> jax.Array:
        """Output [B, L, D]."""
        hidden_key, output_key = jax.random.split(key)

        def feed_forward(x_BLD):
            x_BLD = self.norm(x_BLD).astype(self.dtype)
            h_BLF = x_BLD @ self.hidden.astype(self.dtype)
            h_BLF += self.hidden_bias.astype(self.dtype)
            h_BLF = dropout(h_BLF, self.dropout if train else 0.0, hidden_key)
            h_BLF = ACTIVATIONS[self.activation](h_BLF)
            out_BLD = h_BLF @ self.output.astype(self.dtype)
            return out_BLD + self.output_bias.astype(self.dtype)

        out_BLD = chunking.map_chunks(
            feed_forward, x_BLD, chunk_length=self.chunk_length
        )
        return dropout(out_BLD, self.dropout if train else 0.0, output_key)


def dropout(x_BLD: jax.Array, rate: float, key: jax.Array) -> jax.Array:
    """Drops channels of a sequence, the same at all its positions."""
    if not rate:
        return x_BLD
    shape = (x_BLD.shape[0], *(1,) * (x_BLD.ndim - 2), x_BLD.shape[-1])
    keep = jax.random.bernoulli(key, 1 - rate, shape)
    return x_BLD * (keep / (1 - rate)).astype(x_BLD.dtype)


def _norm(size: int, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(size, epsilon=1e-6, dtype=jnp.float32, rngs=rngs)


def _projection(rngs, d_model, heads, head_size) -> nnx.Param:
    kernel = _glorot()(rngs.params(), (d_model, heads * head_size))
    return nnx.Param(kernel.reshape(d_model, heads, head_size))


def _output_projection(rngs, d_model, heads, head_size) -> nnx.Param:
    kernel = _glorot()(rngs.params(), (heads * head_size, d_model))
    return nnx.Param(kernel.reshape(heads, head_size, d_model))


def _project(x_BLD, kernel_DHK):
    return jnp.einsum('bld,dhk->blhk', x_BLD, kernel_DHK.astype(x_BLD.dtype))


def _combine_heads(x_BLHK, kernel_HKD):
    return jnp.einsum('blhk,hkd->bld', x_BLHK, kernel_HKD.astype(x_BLHK.dtype))
