"""Memory of a compiled training step, without running it; one JSON line per point.

  python benchmarks/memory.py depth      temporaries against depth, three kinds of stack
  python benchmarks/memory.py paper      the paper's enwik8 step: 65,536 tokens
  python benchmarks/memory.py million    1,048,576 tokens at d_model 512
  python benchmarks/memory.py sequence   the paper's step on 1, 2, 4 and 8 devices, of
                                         which each has a part of the sequence, along
                                         mesh.sequence and mesh.ring
  python benchmarks/memory.py ring       1,048,576 tokens on 8 devices, and 16,777,216
                                         on 64, where a row of 4 layers is compiled

Devices of the last two are virtual, of a CPU, and the memory is that of each.

XLA's own accounting (memory_analysis) of the step that train.py would run, compiled for
the device at hand. `beyond` is what a layer adds to the temporaries beyond its
parameters' gradients and its stored buckets: the activations that grow with depth.
"""

import json
import math
import os
import pathlib
import subprocess
import sys
import time
from typing import Any

import jax
import ml_collections

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks import timing
from configs import enwik8
from reformer_jax import model as model_lib
from reformer_jax.model import config as model_config
from reformer_jax.training import command_line
from reformer_jax.training import loop
from reformer_jax.training import start

_MIB = 2**20
_DEPTHS = (2, 8, 32)
_MILLION, _MORE = 2**20, 2**24
# Length, heads at a time and mesh: parts of heads, of positions, and of both.
_LONG = (
    (_MILLION, 8, {'sequence': 8}),
    (_MILLION, 1, {'ring': 8}),
    (_MILLION, 4, {'ring': 2, 'sequence': 4}),
    (_MORE, 8, {'ring': 8, 'sequence': 8}),
    (_MORE, 1, {'ring': 64}),
)


def depth_config(layers: int, stack: str) -> ml_collections.ConfigDict:
    """A small model of local and LSH layers on 8,192 tokens."""
    config = enwik8.get_config('tiny')
    config.data.length = 8192
    config.data.batch_size = 1
    config.model.update(
        {
            'length': 8192,
            'layers': layers,
            'pattern': ('local', 'lsh'),
            'axial_shape': (64, 128),
            'dropout': 0.1,
            'stack': stack,
        }
    )
    return config


def one_sequence(variant: str) -> ml_collections.ConfigDict:
    """enwik8.py with one sequence per step."""
    config = enwik8.get_config(variant)
    config.data.batch_size = 1
    return config


def measure(config: ml_collections.ConfigDict) -> dict[str, float]:
    """Memory of the compiled training step, and the seconds that compiling took."""
    return compile_step(config)[2]


def compile_step(
    config: ml_collections.ConfigDict,
) -> tuple[start.Run, Any, dict[str, float]]:
    """The run, its compiled step (state, batch, key) -> (state, sums), and `measure`.

    The seconds are those of tracing, lowering and compiling together.
    """
    run = start.open(config, 'no run folder')
    compiled, info = compile_run(run)
    return run, compiled, info


def compile_run(run: start.Run) -> tuple[Any, dict[str, float]]:
    """As `compile_step`, of a run that is open."""
    with jax.set_mesh(run.mesh):
        before = time.perf_counter()
        compiled = loop.compile_train_step(run, run.batch)
        seconds = time.perf_counter() - before
    memory = compiled.memory_analysis()
    total = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    info = {
        'parameters': model_lib.parameter_count(run.state.model),
        'argument_mib': memory.argument_size_in_bytes / _MIB,
        'temporary_mib': memory.temp_size_in_bytes / _MIB,
        'total_gib': total / 2**30,
        'compile_seconds': seconds,
    }
    return compiled, info


def depth() -> None:
    for stack in model_config.STACKS:
        earlier: tuple[int, dict[str, float]] | None = None
        for layers in _DEPTHS:
            config = depth_config(layers, stack)
            values = measure(config)
            point = {'stack': stack, 'layers': layers, **values}
            if earlier:
                added = layers - earlier[0]
                gradients = 4 * (values['parameters'] - earlier[1]['parameters'])
                buckets = _bucket_bytes(config) * added / 2
                growth = values['temporary_mib'] - earlier[1]['temporary_mib']
                beyond = growth - (gradients + buckets) / _MIB
                point['growth_mib_per_layer'] = growth / added
                point['beyond_mib_per_layer'] = beyond / added
            earlier = layers, values
            timing.print_point(point)


def sequence() -> None:
    lines = [('sequence', devices) for devices in (1, 2, 4, 8)]
    lines += [('ring', devices) for devices in (2, 4, 8)]
    for axis, devices in lines:
        config = one_sequence('')
        config.model.heads_at_once = 0
        config.mesh = {axis: devices}
        _in_child({'devices': devices, 'mesh': config.mesh.to_dict()}, config, devices)


def ring() -> None:
    for length, heads_at_once, mesh in _LONG:
        config = one_sequence('million')
        config.data.length = config.model.length = length
        config.model.axial_shape = (math.isqrt(length),) * 2
        config.model.heads_at_once = heads_at_once
        if length > _MILLION:
            config.model.layers = len(config.model.pattern)
        config.mesh = mesh
        point = {'length': length, 'layers': config.model.layers, 'mesh': mesh}
        _in_child(point, config, math.prod(mesh.values()))


def _in_child(
    point: dict[str, Any], config: ml_collections.ConfigDict, devices: int
) -> None:
    """Measures with so many virtual devices, which a process has from its start on."""
    flags = f'--xla_force_host_platform_device_count={devices}'
    environment = os.environ | {'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'}
    script, given = str(pathlib.Path(__file__)), config.to_json()
    found = subprocess.run(
        [sys.executable, script, 'child', given],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    timing.print_point(point | json.loads(found.stdout.splitlines()[-1]))


def _bucket_bytes(config: ml_collections.ConfigDict) -> int:
    """Stored bucket ids of one LSH layer, 2 bytes each."""
    sequences = config.data.batch_size * config.data.length
    return 2 * sequences * config.model.heads * config.model.rounds


def main(what: list[str]) -> None:
    if what[:1] == ['child']:
        print(json.dumps(measure(ml_collections.ConfigDict(json.loads(what[1])))))
        return
    several = {'depth': depth, 'sequence': sequence, 'ring': ring}
    for name in what or ['depth', 'paper', 'million']:
        if name in several:
            several[name]()
        elif name in ('paper', 'million'):
            variant = '' if name == 'paper' else name
            info = measure(one_sequence(variant))
            timing.print_point({'config': f'enwik8:{name}', **info})
        else:
            known = ', '.join(['paper', 'million', *several])
            raise SystemExit(f'unknown benchmark {name!r}: there are {known}.')


if __name__ == '__main__':
    command_line.script(main, sys.argv[1:])
