"""Exact attention in blocks is dense attention, in memory linear in the length."""

import functools

import attention_oracles as oracles
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reformer_jax import attention
from reformer_jax.attention import blocks
from reformer_jax.attention import numerics


@pytest.fixture
def in_blocks(monkeypatch):
    """Sets the most queries and keys of a block, and the most rows at once."""

    def choose(size, rows):
        monkeypatch.setattr(blocks, '_most', lambda length: (size, rows))

    return choose


def _allowed(kind, mask, queries):
    """Which keys a query may see, [B, 1, T, S]; its own is there even if shared."""
    allowed = np.ones((queries, mask.shape[-1]), bool)
    allowed = np.tril(allowed) if kind.causal else allowed
    return allowed & mask.reshape(len(mask), 1, -1, mask.shape[-1])


def _dense(kind, mask, queries, dropout=1.0):
    """Dense attention of q, k, v, or of qk, v if shared; zeros without any key."""
    allowed = _allowed(kind, mask, queries)
    if kind.shared_qk:
        seen = allowed & ~np.eye(queries, dtype=bool)
        seen = np.broadcast_to(seen, (len(mask), 2, queries, queries)).astype(int)
        return functools.partial(
            oracles.dense_shared_qk, seen=seen, itself=1.0, dropout=dropout
        )
    sees_BT11 = allowed.any(-1)[:, 0, :, None, None]

    def attend(q, k, v):
        scale = q.shape[-1] ** -0.5
        return sees_BT11 * oracles.dense(q, k, v, allowed, scale, dropout)

    return attend


def _attend(kind, mask=None, **options):
    """The same by full_attention."""

    def attend(*arrays):
        qkv = arrays[0], arrays[-2], arrays[-1]  # queries are the keys where shared
        return attention.full_attention(kind, *qkv, mask=mask, **options)

    return attend


def _inputs(kind, queries, keys=None, **shape):
    """q, k, v or qk, v, then a direction for the output."""
    q, _, _, direction = oracles.inputs(queries, count=3, **shape)
    _, k, v, _ = oracles.inputs(keys or queries, count=3, **shape)
    return ((q, v) if kind.shared_qk else (q, k, v)), direction


def _assert_alike(actual, wanted):
    """Outputs and gradients; of a single key, queries have none but for rounding."""
    for x, wanted_x in zip(*map(jax.tree.leaves, (actual, wanted)), strict=True):
        if np.linalg.norm(wanted_x) > 1e-5:
            oracles.assert_near(x, wanted_x)
        else:
            np.testing.assert_allclose(x, wanted_x, rtol=0, atol=1e-5)


