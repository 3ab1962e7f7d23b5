"""LSH attention: sorts by buckets, plans the windows, and calls an implementation."""

import functools

import jax
import jax.numpy as jnp

from reformer_jax.attention import choice
from reformer_jax.attention import full
from reformer_jax.attention import hashing
from reformer_jax.attention import kinds
from reformer_jax.attention import numerics
from reformer_jax.attention import windows

IMPLEMENTATIONS = (*choice.IMPLEMENTATIONS, 'dense')

# Bucket ids fit 16 bits unless lsh_attention is told otherwise.
_MOST_BUCKETS = 2**16


def lsh_attention(
    qk_BLHK: jax.Array,
    v_BLHK: jax.Array,
    buckets_BHRL: jax.Array,
    *,
    chunk_length: int,
    chunks_before: int = 1,
    chunks_after: int = 0,
    causal: bool,
    mask: jax.Array | None = None,
    rule: str = 'reformer',
    within_bucket: bool = False,
    num_buckets: int = _MOST_BUCKETS,
    order_BHRL: jax.Array | None = None,
    dropout_rate: float = 0.0,
    key: jax.Array | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """Shared-QK attention among tokens that hash alike, [B, L, H, K] in the dtype of v.

    Args:
      qk_BLHK: shared queries and keys; keys are brought to unit length.
      v_BLHK: values.
      buckets_BHRL: ids from hashing.hash_vectors, in [0, num_buckets).
      chunk_length: divides L, unless L <= chunk_length (see implementation).
      chunks_before: chunks looked back at; strict needs 1.
      chunks_after: chunks looked ahead at; strict needs 0.
      causal: see no later token; strict needs True.
      mask: [B, L], True for a real token.
      rule: 'reformer', 'trax' or 'strict', see above.
      within_bucket: for the reformer rule, keys of the query's own bucket only.
      num_buckets: bound on the ids; a small one keeps the sort key in 32 bits.
      order_BHRL: sorted_order of the same arguments, where it is at hand.
      dropout_rate: dropout of attention probabilities, with a random `key`.
      implementation: 'xla', 'triton' (NVIDIA GPUs), 'mosaic_tpu', 'dense' (exact
        attention), or None: dense where one chunk makes it the same, else the kernel
        of the device if it takes the arrays, else xla. CPUs interpret kernels, slowly.
    """
    length, look_around = qk_BLHK.shape[1], (chunks_before, chunks_after)
    kinds.check_shapes(qk_BLHK, v_BLHK)
    kinds.check_chunks(length, chunk_length, *look_around, causal)
    kinds.check_rule(rule, within_bucket, *look_around, causal)
    one_chunk = length <= chunk_length and rule != 'strict' and not within_bucket
    chunk_length = min(chunk_length, length)
    implementation = _implementation(implementation, qk_BLHK, chunk_length, one_chunk)
    if implementation == 'dense':
        exact = functools.partial(
            full.full_attention, causal=causal, mask=mask, shared_qk=True
        )
        return exact(qk_BLHK, qk_BLHK, v_BLHK, dropout_rate=dropout_rate, key=key)
    mask = None if mask is None else jnp.asarray(mask)
    buckets_BHRL, shape = buckets_BHRL.astype(jnp.int32), buckets_BHRL.shape
    if order_BHRL is None:
        order_BHRL = sorted_order(buckets_BHRL, mask, num_buckets)
    plan = windows.plan(shape, chunk_length, look_around, causal, rule, within_bucket)
    codes_BHRL = windows.codes(plan, buckets_BHRL, order_BHRL, mask, num_buckets)
    dropout_shape = shape[2], chunk_length, chunk_length * plan.window_chunks
    dropout_RCW = numerics.attention_dropout(key, dropout_rate, dropout_shape)
    attend = choice.attend(implementation)
    return attend(plan, qk_BLHK, v_BLHK, order_BHRL, codes_BHRL, mask, dropout_RCW)


def _implementation(
    wanted: str | None, qk_BLHK: jax.Array, chunk_length: int, one_chunk: bool
) -> str:
    """What lsh_attention's implementation=wanted stands for; checked."""
    sizes = qk_BLHK.dtype, qk_BLHK.shape[-1], chunk_length
    if wanted is None:
        return 'dense' if one_chunk else choice.choose('', *sizes)
    if wanted not in IMPLEMENTATIONS:
        raise ValueError(f'implementation={wanted!r} is none of {IMPLEMENTATIONS}.')
    if wanted != 'dense':
        choice.check(wanted, *sizes)
    return wanted


def sorted_order(
    buckets_BHRL: jax.Array, mask: jax.Array | None, num_buckets: int
) -> jax.Array:
    """Positions [B, H, R, L] sorted by (bucket, position), padding last.

    Arguments are those of lsh_attention.
    """
    buckets_BHRL = windows.with_padding(buckets_BHRL, mask, num_buckets)
    return hashing.sort_order(buckets_BHRL, num_buckets=num_buckets + 1)
