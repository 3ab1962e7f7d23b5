"""Reformer: shapes, options that must not change the function, hashes, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_models as models
from flax import nnx

from reformer_jax import model as model_lib
from reformer_jax import sharding
from reformer_jax.attention import hashing

_LENGTH, _VOCABULARY = 32, 11
_PATTERNS = (('lsh',), ('local',), ('full',), ('local', 'lsh', 'full', 'lsh'))


@functools.partial(jax.jit, static_argnames=('train', 'rounds'))
def _logits(model, tokens, **options):
    return model(tokens, **options)


def _tokens(length=_LENGTH):
    return jnp.asarray(np.random.default_rng(0).integers(0, _VOCABULARY, (2, length)))


def _key(seed=1):
    """Of a generator that compiles several times faster than the default one."""
    return jax.random.key(seed, impl='rbg')


# --- Shapes -----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    'changes',
    [
        *({'pattern': pattern, 'layers': 4} for pattern in _PATTERNS),
        {'pattern': 'full', 'shared_qk': True},
        {'positions': 'learned'},
        {'positions': 'sinusoidal'},
        {'positions': 'none'},
        {'axial_shape': (2, 4, 4), 'axial_sizes': (1, 2, 5)},
        {'combine': 'average'},
        {'tie_output': True},
        {'tie_output': True, 'combine': 'average'},
        {'dtype': 'bfloat16'},
        {'stack': 'residual'},
        {'stack': 'checkpoint'},
        {'causal': False, 'local_chunks_after': 1, 'lsh_chunks_after': 1},
        {'buckets': ()},
        {'buckets': (2, 4), 'rounds': 3},
        {'rule': 'strict'},
        {'rule': 'trax'},
        {'rule': 'bucket'},
        {'activation': 'gelu'},
        {'heads_at_once': 1},
        {'feed_forward_chunk_length': 5},
    ],
    ids=str,
)
def test_logits_are_float32_of_every_token(changes):
    config = models.config(**changes)
    model = jax.eval_shape(lambda: model_lib.build(config, nnx.Rngs(0)))
    for leaf in jax.tree.leaves(model):
        assert leaf.dtype == jnp.float32
    for length in (1, 3, 4, 20, 30, 32):
        logits = jax.eval_shape(
            lambda m, t: m(t, key=jax.random.key(1), train=True), model, _tokens(length)
        )
        assert logits.shape == (2, length, _VOCABULARY)
        assert logits.dtype == jnp.float32


# Between them every parameter there is and every kind of positions, output and stack.
@pytest.mark.slow
@pytest.mark.parametrize(
    'changes',
    [
        {'pattern': ('local', 'lsh', 'full'), 'layers': 6},
        {
            'pattern': ('full',),
            'shared_qk': True,
            'positions': 'learned',
            'tie_output': True,
            'stack': 'residual',
        },
        {
            'pattern': ('lsh',),
            'axial_shape': (2, 4, 4),
            'axial_sizes': (1, 2, 5),
            'tie_output': True,
            'combine': 'average',
            'stack': 'checkpoint',
        },
    ],
    ids=['all', 'tied', 'average'],
)
def test_gradient_reaches_every_parameter(changes):
    model = models.build(**changes)

    def loss(model):
        log_p = jax.nn.log_softmax(model(_tokens()))
        return -jnp.take_along_axis(log_p, _tokens()[..., None], -1).mean()

    value, gradient = jax.jit(jax.value_and_grad(loss))(model)
    assert np.isfinite(value)
    for path, leaf in jax.tree.leaves_with_path(gradient):
        name = sharding.leaf_name(path)
        assert np.isfinite(leaf).all(), name
        of_layers = leaf if name.startswith('layers.') else leaf[None]
        for layer in of_layers:
            assert np.any(layer != 0), name


# --- Options that do not change the function --------------------------------------


@pytest.mark.slow
def test_same_function():
    """With dropout."""
    options = {'grid_bits': 0, 'dropout': 0.2, 'attention_dropout': 0.2}

    def logits(**changes):
        return _logits(
            models.build(**options, **changes),
            _tokens(),
            key=_key(),
            train=True,
            hash_rotations=[None, _rotations(5)],
        )

    def program(**changes):
        model = models.build(**options, **changes)
        return str(jax.make_jaxpr(lambda model: model(_tokens()))(model))

    expected, plain = logits(), program()
    for changes in ({'feed_forward_chunk_length': 5}, {'heads_at_once': 1}):
        np.testing.assert_allclose(logits(**changes), expected, atol=1e-5)
        assert program(**changes) != plain, changes
    # Exact attention: bfloat16 would hash others.
    exact = logits(dense_length=_LENGTH)
    rounded = logits(dense_length=_LENGTH, dtype='bfloat16')
    assert 1e-4 < np.abs(rounded - exact).max() < 0.1  # 8 bits of logits of size 4


def test_logits_of_a_bfloat16_model_are_not_rounded():
    model = models.build(pattern=('full',), layers=1, dtype='bfloat16')
    logits = _logits(model, _tokens()) - model.head.output_bias
    rounded = logits.astype(jnp.bfloat16).astype(jnp.float32)
    # Of a float32 number about one in 2**16 is a bfloat16 one.
    assert (np.abs(logits - rounded) > 1e-5).mean() > 0.9


def test_lsh_and_shared_qk_parameters_are_interchangeable():
    """Full attention with the parameters of an LSH model is its exact version."""
    lsh = models.build(pattern=('lsh',), buckets=(2,), rounds=8)
    full = models.build(pattern=('full',), shared_qk=True)
    names = [
        [sharding.leaf_name(path) for path, _ in jax.tree.leaves_with_path(model)]
        for model in (lsh, full)
    ]
    assert names[0] == names[1]
    for a, b in zip(jax.tree.leaves(lsh), jax.tree.leaves(full), strict=True):
        assert a.shape == b.shape
    moved = jax.tree.unflatten(jax.tree.structure(full), jax.tree.leaves(lsh))
    dense = models.build(pattern=('lsh',), dense_length=_LENGTH)
    np.testing.assert_array_equal(_logits(moved, _tokens()), _logits(dense, _tokens()))
    assert np.any(_logits(lsh, _tokens()) != _logits(dense, _tokens()))


@pytest.mark.parametrize(('length', 'is_exact'), [(16, True), (32, False)])
def test_automatic_dense_length_is_where_the_windows_hold_the_model(length, is_exact):
    """2 rounds of windows of 8 keys: models up to 16 tokens are exact."""
    fields = {'pattern': ('lsh',), 'rounds': 2, 'length': length}
    tokens = _tokens()[:, :16]
    automatic, lsh, exact = (
        _logits(models.build(**fields, dense_length=dense_length), tokens)
        for dense_length in (-1, 0, length)
    )
    np.testing.assert_array_equal(automatic, exact if is_exact else lsh)
    assert np.any(exact != lsh)


# --- Hashes and dropout -----------------------------------------------------------


def _rotations(seed):
    """Of 2 heads of 4, 2 rounds and 4 buckets."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=(2, 4, 2, 2)))


