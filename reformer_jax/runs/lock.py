"""One owner of a folder at a time."""

import contextlib
import datetime
import errno
import fcntl
import os
import pathlib
import socket
import sys
import time
from collections.abc import Iterator
from typing import IO

from reformer_jax.runs import folder as run_folder
from reformer_jax.runs import writing

# A look at the lock, or an owner that is just ending, holds it for less.
_SECONDS = 1.0
_NOT_SUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextlib.contextmanager
def hold(folder: str | os.PathLike[str]) -> Iterator[int]:
    """Keeps a folder for this process, and for those that inherit the file descriptor
    that it gives.

    The lock is flock(2) on `<folder>/.lock`, in which its owner is written. The kernel
    lets go of it when the last owner ends, however that ends. Over NFS Linux asks the
    server, so that other hosts are seen. Mounted with local_lock or nolock, and on
    other file systems that keep flock to one host, only processes of the same host are.
    Where there are no locks at all a warning says so.

    Raises:
      OSError: the file cannot be written.
      ValueError: another process has it.
    """
    path = run_folder.absolute(folder) / run_folder.LOCK
    with writing.named(path):
        opened = open(path, 'a+')
    with opened as file:
        _take(file)
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
        owner = f'process {os.getpid()} on {socket.gethostname()} since {now}\n'
        with writing.named(path):
            file.truncate(0)
            os.write(file.fileno(), owner.encode())
        yield file.fileno()


def check(folder: str | os.PathLike[str]) -> None:
    """Raises a ValueError if another process holds a folder; changes nothing."""
    try:
        file = open(run_folder.absolute(folder) / run_folder.LOCK, 'r+')
    except OSError:  # there is none, or there is something else to complain about
        return
    with file:
        _take(file)


def _take(file: IO[str]) -> None:
    end = time.monotonic() + _SECONDS
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > end:
                file.seek(0)
                owner = file.read().strip() or 'another process'
                folder = pathlib.Path(file.name).parent
                raise ValueError(
                    f'{folder} is in use by {owner}, or by what it started: wait for '
                    'it, stop it, or give another --workdir.'
                ) from error
            time.sleep(0.05)
        except OSError as error:
            if error.errno not in _NOT_SUPPORTED:
                raise
            print(
                f'WARNING: {file.name} cannot be locked ({error.strerror}): nothing '
                'keeps a second process out of this folder',
                file=sys.stderr,
            )
            return
