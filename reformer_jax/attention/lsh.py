"""LSH attention: sorts by buckets, plans the windows, and calls an implementation."""

import jax
import jax.numpy as jnp
import numpy as np

from reformer_jax.attention import choice
from reformer_jax.attention import full
from reformer_jax.attention import hashing
from reformer_jax.attention import kinds
from reformer_jax.attention import numerics
from reformer_jax.attention import ring as rings
from reformer_jax.attention import windows


def lsh_attention(
    kind: kinds.LSH,
    qk_BLHK: jax.Array,
    v_BLHK: jax.Array,
    buckets_BHRL: jax.Array,
    *,
    mask: jax.Array | None = None,
    order: jax.Array | None = None,
    key: jax.Array | None = None,
    ring: str = '',
) -> jax.Array:
    """Shared-QK attention among tokens that hash alike, [B, L, H, K] in the dtype of v.

    Args:
      kind: settings; chunk_length divides L, unless L is shorter.
      qk_BLHK: shared queries and keys; keys are brought to unit length.
      v_BLHK: values.
      buckets_BHRL: ids from hashing.hash_vectors, in [0, kind.num_buckets).
      mask: [B, L], True for a real token.
      order: sorted_order of the same arguments, where it is at hand.
      key: random key of dropout.
      ring: within shard_map, the mesh axis that splits the positions. Arrays then are
        of each device's part, which is one of whole chunks, and there is no `order`.
    """
    kinds.check_shapes(qk_BLHK, v_BLHK)
    length, head_size = qk_BLHK.shape[1], qk_BLHK.shape[-1]
    if ring:
        assert order is None
        kinds.check_part(kind, length)
    kinds.check_length(kind, length)
    kinds.check_mask(mask, qk_BLHK.shape[:2])
    _check_buckets(kind, buckets_BHRL, qk_BLHK.shape)
    chosen = 'xla'
    if not ring:
        chosen = choice.of_lsh(kind, length, qk_BLHK.dtype, head_size)
    if chosen == choice.EXACT:
        qkv = qk_BLHK, qk_BLHK, v_BLHK
        return full.full_attention(kind.full, *qkv, mask=mask, key=key)
    mask = None if mask is None else rings.gather(ring, jnp.asarray(mask), dim=1)
    plan = windows.plan(kind, buckets_BHRL.shape, ring)
    with jax.named_scope('sort'):
        # Every device sorts all of its heads' positions by itself.
        buckets_BHRL = rings.gather(ring, buckets_BHRL, dim=3).astype(jnp.int32)
        if order is None:
            order = sorted_order(kind, buckets_BHRL, mask)
        codes_BHRL = windows.codes(plan, kind.num_buckets, buckets_BHRL, order, mask)
    dropout_shape = (
        order.shape[2],
        plan.chunk_length,
        plan.chunk_length * plan.window_chunks,
    )
    dropout_RCW = numerics.attention_dropout(key, kind.dropout, dropout_shape)
    with jax.named_scope('attend'):
        attend = choice.attend(chosen)
        return attend(plan, qk_BLHK, v_BLHK, order, codes_BHRL, mask, dropout_RCW)


def _check_buckets(kind: kinds.LSH, buckets, shape_BLHK) -> None:
    batch, length, heads, _ = shape_BLHK
    needed, shape = f'({batch}, {heads}, R, {length})', buckets.shape
    rounds = shape[2:3]
    if shape != (batch, heads, *rounds, length) or rounds < (1,):
        raise ValueError(
            f'bucket ids have shape {shape}: it must be {needed} with R of at least 1.'
        )
    if not jnp.issubdtype(buckets.dtype, jnp.integer):
        raise ValueError(f'bucket ids are {buckets.dtype}: they must be integers.')
    if isinstance(buckets, jax.core.Tracer):
        return
    values = np.asarray(buckets)
    for bucket in (values.min(), values.max()):
        if not 0 <= bucket < kind.num_buckets:
            raise ValueError(
                f'bucket {bucket} is outside [0, {kind.num_buckets}): hash with '
                'buckets of the same kind.'
            )


def sorted_order(
    kind: kinds.LSH, buckets_BHRL: jax.Array, mask: jax.Array | None
) -> jax.Array:
    """Positions [B, H, R, L] sorted by (bucket, position), padding last.

    Arguments are those of lsh_attention.
    """
    buckets_BHRL = windows.with_padding(buckets_BHRL, mask, kind.num_buckets)
    return hashing.sort_order(buckets_BHRL, num_buckets=kind.num_buckets + 1)