def test_hash_rotations_are_used_whatever_the_key():
    model, tokens = models.build(), _tokens()
    rotations = [None, _rotations(5)]
    logits = _logits(model, tokens, key=_key(1), hash_rotations=rotations)
    same = _logits(model, tokens, key=_key(2), hash_rotations=rotations)
    np.testing.assert_array_equal(logits, same)
    other = _logits(model, tokens, key=_key(1), hash_rotations=[None, _rotations(6)])
    assert np.any(logits != other)
    drawn = _logits(model, tokens, key=_key(1)), _logits(model, tokens, key=_key(2))
    assert np.any(drawn[0] != drawn[1])


def test_rotations_go_to_their_layers(monkeypatch):
    used, ours = [], hashing.hash_vectors

    def hash_vectors(vectors, rotations, *, buckets):
        jax.debug.callback(
            lambda x: used.append(np.asarray(x)), rotations, ordered=True
        )
        return ours(vectors, rotations, buckets=buckets)

    monkeypatch.setattr(hashing, 'hash_vectors', hash_vectors)
    model = models.build(pattern=('lsh', 'local', 'lsh'), layers=6)
    kinds = ('lsh', 'local', 'lsh') * 2
    given = [_rotations(n) if kind == 'lsh' else None for n, kind in enumerate(kinds)]
    jax.block_until_ready(jax.jit(lambda m: m(_tokens(), hash_rotations=given))(model))
    jax.effects_barrier()
    expected = [rotations for rotations in given if rotations is not None]
    np.testing.assert_array_equal(used, expected)


