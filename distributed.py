"""What train.py, eval.py and sample.py have in common: how a call of them begins."""

import jax
from absl import app
from absl import flags
from absl import logging

_DISTRIBUTED = flags.DEFINE_bool(
    'distributed', False, 'Whether this is one of several processes of one run.'
)
_COORDINATOR = flags.DEFINE_string(
    'coordinator', None, 'With --distributed, host:port of process 0, if not found.'
)
_PROCESSES = flags.DEFINE_integer('processes', None, 'Their number, if not found.')
_PROCESS = flags.DEFINE_integer('process', None, 'Which one this is, if not found.')


def begin(argv: list[str]) -> None:
    """Refuses arguments that are no flags, and joins the other processes of the run."""
    if len(argv) > 1:
        raise app.UsageError(f'unexpected arguments: {argv[1:]}')
    logging.set_verbosity(logging.WARNING)
    if _DISTRIBUTED.value:
        jax.distributed.initialize(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
