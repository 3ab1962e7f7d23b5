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


_LENGTHS = np.arange(24) < np.array([[24], [1], [13]])
_HOLE, _EMPTY, _BEFORE = (_LENGTHS.copy() for _ in range(3))
_HOLE[0, 7] = False
_EMPTY[1] = False
_BEFORE[2] = _LENGTHS[2, ::-1]


@pytest.mark.parametrize(
    ('shared_qk', 'causal'),
    [(True, True), (False, False), pytest.param(False, True, marks=pytest.mark.slow)],
)
def test_masks(xla_in_its_place, monkeypatch, shared_qk, causal):
    """The same attention, by cuDNN or not, which the mask decides as it runs."""
    *qkv, direction = oracles.inputs(24, count=3, head_size=16, batch=3)
    qkv[1] = qkv[0] if shared_qk else qkv[1]
    kind = attention.Full(causal, shared_qk)

    def both():
        @oracles.jit
        def both(mask, direction, *qkv):
            out, pullback = jax.vjp(oracles.full(kind, mask), *qkv)
            return out, pullback(direction)

        return lambda mask: both(mask, direction, *qkv)

    in_blocks = both()
    wanted = [in_blocks(mask) for mask in (_LENGTHS, _HOLE, _EMPTY)]
    assert not xla_in_its_place
    monkeypatch.setattr(cudnn, '_DTYPES', (jnp.float32,))
    by_either = both()
    found = [by_either(mask) for mask in (_LENGTHS, _HOLE, _EMPTY)]
    assert xla_in_its_place == [(kind, 'lengths_B')]
    for x, wanted_x in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        oracles.assert_near(x, wanted_x)


def test_only_lengths_go_to_cudnn(xla_in_its_place, monkeypatch):
    x = jnp.ones((3, 24, 1, 64), jnp.bfloat16)

    def attend(kind, q, k, v, *, lengths_B):
        return jnp.zeros_like(v) - lengths_B[:, None, None, None]

    monkeypatch.setattr(cudnn, 'attend', attend)

    @oracles.jit
    def full(mask):
        return attention.full_attention(attention.Full(), x, x, x, mask=mask)

    out = np.asarray(full(_LENGTHS), np.float32)
    np.testing.assert_array_equal(out, np.broadcast_to(out[:, :1, :, :1], out.shape))
    np.testing.assert_array_equal(out[:, 0, 0, 0], [-24, -1, -13])
    for mask in (_HOLE, _EMPTY, _BEFORE):
        assert np.all(full(mask) >= 0)


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
