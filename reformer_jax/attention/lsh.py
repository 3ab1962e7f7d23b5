"""LSH attention: sorts by buckets, plans the windows, and calls an implementation."""

import jax
import jax.numpy as jnp

from reformer_jax.attention import arguments
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
      buckets_BHRL: ids from hashing.hash_vectors, in [0, kind.num_buckets); with
        others, in compiled functions, the whole row is NaN.
      mask: [B, L], True for a real token.
      order: sorted_order of the same arguments, where it is at hand.
      key: random key of dropout.
      ring: within shard_map, the mesh axis that splits the positions. Arrays then are
        of each device's part, which is one of whole chunks, and there is no `order`.
    """
    arguments.check_class('kind', kind, kinds.LSH, 'an attention.LSH')
    kinds.check_shapes(qk_BLHK, v_BLHK)
    length, head_size = qk_BLHK.shape[1], qk_BLHK.shape[-1]
    if ring:
        assert order is None
        kinds.check_part(kind, length)
    kinds.check_length(kind, length)
    arguments.check_mask(mask, qk_BLHK.shape[:2])
    arguments.check_key(key)
    _check_buckets(kind, buckets_BHRL, qk_BLHK.shape)
    if order is not None:
        _check_order(order, buckets_BHRL.shape)
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
        known_BH = _are_known(kind, buckets_BHRL, mask)
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
        out_BLHK = attend(plan, qk_BLHK, v_BLHK, order, codes_BHRL, mask, dropout_RCW)
    return jnp.where(known_BH[:, None, :, None], out_BLHK, jnp.nan)


def _check_buckets(kind: kinds.LSH, buckets, shape_BLHK) -> None:
    arguments.check_integers('bucket ids', buckets, 'BHRL')
    batch, length, heads, _ = shape_BLHK
    shape = buckets.shape
    if shape != (batch, heads, shape[2], length):
        raise ValueError(
            f'bucket ids have shape {shape}: it must be '
            f'({batch}, {heads}, R, {length}).'
        )
    arguments.check_range(
        'bucket', buckets, kind.num_buckets, 'hash with buckets of the same kind'
    )


def _are_known(kind: kinds.LSH, buckets_BHRL, mask) -> jax.Array:
    """Whether the buckets of a row are in their range, those of padding left out."""
    known = (0 <= buckets_BHRL) & (buckets_BHRL < kind.num_buckets)
    if mask is not None:
        known |= ~mask[:, None, None]
    return known.all((2, 3))


def _check_order(order: jax.Array, shape: tuple[int, ...]) -> None:
    arguments.check_integers('order', order, 'BHRL')
    if order.shape != shape:
        raise ValueError(
            f'order has shape {order.shape}, and bucket ids have {shape}: pass what '
            'sorted_order makes of them.'
        )


def sorted_order(
    kind: kinds.LSH, buckets_BHRL: jax.Array, mask: jax.Array | None
) -> jax.Array:
    """Positions [B, H, R, L] sorted by (bucket, position), padding last.

    Arguments are those of lsh_attention.
    """
    arguments.check_class('kind', kind, kinds.LSH, 'an attention.LSH')
    arguments.check_integers('bucket ids', buckets_BHRL, 'BHRL')
    batch, _, _, length = buckets_BHRL.shape
    arguments.check_mask(mask, (batch, length))
    buckets_BHRL = windows.with_padding(buckets_BHRL, mask, kind.num_buckets)
    return hashing.sort_order(buckets_BHRL, num_buckets=kind.num_buckets + 1)
