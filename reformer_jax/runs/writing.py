"""Files of a run folder are written, or an error says which are not, and what to do."""

import contextlib
import errno
import os
import pathlib
from collections.abc import Iterator


@contextlib.contextmanager
def named(path: pathlib.Path) -> Iterator[None]:
    """Turns an OSError of writing a file or folder into one that names it."""
    try:
        yield
    except OSError as error:
        raise failure(path, error.strerror or str(error)) from error


def failure(path: pathlib.Path, problem: str) -> OSError:
    """The error of what cannot be written, with the remedy."""
    return OSError(
        f'{path} cannot be written ({problem}): make space there, give access to it '
        'or put it back; then the same command goes on.'
    )


def whole(file: pathlib.Path, content: bytes) -> None:
    """Writes all of a file or nothing of it."""
    temporary = file.with_name(f'.{file.name}.tmp')
    with named(file):
        try:
            with open(temporary, 'wb') as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            os.rename(temporary, file)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise


class Lines:
    """Lines added to a file; those that cannot be written wait for the next.

    Attributes:
      waiting: what is not written.
      problem: why; '' when nothing waits.
    """

    def __init__(self, path: pathlib.Path):
        """Opens the file; an OSError names it if it cannot be written."""
        with named(path):
            self._file = open(path, 'ab', buffering=0)
        self.waiting, self.problem = b'', ''

    def add(self, line: str = '') -> None:
        """Writes what waits, and a line: all, or nothing if there is a problem."""
        self.waiting += line.encode()
        self.problem = ''
        number = self._file.fileno()
        status = os.fstat(number)
        left = self.waiting
        try:
            if not status.st_nlink:
                raise FileNotFoundError(errno.ENOENT, 'it has been removed')
            while left:  # a disk that fills takes a part
                left = left[os.write(number, left) :]
            self.waiting = b''
        except OSError as error:
            self.problem = error.strerror or str(error)
            with contextlib.suppress(OSError):
                os.truncate(number, status.st_size)

    def close(self) -> None:
        self._file.close()
