"""Exact attention by cuDNN: what is handed to it, checked with XLA in its place."""

import attention_oracles as oracles
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reformer_jax import attention
from reformer_jax.attention.kernels import cudnn


@pytest.fixture
def xla_in_its_place(monkeypatch):
    """Calls of cudnn.attend, which are given to XLA."""
    calls = []

    def attend(kind, q, k, v, **options):
        calls.append((kind, *options))
        return real(kind, q, k, v, **options, implementation='xla')

    real = cudnn.attend
    monkeypatch.setattr(cudnn, 'attend', attend)
    monkeypatch.setattr(cudnn, '_is_installed', lambda: True)
    monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
    monkeypatch.setattr(cudnn, 'is_ampere_or_later', lambda device: True)
    return calls


@pytest.mark.parametrize(
    ('shared_qk', 'causal'), [(True, True), (False, True), (False, False)]
)
def test_same_attention(xla_in_its_place, monkeypatch, shared_qk, causal):
    q, k, v, direction = oracles.inputs(24, count=3, head_size=16)
    k = q if shared_qk else k
    monkeypatch.setattr(cudnn, '_DTYPES', (jnp.float32,))
    kind = attention.Full(causal, shared_qk)
    full = oracles.full(kind)
    out, gradients = oracles.value_and_gradients(full, (q, k, v), direction)
    assert xla_in_its_place == [(kind,)]
    monkeypatch.setattr(cudnn, '_DTYPES', ())
    wanted, wanted_gradients = oracles.value_and_gradients(full, (q, k, v), direction)
    assert len(xla_in_its_place) == 1
    oracles.assert_near(out, wanted)
    for x, wanted_x in zip(gradients, wanted_gradients, strict=True):
        oracles.assert_near(x, wanted_x)


def test_a_single_token_gets_its_own_value(xla_in_its_place):
    x = jnp.ones((1, 1, 2, 64), jnp.bfloat16)
    out = attention.full_attention(attention.Full(shared_qk=True), x, x, 3 * x)
    assert len(xla_in_its_place) == 1
    np.testing.assert_array_equal(np.asarray(out, np.float32), 3.0)


def _attend(*, dtype='bfloat16', v_dtype='', head_size=64, settings=(), **given):
    qk = jnp.ones((1, 16, 1, head_size), dtype)
    v = qk.astype(v_dtype or dtype)
    attention.full_attention(attention.Full(**dict(settings)), qk, qk, v, **given)


@pytest.mark.parametrize(
    'options',
    [
        {'dtype': 'float32'},
        {'v_dtype': 'float32'},
        {'head_size': 160},
        {'head_size': 36},
        {'key': jax.random.key(0), 'settings': {'dropout': 0.5}},
        {'settings': {'causal': False, 'shared_qk': True}},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_it_does_not_have_goes_elsewhere(xla_in_its_place, options):
    _attend(**options)
    assert not xla_in_its_place


def test_dropout_without_a_key_is_none(xla_in_its_place):
    _attend(settings={'dropout': 0.5})
    assert len(xla_in_its_place) == 1


def test_without_a_gpu_it_is_not_asked_for():
    x = jnp.ones((1, 16, 1, 64), jnp.bfloat16)
    assert not cudnn.takes(attention.Full(), x)
    assert not cudnn._is_installed()
