"""Cached LSH attention of the reformer and trax rules against its definition.

A new token gets what the parallel attention gives the last token of the sequence up to
it. (The strict rule is compared with the whole model in steps_test.py.)
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reformer_jax import attention
from reformer_jax.attention import hashing
from reformer_jax.generation import lsh_caches

_LENGTH, _CHUNK, _BUCKETS = 32, 4, 6
_PROMPTS = np.array([5, 9, 1])


def _heads(rounds):
    rng = np.random.default_rng(0)
    qk, v = rng.normal(size=(2, 3, _LENGTH, 2, 4)).astype(np.float32)
    rotations = hashing.random_rotations(
        jax.random.key(1), heads=2, head_size=4, rounds=rounds, buckets=_BUCKETS
    )
    return qk, v, rotations


def _kind(rounds, **settings):
    return attention.LSH(
        chunk_length=_CHUNK, buckets=_BUCKETS, rounds=rounds, **settings
    )


@functools.partial(jax.jit, static_argnames='kind')
def _step_by_step(kind, qk, v, rotations):
    """Outputs [T, B, H, K] of the tokens after the prompts."""
    width = 12
    heads = qk[:, :width], v[:, :width]
    _, cache = lsh_caches.prompt(kind, heads, jnp.asarray(_PROMPTS), rotations, _LENGTH)

    def step(cache, t):
        positions = jnp.asarray(_PROMPTS) + t
        new = [x[jnp.arange(3), positions][:, None] for x in (qk, v)]
        out, cache = lsh_caches.step(kind, cache, new, positions, rotations)
        return cache, out[:, 0]

    return jax.lax.scan(step, cache, jnp.arange(_LENGTH - _PROMPTS.max()))[1]


@functools.partial(jax.jit, static_argnames=('kind', 'length'))
def _prefix(kind, qk, v, rotations, tokens, *, length):
    """Parallel attention where only the first `tokens` of `length` are real."""
    qk, v = qk[:, :length], v[:, :length]
    buckets = hashing.hash_vectors(qk, rotations, buckets=_BUCKETS)
    mask = jnp.broadcast_to(jnp.arange(length) < tokens, (3, length))
    return attention.lsh_attention(kind, qk, v, buckets, mask=mask)


@pytest.mark.slow
@pytest.mark.parametrize('rounds', [1, 3])
@pytest.mark.parametrize(
    'changes', [{}, {'rule': 'bucket'}, {'chunks_before': 2}], ids=str
)
def test_reformer_rule(rounds, changes):
    inputs, kind = _heads(rounds), _kind(rounds, **changes)
    for t, out in enumerate(np.asarray(_step_by_step(kind, *inputs))):
        for row, position in enumerate(_PROMPTS + t):
            wanted = _prefix(kind, *inputs, position + 1, length=_LENGTH)
            np.testing.assert_allclose(out[row], wanted[row, position], atol=1e-5)


@pytest.mark.slow
def test_trax_rule():
    """With one round, which looks around its own ends; there where chunks are full."""
    inputs, kind = _heads(1), _kind(1, rule='trax')
    steps = np.asarray(_step_by_step(kind, *inputs))
    compared = 0
    for length in range(2 * _CHUNK, _LENGTH + 1, _CHUNK):
        wanted = _prefix(kind, *inputs, length, length=length)
        for row, t in enumerate(length - 1 - _PROMPTS):
            if 0 <= t < len(steps):
                np.testing.assert_allclose(steps[t, row], wanted[row, -1], atol=1e-5)
                compared += 1
    assert compared > 10


def test_trax_rule_counts_a_key_in_every_round():
    """In the first chunk all rounds show all keys, so that the weights are the same."""
    trax, reformer = (
        np.asarray(_step_by_step(_kind(3, rule=rule), *_heads(3)))
        for rule in ('trax', 'reformer')
    )
    np.testing.assert_allclose(trax[:3, 2], reformer[:3, 2], atol=1e-6)
    assert np.abs(trax[8:] - reformer[8:]).max() > 0.1
