"""Digests of a folder's files, by which damage is told from what was written.

`digests.json` has the SHA-256 of every file by its name in the folder: a list, for of a
file that is being replaced either the old or the new one may be there.
"""

import hashlib
import json
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

from reformer_jax.runs import folder as run_folder

FILE = 'digests.json'


class DamagedError(ValueError):
    """A file is not as it was written."""


def seal(folder: pathlib.Path, but: Collection[str] = ()) -> None:
    """Writes the digests of all files of a folder but some."""
    files = sorted(path for path in folder.rglob('*') if path.is_file())
    names = [file.relative_to(folder).as_posix() for file in files]
    digests = {name: [_digest(folder / name)] for name in names if name not in but}
    run_folder.write_json(folder / FILE, digests)


def is_sealed(folder: pathlib.Path) -> bool:
    """Whether there are digests."""
    return (folder / FILE).exists()


def check(folder: pathlib.Path) -> None:
    """Reads every file of a sealed folder.

    Raises:
      DamagedError: a file, which it names, is missing, unreadable or was changed.
    """
    for name, known in _digests(folder).items():
        try:
            found = _digest(folder / name)
        except OSError as error:
            raise _unreadable(name, error) from error
        # It may have been replaced since the digests were read.
        if found not in known and found not in _digests(folder).get(name, []):
            raise _changed(name)


def read_json(folder: pathlib.Path, name: str) -> Any:
    """A file's content, compared with its digest if there is one; None without a file.

    Raises:
      DamagedError: it was changed, or is not JSON.
    """
    sealed = is_sealed(folder)
    if not (folder / name).exists() and not (sealed and name in _digests(folder)):
        return None
    content = _content(folder, name)
    found = hashlib.sha256(content).hexdigest()
    if sealed and found not in _digests(folder).get(name, []):
        raise _changed(name)
    return _json(name, content)


def replace_json(folder: pathlib.Path, name: str, fields: Mapping[str, Any]) -> None:
    """Writes a file of a folder anew; a kill leaves it and its digests in accord."""
    draft = folder / f'{name}.new'
    run_folder.write_json(draft, fields)
    if is_sealed(folder):
        either = [_digest(file) for file in (folder / name, draft) if file.exists()]
        run_folder.write_json(folder / FILE, _digests(folder) | {name: either})
    draft.replace(folder / name)


def _digests(folder: pathlib.Path) -> dict[str, list[str]]:
    digests = _json(FILE, _content(folder, FILE))
    is_dict = isinstance(digests, dict) and digests
    if not is_dict or not all(isinstance(known, list) for known in digests.values()):
        raise _changed(FILE)
    return digests


def _content(folder: pathlib.Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise _unreadable(name, error) from error


def _json(name: str, content: bytes) -> Any:
    try:
        # Folders of before have NaN, which is not JSON.
        return json.loads(content, parse_constant=lambda _: None)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f'{name} is not JSON ({error})') from error


def _changed(name: str) -> DamagedError:
    return DamagedError(f'{name} is not as it was written')


def _unreadable(name: str, error: OSError) -> DamagedError:
    return DamagedError(f'{name} cannot be read ({error.strerror})')


def _digest(file: pathlib.Path) -> str:
    with open(file, 'rb') as stream:
        return hashlib.file_digest(stream, 'sha256').hexdigest()
