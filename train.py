"""Trains what a config describes: python train.py --config=configs/text.py:tiny

Resumes by itself what the run folder (--workdir) already holds. Every field of the
config can be set on the command line: --config.optimizer.learning_rate=1e-3
"""

# ruff: noqa: E402
import os
import signal
import sys


def _end(number: int, _: object) -> None:
    # Not print, which may be what was interrupted.
    line = f'stopped by {signal.Signals(number).name}; the same command goes on\n'
    os.write(1, line.encode())
    os._exit(os.EX_TEMPFAIL)


# Heard from before the imports, which take seconds, to the end; loop.train, which has
# something to save, listens itself.
for _number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
    if signal.getsignal(_number) != signal.SIG_IGN:
        signal.signal(_number, _end)

from absl import flags
from ml_collections import config_flags

from reformer_jax.runs import folder as run_folder
from reformer_jax.runs import metrics
from reformer_jax.training import command_line
from reformer_jax.training import loop

command_line.define_distributed()
_CONFIG = command_line.define_config('The experiment.')
_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Run folder. Without it runs/<name of the config>.'
)
_PROFILE = flags.DEFINE_string(
    'profile', '', 'FIRST:LAST steps, of which a trace goes to WORKDIR/profile.'
)
flags.mark_flag_as_required('config')


def main() -> None:
    workdir = _WORKDIR.value
    if workdir is None:
        file = config_flags.get_config_filename(flags.FLAGS['config'])
        workdir = run_folder.default_workdir(file)
        metrics.say(f'no --workdir: using {workdir}')
    finished = loop.train(_CONFIG.value, workdir, profile=_PROFILE.value)
    if not finished:
        sys.exit(os.EX_TEMPFAIL)  # stopped by a signal: what was to follow must not
    metrics.say(f'next: python eval.py --workdir={workdir}')


if __name__ == '__main__':
    command_line.run(main)
