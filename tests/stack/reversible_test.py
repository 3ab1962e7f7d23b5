"""reversible_scan against residual_scan: values, gradients, exact inversion, memory."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from reformer_jax import model as model_lib
from reformer_jax import sharding
from reformer_jax.attention import hashing
from reformer_jax.stack import reversible

pytestmark = pytest.mark.optimized

_SCANS = {
    'reversible': reversible.reversible_scan,
    'residual': reversible.residual_scan,
    'checkpoint': functools.partial(reversible.residual_scan, checkpoint=True),
}


def _key():
    """Of a generator that compiles several times faster than the default one."""
    return jax.random.key(1, impl='rbg')


def _normal(shape, seed, scale=1.0):
    return jnp.asarray(np.random.default_rng(seed).normal(0, scale, shape), jnp.float32)


def _assert_close(ours, expected, tolerance):
    """Relative error of each leaf, by its largest element."""
    for (path, a), b in zip(
        jax.tree.leaves_with_path(ours), jax.tree.leaves(expected), strict=True
    ):
        error = np.abs(np.asarray(a) - b).max() / np.abs(b).max()
        assert error <= tolerance, f'{jax.tree_util.keystr(path)}: {error:.1e}'


# --- Toy branches -----------------------------------------------------------------


_HEAD_GROUPS = 2


def _drop(x, key):
    keep = jax.random.bernoulli(key, 0.9, (x.shape[0], 1, x.shape[2]))
    return x * keep / 0.9


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=['into', 'back'],
    meta_fields=['flavour'],
)
@dataclasses.dataclass(frozen=True)
class _ToyAttention:
    """Has choices, as LSH has buckets, that a tiny error of its input would change."""

    into: jax.Array
    back: jax.Array
    flavour: Any

    def project(self, x, group):
        return x @ self.into[group.which]

    def attend(self, heads, inputs, *, train):
        saved = inputs.saved
        if saved is None:
            saved = jnp.floor(heads * 1e6) % 2 == 0
        out = self.flavour(heads) * jnp.where(saved, 1.0, 0.5)
        key = jax.random.fold_in(inputs.key, inputs.group.which)
        out = _drop(out * inputs.extra * inputs.shared, key)
        return out.mean(1, keepdims=True) + out, saved

    def combine(self, out, key, group, *, train):
        return _drop(out @ self.back[group.which], jax.random.fold_in(key, group.which))


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=['into', 'back', 'key'],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class _ToyReader:
    """Attention to the memory."""

    into: jax.Array
    back: jax.Array
    key: jax.Array

    def project(self, x, group):
        return x @ self.into[group.which]

    def remember(self, memory, group):
        return jnp.sin(memory['a'] @ self.key[group.which]) + memory['b']

    def attend(self, heads, inputs, *, train):
        q, k = heads
        out = jnp.einsum('bts,bsd->btd', jnp.tanh(jnp.einsum('btd,bsd->bts', q, k)), k)
        key = jax.random.fold_in(inputs.key, inputs.group.which)
        return _drop(out * inputs.shared, key), None

    def combine(self, out, key, group, *, train):
        return _drop(out @ self.back[group.which], jax.random.fold_in(key, group.which))


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=['into', 'back'], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class _ToyFeedForward:
    into: jax.Array
    back: jax.Array

    def __call__(self, x, key, *, train):
        return _drop(jnp.sin(x @ self.into) @ self.back, key)


# Of the branches of the two layers of a repeat: as in the paper; or one of three
# half-steps, after which the streams have changed places; or with readers of a memory.
_LAYERS = {'two': ('af', 'af'), 'three': ('aaf', 'af'), 'memory': ('arf', 'ra')}


def _toy_stack(branches, repeats, size=8):
    def branch(letter, place, number):
        seed = place + 100 * number
        if letter == 'f':
            into = _normal((repeats, size, 2 * size), place + 10, 0.3)
            return _ToyFeedForward(
                into, _normal((repeats, 2 * size, size), place + 20, 0.3)
            )
        shape = repeats, _HEAD_GROUPS, size, size
        into, back = _normal(shape, seed, 0.3), _normal(shape, seed + 5, 0.3)
        if letter == 'r':
            return _ToyReader(into, back, _normal(shape, seed + 7, 0.3))
        return _ToyAttention(into, back, (jnp.tanh, jnp.cos)[place])

    layers = tuple(
        tuple(branch(letter, place, number) for number, letter in enumerate(letters))
        for place, letters in enumerate(_LAYERS[branches])
    )
    streams = _normal((2, 5, size), 30), _normal((2, 5, size), 31)
    extra = tuple(_normal((repeats, size), place + 40) for place in range(2))
    return layers, streams, _key(), extra, _normal((size,), 50)


def _toy_gradients(stack, branches, chunk_length, grid_bits):
    layers, *others = _toy_stack(branches, repeats=6)
    how = reversible.Pass(True, grid_bits, _HEAD_GROUPS, chunk_length)
    memory = None
    if branches == 'memory':  # of another length, also in chunks with a rest
        memory = {'a': _normal((2, 7, 8), 70), 'b': _normal((2, 7, 8), 71)}

    def loss(layers, streams, memory):
        last = _SCANS[stack](how, layers, streams, *others[1:], memory=memory)
        weights = _normal(last[0].shape, 60), _normal(last[0].shape, 61)
        return sum(jnp.sum(y * w) for y, w in zip(last, weights, strict=True)), last

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))
    return gradient(layers, others[0], memory)


# Without a grid the inverted streams differ from the forward ones by about 1e-6; the
# choices, saved by the forward pass, are the same.
@pytest.mark.slow
@pytest.mark.parametrize(
    ('branches', 'chunk_length', 'grid_bits'),
    # The length of 5 is one chunk, or two and a rest.
    [('two', 2, 14), ('two', 0, 0), ('three', 2, 14), ('memory', 2, 14)],
)
def test_toy_stack(branches, chunk_length, grid_bits):
    settings = branches, chunk_length, grid_bits
    expected_gradients, expected = _toy_gradients('residual', *settings)
    for stack in ('reversible', 'checkpoint'):
        gradients, values = _toy_gradients(stack, *settings)
        _assert_close(values, expected, 1e-6)
        _assert_close(gradients, expected_gradients, 1e-5)
    for y in expected:
        on_the_grid = y * 2.0**14 == jnp.round(y * 2.0**14)
        assert on_the_grid.all() == bool(grid_bits)


# --- Inversion --------------------------------------------------------------------


def _attention_inputs(grid_bits, dtype, chunk_length, depth=32):
    """What the attention of each layer gets: in the forward pass and, in the order of
    the layers again, in the backward pass."""
    size, shape, groups = 16, (4, 64, 16), 2
    forward, backward = [], []

    @functools.partial(
        jax.tree_util.register_dataclass, data_fields=['kernel'], meta_fields=[]
    )
    @dataclasses.dataclass
    class FeedForward:
        kernel: jax.Array

        def __call__(self, x, key=None, *, train=False):
            normed = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6)
            return jnp.tanh(normed.astype(dtype) @ self.kernel.astype(dtype))

    @functools.partial(
        jax.tree_util.register_dataclass, data_fields=['kernel'], meta_fields=[]
    )
    @dataclasses.dataclass
    class Attention:
        kernel: jax.Array

        def project(self, x, group):
            return x, FeedForward(self.kernel)(x)

        def attend(self, heads, inputs, *, train):
            x, out = heads
            seen = forward if inputs.saved is None else backward
            jax.debug.callback(lambda x: seen.append(np.asarray(x)), x, ordered=True)
            return jnp.flip(out, axis=1), jnp.zeros(())

        def combine(self, out, key, group, *, train):
            return out * (group.which + 1.0).astype(dtype)

    first, second = (_normal((depth, size, size), seed, 0.5) for seed in (0, 1))
    layers = ((Attention(first), FeedForward(second)),)
    streams = _normal(shape, 2), _normal(shape, 3)
    how = reversible.Pass(
        grid_bits=grid_bits, head_groups=groups, chunk_length=chunk_length
    )

    def loss(layers):
        last = reversible.reversible_scan(how, layers, streams, _key(), (None,))
        return sum(jnp.sum(y) for y in last)

    jax.block_until_ready(jax.jit(jax.grad(loss))(layers))
    jax.effects_barrier()
    assert len(forward) == len(backward) == depth * groups
    return np.stack(forward[::groups]), np.stack(backward[::groups])[::-1]


@pytest.mark.slow
@pytest.mark.parametrize('chunk_length', [0, 24])  # two chunks and a rest
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_inversion_is_exact_on_the_grid(dtype, chunk_length):
    forward, backward = _attention_inputs(14, dtype, chunk_length)
    np.testing.assert_array_equal(forward, backward)


# Largest error of a stream at depth 32: 7e-5 with float32 branches, 0.1 with bfloat16.
# With 14 bits of grid it is 0.
@pytest.mark.parametrize(
    ('dtype', 'least'), [(jnp.float32, 1e-6), (jnp.bfloat16, 1e-3)]
)
def test_inversion_is_inexact_without_a_grid(dtype, least):
    forward, backward = _attention_inputs(0, dtype, 0)
    assert np.abs(forward - backward).max() > least


# --- The watch --------------------------------------------------------------------


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=['scale'], meta_fields=['error']
)
@dataclasses.dataclass
class _Forgetful:
    """Attention that may be off by a little in the backward pass."""

    scale: jax.Array
    error: float

    def project(self, x, group):
        return x * self.scale

    def attend(self, heads, inputs, *, train):
        off = 0.0 if inputs.saved is None else self.error
        return heads + off, jnp.zeros(())

    def combine(self, out, key, group, *, train):
        return out


@pytest.mark.parametrize(('error', 'count'), [(0.0, 0), (0.01, 2 * 5 * 8)])
def test_watch_counts_what_was_not_found_again(error, count):
    layers = ((_Forgetful(jnp.full((3, 1), 0.5), error),),)
    x = _normal((2, 5, 8), 0)
    how = reversible.Pass(grid_bits=14)

    def loss(layers, watch):
        last = reversible.reversible_scan(
            how, layers, (x, x), _key(), (None,), None, watch
        )
        return jnp.sum(last[0])

    assert jax.jit(jax.grad(loss, argnums=1))(layers, jnp.zeros(())) == count


# --- The model --------------------------------------------------------------------

_CONFIG = model_lib.ModelConfig(
    vocab_size=11,
    length=32,
    d_model=16,
    d_ff=16,
    heads=2,
    head_size=8,
    layers=12,
    pattern=('local', 'lsh'),
    local_chunk_length=8,
    lsh_chunk_length=8,
    dense_length=0,
    buckets=(4,),
    axial_shape=(4, 8),
    axial_sizes=(8, 8),
    dropout=0.1,
    attention_dropout=0.1,
)


def _tokens(config):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.integers(0, config.vocab_size, (2, config.length)))


def _model_gradients(stack):
    config = dataclasses.replace(_CONFIG, stack=stack)
    model = jax.jit(lambda: model_lib.build(config, nnx.Rngs(0)))()

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def gradient(model):
        logits = model(_tokens(config), key=_key(), train=True)
        return jnp.sum(logits * _normal(logits.shape, 2)), logits

    gradients, logits = gradient(model)
    return {
        sharding.leaf_name(p): g for p, g in jax.tree.leaves_with_path(gradients)
    }, logits


@pytest.mark.slow
def test_model():
    expected_gradients, expected = _model_gradients('residual')
    for stack in ('reversible', 'checkpoint'):
        gradients, logits = _model_gradients(stack)
        _assert_close(logits, expected, 1e-6)
        _assert_close(gradients, expected_gradients, 1e-5)


def test_backward_pass_hashes_nothing(monkeypatch):
    calls = []
    ours = hashing.hash_vectors

    def hash_vectors(*args, **options):
        calls.append(1)
        return ours(*args, **options)

    monkeypatch.setattr(hashing, 'hash_vectors', hash_vectors)
    config = dataclasses.replace(_CONFIG, layers=2)
    model = jax.eval_shape(lambda: model_lib.build(config, nnx.Rngs(0)))

    def gradient(model):
        def forward(model):
            return model(_tokens(config), key=_key(), train=True).sum()

        loss, pullback = jax.vjp(forward, model)
        calls.append('backward')
        return pullback(loss)

    jax.eval_shape(gradient, model)
    before, after = calls[: calls.index('backward')], calls[calls.index('backward') :]
    assert before
    assert after == ['backward']


_LONG = 4096


def _temporaries(stack, depth):
    """Bytes of temporaries of the gradient, and of one layer's parameters."""
    config = dataclasses.replace(
        _CONFIG,
        length=_LONG,
        layers=depth,
        pattern=('lsh',),
        stack=stack,
        buckets=(64,),
        positions='none',
        dropout=0.0,
        attention_dropout=0.0,
    )
    model = jax.eval_shape(lambda: model_lib.build(config, nnx.Rngs(0)))
    tokens = jax.ShapeDtypeStruct((1, _LONG), jnp.int32)
    compiled = jax.jit(jax.grad(lambda m, t: m(t).sum())).lower(model, tokens).compile()
    layers = model_lib.parameter_count(model.layers) // depth
    return compiled.memory_analysis().temp_size_in_bytes, 4 * layers


def _bytes_per_layer(stack):
    """Of temporaries of the gradient, and of the layer's parameters."""
    deep, parameters = _temporaries(stack, 8)
    return (deep - _temporaries(stack, 2)[0]) / 6, parameters


@pytest.mark.slow
def test_memory_is_flat_in_depth():
    """But for the parameters' gradients and the buckets, of two bytes each."""
    temporaries, parameters = _bytes_per_layer('reversible')
    buckets = 2 * _CONFIG.heads * _CONFIG.rounds * _LONG
    assert temporaries <= parameters + buckets + 1024


@pytest.mark.slow
def test_memory_of_the_residual_stack_grows():
    streams = 2 * 4 * _CONFIG.d_model * _LONG
    assert _bytes_per_layer('residual')[0] >= streams
