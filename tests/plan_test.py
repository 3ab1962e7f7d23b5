"""Plans of training steps: what is counted in programs whose counts are known.

Run as a script, this file is the child process that has 4 (virtual) devices.
"""

import functools
import json
import pathlib
import re
import subprocess
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import virtual_devices
from jax import lax
from jax.sharding import PartitionSpec as P

from benchmarks import hlo
from benchmarks import meshes
from benchmarks import plan
from benchmarks import roofline
from benchmarks import training_step
from reformer_jax import model as model_lib
from reformer_jax.training import start

pytestmark = pytest.mark.slow

_ROOT = pathlib.Path(__file__).parents[1]
_AXES = ('a', 'b')


# --- In the child process ---------------------------------------------------------


def _scanned(exchange, times):
    def body(carry, _):
        return carry + exchange(carry), None

    return lambda x: lax.scan(body, x, length=times)[0]


def _gathered(axis):
    """Of which the sum is needed, so that the gather is."""
    return lambda x: lax.all_gather(x, axis).sum(0)


def _reduced(x):
    return lax.all_gather(lax.psum_scatter(x, _AXES, tiled=True), _AXES, tiled=True)


def _exchanged(x):
    return lax.all_to_all(x.reshape(4, -1), _AXES, 0, 0).reshape(x.shape)


def _moved(x):
    return lax.ppermute(x, 'a', [(0, 1), (1, 0)])


_PROGRAMS = {
    'sums in a scan': _scanned(lambda x: lax.psum(x, _AXES), 5),
    'sums of two': _scanned(lambda x: lax.psum(x, 'b'), 5),
    'gathers in scans': _scanned(_scanned(_gathered(_AXES), 3), 2),
    'reduced': _scanned(_reduced, 7),
    'exchanged': _scanned(_exchanged, 3),
    'moved': _scanned(_moved, 4),
}


def _compiled(function, dtype):
    mesh = jax.make_mesh((2, 2), _AXES, axis_types=(jax.sharding.AxisType.Auto,) * 2)
    mapped = jax.shard_map(
        function, mesh=mesh, in_specs=P(_AXES), out_specs=P(_AXES), check_vma=False
    )
    # 32 numbers on each device.
    return jax.jit(mapped).lower(jax.ShapeDtypeStruct((128,), dtype)).compile()


def _counts(function, dtype=np.float32):
    found = hlo.count(_compiled(function, dtype).as_text()).collectives
    return [(c.kind, n, c.devices, c.size, c.sent) for c, n in found.items()]


def _plan_of_a_small_model():
    config = training_step.config(128, layers=1, rounds=1, heads_at_once=1)
    config.data.batch_size = 2
    config.mesh = {'model': -1}
    run = start.open(config, 'none')
    made = plan.plan(meshes.lay_out(run, {'data': 2, 'sequence': 2}))
    chip = plan.ACCELERATORS[0]
    return {
        'heads': made.run.config.model.heads_at_once,
        'arguments': made.arguments,
        'whole': 4 * model_lib.parameter_count(run.state.model),
        'sizes': [made.size, made.new, made.temporaries, made.total],
        'kinds': sorted({c.kind for c in made.counts.collectives}),
        'summed': sum(
            n * c.size
            for c, n in made.counts.collectives.items()
            if c.kind == 'all-reduce'
        ),
        'operations': made.counts.operations,
        'seconds': [made.estimate(chip).least, made.estimate(chip).most],
        'report': plan.report(made),
        'row': plan.table_row(made),
    }


def main():
    found = {name: _counts(function) for name, function in _PROGRAMS.items()}
    found['bfloat16'] = _counts(_PROGRAMS['exchanged'], jnp.bfloat16)
    print(json.dumps({'counts': found, 'plan': _plan_of_a_small_model()}))


# --- In the test process ----------------------------------------------------------


@functools.cache
def _child():
    return json.loads(virtual_devices.run(__file__, 4))


@pytest.mark.parametrize(
    ('program', 'wanted'),
    [
        # kind, how often, devices, bytes on each, bytes that each sends
        ('sums in a scan', [['all-reduce', 5, 4, 128, 2 * 96]]),
        ('sums of two', [['all-reduce', 5, 2, 128, 2 * 64]]),
        ('gathers in scans', [['all-gather', 2 * 3, 4, 4 * 128, 3 * 128]]),
        (
            'reduced',
            [['reduce-scatter', 7, 4, 128, 96], ['all-gather', 7, 4, 128, 96]],
        ),
        ('exchanged', [['all-to-all', 3, 4, 128, 96]]),
        ('moved', [['collective-permute', 4, 2, 128, 128]]),
        ('bfloat16', [['all-to-all', 3, 4, 64, 48]]),
    ],
)
def test_collectives_are_counted(program, wanted):
    assert _child()['counts'][program] == wanted


@pytest.mark.parametrize(
    ('groups', 'devices'),
    [
        ('{{0,1,2},{3,4,5}}', 3),
        ('[4,2]<=[8]', 2),
        ('[2,8]<=[2,8]T(1,0)', 8),
        ("mesh['x'=4,'y'=2] {'x'}", 4),
        ("mesh['x'=4,'y'=2,'z'=3], device_ids=([4,2,3]T(0,2,1)) {'x','z'}", 12),
        ("mesh['x'=4,'y'=2] {'y','x':(1)2}", 4),
    ],
)
def test_groups_of_devices(groups, devices):
    text = (
        'ENTRY %main (p: f32[8]) -> f32[8] {\n'
        '  %p = f32[8]{0} parameter(0)\n'
        f'  ROOT %r = f32[8]{{0}} all-reduce(%p), replica_groups={groups}\n'
        '}\n'
    )
    assert list(hlo.count(text).collectives) == [
        hlo.Collective('all-reduce', devices, 32)
    ]


