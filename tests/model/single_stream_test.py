"""model.streams=1: the Transformer's one residual stream, the paper's baseline."""

import dataclasses

import jax
import numpy as np
import pytest
import small_models as models

from reformer_jax import huggingface
from reformer_jax.generation import decoding
from reformer_jax.model import layers
from reformer_jax.stack import reversible

_ONE = {'streams': 1, 'stack': 'residual', 'pattern': ('full', 'local')}
_ALL_HEADS = reversible.HeadGroup()


def _tokens():
    return np.random.default_rng(0).integers(0, 11, (2, 32)).astype(np.int32)


def _transformer(model, tokens_BL):
    """x + attention(norm(x)), then x + feed_forward(norm(x)), layer by layer."""
    key = jax.random.key(0)
    x = model._embed(model.embedding[...], tokens_BL, 0.0, key, key)
    inputs = reversible.Inputs(key, shared=layers.Masks())
    for layer in model.unstacked():
        heads = layer.attention.project(x, _ALL_HEADS)
        out, _ = layer.attention.attend(heads, inputs)
        x = x + layer.attention.combine(out, key, _ALL_HEADS)
        x = x + layer.feed_forward(x, key)
    return x


@pytest.mark.slow
@pytest.mark.parametrize('stack', ['residual', 'checkpoint'])
def test_streams_are_those_of_a_transformer(stack):
    model = models.build(**_ONE | {'stack': stack})
    expected = _transformer(model, _tokens())
    for stream in model.streams(_tokens()):
        np.testing.assert_allclose(stream, expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('stack', ['residual', 'checkpoint'])
def test_gradients_are_those_of_a_transformer(stack):
    model = models.build(**_ONE | {'stack': stack, 'grid_bits': 0})
    weights = np.random.default_rng(1).normal(size=(2, 32, 8))

    def of_model(model):
        y1, y2 = model.streams(_tokens(), key=jax.random.key(0), train=True)
        return (weights * (y1 + y2) / 2).sum()

    def of_transformer(model):
        return (weights * _transformer(model, _tokens())).sum()

    actual = jax.tree.leaves(jax.grad(of_model)(model))
    expected = jax.tree.leaves(jax.grad(of_transformer)(model))
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, atol=1e-4 * np.abs(e).max() + 1e-6)


def test_two_streams_are_another_function():
    one = models.build(**_ONE).streams(_tokens())[1]
    two = models.build(**_ONE | {'streams': 2}).streams(_tokens())[1]
    assert np.abs(one - two).max() > 0.1


@pytest.mark.slow
def test_cached_decoding_equals_the_parallel_pass():
    model = models.build(**_ONE)
    prompt = _tokens()[:, :9]
    new = decoding.generate(
        model, prompt, key=jax.random.key(1), steps=12, temperature=0
    )
    whole = np.concatenate([prompt, new], axis=1)
    logp = jax.nn.log_softmax(model(np.pad(whole, ((0, 0), (1, 0)))[:, :-1]))
    np.testing.assert_array_equal(np.argmax(logp, -1)[:, 9:], new)


def test_reversible_stack_is_refused():
    with pytest.raises(ValueError, match="streams=1 cannot.*stack='residual'"):
        models.config(streams=1)


def test_neither_one_nor_two_is_refused():
    with pytest.raises(ValueError, match='streams=3 is neither 1 nor 2'):
        models.config(streams=3)


def test_hugging_face_has_no_such_model(tmp_path):
    model = models.build(**_ONE | {'rule': 'trax', 'pattern': ('local', 'lsh')})
    config = dataclasses.replace(model.config, start_token=-1)
    with pytest.raises(ValueError, match='model.streams=1'):
        huggingface.save(tmp_path / 'x', config, model)
