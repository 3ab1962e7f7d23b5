"""Sources and targets as texts, from files that are aligned by lines, or from tables.

A source is
- a path with '{column}' in it, and '{split}' unless there is one split alone: a text
  file for each side of each split, also packed (`packing`), of which line n is the
  translation of line n of the other;
- what `tables` reads: .jsonl, .csv, .tsv, a folder of them, or 'tfds:NAME', such as
  'tfds:wmt14_translate/de-en'; columns may be those of an object 'translation', as in
  Hugging Face's datasets.
"""

import dataclasses
import functools
import glob
import pathlib
from typing import Any, NamedTuple

from reformer_jax.data import corpus
from reformer_jax.data import packing
from reformer_jax.data.tasks import tables

_COLUMN, _SPLIT = '{column}', '{split}'
_REMEDY = 'give another as config.data.source'


class Texts(NamedTuple):
    """Sources and their targets, as many of one as of the other; unchanged."""

    sources: list[str]
    targets: list[str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Files:
    """Where the pairs are.

    Attributes:
      source: see the module.
      columns: of the source and of the target: what stands for '{column}' in the path,
        or a column of the table.
      splits: what stands for '{split}' in the path, for each of our splits; several
        are read one after the other, and there is no split without any.
      data_dir: folder of prepared tfds datasets; empty means that of tfds.
    """

    source: str
    columns: tuple[str, str]
    splits: tuple[tuple[str, tuple[str, ...]], ...]
    data_dir: str

    def __post_init__(self):
        if self.aligned_by_lines and _SPLIT not in self.source and len(self.names) > 1:
            raise ValueError(
                f'config.data.source={self.source!r} has no {_SPLIT!r}, so that '
                f'{" and ".join(self.names)} would be the same pairs: put it where '
                'paths differ'
            )

    @property
    def aligned_by_lines(self) -> bool:
        """Whether the source is of text files, and no table."""
        return _COLUMN in self.source

    @property
    def names(self) -> tuple[str, ...]:
        """The splits there are."""
        if self.aligned_by_lines:
            return tuple(split for split, given in self.splits if given)
        return tables.splits(self.source, self.data_dir)

    def paths(self, split: str) -> list[list[pathlib.Path]]:
        """Of text files those of each part of a split: of its sources and targets."""
        return [
            [_file(self.source, name, column) for column in self.columns]
            for name in dict(self.splits)[split]
        ]


@functools.lru_cache(maxsize=6)
def read(files: Files, split: str) -> Texts:
    """The pairs of a split.

    Raises:
      FileNotFoundError: a file is not there.
      ValueError: for a split that there is not; two files differ in their number of
        lines; a file is empty or malformed, or a column holds no texts.
    """
    if split not in files.names:
        raise ValueError(
            f'{files.source!r} has no {split} split, only {", ".join(files.names)}'
        )
    if not files.aligned_by_lines:
        table = tables.read(files.source, split, files.data_dir)
        return Texts(*(_texts(table, column) for column in files.columns))
    whole = Texts([], [])
    for paths in files.paths(split):
        sides = [
            lines(corpus.read_file(path, _REMEDY), repr(str(path))) for path in paths
        ]
        counts = [len(side) for side in sides]
        if counts[0] != counts[1]:
            raise ValueError(
                f'{str(paths[0])!r} has {counts[0]} lines and {str(paths[1])!r} '
                f'{counts[1]}: line n of one must be the translation of line n of the '
                'other; mend one of them'
            )
        for texts, side in zip(whole, sides, strict=True):
            texts += side
    return whole


def forget() -> None:
    """Gives up the texts that were read: they take ten times as much memory as their
    tokens."""
    read.cache_clear()
    tables.forget()


def _texts(table: tables.Table, column: str) -> list[str]:
    nested: list[Any] = [row.get('translation') for row in table.rows]
    if all(isinstance(row, dict) for row in nested):
        table = dataclasses.replace(table, rows=nested)
    values: list[Any] = table.column(column)
    for index, value in enumerate(values):
        if not isinstance(value, str):
            raise ValueError(
                f'{table.where(index)}: {value!r} in column {column!r} is no text'
            )
    return values


def _file(source: str, split: str, column: str) -> pathlib.Path:
    path = pathlib.Path(source.replace(_SPLIT, split).replace(_COLUMN, column))
    path = path.expanduser()
    beside = path.parent.glob(glob.escape(path.name) + '*')
    endings = ('', *packing.SUFFIXES)
    for file in sorted(beside):
        if file.name[len(path.name) :].lower() in endings and file.is_file():
            return file
    raise FileNotFoundError(
        f'no file {str(path)!r}, plain or packed, such as .gz: config.data.source='
        f"{source!r} is a path in which '{_SPLIT}' stands for a split and '{_COLUMN}' "
        'for a column; where a run is to go on, put a link there if the files have '
        'moved'
    )


def lines(content: bytes, where: str) -> list[str]:
    """The lines of a text file, see `corpus.decoded`; a ValueError if it is none."""
    text = corpus.decoded(content, where)
    if not text:
        return []
    # Not splitlines, for which other characters end a line too; nor universal newlines,
    # as some lines of the web have a \r within.
    end = '\n' if '\n' in text else '\r'
    return [line.removesuffix('\r') for line in text.removesuffix(end).split(end)]
