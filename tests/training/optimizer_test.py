"""Schedules against closed forms, the weight decay mask, clipping, one step each."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from reformer_jax import model as model_lib
from reformer_jax import sharding
from reformer_jax.training import optimizer as optimizer_lib


@functools.cache
def _model():
    config = model_lib.ModelConfig(
        vocab_size=5,
        length=4,
        d_model=4,
        d_ff=6,
        heads=1,
        head_size=4,
        layers=2,
        pattern=('full', 'lsh'),
        axial_shape=(2, 2),
        axial_sizes=(2, 2),
    )
    shapes = jax.eval_shape(lambda: model_lib.build(config, nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), shapes
    )


def _by_name(tree):
    leaves = jax.tree.leaves_with_path(tree)
    return {sharding.leaf_name(path): leaf for path, leaf in leaves}


# trax: constant * linear_warmup * rsqrt_decay, whose first step is 1:
# c * min(1, step / warmup) / sqrt(max(step, warmup)).
@pytest.mark.parametrize(
    ('step', 'expected'),
    [
        (1, 0.03125 / 2000 / math.sqrt(2000)),
        (500, 0.03125 * 500 / 2000 / math.sqrt(2000)),
        (2000, 0.03125 / math.sqrt(2000)),
        (8000, 0.03125 / math.sqrt(8000)),
    ],
)
def test_rsqrt_is_trax(step, expected):
    config = optimizer_lib.OptimizerConfig(
        learning_rate=0.03125 / 2000**0.5, warmup_steps=2000, decay='rsqrt'
    )
    rate = optimizer_lib.schedule(config, 100_000)(step - 1)
    np.testing.assert_allclose(rate, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ('decay', 'step', 'expected'),
    [
        ('constant', 1, 0.1),
        ('constant', 5, 0.5),
        ('constant', 10, 1.0),
        ('constant', 100, 1.0),
        ('cosine', 5, 0.5),
        ('cosine', 10, 1.0),
        ('cosine', 40, 0.5 * (1 + math.cos(math.pi / 3))),
        ('cosine', 55, 0.5),
        ('cosine', 100, 0.0),
        ('cosine', 120, 0.0),
    ],
)
def test_schedule(decay, step, expected):
    config = optimizer_lib.OptimizerConfig(
        learning_rate=2.0, warmup_steps=10, decay=decay
    )
    rate = optimizer_lib.schedule(config, 100)(step - 1)
    np.testing.assert_allclose(rate, 2.0 * expected, rtol=1e-5, atol=1e-6)


def test_weight_decay_mask():
    decays = _by_name(optimizer_lib.is_matrix(_model()))
    assert {name for name, flag in decays.items() if not flag} == {
        'norm.scale',
        'norm.bias',
        'head.output_bias',
        *(
            f'layers.{layer}.{name}'
            for layer in (0, 1)
            for name in (
                'attention.norm.scale',
                'attention.norm.bias',
                'feed_forward.norm.scale',
                'feed_forward.norm.bias',
                'feed_forward.hidden_bias',
                'feed_forward.output_bias',
            )
        ),
    }
    assert {'embedding', 'head.output', 'layers.0.attention.query'} <= set(decays)


def test_weight_decay_is_applied_by_the_mask():
    config = optimizer_lib.OptimizerConfig(
        name='adamw', learning_rate=0.5, warmup_steps=1, weight_decay=0.1
    )
    transform, model = optimizer_lib.build(config, 10), _model()
    zeros = jax.tree.map(jnp.zeros_like, model)
    updates = _by_name(transform.update(zeros, transform.init(model), model)[0])
    params, decays = _by_name(model), _by_name(optimizer_lib.is_matrix(model))
    for name, update in updates.items():
        expected = -0.5 * 0.1 * params[name] if decays[name] else 0 * params[name]
        np.testing.assert_allclose(update, expected, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ('clip_norm', 'seen'), [(0.0, [3.0, 4.0]), (1.0, [0.6, 0.8]), (9.0, [3.0, 4.0])]
)
def test_clip_norm(clip_norm, seen):
    config = optimizer_lib.OptimizerConfig(b1=0.5, clip_norm=clip_norm)
    transform = optimizer_lib.build(config, 10)
    params = {'a': jnp.zeros(1), 'b': jnp.zeros(1)}
    gradient = {'a': jnp.asarray([3.0]), 'b': jnp.asarray([4.0])}
    _, state = transform.update(gradient, transform.init(params), params)
    mean = optax.tree.get(state, 'mu')  # half of the first gradient
    np.testing.assert_allclose([2 * mean['a'][0], 2 * mean['b'][0]], seen, rtol=1e-6)


def test_adam_is_adam():
    """Two steps by hand, with the config's b1, b2, eps and rate."""
    config = optimizer_lib.OptimizerConfig(
        learning_rate=0.1, warmup_steps=2, decay='constant', b1=0.8, b2=0.9, eps=0.01
    )
    transform, param = optimizer_lib.build(config, 10), jnp.zeros(1)
    state, mean, square = transform.init(param), 0.0, 0.0
    for step, (gradient, rate) in enumerate([(2.0, 0.05), (-1.0, 0.1)], start=1):
        updates, state = transform.update(jnp.asarray([gradient]), state, param)
        mean = 0.8 * mean + 0.2 * gradient
        square = 0.9 * square + 0.1 * gradient**2
        unbiased = mean / (1 - 0.8**step), square / (1 - 0.9**step)
        expected = -rate * unbiased[0] / (math.sqrt(unbiased[1]) + 0.01)
        np.testing.assert_allclose(updates, [expected], rtol=1e-5)


