"""Angular locality-sensitive hashing by random rotations (paper section 2).

A vector x is hashed to argmax([xR; -xR]) for a random matrix R: vectors at a small
angle often share a bucket. With several factors (a, b, ...) the bucket is the mixed
radix number of one hash per factor, which costs sum(factors) instead of
prod(factors) per vector.

Shape letters are explained in the package.
"""

import functools
import math
import numbers

import jax
import jax.numpy as jnp
from jax import lax

from reformer_jax.attention import arguments
from reformer_jax.attention import fields

Buckets = int | tuple[int, ...]

# Rotated vectors are made in blocks of so many floats over the length: for a whole
# sequence of 65,536 tokens and 2,048 buckets they would take 2 GiB. An accelerator
# wants as much parallel work as its memory allows.
_BLOCK_FLOATS_ON_CPU = 2**18
_BLOCK_FLOATS = 2**26

# Up to here one rotation is cheaper than two factors.
_MOST_DENSE_BUCKETS = 128


def bucket_factors(buckets: Buckets) -> tuple[int, ...]:
    """The factors of a bucket count, checked: each must be even and positive."""
    factors = tuple(buckets) if isinstance(buckets, tuple | list) else (buckets,)
    for factor in factors:
        if not isinstance(factor, numbers.Integral):
            raise ValueError(f'buckets={buckets!r}: {factor!r} is no whole number.')
        if factor < 2 or factor % 2:
            raise ValueError(
                f'buckets={buckets}: {factor} is not an even number of at least 2. A '
                'rotation hashes to a direction or its opposite, so each factor must '
                f'be even; use {max(2, factor + factor % 2)}.'
            )
    if not factors:
        raise ValueError('buckets=() is empty: give an even number or several.')
    return factors


def bucket_count(buckets: Buckets) -> int:
    """Number of bucket ids: the product of the factors."""
    return math.prod(bucket_factors(buckets))


