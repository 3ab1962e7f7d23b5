"""What a training step takes on devices that need not be there.

  python benchmarks/plan.py --config=configs/enwik8.py --mesh=sequence=8
  python benchmarks/plan.py --config=configs/enwik8.py --mesh=data=2,fsdp=4 \\
      --config.model.layers=24

Compiles the step of train.py for a mesh of up to 256 virtual CPU devices. Prints the
memory of each device, what the devices exchange, the operations of matrix products, and
an estimate of the seconds on accelerators. Nothing runs, and no data are needed but
what a config takes its vocabulary or labels from. All but that estimate is of the
program that XLA makes for CPUs: on another device order, fusions and attention kernels
are others. --mesh may be given several times; with --markdown each is a row of a table.
"""

import collections
import dataclasses
import math
import pathlib
import sys
from unittest import mock

import jax
import numpy as np
from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks import hlo
from benchmarks import memory
from benchmarks import meshes
from reformer_jax import model as model_lib
from reformer_jax.stack import memory as device_memory
from reformer_jax.training import command_line
from reformer_jax.training import start

MOST_DEVICES = 256

# Assumed shares of the peak figures below; nothing of ours has been measured on these.
_OF_OPERATIONS = 0.4
_OF_BANDWIDTH = 0.7
_OF_LINKS = 0.7


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """A chip as its vendor describes it.

    Attributes:
      name: of the chip.
      operations: bfloat16 operations of matrix products a second, without sparsity.
      memory: bytes, taken as 10**9 to the GB: what is more the runtime needs.
      bandwidth: bytes a second from or to that memory.
      links: bytes a second to chips nearby, all links together, one way.
      joined: how many chips such links join.
      network: bytes a second of each chip to those further away, one way.
    """

    name: str
    operations: float
    memory: float
    bandwidth: float
    links: float
    joined: int
    network: float = math.nan

    def exchange(self, devices: int) -> float:
        """Bytes a second to the others of so many."""
        return self.links if devices <= self.joined else self.network


ACCELERATORS = (
    # https://docs.cloud.google.com/tpu/docs/v5e and /v5p, /v6e: interconnect both ways
    # 400, 1,200 and 800 GB/s, of which half here.
    Accelerator('v5e', 197e12, 16e9, 819e9, 200e9, 256),
    Accelerator('v5p', 459e12, 95e9, 2765e9, 600e9, 8960),
    Accelerator('v6e', 918e12, 32e9, 1600e9, 400e9, 256),
    # https://www.nvidia.com/en-us/data-center/h100, SXM: 1,979 TFLOP/s with sparsity,
    # NVLink 900 GB/s both ways; in a DGX H100 8 of them, each with 400 Gbit/s outwards.
    Accelerator('H100', 989e12, 80e9, 3350e9, 450e9, 8, 50e9),
)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Seconds of a step on an accelerator, each if nothing else was to be done."""

    products: float
    memory: float
    exchange: float

    @property
    def least(self) -> float:
        """If all is done at once."""
        return max(self.products, self.memory, self.exchange)

    @property
    def most(self) -> float:
        """If one is done after the other."""
        return self.products + self.memory + self.exchange


@dataclasses.dataclass(frozen=True)
class Plan:
    """A compiled step on one of the devices; sizes in bytes.

    Attributes:
      run: its config, with what the mesh has changed in it, and its mesh.
      arguments: parts of what goes in by name: parameters, optimizer, batch.
      size: of all that goes in.
      new: of what comes out and does not take the place of what went in.
      temporaries: of all between.
      counts: matrix products and exchanges.
    """

    run: start.Run
    arguments: dict[str, int]
    size: int
    new: int
    temporaries: int
    counts: hlo.Counts

    @property
    def total(self) -> int:
        return self.size + self.new + self.temporaries

    @property
    def tokens(self) -> int:
        """Of a step, on all devices."""
        return math.prod(self.run.batch['tokens'].shape)

    def estimate(self, chip: Accelerator) -> Estimate:
        """As far as products, their operands and results, the state that is read and
        written, and the exchanges make up the step."""
        traffic = self.counts.traffic + 2 * self.size
        links = _OF_LINKS * chip.exchange(self.run.mesh.size)
        return Estimate(
            self.counts.operations / (_OF_OPERATIONS * chip.operations),
            traffic / (_OF_BANDWIDTH * chip.bandwidth),
            self.counts.sent / links if self.counts.sent else 0.0,
        )


def plan(run: start.Run) -> Plan:
    """Compiles the step of a run for its mesh."""
    compiled, _ = memory.compile_run(run)
    found = compiled.memory_analysis()
    parts = {
        'parameters': run.state.model,
        'optimizer': run.state.opt_state,
        'batch': run.batch,
    }
    return Plan(
        run,
        {name: _size(part) for name, part in parts.items()},
        found.argument_size_in_bytes,
        found.output_size_in_bytes - found.alias_size_in_bytes,
        found.temp_size_in_bytes,
        hlo.count(compiled.as_text()),
    )


def _size(arrays: object) -> int:
    """Bytes on each device of ShapeDtypeStructs with shardings."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * np.dtype(x.dtype).itemsize
        for x in jax.tree.leaves(arrays)
    )


