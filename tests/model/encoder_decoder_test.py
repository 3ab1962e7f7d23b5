"""A decoder that reads the hidden states of an encoder."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_models as models

from reformer_jax import huggingface
from reformer_jax import model as model_lib
from reformer_jax import sharding
from reformer_jax.stack import compilation

_SOURCE, _TARGET = 21, 17

# Both sides: exact attention, averaged, an odd number of half-steps; LSH with a table
# and a width of the encoder's own, one head and a few positions at a time; all kinds of
# attention, concatenated; encoders much deeper than their decoders, and the reverse.
_CASES = {
    'full': {
        'pattern': ('full',),
        'layers': 3,
        'combine': 'average',
        'encoder': {'layers': 3},
    },
    'lsh': {
        'pattern': ('lsh',),
        'layers': 2,
        'rule': 'strict',
        'heads_at_once': 1,
        'feed_forward_chunk_length': 8,
        **models.ENCODER_OF_ITS_OWN,
    },
    'mixed': {
        'pattern': ('local', 'lsh', 'full'),
        'layers': 3,
        # Of width 8 and chunks of 4 the inversion misses one number in 10,000.
        'd_model': 16,
        'axial_sizes': (8, 8),
        'encoder': {'lsh_chunks_after': 1, 'local_chunks_after': 1},
    },
    'concatenated': {
        'pattern': ('full',),
        'tie_output': True,
        'shared_qk': True,
        'share_embedding': False,
        'positions': 'learned',
        'encoder': {'positions': 'sinusoidal', 'activation': 'gelu', 'heads': 1},
    },
    'deep encoder': {
        'pattern': ('full',),
        'layers': 1,
        'feed_forward_chunk_length': 5,
        'encoder': {'layers': 6, 'pattern': ('lsh', 'full'), 'lsh_chunks_after': 1},
    },
    'deep decoder': {
        'pattern': ('lsh',),
        'layers': 5,
        'rounds': 3,
        'combine': 'average',
        'activation': 'swish',
        'heads_at_once': 1,
        'encoder': {'layers': 1, 'pattern': ('full',), 'heads_at_once': 2},
    },
}


def _case(name, **changes):
    dropout = {'dropout': 0.1, 'attention_dropout': 0.1}
    return {**_CASES[name], **dropout, **changes}


def _batch():
    """Sources with padding anywhere, one of padding only; targets."""
    rng = np.random.default_rng(0)
    mask = rng.random((3, _SOURCE)) < 0.6
    mask[2] = False
    sources = rng.integers(0, 11, (3, _SOURCE))
    targets = rng.integers(0, 11, (3, _TARGET))
    return jnp.asarray(sources), jnp.asarray(mask), jnp.asarray(targets)


def _logits(model, sources, mask, targets, key=None, train=False):
    memory = model.read_source(sources, mask, key=key, train=train)
    return model(targets, memory=memory, key=key, train=train)


@functools.partial(jax.jit, static_argnums=4)
def _apply(model, sources, mask, targets, train=False):
    key = jax.random.key(1, impl='rbg') if train else None
    return _logits(model, sources, mask, targets, key, train)


def _gradients(name, stack):
    model = models.build(**_case(name, stack=stack))
    sources, mask, targets = _batch()

    def loss(model):
        logits = _apply(model, sources, mask, targets, True)
        weights = np.random.default_rng(3).normal(size=logits.shape)
        return jnp.sum(logits * weights), logits

    gradients_of = jax.jit(
        jax.grad(loss, has_aux=True), compiler_options=compilation.options()
    )
    gradients, logits = gradients_of(model)
    names = {sharding.leaf_name(p): g for p, g in jax.tree.leaves_with_path(gradients)}
    return names, logits


@pytest.mark.slow
@pytest.mark.parametrize('name', _CASES)
def test_gradients_are_those_of_plain_autodiff(name):
    expected, logits = _gradients(name, 'residual')
    actual, values = _gradients(name, 'reversible')
    np.testing.assert_array_equal(values, logits)
    for leaf, gradient in expected.items():
        largest = np.abs(gradient).max()
        assert largest > 0, leaf
        error = np.abs(actual[leaf] - gradient).max() / largest
        assert error < 1e-5, f'{leaf}: {error:.1e}'
    reads = [leaf for leaf in expected if 'cross_attention' in leaf]
    assert len({leaf.rsplit('cross_attention.')[1] for leaf in reads}) == 6


def test_padding_of_the_source_leaves_no_trace():
    model = models.build(**_CASES['full'])
    sources, mask, targets = _batch()
    together = _apply(model, sources, mask, targets)
    other = jnp.where(mask, sources, 10 - sources)
    np.testing.assert_array_equal(_apply(model, other, mask, targets), together)
    for row in range(2):
        alone = sources[row : row + 1, mask[row]]
        logits = jax.jit(_logits)(model, alone, None, targets[row : row + 1])
        np.testing.assert_allclose(together[row], logits[0], atol=2e-5)
    assert np.isfinite(together[2]).all()


@pytest.mark.parametrize('padded', [False, True])
def test_each_target_sees_of_the_source_what_its_mask_says(padded):
    """As in translation that starts before its source has ended."""
    model = models.build(**_CASES['full'])
    sources, mask, targets = _batch()
    targets_mask = None
    if padded:  # in front
        targets_mask = jnp.arange(_TARGET) >= jnp.array([[0], [4], [2]])

    @jax.jit
    def logits(sources, sees_BTS):
        memory = model.read_source(sources, mask)
        memory = memory._replace(mask=sees_BTS & mask[:, None])
        return model(targets, targets_mask, memory=memory)

    everything = jnp.ones((3, _TARGET, _SOURCE), bool)
    memory = model.read_source(sources, mask)
    np.testing.assert_allclose(
        logits(sources, everything),
        jax.jit(model)(targets, targets_mask, memory=memory),
        atol=1e-5,
    )
    # The encoder sees all of a source: what a target may not read is its states.
    late = jnp.arange(_TARGET) >= 9
    sees = everything.at[:, :, 10:].set(late[None, :, None])

    def of(states_BSX):
        changed = memory._replace(states_BSX=states_BSX, mask=sees & mask[:, None])
        return model(targets, targets_mask, memory=changed)

    before = np.asarray(jax.jit(of)(memory.states_BSX))
    after = np.asarray(jax.jit(of)(memory.states_BSX.at[:, 10:].add(1.0)))
    differ = np.abs(after - before).max(-1) > 1e-6
    real = np.ones((3, _TARGET), bool) if targets_mask is None else targets_mask
    assert not differ[:, :9][real[:, :9]].any()
    assert differ[:2, 9:][real[:2, 9:]].all()


def test_a_target_sees_all_of_its_source_and_its_own_past():
    model = models.build(**_CASES['full'])
    sources, mask, targets = _batch()
    before = np.asarray(_apply(model, sources, mask, targets))
    for place in np.flatnonzero(mask[0])[[0, -1]]:
        changed = sources.at[0, place].add(1) % 11
        after = np.asarray(_apply(model, changed, mask, targets))
        assert (np.abs(after[0] - before[0]).max(-1) > 1e-6).all()
        np.testing.assert_array_equal(after[1:], before[1:])
    changed = targets.at[:, 9].add(1) % 11
    after = np.asarray(_apply(model, sources, mask, changed))
    np.testing.assert_array_equal(after[:, :9], before[:, :9])
    assert (np.abs(after[:, 9:] - before[:, 9:]).max((1, 2)) > 1e-6).all()


def test_encode_gives_what_the_decoder_reads():
    model = models.build(**_CASES['full'])
    sources, mask, _ = _batch()
    states = model.read_source(sources, mask).states_BSX
    np.testing.assert_array_equal(model.encode(sources, mask), states)
    assert states.shape == (3, _SOURCE, model.config.encoder.output_width)


def _temporaries(layers):
    """Bytes of temporaries of the gradient, and of the parameters of two layers."""
    config = models.config(
        pattern=('full',),
        length=1024,
        layers=layers,
        positions='none',
        encoder={'layers': layers},
    )
    model = jax.eval_shape(lambda: model_lib.build(config, models.nnx.Rngs(0)))
    tokens = jax.ShapeDtypeStruct((1, 1024), jnp.int32)

    def gradient(model, source, target):
        return jax.grad(lambda m: _logits(m, source, None, target).sum())(model)

    compiled = jax.jit(gradient).lower(model, tokens, tokens).compile()
    count = model_lib.parameter_count((model.layers, model.encoder.layers)) // layers
    return compiled.memory_analysis().temp_size_in_bytes, 4 * count


@pytest.mark.slow
def test_memory_is_flat_in_both_depths():
    """But for the parameters' gradients."""
    few, parameters = _temporaries(2)
    assert _temporaries(6)[0] - few <= 4 * parameters + 1024


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ('encoder', 'message'),
    [
        ({'causal': True}, 'encoder.causal=True must be False'),
        ({'head': 'masked_lm'}, "encoder.head='masked_lm' must be 'none'"),
        ({'pattern': ('full',), 'rule': 'trax'}, "encoder.rule='trax': there padding"),
        ({'encoder': {'layers': 1}}, 'model.encoder.encoder is not empty'),
        ({'lenght': 9}, 'unknown config field model.encoder.lenght'),
        ({'layers': 3}, 'model.encoder: model.layers=3 is no multiple'),
        ({'layers': 2}, 'encoder.lsh_chunks_after=0: no token would see'),
        (3, 'model.encoder=3 is no mapping'),
        (
            {'pattern': ('full',), 'd_model': 6, 'axial_sizes': (2, 4)},
            'model.encoder.d_model=6 is not model.d_model=8',
        ),
    ],
)
def test_impossible_encoders(encoder, message):
    with pytest.raises(ValueError, match=message):
        models.config(encoder=encoder)