def _products(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]
    return hlo.count(jax.jit(function).lower(*arguments).compile().as_text())


def test_products_in_scans_are_counted_as_often_as_they_run():
    def twice(x, w):
        return lax.scan(lambda x, _: (jnp.sin(x @ w), None), x, length=2)[0]

    def function(x, w):
        return lax.scan(lambda x, _: (twice(x, w), None), x, length=7)[0]

    counts = _products(function, (8, 16), (16, 16))
    assert counts.operations == 2 * 7 * (2 * 8 * 16 * 16)
    assert counts.traffic == 2 * 7 * 4 * (8 * 16 + 16 * 16 + 8 * 16)
    assert not counts.open_loops


def test_products_of_a_batch():
    counts = _products(
        lambda a, b: jnp.einsum('bchk,blhk->bhcl', a, b), (2, 6, 4, 5), (2, 7, 4, 5)
    )
    assert counts.operations == 2 * (2 * 4) * 6 * 7 * 5


def test_of_branches_the_larger_counts():
    def function(x, w):
        return lax.cond(x[0, 0] > 0, lambda: x @ w @ w, lambda: x @ w)

    counts = _products(function, (8, 16), (16, 16))
    assert counts.operations == 2 * (2 * 8 * 16 * 16)


def test_loops_that_run_nobody_knows_how_often_are_told():
    def function(x):
        return lax.while_loop(lambda x: x[0, 0] > 0, lambda x: x @ x, x)

    counts = _products(function, (8, 8))
    assert counts.open_loops == 1 and counts.operations == 2 * 8**3


def test_plan_adds_up():
    made = _child()['plan']
    size, new, temporaries, total = made['sizes']
    assert total == size + new + temporaries
    parts = made['arguments']
    # Float32 parameters and the two moments of Adam; a step and a key beside them.
    assert 0 < parts['optimizer'] - 2 * parts['parameters'] < 64
    assert parts['batch'] == 128 * (4 + 4)  # tokens and weights of one sequence
    assert 0 < size - sum(parts.values()) < 64
    assert made['kinds'] == ['all-gather', 'all-reduce', 'all-to-all']
    least, most = made['seconds']
    assert 0 < least < most <= 3 * least
    for told in ('2 x 128 tokens', '926,210 parameters', '--config.mesh.sequence=2'):
        assert told in made['report']
    assert made['row'].startswith('| `data=2,sequence=2` | 1 | 0.0 |')


def test_gradients_are_summed_over_devices_once():
    """And not for each chunk and each group of heads."""
    made = _child()['plan']
    assert 1 <= made['summed'] / made['whole'] < 1.1


def test_a_mesh_gets_the_heads_at_a_time_that_it_needs():
    made = _child()['plan']
    assert made['heads'] == 2
    assert '--config.model.heads_at_once=2' in made['report']


def test_products_of_all_devices_are_those_of_the_step():
    products = roofline.step_products(training_step.config(128, layers=1, rounds=1))
    of_a_sequence = sum(product.operations * n for product, n in products.items())
    assert 4 * _child()['plan']['operations'] == 2 * of_a_sequence


def test_estimate():
    collectives = {hlo.Collective('all-reduce', 16, 1_600_000_000): 2}
    made = plan.Plan(
        run=mock.Mock(mesh=mock.Mock(size=16)),
        arguments={},
        size=10**9,
        new=0,
        temporaries=0,
        counts=hlo.Counts(4 * 10**12, 5 * 10**9, collectives),
    )
    chip = plan.Accelerator('chip', 100e12, 8e9, 10e9, 10e9, 16, 1e9)
    estimate = made.estimate(chip)
    assert estimate.products == pytest.approx(0.04 / 0.4)
    assert estimate.memory == pytest.approx(0.7 / 0.7)
    assert estimate.exchange == pytest.approx(0.6 / 0.7)
    assert estimate.least == estimate.memory
    assert estimate.most == pytest.approx(0.1 + 1 + 0.6 / 0.7)
    far = plan.Accelerator('chip', 100e12, 8e9, 10e9, 10e9, 8, 1e9)
    assert made.estimate(far).exchange == pytest.approx(6 / 0.7)


def test_mesh():
    assert meshes.parse('data=2,fsdp=4', 8) == {'data': 2, 'fsdp': 4}


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        (
            'rows=2',
            "'rows=2' is not AXIS=DEVICES .*axes data, fsdp.*as in --mesh=data=2",
        ),
        ('', "'' is not AXIS=DEVICES"),
        ('data', "'data' is not AXIS=DEVICES"),
        ('data=0', "'data=0' is not .* at least 1"),
        ('data=-1', "'data=-1' is not"),
        ('data=2,', "'' is not"),
        ('data=2,data=4', 'data is there twice'),
        ('data=16,fsdp=32', 'is of 512 devices, and at most 256 .* smaller'),
    ],
)
def test_bad_meshes(text, message):
    with pytest.raises(ValueError, match=f'--mesh={text}.*{message}'):
        meshes.parse(text, plan.MOST_DEVICES)


def test_what_a_mesh_does_not_divide_is_one_line():
    command = ['benchmarks/plan.py', '--config=configs/enwik8.py', '--mesh=sequence=16']
    child = subprocess.run(
        [sys.executable, *command], cwd=_ROOT, capture_output=True, text=True
    )
    assert child.returncode == 1 and not child.stdout
    [line] = child.stderr.splitlines()
    told = r'plan.py: 8 heads \(at a time\) .* sequence = 16 devices: use a divisor'
    assert re.match(told, line), line


if __name__ == '__main__':
    main()
