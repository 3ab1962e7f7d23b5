"""Runs the sweep of a config file: python sweep.py --config=configs/duplication.py:tiny

Each point is trained, and evaluated as the file says, in a process and a folder of its
own. What is finished is skipped, what is not goes on where it stopped, so that the same
command repeated completes a sweep. Fields set on the command line hold for all points:
  python sweep.py --config=configs/rounds.py:tiny --config.data.path=FILE \\
      --workdir=runs/rounds --seeds=3
"""

import sys

import jax
from absl import app
from absl import flags
from ml_collections import config_flags

from reformer_jax.runs import folder as run_folder
from reformer_jax.sweeps import launching
from reformer_jax.sweeps import points as points_lib
from reformer_jax.training import command_line

_CONFIG = command_line.define_config('The experiment.')
_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Folder of the run folders. Without it runs/sweep_<config>.'
)
_SEEDS = flags.DEFINE_integer(
    'seeds', 1, 'Runs of each point, with config.seed 0, 1, ...'
)
_PARALLEL = flags.DEFINE_integer('parallel', 1, 'Points at a time.')
_DRY_RUN = flags.DEFINE_bool(
    'dry_run', False, 'Only show the points and look at their data.'
)
_PRINT_COMMANDS = flags.DEFINE_bool(
    'print_commands',
    False,
    'Print a line for each point, to run elsewhere, and note in the folder which.',
)
flags.mark_flag_as_required('config')


def main() -> None:
    for name, number in (('seeds', _SEEDS.value), ('parallel', _PARALLEL.value)):
        if number < 1:
            raise app.UsageError(f'--{name}={number} must be at least 1')
    # Accelerators are for the runs; this process computes nothing.
    jax.config.update('jax_platforms', 'cpu')
    flag = flags.FLAGS['config']
    file = config_flags.get_config_filename(flag)
    given = config_flags.get_override_values(flag)
    workdir = _WORKDIR.value
    if workdir is None:
        workdir = run_folder.default_workdir(file, 'sweep_')
    sweep = points_lib.load(
        file, _CONFIG.value, workdir, given=given, seeds=_SEEDS.value
    )
    if _WORKDIR.value is None:
        print(f'no --workdir: using {workdir}', file=sys.stderr)
    if _PRINT_COMMANDS.value:
        points_lib.record(sweep)
        for point in sweep.points:
            if line := launching.command_line(sweep, point):
                print(line)
    elif _DRY_RUN.value:
        for point in sweep.points:
            print(f'{point.name}: {points_lib.status(point)}', flush=True)
        points_lib.check_data(sweep)
    else:
        sys.exit(launching.run(sweep, parallel=_PARALLEL.value))


if __name__ == '__main__':
    command_line.run(main)
