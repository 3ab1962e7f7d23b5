"""linear.linear against autodiff of the plain product."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reformer_jax.stack import linear


def _normal(*shape, seed):
    values = np.random.default_rng(seed).normal(size=shape)
    return jnp.asarray(values, jnp.float32)


@pytest.mark.parametrize(('inputs', 'outputs'), [(3, 7), (7, 3), (4, 4)])
@pytest.mark.parametrize('leading', [(), (5,), (2, 5)])
def test_values_and_gradients_are_those_of_matmul(inputs, outputs, leading):
    x, kernel = _normal(*leading, inputs, seed=0), _normal(inputs, outputs, seed=1)
    direction = _normal(*leading, outputs, seed=2)
    out, pullback = jax.vjp(linear.linear, x, kernel)
    wanted, wanted_pullback = jax.vjp(jnp.matmul, x, kernel)
    np.testing.assert_array_equal(out, wanted)
    for actual, gradient in zip(
        pullback(direction), wanted_pullback(direction), strict=True
    ):
        np.testing.assert_allclose(actual, gradient, rtol=1e-6, atol=1e-6)


def test_dtypes_of_output_and_gradients():
    x, kernel = (_normal(6, 6, seed=n).astype(jnp.bfloat16) for n in (0, 1))
    out, pullback = jax.vjp(lambda x, k: linear.linear(x, k, jnp.float32), x, kernel)
    assert out.dtype == jnp.float32
    assert [g.dtype for g in pullback(out)] == [jnp.bfloat16] * 2
    assert linear.linear(x, kernel).dtype == jnp.bfloat16
