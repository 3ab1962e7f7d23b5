"""Meshes, placement, and that 8 devices train as one does.

Run as a script, this file is the child process that has 8 (virtual) devices.
"""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import virtual_devices
from flax import nnx
from jax.sharding import PartitionSpec as P

from reformer_jax import attention
from reformer_jax import model as model_lib
from reformer_jax import sharding
from reformer_jax.attention import blocks
from reformer_jax.generation import decoding
from reformer_jax.model import config as model_config
from reformer_jax.model import layers
from reformer_jax.training import optimizer as optimizer_lib
from reformer_jax.training import state as state_lib
from reformer_jax.training import step as step_lib

pytestmark = pytest.mark.slow

_MESHES = (
    {'data': 8},
    {'fsdp': 8},
    {'data': 4, 'model': 2},
    {'data': 2, 'fsdp': 2, 'model': 2},
)
_OVER_SEQUENCE = (
    {'data': 2, 'sequence': 4},
    {'fsdp': 2, 'model': 2, 'sequence': 2},
    {'data': 2, 'ring': 2, 'sequence': 2},
)
_OVER_RING = {'model': 2, 'ring': 2, 'sequence': 2}
_MORE_HEADS = {'model': 2, 'sequence': 4}
_BATCH, _LENGTH, _CHUNK = 8, 24, 4  # no other size is 24

# Without a grid: rounding to it turns an error in the last bit of a sum over devices
# into one of 2**-grid_bits here and there.
_CONFIG = model_lib.ModelConfig(
    vocab_size=32,
    length=_LENGTH,
    d_model=16,
    d_ff=64,
    heads=4,
    head_size=8,
    layers=2,
    pattern=('local', 'lsh'),
    local_chunk_length=_CHUNK,
    lsh_chunk_length=_CHUNK,
    dense_length=0,
    buckets=(6,),
    positions='learned',
    dropout=0.1,
    attention_dropout=0.1,
    grid_bits=0,
)
_EXACT_CONFIG = dataclasses.replace(
    _CONFIG, pattern=('full', 'lsh'), dense_length=_LENGTH
)
_READING_CONFIG = dataclasses.replace(
    _CONFIG,
    attention_dropout=0.0,
    encoder={
        'pattern': ('lsh', 'local'),
        'lsh_chunks_after': 1,
        'local_chunks_after': 1,
    },
)
_MORE_HEADS_CONFIG = dataclasses.replace(_CONFIG, heads=8, head_size=8, rule='trax')
# 24 positions on 2 devices are 12 each, in chunks of 5 and a rest.
_CHUNKED_CONFIG = dataclasses.replace(
    _CONFIG, feed_forward_chunk_length=10, loss_chunk_length=10, rule='strict'
)
_OPTIMIZER = optimizer_lib.OptimizerConfig()


# --- In the child process ---------------------------------------------------------


@functools.cache
def _initial_state(config=_CONFIG):
    optimizer = optimizer_lib.build(_OPTIMIZER, 10)
    return jax.jit(functools.partial(state_lib.init_state, config, optimizer, 0))()


def _train_step(mesh, config):
    """State before and after a training step, its sums and its compiled program."""
    state = _initial_state(config)
    with jax.set_mesh(mesh):
        shardings = sharding.parameter_specs(state, mesh)
        state = jax.device_put(state, shardings)
        rng = np.random.default_rng(0)
        batch = {
            'tokens': rng.integers(0, 32, (_BATCH, _LENGTH)),
            'weights': rng.integers(0, 2, (_BATCH, _LENGTH)).astype(np.float32),
        }
        if config.encoder is not None:
            batch['source'] = rng.integers(0, 32, (_BATCH, _LENGTH))
            batch['source_mask'] = rng.random((_BATCH, _LENGTH)) < 0.8
        batch = sharding.place_batch(batch, mesh)
        step = functools.partial(
            step_lib.train_step,
            optimizer=optimizer_lib.build(_OPTIMIZER, 10),
            schedule=optimizer_lib.schedule(_OPTIMIZER, 10),
            accumulate=1,
        )
        compiled = (
            jax.jit(step, out_shardings=(shardings, jax.NamedSharding(mesh, P())))
            .lower(state, batch, jax.random.key(1, impl='rbg'))
            .compile()
        )
        after, sums = compiled(state, batch, jax.random.key(1, impl='rbg'))
    return state, after, jax.device_get(sums), compiled.as_text()


