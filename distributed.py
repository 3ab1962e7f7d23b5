"""What train.py, eval.py and sample.py have in common: how a call of them begins."""

import jax
from absl import app
from absl import flags
from absl import logging
from ml_collections import config_dict
from ml_collections import config_flags

_DISTRIBUTED = flags.DEFINE_bool(
    'distributed', False, 'Whether this is one of several processes of one run.'
)
_COORDINATOR = flags.DEFINE_string(
    'coordinator', None, 'With --distributed, host:port of process 0, if not found.'
)
_PROCESSES = flags.DEFINE_integer('processes', None, 'Their number, if not found.')
_PROCESS = flags.DEFINE_integer('process', None, 'Which one this is, if not found.')


def define_config(told: str) -> flags.FlagHolder[config_dict.ConfigDict | None]:
    """Defines --config, of which any field can be set; where a run is opened those that
    there are not are named with those that there are."""
    return config_flags.DEFINE_config_file(
        'config', None, told, lock_config=False, accept_new_attributes=True
    )


def begin(argv: list[str]) -> None:
    """Refuses arguments that are no flags, and joins the other processes of the run."""
    if len(argv) > 1:
        raise app.UsageError(f'unexpected arguments: {argv[1:]}')
    logging.set_verbosity(logging.WARNING)
    if _DISTRIBUTED.value:
        jax.distributed.initialize(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
