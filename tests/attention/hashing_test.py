"""Bucket ids, their counts, the sort order and its inverse against plain numpy."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reformer_jax.attention import hashing


def _vectors(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _rotations(buckets, *, heads=2, head_size=8, rounds=3, seed=9):
    width = sum(hashing.bucket_factors(buckets)) // 2
    return _vectors((heads, head_size, rounds, width), seed)


def _hash(vectors, rotations, buckets):
    """Jitted: one compilation instead of one per operation."""
    hash_vectors = functools.partial(hashing.hash_vectors, buckets=buckets)
    return jax.jit(hash_vectors)(vectors, rotations)


def _naive_hash(vectors, rotations, factors):
    """argmax([xR; -xR]) per factor, one vector at a time, as a mixed radix number."""
    vectors, rotations = np.asarray(vectors), np.asarray(rotations)
    batch, length, heads, _ = vectors.shape
    ids = np.zeros((batch, heads, rotations.shape[2], length), np.int32)
    for b, h, r, i in np.ndindex(ids.shape):
        rotated = vectors[b, i, h] @ rotations[h, :, r]
        parts = np.split(rotated, np.cumsum([f // 2 for f in factors])[:-1])
        digits = [np.argmax(np.concatenate([part, -part])) for part in parts]
        for n, digit in enumerate(digits):
            ids[b, h, r, i] += digit * math.prod(factors[:n])
    return ids


@pytest.mark.parametrize(
    ('buckets', 'length', 'block'),
    [
        (2, 21, 2048),
        (16, 21, 8),
        ((2, 4), 21, 8),
        ((4, 2), 24, 8),
        ((4, 6, 2), 5, 1),
    ],
)
def test_hash_is_the_naive_argmax(monkeypatch, buckets, length, block):
    vectors, rotations = _vectors((2, length, 2, 8)), _rotations(buckets)
    position_floats = 4 * rotations.shape[2] * rotations.shape[3]
    monkeypatch.setattr(hashing, '_BLOCK_FLOATS_ON_CPU', block * position_floats)
    ids = _hash(vectors, rotations, buckets)
    factors = (buckets,) if isinstance(buckets, int) else buckets
    assert ids.dtype == jnp.int32
    np.testing.assert_array_equal(ids, _naive_hash(vectors, rotations, factors))


@pytest.mark.parametrize('buckets', [6, (4, 6), (2, 2, 2)])
def test_ids_fill_their_range(buckets):
    vectors, rotations = _vectors((2, 400, 2, 8)), _rotations(buckets, rounds=4)
    ids = _hash(vectors, rotations, buckets)
    assert set(np.unique(ids)) == set(range(hashing.bucket_count(buckets)))


def test_hash_ignores_the_length_of_a_vector():
    vectors, rotations = _vectors((2, 50, 2, 8)), _rotations((4, 8))
    ids = _hash(vectors, rotations, (4, 8))
    powers = np.random.default_rng(1).integers(-9, 9, size=(2, 50, 2, 1))
    scale = np.float32(2.0) ** powers.astype(np.float32)
    scaled = _hash(vectors * scale, rotations, (4, 8))
    np.testing.assert_array_equal(ids, scaled)


def test_hash_of_bfloat16_is_that_of_the_same_values_in_float32():
    vectors = _vectors((1, 500, 2, 8)).astype(jnp.bfloat16)
    rotations = _rotations(64)
    ids = _hash(vectors, rotations, 64)
    same = _hash(vectors.astype(np.float32), rotations, 64)
    np.testing.assert_array_equal(ids, same)


def test_hash_has_no_gradient():
    def loss(vectors, rotations):
        ids = _hash(vectors, rotations, 8)
        return jnp.sum(jnp.square(ids.astype(jnp.float32)))

    gradients = jax.grad(loss, argnums=(0, 1))(_vectors((1, 9, 2, 8)), _rotations(8))
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, 0.0)


def test_similar_vectors_collide_more_than_random_ones():
    vectors, rotations = _vectors((1, 400, 2, 16)), _rotations(16, head_size=16)
    near = vectors + 0.2 * _vectors(vectors.shape, seed=1)
    ids, near_ids, other_ids = (
        np.asarray(_hash(x, rotations, 16))
        for x in (vectors, near, _vectors(vectors.shape, seed=2))
    )
    assert np.mean(ids == near_ids) > 0.6
    assert abs(np.mean(ids == other_ids) - 1 / 16) < 0.03


def test_rotations_are_standard_normal_and_differ():
    rotations = hashing.random_rotations(
        jax.random.key(0), heads=4, head_size=64, rounds=5, buckets=(4, 6, 2)
    )
    assert rotations.shape == (4, 64, 5, 6)
    assert abs(float(jnp.mean(rotations))) < 0.1
    assert abs(float(jnp.std(rotations)) - 1) < 0.1
    columns = np.moveaxis(np.asarray(rotations), 1, -1).reshape(-1, 64)
    assert np.abs(np.corrcoef(columns) - np.eye(len(columns))).max() < 0.7


@pytest.mark.parametrize('same', ['heads', 'rounds'])
def test_heads_and_rounds_hash_differently(same):
    vectors = np.repeat(_vectors((1, 200, 1, 8)), 2, axis=2)
    ids = _hash(vectors, _rotations(16, rounds=2), 16)
    axis = 1 if same == 'heads' else 2
    first, second = np.split(np.asarray(ids), 2, axis=axis)
    assert np.mean(first == second) < 0.5


@pytest.mark.parametrize(
    ('buckets', 'factors', 'count'), [(8, (8,), 8), ((4, 6), (4, 6), 24)]
)
def test_bucket_factors_and_count(buckets, factors, count):
    assert hashing.bucket_factors(buckets) == factors
    assert hashing.bucket_count(buckets) == count


@pytest.mark.parametrize(
    ('buckets', 'wrong', 'remedy'),
    [
        (7, 7, 'use 8'),
        (0, 0, 'use 2'),
        (-4, -4, 'use 2'),
        ((4, 5), 5, 'use 6'),
        ((1, 4), 1, 'use 2'),
    ],
)
def test_odd_bucket_counts_are_rejected(buckets, wrong, remedy):
    with pytest.raises(ValueError) as error:
        hashing.bucket_factors(buckets)
    message = str(error.value)
    assert f'buckets={buckets}: {wrong} is not an even' in message
    assert remedy in message


def test_no_buckets_are_rejected():
    with pytest.raises(ValueError, match=r'buckets=\(\) is empty: give an even number'):
        hashing.bucket_factors(())


def test_rotations_of_other_buckets_are_rejected():
    with pytest.raises(ValueError, match=r'width 4 .* buckets=16.* need 8: draw them'):
        _hash(_vectors((1, 4, 2, 8)), _rotations(8), 16)


@pytest.mark.parametrize(
    ('length', 'chunk_length', 'buckets'),
    [
        (1, 64, 2),  # shorter than a chunk
        (127, 64, 2),  # shorter than two chunks
        (128, 64, 4),
        (1024, 64, 32),
        (1000, 64, 16),  # 31.25 rounded down to a power of two
        (4096, 64, 128),
        (8192, 64, (16, 16)),
        (65536, 64, (64, 32)),
    ],
)
def test_default_buckets(length, chunk_length, buckets):
    assert hashing.default_buckets(length, chunk_length) == buckets


def test_default_buckets_depend_on_their_arguments_only():
    cases = [(n, c) for c in (4, 48, 64, 256) for n in (c, 1024, 3000, 12288, 65536)]
    first = {case: hashing.default_buckets(*case) for case in cases}
    for case in reversed(cases):
        length, chunk_length = case
        assert hashing.default_buckets(*case) == first[case]
        wanted = max(2, 2 * length / chunk_length)
        assert wanted / 2 < hashing.bucket_count(first[case]) <= wanted


@pytest.mark.parametrize(
    ('num_buckets', 'operands'),
    [
        (1, 1),
        (7, 1),
        (2**28, 1),  # the largest packed key is 2**32 - 1
        (2**28 + 1, 2),
        (2**31 - 1, 2),
    ],
)
def test_sort_order_is_by_bucket_and_position(num_buckets, operands):
    rng = np.random.default_rng(0)
    ids = num_buckets - 1 - rng.integers(0, min(num_buckets, 5), size=(2, 3, 16))
    ids[0] = rng.integers(0, num_buckets, size=(3, 16))
    ids = ids.astype(np.int32)
    [sort] = _sorts(hashing._sort_rows, ids, num_buckets)
    assert len(sort.invars) == operands
    order = hashing.sort_order(jnp.asarray(ids), num_buckets=num_buckets)
    assert order.dtype == jnp.int32
    position = np.broadcast_to(np.arange(16), ids.shape)
    np.testing.assert_array_equal(order, np.lexsort((position, ids), axis=-1))


def _sorts(sort_order, ids, num_buckets):
    jaxpr = jax.make_jaxpr(functools.partial(sort_order, num_buckets=num_buckets))(ids)
    return [e for e in jaxpr.jaxpr.eqns if e.primitive.name == 'sort']


@pytest.mark.parametrize(
    ('shape', 'num_buckets'), [((2, 3, 16), 5), ((40,), 3), ((2, 3, 16), 2**32 // 6)]
)
def test_sort_for_gpus_is_the_same_in_one_row(shape, num_buckets):
    ids = np.random.default_rng(0).integers(0, num_buckets, size=shape)
    ids.ravel()[[0, -1]] = 0, num_buckets - 1
    ids = jnp.asarray(ids, jnp.int32)
    order = hashing._sort_at_once(ids, num_buckets=num_buckets)
    np.testing.assert_array_equal(
        order, hashing.sort_order(ids, num_buckets=num_buckets)
    )
    # What XLA for GPUs gives to the radix sort: one row, one integer key, one payload.
    [sort] = _sorts(hashing._sort_at_once, ids, num_buckets)
    assert [x.aval.shape for x in sort.invars] == [(ids.size,)] * 2
    assert sort.params['num_keys'] == 1 and sort.params['is_stable']
    assert sort.invars[0].aval.dtype == jnp.uint32


def test_sort_for_gpus_of_too_many_buckets_goes_row_by_row():
    ids = jnp.asarray([[3, 2**30, 3, 0]] * 5, jnp.int32)
    order = hashing._sort_at_once(ids, num_buckets=2**30 + 1)
    np.testing.assert_array_equal(order, [[3, 0, 2, 1]] * 5)


def test_sort_for_gpus_is_what_lowers_for_them():
    ids = jnp.zeros((2, 3, 64), jnp.int32)
    sort = jax.jit(functools.partial(hashing.sort_order, num_buckets=4))
    for platform, shape in (('cuda', '384'), ('cpu', '2x3x64')):
        text = sort.trace(ids).lower(lowering_platforms=(platform,)).as_text()
        assert text.count('stablehlo.sort') == 1
        assert f'tensor<{shape}xui32>' in text.split('stablehlo.sort')[1], platform


@pytest.mark.parametrize('shape', [(11,), (2, 3, 11)])
def test_inverse_order_is_the_inverse(shape):
    rng = np.random.default_rng(0)
    order = rng.permuted(np.broadcast_to(np.arange(11), shape), axis=-1)
    inverse = hashing.inverse_order(jnp.asarray(order, jnp.int32))
    assert inverse.dtype == jnp.int32
    np.testing.assert_array_equal(inverse, np.argsort(order, axis=-1))
