"""How a program is called: what is wrong with a call is one line on stderr.

Exit statuses: 2 where the command line is wrong, 1 where what it names is (data, a run
folder, the values of a config) or the run itself. With --debug such an error comes with
its traceback, as all others do, which are ours to mend.
"""

import argparse
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

import jax
from absl import app
from absl import flags
from absl import logging
from ml_collections import config_dict
from ml_collections import config_flags

flags.DEFINE_bool('debug', False, 'Show the traceback of every error.')

# What bad input, an environment that lacks something and a diverged run raise.
_MENDABLE = (ValueError, OSError, FloatingPointError, ImportError, MemoryError)

# Seconds without a sign of a process until the others end.
_MISSED_AFTER = 30
# Characters of an error that comes from XLA.
_LONGEST = 300

# Flags that say nothing without --distributed.
_OF_PROCESSES = 'coordinator', 'processes', 'process'


def define_config(told: str) -> flags.FlagHolder[config_dict.ConfigDict | None]:
    """Defines --config, of which any field can be set; where a run is opened those that
    there are not are named with those that there are."""
    return config_flags.DEFINE_config_file(
        'config', None, told, lock_config=False, accept_new_attributes=True
    )


def define_count(name: str, default: int, told: str) -> flags.FlagHolder[int]:
    """Defines a flag that is at least 1."""
    defined = flags.DEFINE_integer(name, default, told)
    flags.register_validator(name, lambda count: count >= 1, 'it must be at least 1')
    return defined


def define_distributed() -> None:
    """Defines the flags of a program that may be one of several processes of a run,
    which `run` then joins."""
    flags.DEFINE_bool(
        'distributed', False, 'Whether this is one of several processes of one run.'
    )
    flags.DEFINE_string(
        'coordinator', None, 'With --distributed, host:port of process 0, if not found.'
    )
    flags.DEFINE_integer('processes', None, 'Their number, if not found.')
    flags.DEFINE_integer('process', None, 'Which one this is, if not found.')


def run(main: Callable[[], None]) -> None:
    """Parses the flags of a program that has absl's, and calls its main."""

    def called(_: list[str]) -> None:
        logging.set_verbosity(logging.WARNING)
        if 'distributed' in flags.FLAGS and flags.FLAGS.distributed:
            _one_of_several(main)
        else:
            script(main)

    app.run(called, flags_parser=_parse)


def _one_of_several(main: Callable[[], None]) -> None:
    """As `script`, but an error ends this process at once: in an orderly end JAX would
    wait for the others, which may wait for this one. They end when they miss it."""
    try:
        jax.distributed.initialize(
            flags.FLAGS.coordinator,
            flags.FLAGS.processes,
            flags.FLAGS.process,
            heartbeat_timeout_seconds=_MISSED_AFTER,
        )
        try:
            script(main)
        except jax.errors.JaxRuntimeError as error:
            told = (
                f'{_in_one_line(error)[:_LONGEST]} (If another process has ended: its '
            )
            _end(1, RuntimeError(told + 'output says why; the same commands go on.)'))
    except BaseException as error:
        status = error.code if isinstance(error, SystemExit) else 1
        if not status or status == os.EX_TEMPFAIL:  # as all of them end
            raise
        if not isinstance(error, SystemExit):
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status if isinstance(status, int) else 1)


def script(main: Callable[..., None], *arguments: Any) -> None:
    """Calls the main of a program."""
    try:
        main(*arguments)
    except app.UsageError as error:
        _end(2, error)
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except _MENDABLE as error:
        _end(1, error)


class ArgumentParser(argparse.ArgumentParser):
    """Of a program without absl's flags; shows its description as it is written."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(
            formatter_class=argparse.RawDescriptionHelpFormatter, **settings
        )
        self.add_argument(
            '--debug', action='store_true', help='show the traceback of every error'
        )

    def error(self, message: str) -> NoReturn:
        _end(2, app.UsageError(f'{message}. {self.format_usage()}'))


def at_least_one(text: str) -> int:
    """A type for add_argument."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f'{text} is no whole number of at least 1')
    return int(text)


def _parse(argv: list[str]) -> list[str]:
    try:
        left = flags.FLAGS(argv)
        if 'config' in flags.FLAGS:
            _check_config(flags.FLAGS['config'].value)
    except flags.Error as error:
        in_file = 'Error whilst parsing config file' in str(error)
        _end(2, _of_config_file(error) if in_file else _with_type(error))
    except KeyError as error:  # of `modl` in --config.modl.length=3
        _end(2, app.UsageError(f'--config has no section {error.args[0]}'))
    except Exception as error:
        _end(2, _of_config_file(error))
    of_processes = [
        name
        for name in _OF_PROCESSES
        if name in flags.FLAGS and flags.FLAGS[name].present
    ]
    if of_processes and not flags.FLAGS.distributed:
        told = f'--{of_processes[0]} is for one of several processes'
        _end(2, app.UsageError(f'{told}: give --distributed too'))
    if left[1:]:
        _end(2, app.UsageError(f'unexpected arguments: {" ".join(left[1:])}'))
    return left


def _check_config(config: Any) -> None:
    if config is not None and not isinstance(config, config_dict.ConfigDict):
        hasattr(config, 'lock')  # Raises what kept ml_collections from loading a file.
        raise ValueError(
            f'--config: get_config returned {config!r}, not an ml_collections.'
            'ConfigDict.'
        )


def _with_type(error: flags.Error) -> Exception:
    """An error of a flag's value, which names the flag, with what the flag takes."""
    name = re.match(r'flag --([\w.]+)=', str(error))
    takes = flags.FLAGS[name[1]].parser.syntactic_help if name else ''
    said = not takes or takes in str(error)
    return app.UsageError(str(error) if said else f'{error}: it takes {takes}')


def _of_config_file(error: BaseException) -> Exception:
    """What was raised first, and where unless we raised it or the message says so."""
    while earlier := error.__cause__ or error.__context__:
        error = earlier
    if isinstance(error, (ValueError, OSError, SyntaxError)):
        return app.UsageError(str(error))
    last = traceback.extract_tb(error.__traceback__)[-1]
    told = f'{type(error).__name__}: {error}'
    if last.filename == config_flags.__file__:  # where get_config is looked for
        return app.UsageError(f'--config: {told}')
    return app.UsageError(f'{last.filename}, line {last.lineno}: {told}')


def _end(status: int, error: Exception) -> NoReturn:
    debug = flags.FLAGS.debug if flags.FLAGS.is_parsed() else '--debug' in sys.argv
    if debug:
        raise error
    print(f'{pathlib.Path(sys.argv[0]).name}: {_in_one_line(error)}', file=sys.stderr)
    sys.exit(status)


def _in_one_line(error: Exception) -> str:
    return ' '.join(str(error).split()) or type(error).__name__