def _case(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


# ---------------------------------------------------------------- dense


@pytest.mark.parametrize(
    'shared causal masked queries keys size rows'.split(),
    [
        (False, True, False, 26, 26, 4, 1),  # an odd number of blocks, cut short
        (False, True, True, 23, 23, 8, 2),
        (False, False, True, 13, 22, 4, 4),
        (False, False, False, 22, 13, 8, 1),
        (True, True, True, 26, 26, 4, 4),
        (True, False, False, 23, 23, 8, 1),
        _case(False, True, False, 24, 24, 4, 2),
        _case(False, True, True, 37, 37, 4, 4),
        _case(False, True, False, 7, 7, 8, 4),  # one block
        _case(False, False, True, 29, 29, 8, 2),
        _case(False, False, True, 1, 19, 4, 1),
        _case(False, False, False, 19, 1, 4, 2),
        _case(True, True, False, 37, 37, 8, 2),
        _case(True, True, True, 8, 8, 8, 1),
        _case(True, True, False, 1, 1, 4, 1),
        _case(True, False, True, 26, 26, 4, 2),
    ],
)
def test_full_is_dense(in_blocks, shared, causal, masked, queries, keys, size, rows):
    in_blocks(size, rows)
    kind = attention.Full(causal, shared)
    inputs, direction = _inputs(kind, queries, keys)
    mask = oracles.mask(keys) if masked else np.ones((2, keys), bool)
    attend = _attend(kind, jnp.asarray(mask) if masked else None)
    both = oracles.value_and_gradients(attend, inputs, direction)
    dense = _dense(kind, mask, queries)
    _assert_alike(both, oracles.value_and_gradients(dense, inputs, direction))


@pytest.mark.parametrize(
    ('shared', 'causal'),
    [(False, True), (True, False), _case(False, False), _case(True, True)],
)
def test_queries_that_see_nothing(in_blocks, shared, causal):
    """Those of an element of padding only: its own value where shared, or zeros."""
    in_blocks(4, 4)  # beside rows that see all
    kind = attention.Full(causal, shared)
    inputs, direction = _inputs(kind, 11)
    mask = np.stack([np.zeros(11, bool), np.ones(11, bool)])
    attend = _attend(kind, jnp.asarray(mask))
    out, gradients = both = oracles.value_and_gradients(attend, inputs, direction)
    dense = _dense(kind, mask, 11)
    _assert_alike(both, oracles.value_and_gradients(dense, inputs, direction))
    *others, dv = gradients
    np.testing.assert_array_equal(out[0], inputs[-1][0] if shared else 0.0)
    np.testing.assert_array_equal(dv[0], direction[0] if shared else 0.0)
    for gradient in others:
        np.testing.assert_array_equal(gradient[0], 0.0)


# ---------------------------------------------------------------- dropout


def _factors(key, rate, queries, keys, size):
    """Factors of the probabilities, [T, S], put together from those of the blocks."""
    counts = -(-queries // size), -(-keys // size)
    shape = -(-keys // counts[1]), -(-queries // counts[0])
    made = [
        [
            numerics.dropout_mask(
                jax.random.fold_in(key, i * counts[1] + j), rate, shape
            ).T
            for j in range(counts[1])
        ]
        for i in range(counts[0])
    ]
    return np.asarray(jnp.block(made))[:queries, :keys]


@pytest.mark.parametrize(
    ('shared', 'causal', 'queries', 'keys'),
    [
        (False, True, 14, 14),
        (True, True, 14, 14),
        _case(False, False, 7, 14),
        _case(True, False, 14, 14),
    ],
)
def test_dropout_is_that_of_its_blocks(in_blocks, shared, causal, queries, keys):
    in_blocks(4, 2)
    kind, key = attention.Full(causal, shared, dropout=0.5), jax.random.key(3)
    inputs, direction = _inputs(kind, queries, keys)
    mask = oracles.mask(keys)
    mask[1] &= not shared  # there a token gets its own value with the factor of that
    attend = _attend(kind, jnp.asarray(mask), key=key)
    both = oracles.value_and_gradients(attend, inputs, direction)
    factors = _factors(key, 0.5, queries, keys, 4)
    dense = _dense(kind, mask, queries, factors)
    _assert_alike(both, oracles.value_and_gradients(dense, inputs, direction))
    if shared:
        own = np.diagonal(factors)
        assert set(own) == {0.0, 2.0}
        np.testing.assert_array_equal(both[0][1], inputs[-1][1] * own[:, None, None])


def test_dropout_keeps_the_mean(in_blocks):
    in_blocks(32, 1)
    x = jnp.zeros((2, 128, 1, 1))
    kind = attention.Full(causal=False, dropout=0.25)

    @oracles.jit
    def attend(key):
        return attention.full_attention(kind, x, x, x + 1, key=key)

    out = attend(jax.random.key(0))
    np.testing.assert_array_equal(out, attend(jax.random.key(0)))
    np.testing.assert_array_equal(out[0], out[1])  # the same for all rows
    assert not np.array_equal(out, attend(jax.random.key(1)))
    assert len(np.unique(out)) > 10
    # Of 2**14 factors with a variance of 1 / 3: five standard deviations.
    assert abs(out.mean() - 1) < 5 * (1 / 3 / 2**14) ** 0.5


# ---------------------------------------------------------------- precision


@pytest.mark.parametrize(('shared', 'causal'), [(False, False), _case(True, True)])
def test_sums_of_bfloat16_are_float32(in_blocks, shared, causal):
    in_blocks(8, 2)
    kind = attention.Full(causal, shared)
    inputs, direction = _inputs(kind, 300, batch=1)
    low = [jnp.asarray(x, jnp.bfloat16) for x in inputs]
    # Of one sign, so that sums of many are far from their terms.
    low[-1], direction = abs(low[-1]), abs(jnp.asarray(direction, jnp.bfloat16))
    high, high_direction = jax.tree.map(
        lambda x: x.astype(jnp.float32), (low, direction)
    )
    attend = _attend(kind)
    out, gradients = oracles.value_and_gradients(attend, low, direction)
    wanted, wanted_gradients = oracles.value_and_gradients(attend, high, high_direction)
    # Half of the spacing of bfloat16 numbers is up to 2**-8 of them.
    oracles.assert_near(out.astype(jnp.float32), wanted, 2**-8)
    for gradient, wanted_gradient in zip(gradients, wanted_gradients, strict=True):
        assert gradient.dtype == jnp.bfloat16
        oracles.assert_near(gradient.astype(jnp.float32), wanted_gradient, 2**-6)


@pytest.mark.parametrize(
    ('dtype', 'v_dtype'), [('bfloat16', 'float32'), ('float32', 'bfloat16')]
)
def test_output_has_the_dtype_of_v(dtype, v_dtype):
    qk, v = (jax.ShapeDtypeStruct((1, 9, 1, 4), x) for x in (dtype, v_dtype))
    for kind in (attention.Full(), attention.Full(shared_qk=True)):
        for options in ({}, {'key': jax.random.key(0)}):
            attend = _attend(kind, **options)
            assert jax.eval_shape(attend, qk, qk, v).dtype == v_dtype
            grad = jax.grad(lambda *qkv, f=attend: f(*qkv).sum(), argnums=(0, 1, 2))
            gradients = jax.eval_shape(grad, qk, qk, v)
            assert [x.dtype for x in gradients] == [dtype, dtype, v_dtype]


@pytest.mark.slow
@pytest.mark.parametrize('causal', [True, False])
def test_as_exact_as_dense_attention(in_blocks, causal):
    """Against float64: blocks lose hardly more than softmax over a whole row does."""
    in_blocks(32, 2)
    kind = attention.Full(causal)
    inputs, direction = _inputs(kind, 250)
    dense = _dense(kind, np.ones((2, 250), bool), 250)
    in_float32 = oracles.value_and_gradients(dense, inputs, direction)
    ours = oracles.value_and_gradients(_attend(kind), inputs, direction)
    with jax.enable_x64(True):
        doubles = [x.astype(np.float64) for x in (*inputs, direction)]
        truth = oracles.value_and_gradients(dense, doubles[:-1], doubles[-1])
        truth = jax.tree.map(np.asarray, truth)
    for x, other, exact in zip(
        *map(jax.tree.leaves, (ours, in_float32, truth)), strict=True
    ):
        assert exact.dtype == np.float64
        error, other_error = (
            np.linalg.norm(np.asarray(y, np.float64) - exact) for y in (x, other)
        )
        assert error < 1.5 * other_error


# ---------------------------------------------------------------- what is computed


@pytest.mark.parametrize('shared', [False, True])
def test_nothing_above_the_diagonal_is_computed(in_blocks, shared):
    """What is not a number from the third block on reaches none before it."""
    in_blocks(4, 4)
    (q, k, v), direction = _inputs(attention.Full(), 20)
    attend = _attend(attention.Full(True, shared))
    both = oracles.with_gradients(attend)
    out, gradients = both((q, k, v), direction)
    after = (np.arange(20) >= 8)[:, None, None]
    k, v = (np.where(after, np.nan, x) for x in (k, v))
    other, other_gradients = both((q, k, v), direction)
    np.testing.assert_array_equal(other[:, :8], out[:, :8])
    np.testing.assert_array_equal(other_gradients[0][:, :8], gradients[0][:, :8])
    assert np.isnan(other[:, 8:]).all()


@pytest.mark.parametrize('causal', [True, False])
def test_blocks_of_padding_behind_are_not_computed(in_blocks, causal):
    in_blocks(4, 4)
    (q, k, v), direction = _inputs(attention.Full(), 20)
    mask = jnp.asarray(np.arange(20) < np.array([[10], [4]]))
    attend = _attend(attention.Full(causal), mask)
    both = oracles.with_gradients(attend)
    wanted = both((q, k, v), direction)
    behind = (np.arange(20) >= 12)[:, None, None]
    k, v = (np.where(behind, np.nan, x) for x in (k, v))
    jax.tree.map(np.testing.assert_array_equal, both((q, k, v), direction), wanted)


def _memory(kind, shape):
    """XLA's own account of outputs and gradients at once."""
    x = jax.ShapeDtypeStruct(shape, jnp.float32)

    def both(q, k, v, direction):
        out, pullback = jax.vjp(_attend(kind), q, k, v)
        return out, pullback(direction)

    return jax.jit(both).lower(x, x, x, x).compile().memory_analysis()


def test_memory_is_linear_in_the_length(in_blocks):
    in_blocks(64, 2)
    shorter, longer = (
        _memory(attention.Full(), (1, length, 2, 8)).temp_size_in_bytes
        for length in (2048, 4096)
    )
    assert 1.5 < longer / shorter < 2.05


@pytest.mark.slow
@pytest.mark.parametrize(('shared', 'most'), [(False, 1.5), (True, 1.75)])
def test_memory_is_little_more_than_the_arrays(shared, most):
    """The output, its gradient, three arrays and their gradients; unit keys, too."""
    shape = 1, 65536, 4, 64
    memory = _memory(attention.Full(shared_qk=shared), shape)
    total = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
    )
    assert total / (8 * 4 * np.prod(shape)) < most


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ('shapes', 'settings'),
    [
        (((2, 8, 2, 6), (2, 9, 2, 6), (2, 9, 2, 6)), {}),
        (
            ((2, 8, 2, 6), (2, 9, 2, 6), (2, 9, 2, 6)),
            {'causal': False, 'shared_qk': True},
        ),
        (((2, 8, 2, 6), (2, 8, 2, 6), (2, 9, 2, 6)), {'causal': False}),
        (((2, 8, 2, 6), (2, 8, 1, 6), (2, 8, 1, 6)), {}),
        (((2, 8, 2, 6), (2, 8, 2, 6), (2, 8, 2, 4)), {}),
        (((1, 8, 2, 6), (2, 8, 2, 6), (2, 8, 2, 6)), {}),
    ],
)
def test_shapes_that_do_not_go_together(shapes, settings):
    attend = _attend(attention.Full(**settings))
    arrays = [jax.ShapeDtypeStruct(shape, 'float32') for shape in shapes]
    with pytest.raises(ValueError, match='they must be .*, with T = S if') as error:
        jax.eval_shape(attend, *arrays)
    assert 'have shapes {}, {} and {}:'.format(*shapes) in str(error.value)


@pytest.mark.parametrize(
    'causal queries keys size rows'.split(),
    [(False, 13, 22, 4, 4), (True, 26, 26, 8, 1), _case(False, 30, 9, 8, 2)],
)
def test_keys_that_each_query_may_see(in_blocks, causal, queries, keys, size, rows):
    in_blocks(size, rows)
    kind = attention.Full(causal)
    inputs, direction = _inputs(kind, queries, keys)
    mask = np.random.default_rng(5).random((2, queries, keys)) < 0.4
    mask[:, 3] = False
    attend = _attend(kind, jnp.asarray(mask))
    both = oracles.value_and_gradients(attend, inputs, direction)
    dense = _dense(kind, mask, queries)
    _assert_alike(both, oracles.value_and_gradients(dense, inputs, direction))


@pytest.mark.parametrize('shape', [(2, 8), (2, 9, 1), (1, 9), (2, 9, 9)])
def test_mask_that_does_not_fit(shape):
    attend = _attend(attention.Full(causal=False), np.ones(shape, bool))
    q, k = (jax.ShapeDtypeStruct((2, length, 2, 6), 'float32') for length in (8, 9))
    with pytest.raises(
        ValueError, match=r'must be bool of shape \(2, 9\) or \(2, 8, 9\)'
    ) as error:
        jax.eval_shape(attend, q, k, k)
    assert f'the mask of shape {shape} ' in str(error.value)
