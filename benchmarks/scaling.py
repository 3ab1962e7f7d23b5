"""Seconds of a training step on 1, 2, 4, ... of the devices there are; JSON lines.

  python benchmarks/scaling.py --config=configs/enwik8.py --axis=fsdp
  JAX_NUM_CPU_DEVICES=2 python benchmarks/scaling.py \\
      --config=configs/enwik8.py:tiny --axis=sequence --scaling=strong

With `strong` scaling the batch is that of the config on any number of devices; with
`weak` scaling it is as many times as large, so that a device has as many tokens as one
alone. Seconds are the least of the runs, in which all meshes take turns, on random
tokens of a language model; `efficiency` is the rate of tokens of a device relative to
that of one alone. No data are needed. The devices are those of one process, and the
states of all meshes are in memory at once.
"""

import pathlib
import sys
from collections.abc import Callable, Sequence

import jax
import ml_collections
from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks import meshes
from benchmarks import timing
from benchmarks import training_step
from reformer_jax import sharding
from reformer_jax.training import command_line
from reformer_jax.training import start

_SCALINGS = ('strong', 'weak')


def open_run(
    config: ml_collections.ConfigDict, batch_size: int, shape: dict[str, int]
) -> start.Run:
    """The run of a config with another batch, on the first of the devices.

    Raises:
      ValueError: the data are no text to continue, or the mesh does not divide batch,
        heads or positions.
    """
    changed = ml_collections.ConfigDict(config.to_dict())
    changed.mesh = {'model': -1}  # which fits any batch; lay_out has another
    changed.data.batch_size = batch_size
    run = start.open(changed, 'no run folder')
    if run.config.data.head != 'lm' or 'source' in run.batch:
        raise ValueError(
            f'data.dataset={run.config.data.dataset!r} is not of a language model, of '
            'whose tokens random ones are made here: take another config, such as '
            'configs/enwik8.py.'
        )
    return meshes.lay_out(run, shape)


def measure(
    config: ml_collections.ConfigDict, axis: str, scalings: Sequence[str], runs: int
) -> None:
    """Prints a point for each scaling and number of devices, powers of two.

    Raises:
      ValueError: as `open_run`.
    """
    numbers = [2**n for n in range(jax.device_count().bit_length())]
    batch_size = config.data.batch_size
    batches = {
        (scaling, devices): batch_size * (devices if scaling == 'weak' else 1)
        for scaling in scalings
        for devices in numbers
    }
    steps: dict[tuple[int, int], Callable[[], float]] = {}
    infos = {}
    for (_, devices), batch in batches.items():
        key = batch, devices
        if key not in steps:  # on one device both scalings are the same
            run = open_run(config, batch, {axis: devices})
            steps[key], infos[key] = training_step.step_of(run)
    seconds = timing.interleaved(steps, runs)
    alone = batch_size / min(seconds[batch_size, 1])
    for (scaling, devices), batch in batches.items():
        least = min(seconds[batch, devices])
        timing.print_point(
            {
                'scaling': scaling,
                'axis': axis,
                'devices': devices,
                'batch_size': batch,
                'seconds': least,
                'tokens_per_second': batch * config.data.length / least,
                'efficiency': batch / least / devices / alone,
                'runs': seconds[batch, devices],
                **infos[batch, devices],
            }
        )


def main() -> None:
    given = flags.FLAGS
    measure(given.config, given.axis, given.scaling, given.runs)


if __name__ == '__main__':
    command_line.define_config('The experiment.')
    flags.DEFINE_enum('axis', 'data', sharding.AXES, 'What the devices split.')
    flags.DEFINE_multi_enum(
        'scaling', _SCALINGS, _SCALINGS, 'Which of them; both without it.'
    )
    flags.DEFINE_integer('runs', 5, 'Of which the least.', lower_bound=1)
    flags.mark_flag_as_required('config')
    command_line.run(main)