def report(plan: Plan) -> str:
    """A plan in words."""
    return '\n\n'.join(
        '\n'.join(part)
        for part in (_what(plan), _memory(plan), _work(plan), _time(plan))
    )


def _what(plan: Plan) -> list[str]:
    batch_size, length = plan.run.batch['tokens'].shape
    devices = plan.run.mesh.size
    return [
        f'{devices} devices: {batch_size} x {length:,} tokens a step, '
        f'{model_lib.parameter_count(plan.run.state.model):,} parameters',
        f'train.py with {" ".join(_flags(plan))}',
    ]


def _flags(plan: Plan) -> list[str]:
    """What of a config makes it that of a plan."""
    shape = {'data': 1} | dict(plan.run.config.mesh)
    found = [f'--config.mesh.{axis}={size}' for axis, size in shape.items()]
    heads = plan.run.config.model.heads_at_once
    if heads != plan.run.fields['model'].get('heads_at_once', 0):
        found.append(f'--config.model.heads_at_once={heads}')
    return found


def _memory(plan: Plan) -> list[str]:
    rest = plan.size - sum(plan.arguments.values())
    sizes = plan.arguments | {
        'step and key': rest,
        'new outputs': plan.new,
        'temporaries': plan.temporaries,
        'total': plan.total,
    }
    lines = [f'  {name:<15}{size / 2**30:>9.3f}' for name, size in sizes.items()]
    return ['GiB of each device', *lines]


def _work(plan: Plan) -> list[str]:
    counts = plan.counts
    numbers: collections.Counter[str] = collections.Counter()
    sizes: collections.Counter[str] = collections.Counter()
    sent: collections.Counter[str] = collections.Counter()
    for collective, number in counts.collectives.items():
        numbers[collective.kind] += number
        sizes[collective.kind] += number * collective.size
        sent[collective.kind] += number * collective.sent
    lines = [
        f'  {kind:<19}{numbers[kind]:>9,}{sizes[kind] / 1e9:>11.3f}'
        f'{sent[kind] / 1e9:>11.3f}'
        for kind in hlo.COLLECTIVES
    ]
    few = ''
    if counts.open_loops:
        few = f', with {counts.open_loops} loops of unknown length run once'
    return [
        f'Matrix products of each device a step: {_teraflop(plan)} TFLOP{few}',
        'Exchanges of each device a step',
        f'  {"":<19}{"number":>9}{"GB":>11}{"GB sent":>11}',
        *lines,
    ]


def _teraflop(plan: Plan) -> str:
    at_least = '> ' if plan.counts.open_loops else ''
    return f'{at_least}{plan.counts.operations / 1e12:.4g}'


