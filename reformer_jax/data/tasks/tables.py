"""Labelled examples as rows, from local files or tensorflow_datasets.

A source is
- a file, .jsonl (.ndjson), .json, .csv or .tsv (`formats`), also packed (`packing`), in
  UTF-8 or UTF-16, with lines of any end: split 90 / 5 / 5 % by a fixed permutation, as
  labels are often sorted;
- a folder, or a path with '{split}' in it: a file per split, named train, validation
  (or dev, valid, val) and test;
- 'tfds:NAME', such as 'tfds:imdb_reviews' or 'tfds:glue/sst2'.
Of a folder or of tfds without validation, that is 5 % of train by a fixed permutation.
"""

import dataclasses
import functools
import importlib
import pathlib
import re
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from reformer_jax import progress
from reformer_jax.data import batching
from reformer_jax.data import corpus
from reformer_jax.data import packing
from reformer_jax.data.tasks import cells
from reformer_jax.data.tasks import formats

_REMEDY = 'give another as config.data.source'
# What others call our splits; GLUE's MNLI has two of each in tfds.
_NAMES = {
    'train': ('train',),
    'validation': (
        *('validation', 'dev', 'valid', 'val'),
        *('validation_matched', 'dev_matched'),
    ),
    'test': ('test', 'test_matched'),
}
_TFDS = 'tfds:'
# The split is part of a published result: never change it.
_PERMUTATION_SEED = 0


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of a split, as a file or tfds has them, and where they come from.

    Values of JSON are what JSON says; those of .csv and .tsv are strings; of tfds,
    bytes are strings, arrays lists and ClassLabels their names.

    Attributes:
      rows: column name -> value. They stay in memory and are shared: do not change
        them.
      unit: 'line' of a file, 'row' of a JSON document or 'example' of tfds.
      numbers: which line or example each row is, [n].
      origin: of what.
    """

    rows: list[formats.Row]
    unit: str
    numbers: np.ndarray
    origin: str

    def where(self, index: int) -> str:
        """Names a row for errors: 'line 7 of reviews.csv'."""
        return f'{self.unit} {self.numbers[index]} of {self.origin}'

    def column(self, name: str) -> list[Any]:
        """One column; a ValueError names a row that lacks it, with what it has."""
        for index, row in enumerate(self.rows):
            if name not in row:
                where = self.where(index) if index else repr(self.origin)
                raise ValueError(
                    f'{where} has no column {name!r}: it has {", ".join(sorted(row))}'
                )
        return [row[name] for row in self.rows]

    def lists(self, name: str, wrong: str = '$.') -> list[list[Any]]:
        """One column of lists, as they are or printed, or of strings with spaces (or
        tabs, but no other white space, which may be a word's) between their items, in
        which the pattern `wrong` is nowhere."""
        found = []
        for index, value in enumerate(self.column(name)):
            if isinstance(value, str):
                value = cells.printed(value, self.where(index), words=True)
            if isinstance(value, str):
                if re.search(wrong, value):
                    raise ValueError(
                        f'{self.where(index)}: {value!r}: put spaces between labels, '
                        'and nothing else, or write a list as JSON does'
                    )
                value = re.findall(r'[^ \t\r\n]+', value)
            if not isinstance(value, list):
                where = self.where(index)
                raise ValueError(
                    f'{where}: {value!r} is no list, nor names in a string'
                )
            found.append(value)
        return found


@functools.lru_cache(maxsize=6)
def read(source: str, split: str, data_dir: str = '') -> Table:
    """Returns the rows of a split of a source, see the module.

    Args:
      source: file, folder, path with '{split}', or 'tfds:NAME'.
      split: 'train', 'validation' or 'test'.
      data_dir: folder of prepared tfds datasets; empty means that of tfds.

    Raises:
      FileNotFoundError: if nothing is at `source`, or a download fails.
      ValueError: for a split that there is not, an empty or malformed file.
    """
    there = splits(source, data_dir)
    if split not in there:
        raise ValueError(f'{source!r} has no {split} split, only {", ".join(there)}')
    if is_one_file(source):
        return _part(_read_file(_existing(source)), (90, 95), split, source)
    given = _given_splits(source, data_dir)
    if 'validation' in given or split == 'test':
        return _read_given(source, given[split], data_dir)
    whole = _read_given(source, given['train'], data_dir)
    return _part(whole, (95, 100), split, source)


def splits(source: str, data_dir: str = '') -> tuple[str, ...]:
    """The splits of a source, 'train' and 'validation' always among them; as `read`."""
    if is_one_file(source):
        return batching.SPLITS
    given = _given_splits(source, data_dir)
    return tuple(s for s in batching.SPLITS if s in given or s == 'validation')


def files(source: str) -> list[pathlib.Path]:
    """The files of training and validation; none of tfds."""
    if source.startswith(_TFDS):
        return []
    if is_one_file(source):
        return [_existing(source)]
    given = _given_splits(source, '')
    return [pathlib.Path(given[s]) for s in batching.SPLITS[:2] if s in given]


def label_names(source: str, column: str, data_dir: str = '') -> tuple[str, ...]:
    """Returns the classes of a tfds ClassLabel, or of a list of them; else ()."""
    if not source.startswith(_TFDS):
        return ()
    feature = dict(_builder(source, data_dir).info.features.items()).get(column)
    feature = getattr(feature, 'feature', feature)  # of a list
    if isinstance(feature, tfds.features.ClassLabel):
        return tuple(feature.names)
    return ()


def forget() -> None:
    """Gives up the rows that were read, which are kept for who asks again."""
    for kept in (read, _read_given, _read_file):
        kept.cache_clear()


# Splits.


def _part(table: Table, percent: tuple[int, int], split: str, source: str) -> Table:
    """A part of a table, see `batching.take_split`, in the table's order."""
    count = len(table.rows)
    order = np.random.default_rng(_PERMUTATION_SEED).permutation(count)
    indices = batching.take_split(order, split, percent)
    if not indices.size:
        raise ValueError(
            f'the {split} split of {source!r} is empty: {count} rows are too few to '
            'divide, give at least 20, or a file for each split'
        )
    indices = np.sort(indices)
    rows = [table.rows[index] for index in indices]
    return Table(rows, table.unit, table.numbers[indices], table.origin)


def _given_splits(source: str, data_dir: str) -> dict[str, str]:
    """The splits that a source has of its own, and where or under what name."""
    if source.startswith(_TFDS):
        there = _builder(source, data_dir).info.splits
        found = {
            split: [theirs for theirs in names if theirs in there]
            for split, names in _NAMES.items()
        }
    else:
        found = {split: _split_files(source, split) for split in _NAMES}
    given = {split: names[0] for split, names in found.items() if names}
    if 'train' not in given:
        raise ValueError(
            f'{source!r} has no train split: it needs a file named train with one of '
            f'{", ".join(formats.SUFFIXES)}, or a tfds dataset with a split of that '
            'name'
        )
    return given


@functools.lru_cache(maxsize=2)
def _read_given(source: str, name: str, data_dir: str) -> Table:
    """The rows of a file or of a split of tfds, as plain Python values."""
    if not source.startswith(_TFDS):
        return _read_file(pathlib.Path(name))
    builder = _builder(source, data_dir)
    features, examples = builder.info.features, builder.as_data_source(name)
    rows = [
        {column: _plain(row[column], features[column]) for column in row}
        for row in progress.track(examples, f'reading {source}, split {name}')
    ]
    return Table(rows, 'example', np.arange(len(rows)), f'{source}, split {name}')


def is_one_file(source: str) -> bool:
    """Whether its rows are split here."""
    if source.startswith(_TFDS) or '{split}' in source:
        return False
    return not _existing(source).is_dir()


def _existing(source: str) -> pathlib.Path:
    path = pathlib.Path(source).expanduser()
    if not source or not path.exists():
        raise FileNotFoundError(
            f'nothing at {source!r}: set config.data.source to a file or folder of '
            f"{', '.join(formats.SUFFIXES)}, a path with '{{split}}', or 'tfds:NAME'"
        )
    return path


def _split_files(source: str, split: str) -> list[str]:
    """Path of the file of one split, if there is one."""
    if '{split}' in source:
        named = [source.replace('{split}', name) for name in _NAMES[split]]
        paths = [pathlib.Path(name).expanduser() for name in named]
    else:
        names = {
            name + suffix + packed
            for name in _NAMES[split]
            for suffix in formats.SUFFIXES
            for packed in ('', *packing.SUFFIXES)
        }
        there = sorted(_existing(source).iterdir())
        paths = [path for path in there if path.name.lower() in names]
    found = [str(path) for path in paths if path.is_file()]
    if len(found) > 1:
        raise ValueError(
            f'{source!r} has several files for the {split} split, {" and ".join(found)}'
            ': leave one of them'
        )
    return found


# Files.


@functools.lru_cache(maxsize=4)
def _read_file(path: pathlib.Path) -> Table:
    corpus.check_regular(path, _REMEDY)
    suffixes = [suffix.lower() for suffix in path.suffixes]
    while suffixes and suffixes[-1] in packing.SUFFIXES:
        suffixes.pop()
    suffix = suffixes[-1] if suffixes else ''
    if suffix not in formats.SUFFIXES:
        raise ValueError(
            f'{str(path)!r} is of no known kind: its name must end in '
            f'{", ".join(formats.SUFFIXES)}, or, if it is packed, in one of these and '
            f'{", ".join(packing.SUFFIXES)}'
        )
    contents = corpus.read_members(path, _REMEDY)
    if len(contents) != 1:
        raise ValueError(
            f'{str(path)!r} holds {len(contents)} files, not one table: unpack it, or '
            f'{_REMEDY}'
        )
    text = corpus.decoded(contents[0], repr(str(path)))
    unit, numbered = formats.read(path, suffix, text)
    if not numbered:
        raise ValueError(f'{str(path)!r} holds no rows')
    numbers, rows = zip(*numbered, strict=True)
    return Table(list(rows), unit, np.array(numbers), str(path))


# --- tensorflow_datasets, without TensorFlow --------------------------------------

_TFDS_REMEDY = (
    'prepare it on a machine with network and give its folder with '
    '--config.data.data_dir=FOLDER, or give a local file as config.data.source'
)


def _plain(value: Any, feature: Any) -> Any:
    """Python's own value, though ClassLabels not given (-1) stay numbers."""
    if isinstance(value, dict):
        inner = getattr(feature, 'feature', feature)
        return {key: _plain(part, inner[key]) for key, part in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list):
        return [_plain(part, getattr(feature, 'feature', feature)) for part in value]
    if isinstance(value, bytes):
        return value.decode('utf-8', 'replace')
    if isinstance(feature, tfds.features.ClassLabel) and value >= 0:
        return feature.names[value]
    return value


@functools.lru_cache(maxsize=4)
def _builder(source: str, data_dir: str) -> Any:
    """Returns the tfds builder of a dataset, downloaded and prepared."""
    # Makes these datasets known: tfds stops looking at the first kind of dataset whose
    # own requirements (h5py) are not installed.
    for kind in ('text', 'translate'):
        importlib.import_module(f'tensorflow_datasets.{kind}')
    name = source.removeprefix(_TFDS)
    make = functools.partial(tfds.builder, name)
    try:
        return corpus.prepare(make, source, data_dir, _TFDS_REMEDY)
    except tfds.core.DatasetNotFoundError as error:
        raise ValueError(
            f"tfds knows no dataset {name!r}, the name behind 'tfds:': see "
            'https://www.tensorflow.org/datasets/catalog/overview'
        ) from error
    except ImportError as error:
        raise ValueError(
            f'{source!r} cannot be prepared without {error.name}: install that, or '
            f'{_TFDS_REMEDY}'
        ) from error
