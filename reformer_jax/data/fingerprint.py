"""What files are known again by: their sizes, their beginnings and their ends."""

import hashlib
import os
import pathlib
from collections.abc import Sequence
from typing import Any

# Bytes read at either end: a file may have 100 GB.
_END = 2**16
# Files that are named one by one, and that are opened at most.
_NAMED, _OPENED = 100, 1_000


def of(files: Sequence[pathlib.Path]) -> dict[str, dict[str, Any]]:
    """Size and digest of each file, by its name below the folder of all; {} of none.

    A change in the middle of a file that keeps its size is not seen. More than 100
    files are summed up, and of more than 1,000 so many are opened, at even places; of
    all of them names and sizes count. Pipes are left out.

    Raises:
      OSError: a file is gone or cannot be read.
    """
    regular = [file for file in files if file.is_file()]
    if not regular:
        return {}
    folder = os.path.commonpath([os.path.abspath(file.parent) for file in regular])
    names = [os.path.relpath(os.path.abspath(file), folder) for file in regular]
    sizes = [file.stat().st_size for file in regular]
    if len(regular) <= _NAMED:
        return {
            name: {'bytes': size, 'ends': _short(_ends(file))}
            for name, size, file in zip(names, sizes, regular, strict=True)
        }
    digest = hashlib.sha256(repr((names, sizes)).encode())
    opened = min(len(regular), _OPENED)
    for place in range(opened):
        digest.update(_ends(regular[place * len(regular) // opened]))
    total = {
        'files': len(regular),
        'bytes': sum(sizes),
        'ends': _short(digest.digest()),
    }
    return {'all files': total}


def _ends(file: pathlib.Path) -> bytes:
    with open(file, 'rb') as stream:
        first = stream.read(_END)
        stream.seek(max(0, os.fstat(stream.fileno()).st_size - _END))
        return hashlib.sha256(first + stream.read(_END)).digest()


def _short(digest: bytes) -> str:
    return digest.hex()[:16]