@pytest.mark.slow
def test_with_rounds():
    """The logits and gradients of a model with so many rounds and these parameters."""

    def logits_and_gradients(model):
        def loss(model):
            logits = model(_tokens(), key=_key(), train=True)
            return jnp.sum(jnp.sin(logits)), logits

        gradients, logits = jax.jit(jax.grad(loss, has_aux=True))(model)
        return [logits, *jax.tree.leaves(gradients)]

    two, four = models.build(), models.build(rounds=4)
    wanted = logits_and_gradients(four)
    ours = logits_and_gradients(two.with_rounds(4))
    for a, b in zip(ours, wanted, strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.any(logits_and_gradients(two)[0] != wanted[0])


def test_rounds_do_not_decide_what_is_exact():
    """By itself 2 rounds are LSH up to 32 tokens here, and 4 rounds exact."""
    config = models.config(dense_length=-1, pattern=('lsh',), length=32)
    assert not config.lsh.exact
    four = models.config(dense_length=-1, pattern=('lsh',), length=32, rounds=4)
    assert four.lsh.exact
    assert not config.with_rounds(4).lsh.exact
    exact = models.config(dense_length=-1, pattern=('lsh',), length=16)
    assert exact.with_rounds(1).lsh.exact
    model = models.build(dense_length=-1, pattern=('lsh',), layers=1)
    key = _key()
    four = model.with_rounds(4)
    given = model_lib.hash_rotations(four, key)
    drawn = _logits(four, _tokens(), key=key)
    np.testing.assert_array_equal(
        _logits(model, _tokens(), key=key, hash_rotations=given), drawn
    )


def test_dropout_only_in_training():
    """And evaluation is the same in every call, hashes included."""
    model, tokens = models.build(dropout=0.5, attention_dropout=0.5), _tokens()
    evaluated = _logits(model, tokens)
    np.testing.assert_array_equal(_logits(model, tokens), evaluated)
    np.testing.assert_array_equal(_logits(models.build(), tokens), evaluated)
    given = {'hash_rotations': [None, _rotations(5)]}
    keyed = [_logits(model, tokens, key=_key(seed), **given) for seed in (1, 2)]
    np.testing.assert_array_equal(*keyed)
    trained = [
        _logits(model, tokens, key=_key(seed), train=True, **given)
        for seed in (1, 1, 2)
    ]
    np.testing.assert_array_equal(trained[0], trained[1])
    assert np.any(trained[0] != trained[2])
    assert np.any(trained[0] != keyed[0])


@pytest.mark.slow
def test_mask():
    """What stands at padding does not matter to the real tokens."""
    model = models.build(causal=False, local_chunks_after=1)
    real = jnp.arange(_LENGTH) < jnp.asarray([[20], [9]])
    tokens = _tokens()
    others = jnp.where(real, tokens, (tokens + 1) % _VOCABULARY)
    a = _logits(model, tokens, mask_BL=real)
    b = _logits(model, others, mask_BL=real)
    np.testing.assert_array_equal(a[real], b[real])
    assert np.any(a[real] != _logits(model, tokens)[real])


# --- Errors -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        *(
            ({name: 0}, rf'{shown}=0 must be at least 1')
            for name, shown in {
                'vocab_size': 'model.vocab_size',
                'length': 'model.length',
                'd_model': 'model.d_model',
                'd_ff': 'model.d_ff',
                'heads': 'model.heads',
                'head_size': 'model.head_size',
                'layers': 'model.layers',
                'local_chunk_length': 'model.local: chunk_length',
                'lsh_chunk_length': 'model.lsh: chunk_length',
                'rounds': 'model.rounds',
            }.items()
        ),
        ({'dropout': 1.0}, r'model.dropout=1.0 is no rate in \[0, 1\)'),
        ({'attention_dropout': -0.1}, r'model.lsh: dropout=-0.1 is no rate'),
        ({'layers': 3}, r"layers=3 is no multiple of .*'lsh'\) of 2: change one"),
        ({'grid_bits': 23}, r'grid_bits=23 is not in \[0, 22\]'),
        ({'grid_bits': -1}, r'grid_bits=-1 is not in'),
        ({'activation': 'tanh'}, r"activation='tanh' is none of .*'relu'"),
        ({'positions': 'rotary'}, r"positions='rotary' is none of .*'axial'"),
        ({'rule': 'paper'}, r"rule='paper' is none of .*'strict'"),
        ({'stack': 'plain'}, r"stack='plain' is none of .*'residual'"),
        ({'combine': 'sum'}, r"combine='sum' is none of .*'average'"),
        ({'dtype': 'float16'}, r"dtype='float16' is none of .*'bfloat16'"),
        ({'pattern': ('local', 'lhs')}, r"pattern has 'lhs', which is none of .*'lsh'"),
        ({'local_chunks_before': -1}, r'chunks_before=-1.* neither may be negative'),
        ({'lsh_chunks_after': 1}, r'chunks_after=1 is of no use to causal .*set it to'),
        (
            {'rule': 'strict', 'lsh_chunks_before': 2},
            r'strict rule .*chunks_before=2.*change them or the rule',
        ),
        ({'heads_at_once': 3}, r'heads_at_once=3 does not divide heads=2: use'),
        ({'heads_at_once': -1}, r'heads_at_once=-1 does not divide heads=2'),
        ({'buckets': (4, 3)}, r'buckets=\(4, 3\): 3 is not an even .*use 4'),
        (
            {'positions': 'sinusoidal', 'd_model': 7},
            r'sinusoidal positions need an even d_model, not 7',
        ),
        ({'axial_shape': ()}, r'axial_shape=\(\) and axial_sizes=\(2, 6\) need two'),
        ({'axial_shape': (32,), 'axial_sizes': (8,)}, r'need two or more axes'),
        ({'axial_shape': (2, 4, 4)}, r'as many of one as of the other'),
        ({'axial_shape': (-4, -8)}, r'axial_shape=\(-4, -8\)'),
        ({'axial_sizes': (2, 5)}, r'axial_sizes=\(2, 5\) add up to 7, not .*d_model=8'),
        ({'axial_shape': (3, 8)}, r'has 24 positions for length=32: enlarge'),
        ({'head': 'lm', 'causal': False}, r"head='lm' .*can see: use head='masked_lm'"),
        ({'head': 'masked_lm'}, r"'masked_lm' needs a bidirectional model"),
        ({'head': 'token_classification'}, r"'token_classification' needs a bidir"),
        ({'head': 'question_answering'}, r"'question_answering' needs a bidirectional"),
        ({'head': 'classification', 'classes': 2}, r'the first token has seen nothing'),
        (
            {'head': 'classification', 'classes': 2, 'pooling': 'mean'},
            r"pooling='mean' needs a bidirectional .* Use model.pooling='last'",
        ),
        ({'head': 'classification', 'pooling': 'last'}, r'classes=0: .* at least 1'),
        (
            {'head': 'token_classification', 'causal': False, 'classes': 1},
            r'classes=1: .* at least 2',
        ),
        ({'head': 'tagger'}, r"head='tagger' is none of .*'lm'"),
        ({'pooling': 'max'}, r"pooling='max' is none of .*'mean'"),
        ({'start_token': 11}, r'start_token=11 is outside \[0, 11\)'),
        ({'start_token': -2}, r'start_token=-2 is outside'),
        ({'norm_epsilon': 0.0}, r'norm_epsilon=0.0 must be positive'),
        ({'norm_epsilon': np.inf}, r'model.norm_epsilon=inf must be a finite number'),
        ({'dropout': True}, r'model.dropout=True must be a finite number'),
        ({'rounds': 2.0}, r'model.rounds=2.0 must be a whole number below'),
        ({'heads': True}, r'model.heads=True must be a whole number'),
        (
            {'d_ff': 2**32},
            r'd_ff=4294967296 must be a whole number below 4,294,967,296',
        ),
        ({'causal': 1}, r'model.causal=1 must be True or False'),
        ({'rule': None}, r'model.rule=None must be a text'),
        ({'axial_shape': (4.0, 8)}, r'axial_shape=\(4.0, 8\) each must be a whole'),
        ({'pattern': ()}, r'model.pattern=\(\) has no layer: give one or more of'),
        ({'loss_chunk_length': -5}, r'loss_chunk_length=-5 is negative: .* 0 for all'),
        (
            {'feed_forward_chunk_length': -1},
            r'feed_forward_chunk_length=-1 is negative',
        ),
    ],
    ids=str,
)
def test_config_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        models.config(**changes)


@pytest.mark.parametrize(
    ('length', 'options', 'message'),
    [
        (36, {}, r'36 tokens is longer than .*length=32: shorten it or enlarge'),
        (32, {'train': True}, r'train=True needs a key'),
        (32, {'hash_rotations': [None]}, r'has 1 entries for 2 layers: give one per'),
        (
            32,
            {'hash_rotations': [None, jnp.zeros((2, 4, 2, 3))]},
            r'rotations of width 3 do not fit buckets=\(4,\), which need 2',
        ),
    ],
)
def test_call_errors(length, options, message):
    config = models.config()
    model = jax.eval_shape(lambda: model_lib.build(config, nnx.Rngs(0)))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda m: m(_tokens(length), **options), model)
