"""Cross-entropy against the plain log-softmax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reformer_jax.stack import chunking

_LENGTH, _VOCABULARY = 10, 7


def _arrays():
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(2, _LENGTH, 4)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(4, _VOCABULARY)), jnp.float32)
    targets = jnp.asarray(rng.integers(0, _VOCABULARY, (2, _LENGTH)))
    return hidden, kernel, targets


def _naive(logits, targets):
    logits = np.asarray(logits, np.float64)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    nll = np.zeros(targets.shape)
    for place in np.ndindex(targets.shape):
        nll[place] = -np.log(p[place][targets[place]])
    return nll, logits.argmax(-1) == targets


# 10 = 2 * 5 = 3 * 3 + 1 = 7 + 3.
@pytest.mark.parametrize(
    ('chunk_length', 'label_smoothing'), [(0, 0.0), (5, 0.0), (3, 0.1), (7, 0.0)]
)
def test_is_the_naive_one(chunk_length, label_smoothing):
    hidden, kernel, targets = _arrays()
    weights = jnp.arange(1.0, _LENGTH + 1)

    def ours(hidden, kernel):
        loss, nll, correct = chunking.cross_entropy(
            lambda x: x @ kernel,
            hidden,
            targets,
            chunk_length=chunk_length,
            label_smoothing=label_smoothing,
        )
        return (loss * weights).sum(), (nll, correct)

    def plain(hidden, kernel):
        log_p = jax.nn.log_softmax(hidden @ kernel)
        wanted = jax.nn.one_hot(targets, _VOCABULARY)
        wanted = (1 - label_smoothing) * wanted + label_smoothing / _VOCABULARY
        return (-(wanted * log_p).sum(-1) * weights).sum()

    gradient, (nll, correct) = jax.jit(jax.grad(ours, argnums=(0, 1), has_aux=True))(
        hidden, kernel
    )
    expected_nll, expected_correct = _naive(hidden @ kernel, targets)
    np.testing.assert_allclose(nll, expected_nll, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(correct, expected_correct)
    assert 0 < correct.sum() < correct.size
    expected = jax.jit(jax.grad(plain, argnums=(0, 1)))(hidden, kernel)
    for a, b in zip(gradient, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_float32_and_finite():
    """Logits in bfloat16 and as large as it has them make a float32 loss."""
    logits = jnp.asarray([[[3e38, 0.0, -3e38], [1.0, 1.0, 1.0]]], jnp.bfloat16)
    _, nll, _ = chunking.cross_entropy(
        lambda x: x, logits, jnp.asarray([[0, 2]]), chunk_length=0
    )
    assert nll.dtype == jnp.float32
    np.testing.assert_allclose(nll, [[0.0, np.log(3)]], rtol=1e-6)
