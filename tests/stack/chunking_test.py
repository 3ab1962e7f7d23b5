"""map_chunks is the function itself, in value and gradient, a chunk at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reformer_jax.stack import chunking

_LENGTH = 10


def _inputs():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, _LENGTH, 3)), jnp.float32)
    ids = jnp.asarray(rng.integers(0, 3, (2, _LENGTH)))
    return x, ids


def _function(weights, x, ids):
    """A position-wise function with a pytree in and a pytree out."""
    out = jnp.tanh(x @ weights)
    return {'wide': out, 'one': jnp.take_along_axis(out, ids[..., None], -1)[..., 0]}


# 10 = 5 * 2 = 3 * 3 + 1 = 7 + 3; 0, 10 and 11 take all at once.
@pytest.mark.parametrize('chunk_length', [0, 1, 2, 3, 7, 9, 10, 11])
def test_value_and_gradient(chunk_length):
    x, ids = _inputs()
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(3, 4)), jnp.float32)

    def loss(weights, x, mapped):
        if mapped:
            out = chunking.map_chunks(
                lambda inputs: _function(weights, *inputs),
                (x, ids),
                chunk_length=chunk_length,
            )
        else:
            out = _function(weights, x, ids)
        scale = jnp.arange(1.0, _LENGTH + 1)
        return (out['one'] * scale).sum() + jnp.square(out['wide']).sum(), out

    gradient = jax.jit(
        jax.value_and_grad(loss, argnums=(0, 1), has_aux=True), static_argnums=2
    )
    ours, expected = gradient(weights, x, True), gradient(weights, x, False)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        ours,
        expected,
    )


@pytest.mark.parametrize(
    ('chunk_length', 'seen'), [(0, {10}), (4, {4, 2}), (5, {5}), (10, {10})]
)
def test_function_sees_one_chunk(chunk_length, seen):
    lengths = set()

    def function(x):
        lengths.add(x.shape[1])
        return x

    jax.eval_shape(
        lambda x: chunking.map_chunks(function, x, chunk_length=chunk_length),
        _inputs()[0],
    )
    assert lengths == seen


def test_memory_is_that_of_a_chunk():
    x = jax.ShapeDtypeStruct((1, 4096, 8), jnp.float32)
    wide = jax.ShapeDtypeStruct((8, 512), jnp.float32)

    def temporaries(chunk_length):
        def loss(x, wide):
            out = chunking.map_chunks(
                lambda x: jnp.tanh(x @ wide) @ wide.T, x, chunk_length=chunk_length
            )
            return jnp.square(out).sum()

        compiled = jax.jit(jax.grad(loss)).lower(x, wide).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    hidden = 4096 * 512 * 4
    assert temporaries(0) >= hidden
    # x, its gradient and the output are an eighth of the hidden units.
    assert temporaries(64) < hidden / 8


def test_known_first():
    """The gradient is that of x alone, and NaN where the others are not finite."""
    x = jnp.arange(3.0)
    known = chunking.known_first

    def gradient(other):
        return jax.grad(lambda x: known(x, (x.sum(), other)).sum())(x)

    np.testing.assert_array_equal(known(x, (x,)), x)
    np.testing.assert_array_equal(gradient(jnp.ones(2)), jnp.ones(3))
    for other in (jnp.inf, jnp.nan):
        assert jnp.isnan(gradient(jnp.array([1.0, other]))).all()
