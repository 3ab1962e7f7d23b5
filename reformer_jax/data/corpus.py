"""Reads a text corpus into memory as bytes: files, folders, globs, archives."""

import functools
import glob
import gzip
import io
import lzma
import operator
import os
import pathlib
import sysconfig
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

_REMEDY = 'give a local file, folder or glob with --config.data.path=FILE'
_CORRUPT = (
    OSError,
    EOFError,
    lzma.LZMAError,
    zipfile.BadZipFile,
    zlib.error,
    RuntimeError,  # an encrypted zip member, or compressed by an unknown method
)

# Texts are packed to a tenth, and repetitions of a line to a thousandth.
_ALWAYS, _TIMES = 64 * 2**20, 200

_STDLIB_LIMIT = 16_000_000
# Tests hold text that is broken on purpose; the others differ between machines.
_STDLIB_SKIPPED_FOLDERS = frozenset(
    ('test', 'tests', 'idle_test', 'site-packages', 'dist-packages', '__pycache__')
)
_STDLIB_SKIPPED_PREFIXES = ('config-', '_sysconfigdata', 'sitecustomize', 'usercustom')


def read(path: str | os.PathLike[str]) -> np.ndarray:
    """Returns the bytes of all files that `path` names, one after the other.

    Args:
      path: a file, a folder (all regular files below it, sorted, hidden ones left
        out), or a glob. Files ending in .gz, .xz or .zip are unpacked, members of a
        zip in sorted order. Empty: the source text of Python's standard library.

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
    """Regular files below `root`, hidden ones left out, by their relative paths."""
    files = (
        file
        for file in root.rglob(pattern)
        if file.is_file() and not _is_hidden(file.relative_to(root))
    )
    return sorted(files, key=lambda file: file.relative_to(root).as_posix())


def _is_hidden(relative: pathlib.PurePath) -> bool:
    return any(part.startswith('.') for part in relative.parts)


def read_file(file: pathlib.Path, remedy: str) -> bytes:
    """Returns the content of a file, unpacked where its name says that it is packed.

    Raises:
      ValueError: it is corrupt, no regular file, or unpacks to more than a text of its
        size does; with what to do but fetch it again, the remedy.
    """
    if not file.is_file():
        raise ValueError(
            f'{str(file)!r} is a pipe or a device, which a run that resumes cannot '
            f'read again: write what comes from it to a file, or {remedy}'
        )
    packed = file.read_bytes()  # outside the try: an unreadable file is not corrupt
    most = most_unpacked(len(packed))
    try:
        content = _unpacked(file.suffix, packed, most)
    except _CORRUPT as error:
        raise ValueError(
            f'{str(file)!r} cannot be unpacked ({error}): fetch it again, or {remedy}'
        ) from error
    if content is None:
        raise ValueError(
            f'{str(file)!r} of {len(packed):,} bytes unpacks to more than {most:,}, as '
            f'no text does: unpack it yourself if it is meant to, or {remedy}'
        )
    return content


def most_unpacked(packed: int) -> int:
    """Bytes that an archive of so many may hold: one with more is made to fill the
    memory."""
    return max(_ALWAYS, _TIMES * packed)


def _unpacked(suffix: str, packed: bytes, most: int) -> bytes | None:
    """The content, or None for more than `most` bytes."""
    match suffix:
        case '.gz' | '.xz':
            opened = gzip.open if suffix == '.gz' else lzma.open
            with opened(io.BytesIO(packed)) as stream:
                content = stream.read(most + 1)
            return content if len(content) <= most else None
        case '.zip':
            return _unzip(packed, most)
    return packed


def _unzip(packed: bytes, most: int) -> bytes | None:
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        infos = sorted(archive.infolist(), key=operator.attrgetter('filename'))
        shown = [i for i in infos if not _is_hidden(pathlib.PurePosixPath(i.filename))]
        # No member gives more than it says.
        if sum(info.file_size for info in shown) > most:
            return None
        return b''.join(map(archive.read, shown))


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