def _check_placement(state, mesh):
    """Shards are as small as the rules say, for parameters and for their moments."""
    fsdp = math.prod(mesh.shape[axis] for axis in ('fsdp', 'ring', 'sequence'))
    model = mesh.shape['model']
    moments = state.opt_state[0]
    for tree in (state.model, moments.mu, moments.nu):
        shards = {
            sharding.leaf_name(path): leaf.addressable_shards[0].data.shape
            for path, leaf in jax.tree.leaves_with_path(tree)
        }
        heads = 4 // model
        expected = {
            'embedding': (32 // model, 16 // fsdp),
            'head.output': (32 // fsdp, 32 // model),
            'head.output_bias': (32 // model,),
            'layers.0.attention.query': (1, 16 // fsdp, heads, 8),
            'layers.0.attention.value': (1, 16 // fsdp, heads, 8),
            'layers.1.attention.query_key': (1, 16 // fsdp, heads, 8),
            'layers.1.attention.output': (1, heads, 8, 16 // fsdp),
            'layers.1.feed_forward.hidden': (1, 16 // fsdp, 64 // model),
            'layers.1.feed_forward.hidden_bias': (1, 64 // model),
            'layers.1.feed_forward.output': (1, 64 // model, 16 // fsdp),
            'norm.scale': (32,),
        }
        assert {name: shards[name] for name in expected} == expected


def _sequence_gathers(program):
    """Shapes of the program's all-gathers that make a sequence of feature vectors."""
    found = re.findall(r'= \(?\w+\[([\d,]*)\][^=]* all-gather(?:-start)?\(', program)
    shapes = [tuple(map(int, shape.split(','))) for shape in found if shape]
    features = {_CONFIG.d_model, _CONFIG.head_size}
    of_batch = (shape for shape in shapes if len(shape) > 2)  # no table of positions
    return [shape for shape in of_batch if _LENGTH in shape and shape[-1] in features]


def _exchanged(program, operation):
    """How many numbers of feature vectors each such operation of the program moves:
    as the result of a device, or each of the parts of one."""
    found = re.findall(rf'= \(?\w+\[([\d,]*)\][^=]* {operation}(?:-start)?\(', program)
    shapes = [tuple(map(int, shape.split(','))) for shape in found if shape]
    return [math.prod(s) for s in shapes if s[-1] == _CONFIG.head_size and len(s) > 2]


def _check_exchanges(program, mesh, config):
    """Nothing but what is planned. Over 'sequence' heads are exchanged for positions,
    all to all, before and after each attention core; over 'ring' rows are passed on."""
    sequence, ring = mesh.shape['sequence'], mesh.shape['ring']
    batch = _BATCH // (mesh.shape['data'] * mesh.shape['fsdp'])
    heads = config.heads // mesh.shape['model']
    # Of queries, keys, values or outputs, in the core.
    own = batch * _LENGTH // ring * heads // sequence * config.head_size
    all_to_all = _exchanged(program, 'all-to-all')
    passed_on = _exchanged(program, 'collective-permute')
    if config in (_CONFIG, _CHUNKED_CONFIG):
        # Of local and LSH attention, as often in the forward pass, when the backward
        # pass repeats it, and for the gradients: three or two inputs and an output.
        times = 3 * (4 + 3) if sequence > 1 else 0
        assert all_to_all == [own // sequence] * times, (mesh.shape, all_to_all)
        # Forward and repeated: local keys and values, LSH queries, values and outputs.
        # Backward: of the former two gradients, then the output's, and two; queries and
        # values are passed on once for what is repeated and for the gradients.
        times = 2 * (2 + 3) + 2 + 1 + 2 if ring > 1 else 0
        assert len(passed_on) == times, (mesh.shape, passed_on)
    # A part begins and ends with a chunk of its neighbours at most.
    around = 2 * batch * heads // sequence * _CHUNK * config.head_size
    assert max(passed_on, default=0) <= own + around, (mesh.shape, passed_on)
    assert max(all_to_all, default=0) <= own, (mesh.shape, all_to_all)


def _compare_with_one_device(config, meshes):
    one = jax.make_mesh(
        (1,) * len(sharding.AXES),
        sharding.AXES,
        devices=jax.devices()[:1],
        axis_types=(jax.sharding.AxisType.Auto,) * len(sharding.AXES),
    )
    _, expected, expected_sums, _ = _train_step(one, config)
    for shape in meshes:
        mesh = sharding.make_mesh(shape)
        assert mesh.size == 8
        before, after, sums, program = _train_step(mesh, config)
        if config in (_CONFIG, _CHUNKED_CONFIG):
            _check_placement(before, mesh)
            _check_placement(after, mesh)
        for name, value in expected_sums.items():
            np.testing.assert_allclose(sums[name], value, rtol=1e-5, err_msg=name)
        # Adam's first moment is a tenth of the gradient.
        ours = jax.tree.leaves_with_path(after.opt_state[0].mu)
        theirs = jax.tree.leaves(expected.opt_state[0].mu)
        for (path, a), b in zip(ours, theirs, strict=True):
            a, b = np.asarray(a), np.asarray(b)
            error = np.linalg.norm(a - b) / np.linalg.norm(b)
            assert error < 1e-5, (shape, sharding.leaf_name(path), error)
        gathers = _sequence_gathers(program)
        if config.encoder is not None and mesh.shape['ring'] > 1:
            # Keys and values of a source are, of a device's heads: in two layers, and
            # again in the backward pass.
            assert gathers == [(_BATCH, _LENGTH, 1, config.head_size)] * 8, gathers
        else:
            assert not gathers, (shape, gathers)
        _check_exchanges(program, mesh, config)
        print('as on one device:', config.pattern, shape, flush=True)


def _check_decoding(config, source):
    """A single prompt or source, which the batch axes do not divide."""
    model = _initial_state(config).model

    def decode(model):
        made = decoding.generate(
            model, [[1, 2, 3]], source=source, key=jax.random.key(0), steps=5
        )
        return made, decoding.score(model, [[1, 2, 3, 4]], source=source)

    expected = decode(model)
    mesh = sharding.make_mesh({'data': 2, 'fsdp': 2, 'model': 2})
    with jax.set_mesh(mesh):
        placed = jax.device_put(model, sharding.parameter_specs(model, mesh))
        made, scores = decode(placed)
    np.testing.assert_array_equal(made, expected[0])
    np.testing.assert_allclose(scores, expected[1], atol=1e-4)
    print('decodes as on one device', flush=True)


def _check_kernels():
    """Interpreted kernels under shard_map over batch and heads, and their gradients."""
    rng = np.random.default_rng(0)
    qk, v, direction = rng.normal(size=(3, 4, 32, 2, 16)).astype(np.float32)
    ids = rng.integers(0, 4, (4, 2, 2, 32))
    heads, rows = P(sharding.BATCH_AXES, None, 'model'), P(sharding.BATCH_AXES, 'model')

    def gradients(implementation, qk, v, ids, direction):
        kind = attention.LSH(chunk_length=16, buckets=4, implementation=implementation)
        attend = functools.partial(attention.lsh_attention, kind)
        mapped = sharding.over_batch_and_heads(attend, (heads, heads, rows), heads)
        out, pullback = jax.vjp(lambda qk, v: mapped(qk, v, ids), qk, v)
        return out, *pullback(direction)

    expected = gradients('xla', qk, v, ids, direction)
    mesh = sharding.make_mesh({'data': 2, 'fsdp': 2, 'model': 2})
    for implementation in ('triton', 'mosaic_tpu'):
        with jax.set_mesh(mesh):
            ours = jax.jit(functools.partial(gradients, implementation))(
                qk, v, ids, direction
            )
        for x, wanted in zip(ours, expected, strict=True):
            np.testing.assert_allclose(x, wanted, rtol=1e-4, atol=1e-4)
        print('attends alike on 8 devices:', implementation, flush=True)


def _check_exact_attention():
    """Blocks, with a mask and dropout, as a layer calls them."""
    rng = np.random.default_rng(0)
    *qkv, direction = rng.normal(size=(4, 8, _LENGTH, 4, 8)).astype(np.float32)
    mask = np.arange(_LENGTH) < rng.integers(0, _LENGTH, (8, 1))
    key = jax.random.key(2)
    blocks._most = lambda length: (7, 2)

    def gradients(kind, mask, direction, *qkv):
        attend = functools.partial(layers._attend, kind, mask=mask, key=key)
        out, pullback = jax.vjp(lambda *qkv: attend(qkv), *qkv)
        return out, *pullback(direction)

    mesh = sharding.make_mesh({'data': 2, 'fsdp': 2, 'model': 2})
    for shared_qk in (False, True):
        kind = attention.Full(shared_qk=shared_qk, dropout=0.2)
        run = functools.partial(gradients, kind)
        expected = jax.jit(run)(mask, direction, *qkv)
        with jax.set_mesh(mesh):
            ours = jax.jit(run)(mask, direction, *qkv)
        for x, wanted in zip(ours, expected, strict=True):
            np.testing.assert_allclose(x, wanted, rtol=1e-5, atol=1e-5)
        print('attends alike on 8 devices:', kind, flush=True)


def _check_ring():
    """Attention over a ring of 4 devices, with a mask and dropout, and its gradients:
    each device has 3 chunks of the 12, rounds and padding are split unevenly."""
    rng = np.random.default_rng(0)
    *qkv, direction = rng.normal(size=(4, 2, 48, 4, 8)).astype(np.float32)
    mask = np.arange(48) < np.array([[48], [30]])
    ids = rng.integers(0, 6, (2, 4, 3, 48))
    key = jax.random.key(2)
    heads = P('data', 'ring', 'sequence')
    specs = heads, heads, heads, P('data', 'sequence', None, 'ring'), P('data', 'ring')

    def attend(kind, ring, q, k, v, ids, mask):
        if isinstance(kind, attention.Local):
            return attention.local_attention(
                kind, q, k, v, mask=mask, key=key, ring=ring
            )
        return attention.lsh_attention(kind, q, v, ids, mask=mask, key=key, ring=ring)

    def gradients(kind, ring, *arrays):
        mapped = sharding.over_batch_and_heads(
            functools.partial(attend, kind, ring), specs, heads
        )
        out, pullback = jax.vjp(lambda *qkv: mapped(*qkv, *arrays[3:]), *arrays[:3])
        return out, *pullback(direction)

    around = {'causal': False, 'chunks_before': 2, 'chunks_after': 1}
    lsh = functools.partial(attention.LSH, chunk_length=4, buckets=6, dropout=0.2)
    local = functools.partial(attention.Local, chunk_length=4, dropout=0.2)
    mesh = sharding.make_mesh({'ring': 4, 'sequence': 2})
    for kind in (
        lsh(),
        lsh(rule='strict'),
        lsh(rule='bucket', **around),
        lsh(rule='trax', **around),
        local(),
        local(circular=True, **around),
    ):
        arrays = *qkv, ids, mask
        expected = jax.jit(functools.partial(gradients, kind, ''))(*arrays)
        with jax.set_mesh(mesh):
            ours = jax.jit(functools.partial(gradients, kind, 'ring'))(*arrays)
        for x, wanted in zip(ours, expected, strict=True):
            np.testing.assert_allclose(x, wanted, rtol=1e-5, atol=1e-5)
        print('attends alike on 8 devices:', kind, flush=True)


# --- In the test process ----------------------------------------------------------


def test_eight_devices_are_one():
    printed = virtual_devices.run(__file__, 8)
    assert printed.count('as on one device:') == len(_MESHES) + 6
    assert 'decodes as on one device' in printed
    assert printed.count('attends alike on 8 devices:') == 10


@pytest.mark.parametrize('shape', [None, {}, {'data': -1}, {'model': 1}, {'fsdp': -1}])
def test_make_mesh(shape):
    mesh = sharding.make_mesh(shape)
    assert mesh.axis_names == sharding.AXES
    assert mesh.size == jax.device_count()


@pytest.mark.parametrize(
    ('devices', 'shape', 'sizes'),
    [
        (8, None, (8, 1, 1, 1, 1)),
        (8, {'data': 2, 'model': 4}, (2, 1, 4, 1, 1)),
        (8, {'sequence': -1, 'model': 2}, (1, 1, 2, 1, 4)),
        (6, {'data': 3, 'fsdp': -1}, (3, 2, 1, 1, 1)),
    ],
)
def test_make_mesh_of_many_devices(monkeypatch, devices, shape, sizes):
    monkeypatch.setattr(jax, 'device_count', lambda: devices)
    monkeypatch.setattr(jax, 'make_mesh', lambda sizes, *_, **__: tuple(sizes))
    assert sharding.make_mesh(shape) == sizes


@pytest.mark.parametrize(
    ('shape', 'message'),
    [
        ({'batch': 8}, r"mesh axes \['batch'\] are none of .*'data', 'fsdp'"),
        ({'data': 3}, "'data': 3.* does not make up the 8 devices .* be -1"),
        ({'data': -1, 'fsdp': 3}, "'fsdp': 3.* does not make up the 8 devices"),
        ({'data': -1, 'fsdp': -1}, "'fsdp': -1.* does not make up the 8 devices"),
        ({'data': -8, 'model': -1}, "'data': -8.* does not make up the 8 devices"),
        ({'data': 16}, "'data': 16.* does not make up the 8 devices"),
    ],
)
def test_make_mesh_errors(monkeypatch, shape, message):
    monkeypatch.setattr(jax, 'device_count', lambda: 8)
    with pytest.raises(ValueError, match=message):
        sharding.make_mesh(shape)


def _abstract_mesh(**sizes):
    return jax.sharding.AbstractMesh(
        tuple(sizes.get(axis, 1) for axis in sharding.AXES), sharding.AXES
    )


def test_check():
    mesh = _abstract_mesh(data=2, fsdp=2, model=2)
    sharding.check(mesh, batch_size=8, heads=4, length=8)
    with pytest.raises(ValueError, match='batch of 6 .* = 4 devices: .* multiple of 4'):
        sharding.check(mesh, batch_size=6, heads=4, length=8)
    with pytest.raises(ValueError, match='3 heads .*model . sequence = 2 devices'):
        sharding.check(mesh, batch_size=8, heads=3, length=8)
    mesh = _abstract_mesh(model=2, sequence=4)
    sharding.check(mesh, batch_size=1, heads=8, length=8)
    with pytest.raises(ValueError, match='4 heads .*model . sequence = 8 devices'):
        sharding.check(mesh, batch_size=1, heads=4, length=8)
    with pytest.raises(ValueError, match='10 positions .*sequence = 4 devices'):
        sharding.check(mesh, batch_size=1, heads=8, length=10)
    mesh = _abstract_mesh(ring=3, sequence=4)
    sharding.check(mesh, batch_size=1, heads=4, length=24)
    with pytest.raises(ValueError, match='20 positions .*sequence = 12 devices'):
        sharding.check(mesh, batch_size=1, heads=4, length=20)


@pytest.mark.parametrize(
    ('kind', 'message'),
    [
        (attention.Full(), 'exact attention .* set mesh.ring=1'),
        (attention.Full(False, dropout=0.1), 'dropout=0.1 of exact .* set it to 0'),
        (attention.LSH(chunk_length=5), 'chunk_length=5 does not divide the 12'),
        (attention.LSH(chunk_length=4, exact=True), 'exact attention .* dense_length'),
        (
            attention.LSH(chunk_length=4, implementation='triton'),
            "implementation='triton' .* set it to 'xla'",
        ),
        (
            attention.Local(chunk_length=4, chunks_before=4),
            'around 16 positions, .* has 12: .* make mesh.ring smaller',
        ),
    ],
)
def test_what_does_not_go_over_a_ring(kind, message):
    with pytest.raises(ValueError, match=message):
        attention.kinds.check_part(kind, 12)


def test_check_ring():
    """Of a config: before any work."""
    model_config.check_ring(_READING_CONFIG, _LENGTH, 2)
    model_config.check_ring(_EXACT_CONFIG, _LENGTH, 1)
    for config, devices, message in (
        (_EXACT_CONFIG, 2, 'exact attention'),
        (dataclasses.replace(_CONFIG, dense_length=24), 2, 'dense_length'),
        (dataclasses.replace(_READING_CONFIG, attention_dropout=0.1), 2, 'dropout=0.1'),
        (_CONFIG, 4, 'chunk_length=4 does not divide the 6 positions'),
    ):
        with pytest.raises(ValueError, match=message):
            model_config.check_ring(config, _LENGTH, devices)


def test_an_axis_that_does_not_divide_is_left_out():
    mesh = _abstract_mesh(fsdp=3, model=2, ring=4)
    specs = sharding.parameter_specs(
        {
            'embedding': jnp.zeros((6, 6)),
            'head': {
                'output': jnp.zeros((6, 5)),
                'tie_projection': jnp.zeros((4, 3)),
                'hidden': jnp.zeros((6, 3)),
                'output_bias': jnp.zeros(6),
            },
            'norm': {'scale': jnp.zeros(6)},
        },
        mesh,
    )
    fsdp = ('fsdp',)
    assert specs['embedding'].spec == P('model', fsdp)
    assert {name: spec.spec for name, spec in specs['head'].items()} == {
        'output': P(fsdp, None),
        'tie_projection': P(None, None),
        'hidden': P(fsdp, None),
        'output_bias': P('model'),
    }
    assert specs['norm']['scale'].spec == P()


_PLACED = {
    'layers': [{'attention': {'output': jnp.zeros((2, 4, 8, 16))}}],
    'head': {'output': jnp.zeros((6, 6))},
}


def test_rules_of_a_config_go_first():
    mesh = _abstract_mesh(fsdp=2, model=2)
    rules = [['^head.output$', [None, ['model', 'fsdp']]], ['attention', ['model'] * 3]]
    specs = sharding.parameter_specs(_PLACED, mesh, rules[:1])
    assert specs['head']['output'].spec == P(None, ('model',))  # 4 do not divide 6
    rules[1][1] = ('fsdp', None, 'model')
    sharding.check_rules(rules, _PLACED)
    specs = sharding.parameter_specs(_PLACED, mesh, rules)
    of_layer = specs['layers'][0]['attention']['output']
    assert of_layer.spec == P(None, 'fsdp', None, 'model')


@pytest.mark.parametrize(
    ('rule', 'message'),
    [
        (
            ('tail', (None,)),
            "'tail' is found in no parameter. There are: .*head.output",
        ),
        ('head', "'head' must be a pair"),
        (('head', 'model'), 'must be a pair'),
        ((3, (None,)), '3 is no regular expression'),
        (('(', (None,)), r"'\(' is no regular expression"),
        (('head', ('rows', None)), r"over \['rows'\]: .*'data', 'fsdp'"),
        (('head', ('model', 'model')), 'each mesh axis can stand once'),
        (('head', ('model',)), r'has 1 dimensions, and head.output .* \(6, 6\): give'),
        (('attention', (None,) * 4), 'has 4 dimensions, and layers.0.* layers first'),
    ],
)
def test_rules_that_cannot_be(rule, message):
    with pytest.raises(ValueError, match=message):
        sharding.check_rules([rule], _PLACED)


def test_leaf_names():
    """Of a model, and the same of a train state's parts."""
    optimizer = optimizer_lib.build(optimizer_lib.OptimizerConfig(clip_norm=1.0), 10)
    state = jax.eval_shape(lambda: state_lib.init_state(_CONFIG, optimizer, 0))

    def names(tree):
        return [sharding.leaf_name(path) for path, _ in jax.tree.leaves_with_path(tree)]

    model = names(state.model)
    assert len(set(model)) == len(model)
    assert {
        'embedding',
        'position_tables.0',
        'layers.0.attention.norm.scale',
        'layers.0.attention.value',
        'layers.1.attention.query_key',
        'layers.1.feed_forward.output_bias',
        'norm.bias',
        'head.output',
    } <= set(model)
    in_state = names(state)
    for name in model:  # parameter, first and second moment
        assert in_state.count(name) == 3, name
    assert names(jax.eval_shape(lambda: model_lib.build(_CONFIG, nnx.Rngs(0)))) == model


if __name__ == '__main__':
    _compare_with_one_device(_CONFIG, _MESHES)
    _compare_with_one_device(_CHUNKED_CONFIG, _OVER_SEQUENCE)
    _compare_with_one_device(_READING_CONFIG, (_OVER_RING,))
    _compare_with_one_device(_MORE_HEADS_CONFIG, (_MORE_HEADS,))
    _compare_with_one_device(_EXACT_CONFIG, _OVER_SEQUENCE[:1])
    _check_decoding(_CONFIG, None)
    _check_decoding(_READING_CONFIG, [[4, 1, 3, 2, 1]])
    _check_kernels()
    _check_ring()
    _check_exact_attention()
