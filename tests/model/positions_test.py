"""Position embeddings against one position at a time in numpy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reformer_jax.model import positions


def _tables(shape, sizes):
    rng = np.random.default_rng(0)
    return [
        jnp.asarray(rng.normal(size=table), jnp.float32)
        for table in zip(shape, sizes, strict=True)
    ]


def _naive(tables, length):
    """Position p has the rows of its mixed-radix digits, last axis fastest."""
    shape = [table.shape[0] for table in tables]
    rows = []
    for position in range(length):
        digits = np.unravel_index(position, shape)
        rows.append(np.concatenate([t[d] for t, d in zip(tables, digits, strict=True)]))
    return np.stack(rows)


@pytest.mark.parametrize(
    ('shape', 'sizes', 'length'),
    [
        ((3, 4), (2, 5), 12),
        ((3, 4), (2, 5), 7),
        ((3, 4), (2, 5), 1),
        ((3, 2, 4), (1, 2, 3), 24),
        ((3, 2, 4), (1, 2, 3), 17),
    ],
)
def test_axial_is_naive_indexing(shape, sizes, length):
    tables = _tables(shape, sizes)
    weights = np.random.default_rng(1).normal(size=(length, sum(sizes)))

    def loss(tables):
        embeddings = positions.axial(tables, length)
        return (embeddings * weights).sum(), embeddings

    gradient, embeddings = jax.jit(jax.grad(loss, has_aux=True))(tables)
    assert embeddings.shape == (length, sum(sizes))
    np.testing.assert_array_equal(embeddings, _naive(tables, length))
    # The gradient of a row is the sum over the positions that have it.
    starts = np.cumsum((0, *sizes))
    for axis, of_table in enumerate(gradient):
        expected = np.zeros(of_table.shape)
        for position in range(length):
            digit = np.unravel_index(position, shape)[axis]
            expected[digit] += weights[position, starts[axis] : starts[axis + 1]]
        np.testing.assert_allclose(of_table, expected, rtol=1e-5, atol=1e-6)


def test_axial_memory_follows_the_length():
    tables = [jnp.zeros((512, 8)), jnp.zeros((1024, 8))]
    program = jax.make_jaxpr(lambda tables: positions.axial(tables, 1024))(tables)
    sizes = [v.aval.size for eqn in program.eqns for v in eqn.outvars]
    assert max(sizes) == 1024 * 16


def test_axial_too_long():
    with pytest.raises(ValueError, match=r'length 13 exceeds the 12 .*\(3, 4\)'):
        positions.axial(_tables((3, 4), (2, 5)), 13)


def test_sinusoidal():
    embeddings = positions.sinusoidal(jnp.arange(50), 6)
    assert embeddings.shape == (50, 6)
    for position, channel in np.ndindex(50, 3):
        angle = position / 10000 ** (2 * channel / 6)
        np.testing.assert_allclose(
            embeddings[position, [channel, channel + 3]],
            [math.sin(angle), math.cos(angle)],
            atol=1e-5,
        )


def test_sinusoidal_odd_size():
    with pytest.raises(ValueError, match='even size, not 5'):
        positions.sinusoidal(jnp.arange(4), 5)
