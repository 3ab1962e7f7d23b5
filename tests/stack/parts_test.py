"""Sums that each device has of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from reformer_jax.stack import parts


@pytest.mark.parametrize('first', [0.5, -jnp.inf, jnp.inf, jnp.nan])
def test_zeros_wait_for_what_they_come_after(first):
    """XLA does not know them, and so cannot make them when it likes."""

    def zeros(after):
        tree = {'a': jnp.ones((2, 3)), 'b': jnp.ones(4, jnp.bfloat16)}
        return parts.zeros_by_part(tree, P(), after=after)

    made = jax.jit(zeros)
    after = jnp.full((1, 2, 3), first)
    assert 'compare' in made.lower(after).compile().as_text()
    for name, shape, dtype in (('a', (1, 2, 3), 'float32'), ('b', (1, 4), 'bfloat16')):
        np.testing.assert_array_equal(made(after)[name], np.zeros(shape))
        assert made(after)[name].dtype == dtype