@pytest.mark.parametrize('name', optimizer_lib.NAMES)
def test_every_optimizer_descends(name):
    config = optimizer_lib.OptimizerConfig(
        name=name, learning_rate=1e-2, warmup_steps=1
    )
    transform, model = optimizer_lib.build(config, 10), _model()

    @jax.jit
    def step(model):
        def loss(model):  # no forward pass, which takes longer to compile
            squares = jax.tree.map(lambda x: jnp.square(x - 0.5).sum(), model)
            return jax.tree.reduce(jnp.add, squares)

        value, gradient = jax.value_and_grad(loss)(model)
        updates, state = transform.update(gradient, transform.init(model), model)
        model = optax.apply_updates(model, updates)
        return value, loss(model), model, state

    before, after, changed, state = step(model)
    assert after < before
    for leaf in jax.tree.leaves((changed, state)):
        assert np.isfinite(leaf).all()
    jax.tree.map(lambda a, b: np.testing.assert_(np.any(a != b)), model, changed)


@pytest.mark.parametrize('frozen', ['', 'attention.query$'])
def test_muon_makes_the_layers_matrices_orthogonal(frozen):
    """All singular values near that of an orthogonal matrix whose entries are as large
    as Adam's updates, 0.2; Adam with Nesterov's momentum for all else."""
    config = optimizer_lib.OptimizerConfig(
        name='muon', learning_rate=0.5, warmup_steps=1, frozen=frozen
    )
    transform, gradient = optimizer_lib.build(config, 10), _model()
    updates = _by_name(
        transform.update(gradient, transform.init(gradient), gradient)[0]
    )
    adam = optax.nadam(0.5, config.b1, config.b2, config.eps)
    theirs = _by_name(adam.update(gradient, adam.init(gradient), gradient)[0])
    matrices = re.compile(r'(attention|forward)\.[a-z_]+$(?<!bias)')
    for name, update in updates.items():
        if frozen and re.search(frozen, name):
            np.testing.assert_array_equal(update, 0, err_msg=name)
        elif matrices.search(name):
            matrix = update.reshape(6 if name.endswith('forward.output') else 4, -1)
            values = np.linalg.svd(matrix, compute_uv=False)
            values /= 0.5 * 0.2 * math.sqrt(max(matrix.shape))
            assert 0.6 < values.min() and values.max() < 1.3, (name, values)
        else:
            np.testing.assert_allclose(update, theirs[name], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'name': 'sgd'}, "optimizer.name='sgd' is none of .*'adam'"),
        ({'decay': 'linear'}, "optimizer.decay='linear' is none of .*'rsqrt'"),
        ({'learning_rate': 0.0}, 'learning_rate=0.0 .*must be positive'),
        ({'warmup_steps': 0}, 'warmup_steps=0 must be positive'),
        ({'weight_decay': 0.1}, "weight_decay=0.1 .*'adam': use .*adamw"),
        ({'weight_decay': -0.1, 'name': 'adamw'}, 'weight_decay=-0.1 is negative'),
        ({'clip_norm': -1.0}, 'clip_norm=-1.0 is negative: 0 does not clip'),
        ({'learning_rate': np.inf}, 'learning_rate=inf must be a finite number'),
        ({'eps': np.nan}, 'eps=nan must be a finite number'),
        ({'eps': 0.0}, 'eps=0.0 must be positive: 1e-9 is usual'),
        ({'b1': 1.0}, r'optimizer.b1=1.0 is not in \[0, 1\): 0.9 is usual'),
        ({'b2': -0.1}, r'optimizer.b2=-0.1 is not in \[0, 1\)'),
        ({'warmup_steps': 1.5}, 'warmup_steps=1.5 must be a whole number'),
        ({'skips': -1}, 'skips=-1 is negative: 0 skips none'),
        ({'spike': 1.0}, 'spike=1.0 is not above 1: 10 is wide, 0 has none'),
    ],
)
def test_errors(fields, message):
    with pytest.raises(ValueError, match=message):
        optimizer_lib.OptimizerConfig(**fields)


def test_frozen_parameters_have_no_part_in_the_norm():
    gradient = {'norm': {'scale': jnp.ones(3)}, 'head': {'output': jnp.full(2, 5.0)}}
    left = optimizer_lib.without_frozen('^norm', gradient)
    np.testing.assert_array_equal(left['norm']['scale'], 0)
    np.testing.assert_array_equal(left['head']['output'], 5)
    same = optimizer_lib.without_frozen('', gradient)
    np.testing.assert_array_equal(same['norm']['scale'], 1)


def test_frozen_parameters_stay_and_do_not_count_for_clipping():
    config = optimizer_lib.OptimizerConfig(
        name='adamw', weight_decay=0.1, clip_norm=1.0, frozen='embedding'
    )
    assert config.frozen
    params = {'embedding': jnp.ones(4), 'output': jnp.ones(4)}
    huge = {'embedding': jnp.full(4, 1e6), 'output': jnp.full(4, 0.1)}
    frozen = optimizer_lib.build(config, 10)
    updates, state = frozen.update(huge, frozen.init(params), params)
    np.testing.assert_array_equal(updates['embedding'], 0)
    small = {'embedding': jnp.zeros(4), 'output': jnp.full(4, 0.1)}
    again, _ = frozen.update(small, frozen.init(params), params)
    np.testing.assert_array_equal(updates['output'], again['output'])
    moments = [leaf for leaf in jax.tree.leaves(state) if leaf.size == 4]
    assert len(moments) == 2  # of the trained parameter only