def test_a_decoder_needs_causal_attention():
    with pytest.raises(ValueError, match='needs a decoder that predicts'):
        models.config(causal=False, pattern=('full',), encoder={'layers': 1})


@pytest.mark.parametrize('empty', [None, {}, ()])
def test_no_encoder(empty):
    config = models.config(encoder=empty)
    assert config.encoder is None
    assert config == models.config()


def test_a_config_of_a_config():
    config = models.config(**_CASES['full'])
    assert dataclasses.replace(config) == config
    fields = dataclasses.asdict(config)
    assert model_lib.ModelConfig(**fields) == config
    assert config.with_rounds(7).encoder.rounds == 7


def test_memory_and_model_that_do_not_go_together():
    sources, mask, targets = _batch()
    reader = models.build(**_CASES['full'])
    memory = reader.read_source(sources, mask)
    with pytest.raises(ValueError, match='has an encoder, and the call no memory'):
        reader(targets)
    with pytest.raises(ValueError, match='has no encoder, and the call a memory'):
        models.build()(targets, memory=memory)
    with pytest.raises(ValueError, match="has its decoder's embedding"):
        reader.encoder.encode(sources)
    with pytest.raises(ValueError, match='has no encoder to read a source'):
        models.build().read_source(sources)
    with pytest.raises(ValueError, match=r'states of shape \(3, 21, 8\).*batch of 2'):
        reader(targets[:2], memory=memory)
    with pytest.raises(ValueError, match=r'mask of shape \(2, 21\)'):
        reader(targets, memory=memory._replace(mask=mask[:2]))


def test_hugging_face_has_no_such_model(tmp_path):
    model = models.build(**_CASES['full'])
    with pytest.raises(ValueError, match='Hugging Face has no Reformer with.*encoder'):
        huggingface.save(tmp_path, model.config, model)
