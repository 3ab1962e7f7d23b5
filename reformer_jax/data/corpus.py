"""Reads a text corpus into memory as bytes: files, folders, globs, archives."""

import functools
import glob
import json
import os
import pathlib
import re
import sysconfig
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from reformer_jax.data import packing

_REMEDY = 'give a local file, folder or glob with --config.data.path=FILE'
_STDLIB_LIMIT = 16_000_000
# Tests hold text that is broken on purpose; the others differ between machines.
_STDLIB_SKIPPED_FOLDERS = frozenset(
    ('test', 'tests', 'idle_test', 'site-packages', 'dist-packages', '__pycache__')
)
_STDLIB_SKIPPED_PREFIXES = ('config-', '_sysconfigdata', 'sitecustomize', 'usercustom')


def read(path: str | os.PathLike[str]) -> np.ndarray:
    """Returns the bytes of all files that `path` names, one after the other.

    Args:
      path: a file, a folder (all regular files below it, behind links to folders too,
        sorted, hidden ones left out), or a glob. Packed files are unpacked, the files
        in them in sorted order. Empty: the source text of Python's standard library.

    Returns:
      uint8 [number of bytes], read-only.

    Raises:
      FileNotFoundError: if nothing is at `path`.
      ValueError: if what is there is empty or is a corrupt archive.
    """
    if not path:
        return python_source()
    found = files(path)
    if not found:
        raise FileNotFoundError(f'no file found at {str(path)!r}; {_REMEDY}')
    text = b''.join(read_file(file, _REMEDY) for file in found)
    if not text:
        raise ValueError(f'{str(path)!r} holds no bytes; {_REMEDY}')
    return np.frombuffer(text, np.uint8)


def files(path: str | os.PathLike[str]) -> Sequence[pathlib.Path]:
    """The files that `path` names, as for `read`; empty if there is none."""
    if not path:
        return _python_files(sysconfig.get_path('stdlib'))
    location = pathlib.Path(path).expanduser()
    if location.is_dir():
        return files_below(location)
    if location.exists():
        return [location]
    matches = sorted(glob.glob(str(location), recursive=True))
    return [file for file in map(pathlib.Path, matches) if file.is_file()]


def python_source() -> np.ndarray:
    """Returns the Python files of the running Python's own standard library.

    About 12 MB of real UTF-8 text on any machine, without a download: files in sorted
    order, without tests and machine-specific ones, separated by newlines. The same for
    the same version of Python, as long as the installation is complete.

    Returns:
      uint8 [number of bytes], at most 16 million.
    """
    root = sysconfig.get_path('stdlib')
    sources, size = [], 0
    for file in _python_files(root):
        source = file.read_bytes()
        size += len(source) + 1
        if size > _STDLIB_LIMIT:
            break
        sources.append(source)
    if not sources:
        raise FileNotFoundError(f'no Python source text below {root!r}; {_REMEDY}')
    return np.frombuffer(b'\n'.join(sources), np.uint8)


@functools.cache
def _python_files(root: str) -> tuple[pathlib.Path, ...]:
    """Those of the standard library, without tests and machine-specific ones."""
    found = []
    for file in files_below(pathlib.Path(root), '*.py'):
        parts = file.relative_to(root).parts
        machines = any(part.startswith(_STDLIB_SKIPPED_PREFIXES) for part in parts)
        if not machines and _STDLIB_SKIPPED_FOLDERS.isdisjoint(parts):
            found.append(file)
    return tuple(found)


def files_below(root: pathlib.Path, pattern: str = '*') -> list[pathlib.Path]:
    """Regular files below `root`, hidden ones left out, by their relative paths.

    Links to folders are followed, but each folder is read once, where it stands itself
    rather than by a link, and none that `root` is in.
    """

    def shown(names: list[str]) -> list[str]:
        return sorted(n for n in names if not packing.is_hidden(pathlib.Path(n)))

    seen, starts = set(map(str, root.resolve().parents)), [root]
    found: list[pathlib.Path] = []
    for start in starts:  # which grows by links
        for folder, below, names in os.walk(start):
            real = os.path.realpath(folder)
            below[:] = shown(below) if real not in seen else []
            if real not in seen:
                inside = [pathlib.Path(folder, name) for name in below]
                starts += [path for path in inside if path.is_symlink()]
                found += [pathlib.Path(folder, name) for name in shown(names)]
            seen.add(real)
    files = (file for file in found if file.match(pattern) and file.is_file())
    return sorted(files, key=lambda file: file.relative_to(root).as_posix())


