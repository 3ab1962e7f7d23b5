"""Top-k, top-p, temperature, and what draws follow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reformer_jax.generation import decoding


def _sampling(**changes):
    return decoding.sampling_of(5, **changes)


_P = np.array([0.1, 0.4, 0.25, 0.2, 0.05])


@pytest.mark.parametrize(
    'changes, left',
    [
        ({}, [0, 1, 2, 3, 4]),
        ({'top_k': 2}, [1, 2]),
        ({'top_k': 5}, [0, 1, 2, 3, 4]),
        ({'top_p': 0.39}, [1]),
        ({'top_p': 0.41}, [1, 2]),
        ({'top_p': 0.9}, [0, 1, 2, 3]),
        ({'top_p': 1.0}, [0, 1, 2, 3, 4]),
        ({'top_p': 1e-9}, [1]),
        # Of the two that top_k leaves the first has 0.62.
        ({'top_k': 2, 'top_p': 0.6}, [1]),
        ({'top_k': 2, 'top_p': 0.63}, [1, 2]),
    ],
)
def test_tokens_that_are_left(changes, left):
    logits = jnp.log(jnp.asarray([_P, _P[::-1]])) + 3.0
    restricted = np.asarray(decoding.restrict(_sampling(**changes), logits))
    for row, kept in zip(restricted, [left, [4 - i for i in left]], strict=True):
        assert sorted(np.flatnonzero(np.isfinite(row))) == sorted(kept)
    kept = np.isfinite(restricted)
    np.testing.assert_array_equal(restricted[kept], np.asarray(logits)[kept])


@pytest.mark.parametrize('temperature', [0.5, 1.0, 2.0])
def test_draws_follow_the_probabilities(temperature):
    rows = 20_000
    keys = jax.random.split(jax.random.key(0), rows)
    logits = jnp.broadcast_to(jnp.log(jnp.asarray(_P)), (rows, 5))
    drawing = _sampling(temperature=temperature, top_k=4)
    drawn = np.asarray(decoding.draw(drawing, keys, logits))
    wanted = np.where(_P < 0.06, 0.0, _P ** (1 / temperature))
    wanted /= wanted.sum()
    np.testing.assert_allclose(
        np.bincount(drawn, minlength=5) / rows, wanted, atol=0.012
    )


def test_temperature_zero_takes_the_likeliest():
    keys = jax.random.split(jax.random.key(0), 2)
    logits = jnp.log(jnp.asarray([_P, _P[::-1]]))
    drawn = decoding.draw(_sampling(temperature=0.0), keys, logits)
    np.testing.assert_array_equal(drawn, [1, 3])


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'temperature': -0.1}, 'temperature=-0.1 must be at least 0'),
        ({'temperature': float('nan')}, 'temperature=nan'),
        ({'top_k': 0}, r'top_k=0 is not in \[1, 5\]'),
        ({'top_k': 6}, r'top_k=6 is not in \[1, 5\]'),
        ({'top_p': 0.0}, r'top_p=0.0 is not in \(0, 1\]'),
        ({'top_p': 1.01}, r'top_p=1.01 is not in \(0, 1\]'),
        ({'top_p': float('nan')}, 'top_p=nan'),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        _sampling(**changes)
