"""Trains what a config describes: python train.py --config=configs/text.py:tiny

Resumes by itself what the run folder (--workdir) already holds. Every field of the
config can be set on the command line: --config.optimizer.learning_rate=1e-3
"""

import os
import sys

import jax
from absl import app
from absl import flags
from absl import logging
from ml_collections import config_flags

from reformer_jax.runs import folder as run_folder
from reformer_jax.training import loop

_CONFIG = config_flags.DEFINE_config_file('config', None, 'The experiment.')
_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Run folder. Without it runs/<name of the config>.'
)
_DISTRIBUTED = flags.DEFINE_bool(
    'distributed', False, 'Whether this is one of several processes of one run.'
)
_COORDINATOR = flags.DEFINE_string(
    'coordinator', None, 'With --distributed, host:port of process 0, if not found.'
)
_PROCESSES = flags.DEFINE_integer('processes', None, 'Their number, if not found.')
_PROCESS = flags.DEFINE_integer('process', None, 'Which one this is, if not found.')
flags.mark_flag_as_required('config')


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f'unexpected arguments: {argv[1:]}')
    logging.set_verbosity(logging.WARNING)
    if _DISTRIBUTED.value:
        jax.distributed.initialize(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    workdir = _WORKDIR.value
    if workdir is None:
        file = config_flags.get_config_filename(flags.FLAGS['config'])
        workdir = run_folder.default_workdir(file)
        print(f'no --workdir: using {workdir}', flush=True)
    finished = loop.train(_CONFIG.value, workdir)
    if not finished:
        sys.exit(os.EX_TEMPFAIL)  # stopped by a signal: what was to follow must not
    if jax.process_index() == 0:
        print(f'next: python eval.py --workdir={workdir}', flush=True)


if __name__ == '__main__':
    app.run(main)
