"""Packed files: gzip, bzip2, xz, zip, tar, and any of them in another.

They are told by their first bytes, whatever their names, so that no packed text is
taken for a text.
"""

import bz2
import functools
import gzip
import io
import lzma
import operator
import pathlib
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

_CORRUPT = (
    OSError,
    EOFError,
    lzma.LZMAError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    RuntimeError,  # an encrypted zip member, or compressed by an unknown method
)

# Texts are packed to a tenth, and repetitions of a line to a thousandth.
_ALWAYS, _TIMES = 64 * 2**20, 200
_DEEPEST = 4  # a .tar.gz in a .zip is three

_GZIP, _BZIP2, _XZ, _ZIP, _TAR = 'gzip', 'bzip2', 'xz', 'zip', 'tar'
_ZSTD, _7ZIP, _RAR, _LZ4, _COMPRESS = 'zstd', '7-Zip', 'RAR', 'lz4', 'compress'
_BEGINNINGS = {
    b'\x1f\x8b': _GZIP,
    b'\xfd7zXZ\x00': _XZ,
    b'PK\x03\x04': _ZIP,
    b'PK\x05\x06': _ZIP,  # an empty one
    b'\x28\xb5\x2f\xfd': _ZSTD,
    b"7z\xbc\xaf'\x1c": _7ZIP,
    b'Rar!\x1a\x07': _RAR,
    b'\x04\x22\x4d\x18': _LZ4,
    b'\x1f\x9d': _COMPRESS,
}
_BLOCKS = b'1AY&SY', b'\x17\x72\x45\x38\x50\x90'  # of bzip2: the first, or the end
_TAR_MARK = b'ustar'
_TAR_MARKED = slice(257, 262)
# Python has no zstd before 3.14, and the others not at all.
_UNPACKED_BY = {
    _ZSTD: 'zstd -d',
    _7ZIP: '7z x',
    _RAR: 'unrar x',
    _LZ4: 'lz4 -d',
    _COMPRESS: 'uncompress',
}
_OF_SUFFIX = {
    '.gz': _GZIP,
    '.tgz': _GZIP,
    '.bz2': _BZIP2,
    '.tbz2': _BZIP2,
    '.xz': _XZ,
    '.txz': _XZ,
    '.lzma': _XZ,
    '.zip': _ZIP,
    '.tar': _TAR,
    '.zst': _ZSTD,
}
SUFFIXES = tuple(_OF_SUFFIX)


class _TooMuchError(Exception):
    pass


def members(content: bytes, name: str) -> list[bytes]:
    """The files that a file holds, in the order of their names, hidden ones left out;
    or the file itself, if it is not packed.

    Args:
      content: of the file.
      name: its name; one that ends as a packed file's says that it is one.

    Raises:
      ValueError: it is corrupt, or holds more than a text of its size does, or no
        unpacker of its kind is here.
    """
    kind = _kind(content) or _OF_SUFFIX.get(pathlib.PurePath(name).suffix.lower())
    most = most_unpacked(len(content))
    try:
        return _members(content, kind, most, _DEEPEST)
    except _TooMuchError as error:
        raise ValueError(
            f'of {len(content):,} bytes unpacks to more than {most:,}, as no text '
            'does: unpack it yourself if it is meant to'
        ) from error


def most_unpacked(packed: int) -> int:
    """Bytes that an archive of so many may hold: one with more is made to fill the
    memory."""
    return max(_ALWAYS, _TIMES * packed)


def is_hidden(relative: pathlib.PurePath) -> bool:
    return any(part.startswith('.') for part in relative.parts)


def _kind(content: bytes) -> str | None:
    if content.startswith(b'BZh') and content[4:10] in _BLOCKS:
        return _BZIP2
    if content[_TAR_MARKED] == _TAR_MARK:
        return _TAR
    named = (k for start, k in _BEGINNINGS.items() if content.startswith(start))
    return next(named, None)


def _members(content: bytes, kind: str | None, most: int, deepest: int) -> list[bytes]:
    if kind is None:
        return [content]
    if kind in _UNPACKED_BY:
        raise ValueError(f'is packed by {kind}: unpack it ({_UNPACKED_BY[kind]})')
    if not deepest:
        raise ValueError('is packed more than four times: unpack it')
    try:
        unpacked = _UNPACK[kind](content, most)
    except _CORRUPT as error:
        raise ValueError(f'cannot be unpacked ({error}): fetch it again') from error
    found: list[bytes] = []
    left = most
    for part in unpacked:
        found += _members(part, _kind(part), left, deepest - 1)
        left = most - sum(map(len, found))
    if left < 0:
        raise _TooMuchError
    return found


def _stream(opened: Callable[..., Any], content: bytes, most: int) -> list[bytes]:
    with opened(io.BytesIO(content)) as stream:
        part = stream.read(most + 1)
    _check(len(part), most)
    return [part]


def _zip(content: bytes, most: int) -> list[bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        infos = sorted(archive.infolist(), key=operator.attrgetter('filename'))
        shown = [i for i in infos if not i.is_dir() and not _hidden(i.filename)]
        # No member gives more than it says.
        _check(sum(info.file_size for info in shown), most)
        return [archive.read(info) for info in shown]


def _tar(content: bytes, most: int) -> list[bytes]:
    with tarfile.open(fileobj=io.BytesIO(content), mode='r:') as archive:
        infos = sorted(archive.getmembers(), key=operator.attrgetter('name'))
        shown = [i for i in infos if i.isreg() and not _hidden(i.name)]
        _check(sum(info.size for info in shown), most)
        files = (archive.extractfile(info) for info in shown)
        return [file.read() for file in files if file is not None]


def _check(size: int, most: int) -> None:
    if size > most:
        raise _TooMuchError


def _hidden(name: str) -> bool:
    return is_hidden(pathlib.PurePosixPath(name))


# What a file holds, of at most so many bytes.
_UNPACK: dict[str, Callable[[bytes, int], list[bytes]]] = {
    _GZIP: functools.partial(_stream, gzip.open),
    _BZIP2: functools.partial(_stream, bz2.open),
    _XZ: functools.partial(_stream, lzma.open),
    _ZIP: _zip,
    _TAR: _tar,
}