def _time(plan: Plan) -> list[str]:
    estimates = [plan.estimate(chip) for chip in ACCELERATORS]
    rows = {
        f'products, {_OF_OPERATIONS:.0%} of peak': [e.products for e in estimates],
        f'memory, {_OF_BANDWIDTH:.0%} of peak': [e.memory for e in estimates],
        f'exchanges, {_OF_LINKS:.0%} of peak': [e.exchange for e in estimates],
        'step, all at once': [e.least for e in estimates],
        'step, one by one': [e.most for e in estimates],
    }
    lines = [f'  {name:<27}' + _cells(values) for name, values in rows.items()]
    rates = [plan.tokens / e.most for e in estimates]
    shares = [plan.total / chip.memory for chip in ACCELERATORS]
    return [
        'Estimated seconds a step, nothing of it measured',
        f'  {"":<27}' + ''.join(f'{chip.name:>12}' for chip in ACCELERATORS),
        *lines,
        f'  {"tokens/s, one by one":<27}' + ''.join(f'{n:>12,.0f}' for n in rates),
        f'  {"share of its memory":<27}' + ''.join(f'{n:>12.0%}' for n in shares),
        f'  {"fits":<27}' + ''.join(f'{"yes" if n <= 1 else "NO":>12}' for n in shares),
    ]


def _cells(seconds: list[float]) -> str:
    return ''.join(f'{value:>12.3g}' for value in seconds)


def table_head() -> str:
    """Of the rows of a table in Markdown."""
    names = [chip.name for chip in ACCELERATORS]
    cells = ['mesh', 'parts', 'GiB a device', 'of it state', 'TFLOP', 'GB sent', *names]
    return f'| {" | ".join(cells)} |\n|{"---|" * len(cells)}'


def table_row(plan: Plan) -> str:
    """A plan in a row: the parts of its batch, one after the other; seconds from all at
    once to one by one, or that it is too large for a chip."""
    mesh = ','.join(f'{axis}={size}' for axis, size in plan.run.config.mesh.items())
    state = plan.arguments['parameters'] + plan.arguments['optimizer']
    cells = [
        f'`{mesh}`',
        str(plan.run.config.accumulate),
        f'{plan.total / 2**30:.1f}',
        f'{state / 2**30:.1f}',
        _teraflop(plan),
        f'{plan.counts.sent / 1e9:.1f}',
    ]
    for chip in ACCELERATORS:
        estimate = plan.estimate(chip)
        seconds = f'{estimate.least:.2g} to {estimate.most:.2g}'
        cells.append(seconds if plan.total <= chip.memory else 'too large')
    return f'| {" | ".join(cells)} |'


def main() -> None:
    config, texts = flags.FLAGS.config, flags.FLAGS.mesh
    assert config is not None and texts is not None  # both are required
    shapes = [meshes.parse(text, MOST_DEVICES) for text in texts]
    jax.config.update('jax_platforms', 'cpu')
    most = max(math.prod(shape.values()) for shape in shapes)
    jax.config.update('jax_num_cpu_devices', most)
    config.mesh = {'model': -1}  # which fits any batch; meshes.lay_out has another
    # What this machine has says nothing about the devices of a plan.
    with mock.patch.object(device_memory, 'of_device', lambda: None):
        run = start.open(config, 'no run folder')
    runs = [meshes.lay_out(run, shape) for shape in shapes]  # or none is compiled
    markdown = flags.FLAGS.markdown
    if markdown:
        print(table_head())
    for made in map(plan, runs):
        print(table_row(made) if markdown else report(made) + '\n', flush=True)


if __name__ == '__main__':
    command_line.define_config('The experiment.')
    flags.DEFINE_multi_string(
        'mesh', None, 'Devices along axes, as data=2,fsdp=4; several times for several.'
    )
    flags.DEFINE_bool('markdown', False, 'A row of a table for each mesh.')
    flags.mark_flags_as_required(['config', 'mesh'])
    command_line.run(main)