def default_buckets(length: int, chunk_length: int) -> Buckets:
    """Power of two nearest below 2 * length / chunk_length, in two factors if large.

    Two buckets per chunk make an average bucket half a chunk (paper section 2: m =
    2 l / n_buckets), so that most of a bucket lies within a chunk and its neighbour.
    """
    fields.check_whole(1, length=length, chunk_length=chunk_length)
    exponent = max(1, (2 * (length // chunk_length)).bit_length() - 1)
    if 2**exponent <= _MOST_DENSE_BUCKETS:
        return 2**exponent
    return 2 ** ((exponent + 1) // 2), 2 ** (exponent // 2)


def random_rotations(
    key: jax.Array, *, heads: int, head_size: int, rounds: int, buckets: Buckets
) -> jax.Array:
    """Standard normal rotations [H, K, R, sum(factors) // 2], one set per head."""
    arguments.check_key(key)
    fields.check_whole(1, heads=heads, head_size=head_size, rounds=rounds)
    width = sum(bucket_factors(buckets)) // 2
    return jax.random.normal(key, (heads, head_size, rounds, width))


def hash_vectors(
    vectors_BLHK: jax.Array, rotations_HKRS: jax.Array, *, buckets: Buckets
) -> jax.Array:
    """Bucket ids, int32 [B, H, R, L] in [0, bucket_count), without a gradient.

    The first factor is the least significant digit. Computed in float32 whatever the
    dtype of the vectors: a flipped bucket is no rounding error.
    """
    arguments.check_floats('vectors', vectors_BLHK, 'BLHK')
    arguments.check_floats('rotations', rotations_HKRS, 'HKRS')
    factors = bucket_factors(buckets)
    width = rotations_HKRS.shape[-1]
    if width != sum(factors) // 2:
        raise ValueError(
            f'rotations of width {width} do not fit buckets={buckets}, which need '
            f'{sum(factors) // 2}: draw them with the same buckets.'
        )
    if vectors_BLHK.shape[2:] != rotations_HKRS.shape[:2]:
        raise ValueError(
            f'vectors of shape {vectors_BLHK.shape} must be [B, L, H, K] with H and K '
            f'of the rotations, which have shape {rotations_HKRS.shape}.'
        )
    vectors_BLHK = lax.stop_gradient(vectors_BLHK)
    rotations_HKRS = lax.stop_gradient(rotations_HKRS).astype(jnp.float32)

    def hash_block(vectors_BLHK: jax.Array) -> jax.Array:
        # Heads first: so it is one product for each, on rows that lie together.
        rotated_BHRSL = jnp.einsum(
            'bhlk,hkrs->bhrsl',
            jnp.moveaxis(vectors_BLHK, 1, 2).astype(jnp.float32),
            rotations_HKRS,
            precision=lax.Precision.HIGHEST,
        )
        shape_BHRSL = rotated_BHRSL.shape
        buckets_BHRL = jnp.zeros((*shape_BHRSL[:3], shape_BHRSL[-1]), jnp.int32)
        start, weight = 0, 1
        for factor in factors:
            part_BHRSL = rotated_BHRSL[..., start : start + factor // 2, :]
            buckets_BHRL += weight * _signed_argmax(part_BHRSL, axis=-2)
            start, weight = start + factor // 2, weight * factor
        return buckets_BHRL

    batch, length, heads, _ = vectors_BLHK.shape
    position_floats = batch * heads * math.prod(rotations_HKRS.shape[2:])
    on_cpu = jax.default_backend() == 'cpu'
    most_floats = _BLOCK_FLOATS_ON_CPU if on_cpu else _BLOCK_FLOATS
    blocks = -(-length // max(1, most_floats // position_floats))
    if blocks <= 1:
        return hash_block(vectors_BLHK)
    block = -(-length // blocks)
    missing = (0, 0), (0, blocks * block - length), (0, 0), (0, 0)
    vectors_BLHK = jnp.pad(vectors_BLHK, missing)
    vectors_BALHK = vectors_BLHK.reshape(batch, blocks, block, *vectors_BLHK.shape[2:])
    buckets_ABHRL = lax.map(hash_block, jnp.moveaxis(vectors_BALHK, 1, 0))
    buckets_BHRAL = jnp.moveaxis(buckets_ABHRL, 0, -2)
    return buckets_BHRAL.reshape(*buckets_BHRAL.shape[:3], -1)[..., :length]


def _signed_argmax(x: jax.Array, *, axis: int) -> jax.Array:
    """argmax over an axis of [x, -x], without building it.

    By reductions to one number, which XLA makes vector instructions of, and not of
    argmax's pairs.
    """
    size = x.shape[axis]
    highest, lowest = x.max(axis), x.min(axis)
    is_positive = highest >= -lowest
    found = x == jnp.expand_dims(jnp.where(is_positive, highest, lowest), axis)
    places = lax.broadcasted_iota(jnp.int32, x.shape, x.ndim + axis)
    first = jnp.where(found, places, size - 1).min(axis)  # a NaN is found nowhere
    return first + jnp.where(is_positive, 0, size)


def sort_order(buckets: jax.Array, *, num_buckets: int) -> jax.Array:
    """Positions [..., L] sorted by (bucket, position) along the last axis, int32.

    Ids must lie in [0, num_buckets).
    """
    fields.check_whole(1, num_buckets=num_buckets)
    arguments.check_integers('bucket ids', buckets)
    arguments.check_range('bucket', buckets, num_buckets, 'give more num_buckets')
    return lax.platform_dependent(
        buckets,
        cuda=functools.partial(_sort_at_once, num_buckets=num_buckets),
        default=functools.partial(_sort_rows, num_buckets=num_buckets),
    )


def _sort_rows(buckets: jax.Array, *, num_buckets: int) -> jax.Array:
    """One packed uint32 key where bucket * L + position fits, else two operands.

    The single key halves the cost of a comparison sort.
    """
    length = buckets.shape[-1]
    position = lax.broadcasted_iota(jnp.uint32, buckets.shape, buckets.ndim - 1)
    if num_buckets * length <= 2**32:
        packed = buckets.astype(jnp.uint32) * length + position
        order = lax.sort(packed, is_stable=False) % length
    else:
        _, order = lax.sort(
            (buckets.astype(jnp.uint32), position), num_keys=2, is_stable=False
        )
    return order.astype(jnp.int32)


def _sort_at_once(buckets: jax.Array, *, num_buckets: int) -> jax.Array:
    """All rows in one stable sort of (row, bucket) keys that carries the positions.

    XLA gives a GPU's sort of one row of integer keys, with or without a second operand,
    to CUB's radix sort; of many rows only some, where one block of threads sorts each.
    """
    rows = math.prod(buckets.shape[:-1])
    if rows * num_buckets > 2**32:
        return _sort_rows(buckets, num_buckets=num_buckets)
    keys = buckets.reshape(rows, -1).astype(jnp.uint32)
    keys += jnp.arange(rows, dtype=jnp.uint32)[:, None] * num_buckets
    position = lax.broadcasted_iota(jnp.int32, keys.shape, 1)
    _, order = lax.sort((keys.ravel(), position.ravel()), num_keys=1, is_stable=True)
    return order.reshape(buckets.shape)


def inverse_order(order: jax.Array) -> jax.Array:
    """Rank of each position: the inverse permutation along the last axis.

    By a scatter, which is many times cheaper than a second sort.
    """
    rows = order.reshape(-1, order.shape[-1])
    ranks = jnp.arange(rows.shape[-1], dtype=jnp.int32)
    inverse = jax.vmap(
        lambda row: (
            jnp.zeros_like(row)
            .at[row]
            .set(ranks, unique_indices=True, mode='promise_in_bounds')
        )
    )(rows)
    return inverse.reshape(order.shape)