def read_file(file: pathlib.Path, remedy: str) -> bytes:
    """Returns the content of a file; of a packed one the files in it, one after the
    other, see `packing`.

    Raises:
      ValueError: it is no regular file, or cannot be unpacked; with what else to do,
        the remedy.
    """
    return b''.join(read_members(file, remedy))


def read_members(file: pathlib.Path, remedy: str) -> list[bytes]:
    """As `read_file`, each file in a packed one on its own."""
    check_regular(file, remedy)
    content = file.read_bytes()  # outside the try: an unreadable file is not corrupt
    try:
        return packing.members(content, file.name)
    except ValueError as error:
        raise ValueError(f'{str(file)!r} {error}, or {remedy}') from error


def check_regular(file: pathlib.Path, remedy: str) -> None:
    """Raises a ValueError for a pipe or a device."""
    if not file.is_file():
        raise ValueError(
            f'{str(file)!r} is a pipe or a device, which a run that resumes cannot '
            f'read again: write what comes from it to a file, or {remedy}'
        )


def decoded(content: bytes, where: str) -> str:
    """A text in UTF-8, UTF-16 or UTF-32, with a byte order mark or without.

    Raises:
      ValueError: it is in none of them; names `where`.
    """
    try:
        # What JSON may be in is told by a mark, or by the zeros of the first character.
        text = content.decode(json.detect_encoding(content))
    except UnicodeDecodeError as error:
        raise ValueError(
            f'{where} is not {error.encoding.upper()} ({error}): convert it, for '
            'example with iconv'
        ) from error
    if '\0' in text and _ZEROS_AT_LINE_ENDS.search(text):
        raise ValueError(
            f'{where} has zeros around its line ends, as UTF-16 without a byte order '
            'mark does: convert it, for example with iconv'
        )
    return text


_ZEROS_AT_LINE_ENDS = re.compile('\0[\r\n]|[\r\n]\0')
_SECONDS_TO_ANSWER = 20
_NOT_THERE = (404, 410)

_FAILURES = (
    OSError,  # among them every error of requests
    tfds.download.DownloadError,
    tfds.core.download.download_manager.NonMatchingChecksumError,
)


class Archive(NamedTuple):
    """A file to download, of which size and sha256 are known."""

    url: str
    size: int
    sha256: str

    @property
    def info(self) -> dict[str, tfds.download.checksums.UrlInfo]:
        """For url_infos of a tfds builder, which would read it from a file."""
        info = tfds.download.checksums.UrlInfo(
            size=tfds.core.utils.Size(self.size),
            checksum=self.sha256,
            filename=self.url.split('/')[-1],
        )
        return {self.url: info}


def prepare(make: Callable[..., Any], name: str, data_dir: str, remedy: str) -> Any:
    """Returns the builder of a tfds dataset, downloaded and prepared where it was not.

    Args:
      make: its class, or what else makes a builder.
      name: how a config names it.
      data_dir: folder of prepared datasets; empty means that of tfds.
      remedy: what to do where it cannot be prepared.

    Raises:
      FileNotFoundError: it cannot be downloaded.
    """
    builder = make(data_dir=data_dir or None, file_format='array_record')
    if builder.is_prepared():
        return builder
    settings = tfds.download.DownloadConfig(try_download_gcs=False)
    urls = [url for url in builder.url_infos or () if url.startswith('http')]
    try:
        _check_answer(urls)
        builder.download_and_prepare(download_config=settings)
    except _FAILURES as error:
        raise FileNotFoundError(
            f'{name!r} is not prepared in {builder.data_dir!r} and '
            f'{" ".join(urls) or "it"} cannot be downloaded there ({error}): {remedy}'
        ) from error
    return builder


def _check_answer(urls: Iterable[str]) -> None:
    """Raises an OSError at once where tfds would retry for minutes: no network.

    One host that answers will do, whatever it says: some refuse to be asked for the
    head alone, and some lists have dead ones.
    """
    hosts = {urllib.parse.urlsplit(url).netloc: url for url in urls}
    failure: OSError | None = None
    for url in hosts.values():
        try:
            request = urllib.request.Request(url, method='HEAD')
            urllib.request.urlopen(request, timeout=_SECONDS_TO_ANSWER).close()
            return
        except OSError as error:
            failure = error
            if isinstance(error, urllib.error.HTTPError):
                error.close()
                if error.code not in _NOT_THERE:
                    return
    if failure is not None:
        raise failure
