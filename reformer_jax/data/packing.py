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
import re
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
    RuntimeError,  # a zip member compressed by an unknown method
)

# Texts are packed to a tenth, and repetitions of a line to a thousandth.
_ALWAYS, _TIMES = 64 * 2**20, 200
_DEEPEST = 4  # a .tar.gz in a .zip is three

# Members that tell a .zip which is a document of a program and no text: of Office, of
# OpenDocument and EPUB, of NumPy, of PyTorch.
_OF_DOCUMENTS = re.compile(
    r'\[Content_Types\]\.xml|mimetype|.*\.npy|[^/]*/?data\.pkl', re.DOTALL
)

_GZIP, _BZIP2, _XZ, _ZIP, _TAR = 'gzip', 'bzip2', 'xz', 'zip', 'tar'
_ZSTD, _7ZIP, _RAR, _LZ4, _COMPRESS = 'zstd', '7-Zip', 'RAR', 'lz4', 'compress'
_LZIP, _LZOP, _SNAPPY, _BROTLI, _CABINET = 'lzip', 'lzop', 'snappy', 'brotli', 'cabinet'
_ZLIB = 'zlib'
_BEGINNINGS = {
    b'\x1f\x8b': _GZIP,
    b'\xfd7zXZ\x00': _XZ,
    b']\x00\x00': _XZ,  # of its older form, .lzma
    b'PK\x03\x04': _ZIP,
    b'PK\x05\x06': _ZIP,  # an empty one
    b'PK\x07\x08': _ZIP,  # a part of one
    b'\x28\xb5\x2f\xfd': _ZSTD,
    # What zstd skips, which other programs put in front.
    **{bytes([first]) + b'*M\x18': _ZSTD for first in range(0x50, 0x60)},
    b"7z\xbc\xaf'\x1c": _7ZIP,
    b'Rar!\x1a\x07': _RAR,
    b'\x04\x22\x4d\x18': _LZ4,
    b'\x02\x21\x4c\x18': _LZ4,  # of its older form
    b'\x1f\x9d': _COMPRESS,
    b'LZIP\x01': _LZIP,
    b'\x89LZO\x00': _LZOP,
    b'\xff\x06\x00\x00sNaPpY': _SNAPPY,
    b'MSCF\x00': _CABINET,
    b'x\x9c': _ZLIB,
    b'x\xda': _ZLIB,
}
_BLOCKS = b'1AY&SY', b'\x17\x72\x45\x38\x50\x90'  # of bzip2: the first, or the end
_ENCRYPTED = 1  # of the flags of a member of a zip
_TAR_MARK = b'ustar'
_TAR_MARKED = slice(257, 262)
# Python has no zstd before 3.14, and the others not at all.
_UNPACKED_BY = {
    _ZSTD: 'zstd -d',
    _7ZIP: '7z x',
    _RAR: 'unrar x',
    _LZ4: 'lz4 -d',
    _COMPRESS: 'uncompress',
    _LZIP: 'lzip -d',
    _LZOP: 'lzop -d',
    _SNAPPY: 'snzip -d',
    _BROTLI: 'brotli -d',
    _CABINET: 'cabextract',
    _ZLIB: 'pigz -dz',
}
_OF_SUFFIX = {
    **dict.fromkeys(('.gz', '.gzip', '.tgz', '.taz'), _GZIP),
    **dict.fromkeys(('.bz2', '.bz', '.tbz2', '.tbz', '.tb2'), _BZIP2),
    **dict.fromkeys(('.xz', '.txz', '.lzma', '.tlz'), _XZ),
    **dict.fromkeys(('.zst', '.zstd', '.tzst'), _ZSTD),
    '.zip': _ZIP,
    '.tar': _TAR,
    '.br': _BROTLI,  # the one kind that begins in any way
}
SUFFIXES = tuple(s for s, kind in _OF_SUFFIX.items() if kind not in _UNPACKED_BY)


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
    return any(part.startswith('.') and part != '..' for part in relative.parts)


def _kind(content: bytes) -> str | None:
    if content.startswith(b'BZh') and content[4:10] in _BLOCKS:
        return _BZIP2
    named = (k for start, k in _BEGINNINGS.items() if content.startswith(start))
    return next(named, _TAR if _is_tar(content) else None)


def _is_tar(content: bytes) -> bool:
    """Whether it is marked, or the sum of its first header is right: old ones have no
    mark."""
    if content[_TAR_MARKED] == _TAR_MARK:
        return True
    try:
        tarfile.TarInfo.frombuf(content[: tarfile.BLOCKSIZE], 'utf-8', 'replace')
    except tarfile.TarError:
        return False
    return True


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
        if document := next(filter(_OF_DOCUMENTS.fullmatch, archive.namelist()), ''):
            raise ValueError(
                f'is a document or arrays and no packed text, having {document!r} in '
                'it: convert it to text'
            )
        if any(info.flag_bits & _ENCRYPTED for info in shown):
            raise ValueError('is encrypted: unpack it with its password')
        # No member gives more than it says.
        _check(sum(info.file_size for info in shown), most)
        return [archive.read(info) for info in shown]


def _tar(content: bytes, most: int) -> list[bytes]:
    with tarfile.open(fileobj=io.BytesIO(content), mode='r:') as archive:
        infos = sorted(archive.getmembers(), key=operator.attrgetter('name'))
        # Python takes a damaged header for the end.
        if content[archive.offset :].strip(b'\0'):
            raise tarfile.TarError(f'no header at byte {archive.offset:,}')
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
