"""Labelled examples as rows, from local files or tensorflow_datasets.

A source is
- a file, .jsonl (or .json, one object a line), .csv or .tsv with a header row, all
  also with .gz behind: split 90 / 5 / 5 % by a fixed permutation, as labels are often
  sorted;
- a folder, or a path with '{split}' in it: a file per split, named train, validation
  (or dev, valid) and test;
- 'tfds:NAME', such as 'tfds:imdb_reviews' or 'tfds:glue/sst2'.
Of a folder or of tfds without validation, that is 5 % of train by a fixed permutation.
"""

import csv
import dataclasses
import functools
import gzip
import importlib
import io
import json
import pathlib
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from reformer_jax.data import batching
from reformer_jax.data import corpus

_SUFFIXES = ('.jsonl', '.json', '.csv', '.tsv')
_NAMES = {
    'train': ('train',),
    'validation': ('validation', 'dev', 'valid'),
    'test': ('test',),
}
_TFDS = 'tfds:'
# The split is part of a published result: never change it.
_PERMUTATION_SEED = 0

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class _Table:
    """Rows, and where they come from: line or example number so and so of what."""

    rows: list[Row]
    unit: str
    numbers: np.ndarray
    origin: str

    def take(self, indices: np.ndarray) -> '_Table':
        rows = [self.rows[index] for index in indices]
        return _Table(rows, self.unit, self.numbers[indices], self.origin)


def read(source: str, split: str, *, data_dir: str | None = None) -> list[Row]:
    """Returns the rows of a split, as a file or tfds has them: column name -> value.

    Values of JSON are what JSON says; those of .csv and .tsv are strings (.tsv has no
    quotes); of tfds, bytes are strings, arrays lists and ClassLabels their names. The
    rows stay in memory and are shared: do not change them.

    Args:
      source: file, folder, path with '{split}', or 'tfds:NAME'; see the module.
      split: 'train', 'validation' or 'test'.
      data_dir: folder of prepared tfds datasets; None or empty means that of tfds.

    Raises:
      FileNotFoundError: if nothing is at `source`, or a download fails.
      ValueError: for a split that there is not, an empty or malformed file.
    """
    return _table(source, split, data_dir or None).rows


def splits(source: str, data_dir: str | None = None) -> tuple[str, ...]:
    """Returns the splits of a source, 'train' and 'validation' always among them.

    Raises:
      FileNotFoundError: if nothing is at `source`, or a download fails.
      ValueError: if `source` has no rows for training or is of no known kind.
    """
    if _is_one_file(source):
        return batching.SPLITS
    given = _given_splits(source, data_dir or None)
    return tuple(s for s in batching.SPLITS if s in given or s == 'validation')


def where(source: str, split: str, index: int, data_dir: str | None = None) -> str:
    """Names row `index` of what `read` gives, for errors: 'line 7 of reviews.csv'."""
    table = _table(source, split, data_dir or None)
    return f'{table.unit} {table.numbers[index]} of {table.origin}'


def column(rows: list[Row], name: str, source: str) -> list[Any]:
    """Returns one column of the rows.

    Raises:
      ValueError: if a row lacks it; names the columns there are.
    """
    for row in rows:
        if name not in row:
            raise ValueError(
                f'{source!r} has no column {name!r}: it has {", ".join(sorted(row))}'
            )
    return [row[name] for row in rows]


def label_names(source: str, name: str, data_dir: str | None = None) -> tuple[str, ...]:
    """Returns the classes of a tfds ClassLabel column, in order; () if it is none."""
    if not source.startswith(_TFDS):
        return ()
    return _tfds_label_names(
        source.removeprefix(_TFDS), name, data_dir=data_dir or None
    )


# Splits.


@functools.lru_cache(maxsize=6)
def _table(source: str, split: str, data_dir: str | None) -> _Table:
    there = splits(source, data_dir)
    if split not in there:
        raise ValueError(f'{source!r} has no {split} split, only {", ".join(there)}')
    if _is_one_file(source):
        table = _read_file(_existing(source))
        parts = np.array([90, 95]) * len(table.rows) // 100
        return _part(table, parts, split, source)
    given = _given_splits(source, data_dir)
    if 'validation' in given or split == 'test':
        return _read_given(source, given[split], data_dir)
    table = _read_given(source, given['train'], data_dir)
    return _part(table, np.array([95, 100]) * len(table.rows) // 100, split, source)


def _part(table: _Table, ends: np.ndarray, split: str, source: str) -> _Table:
    """A split of a table, in the table's order."""
    order = np.random.default_rng(_PERMUTATION_SEED).permutation(len(table.rows))
    indices = np.split(order, ends)[batching.SPLITS.index(split)]
    if not indices.size:
        raise ValueError(
            f'the {split} split of {source!r} is empty: {len(table.rows)} rows are too '
            'few to divide, give at least 20, or a file for each split'
        )
    return table.take(np.sort(indices))


def _given_splits(source: str, data_dir: str | None) -> dict[str, str]:
    """The splits that a source has of its own, and where or under what name."""
    if source.startswith(_TFDS):
        given = _tfds_splits(source.removeprefix(_TFDS), data_dir=data_dir)
    else:
        found = {split: _split_file(source, split) for split in batching.SPLITS}
        given = {split: file for split, file in found.items() if file}
    if 'train' not in given:
        raise ValueError(
            f'{source!r} has no train split: it needs a file named train with one of '
            f'{", ".join(_SUFFIXES)}, or a tfds dataset with a split of that name'
        )
    return given


@functools.lru_cache(maxsize=2)
def _read_given(source: str, name: str, data_dir: str | None) -> _Table:
    if not source.startswith(_TFDS):
        return _read_file(pathlib.Path(name))
    dataset = source.removeprefix(_TFDS)
    rows = _tfds_read(dataset, name, data_dir=data_dir)
    return _Table(rows, 'example', np.arange(len(rows)), f'{source}, split {name}')


def _is_one_file(source: str) -> bool:
    if source.startswith(_TFDS) or '{split}' in source:
        return False
    return not _existing(source).is_dir()


def _existing(source: str) -> pathlib.Path:
    path = pathlib.Path(source).expanduser()
    if not source or not path.exists():
        raise FileNotFoundError(
            f'nothing at {source!r}: set config.data.source to a file or folder of '
            f"{', '.join(_SUFFIXES)}, a path with '{{split}}', or 'tfds:NAME'"
        )
    return path


def _split_file(source: str, split: str) -> str:
    """Path of the file of one split; '' if there is none."""
    if '{split}' in source:
        paths = [
            pathlib.Path(source.replace('{split}', name)).expanduser()
            for name in _NAMES[split]
        ]
    else:
        paths = [
            _existing(source) / f'{name}{suffix}{packed}'
            for name in _NAMES[split]
            for suffix in _SUFFIXES
            for packed in ('', '.gz')
        ]
    found = [str(path) for path in paths if path.is_file()]
    if len(found) > 1:
        raise ValueError(
            f'{source!r} has several files for the {split} split, {" and ".join(found)}'
            ': leave one of them'
        )
    return found[0] if found else ''


# Files.


@functools.lru_cache(maxsize=4)
def _read_file(path: pathlib.Path) -> _Table:
    suffix = path.with_suffix('').suffix if path.suffix == '.gz' else path.suffix
    if suffix not in _SUFFIXES:
        raise ValueError(
            f'{str(path)!r} is of no known kind: its name must end in '
            f'{", ".join(_SUFFIXES)}, or one of these and .gz'
        )
    text = io.StringIO(_read_text(path))
    numbered = list(
        _csv(path, text, suffix) if suffix[-2:] == 'sv' else _json(path, text)
    )
    if not numbered:
        raise ValueError(f'{str(path)!r} holds no rows')
    numbers, rows = zip(*numbered, strict=True)
    return _Table(list(rows), 'line', np.array(numbers), str(path))


def _read_text(path: pathlib.Path) -> str:
    packed = path.read_bytes()  # outside the try: an unreadable file is not corrupt
    try:
        content = gzip.decompress(packed) if path.suffix == '.gz' else packed
        return content.decode('utf-8-sig')  # some programs write a byte order mark
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f'{str(path)!r} cannot be unpacked ({error})') from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f'{str(path)!r} is not UTF-8 ({error}): convert it, for example with iconv'
        ) from error


def _json(path: pathlib.Path, text: io.StringIO) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(text, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f'line {number} of {path} is no JSON ({error})') from error
        if not isinstance(row, dict):
            raise ValueError(
                f'line {number} of {path} is no JSON object: give a line '
                '{"column": value, ...} for each row'
            )
        yield number, row


def _csv(
    path: pathlib.Path, text: io.StringIO, suffix: str
) -> Iterator[tuple[int, Row]]:
    csv.field_size_limit(2**31 - 1)  # the default, 131072 characters, is one long text
    if suffix == '.csv':
        reader = csv.reader(text, strict=True)
    else:
        reader = csv.reader(text, delimiter='\t', quoting=csv.QUOTE_NONE)
    header = _header(path, reader)
    begin = reader.line_num + 1
    try:
        for cells in reader:
            if cells and len(cells) != len(header):
                raise ValueError(
                    f'line {begin} of {path} has {len(cells)} cells, but the header '
                    f'has {len(header)} ({", ".join(header)})'
                )
            if cells:
                yield begin, dict(zip(header, cells, strict=True))
            begin = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f'line {begin} of {path} cannot be read ({error})') from error


def _header(path: pathlib.Path, reader: Iterator[list[str]]) -> list[str]:
    header = next(reader, [])
    if not all(header) or len(set(header)) != len(header):
        raise ValueError(
            f'the first line of {path} must name the columns, each once, and has '
            f'{", ".join(map(repr, header))}'
        )
    return header


# --- tensorflow_datasets, without TensorFlow --------------------------------------

# What some datasets call our splits; GLUE's MNLI has two of each.
_TFDS_NAMES = {
    'train': ('train',),
    'validation': ('validation', 'validation_matched'),
    'test': ('test', 'test_matched'),
}
_TFDS_REMEDY = (
    'prepare it on a machine with network and give its folder with '
    '--config.data.data_dir=FOLDER, or give a local file as config.data.source'
)


def _tfds_splits(name: str, *, data_dir: str | None) -> dict[str, str]:
    """Returns the dataset's names of those of our splits that it has.

    Raises:
      FileNotFoundError: if the dataset has to be downloaded and cannot be.
      ValueError: if tfds has no such dataset or cannot prepare it here.
    """
    there = _builder(name, data_dir).info.splits
    found = {
        split: next((theirs for theirs in names if theirs in there), '')
        for split, names in _TFDS_NAMES.items()
    }
    return {split: theirs for split, theirs in found.items() if theirs}


def _tfds_read(name: str, split: str, *, data_dir: str | None) -> list[dict[str, Any]]:
    """Returns the rows of a split as plain Python values.

    Bytes become strings, numbers Python's, arrays lists, and ClassLabels their names,
    though those not given (-1) stay numbers.

    Raises:
      FileNotFoundError: if the dataset has to be downloaded and cannot be.
      ValueError: if tfds has no such dataset or cannot prepare it here.
    """
    builder = _builder(name, data_dir)
    features = builder.info.features
    return [
        {column: _plain(row[column], features[column]) for column in row}
        for row in builder.as_data_source(split)
    ]


def _tfds_label_names(
    name: str, column: str, *, data_dir: str | None
) -> tuple[str, ...]:
    """Returns the classes of a ClassLabel, or of a list of them; else ().

    Raises:
      FileNotFoundError: if the dataset has to be downloaded and cannot be.
      ValueError: if tfds has no such dataset or cannot prepare it here.
    """
    features = _builder(name, data_dir).info.features
    feature = features[column] if column in features else None
    feature = getattr(feature, 'feature', feature)  # of a list
    if isinstance(feature, tfds.features.ClassLabel):
        return tuple(feature.names)
    return ()


def _plain(value: Any, feature: Any) -> Any:
    if isinstance(value, dict):
        inner = getattr(feature, 'feature', feature)
        return {key: _plain(part, inner[key]) for key, part in value.items()}
    if isinstance(value, np.ndarray) and value.ndim or isinstance(value, list):
        return [_plain(part, getattr(feature, 'feature', feature)) for part in value]
    if isinstance(value, np.ndarray | np.generic):
        value = value.item()
    if isinstance(value, bytes):
        return value.decode('utf-8', 'replace')
    if isinstance(feature, tfds.features.ClassLabel) and value >= 0:
        return feature.names[value]
    return value


@functools.lru_cache(maxsize=4)
def _builder(name: str, data_dir: str | None) -> Any:
    """Returns the tfds builder of a dataset, downloaded and prepared."""
    # Makes these datasets known: tfds stops looking at the first kind of dataset whose
    # own requirements (h5py) are not installed.
    importlib.import_module('tensorflow_datasets.text')
    try:
        builder = tfds.builder(name, data_dir=data_dir, file_format='array_record')
        urls = [url for url in builder.url_infos or () if url.startswith('http')]
        corpus.prepare(builder, urls)
    except corpus.ERRORS as error:
        raise FileNotFoundError(
            f"'tfds:{name}' is not prepared in {data_dir or 'the folder of tfds'!r} "
            f'and cannot be downloaded ({error}): {_TFDS_REMEDY}'
        ) from error
    except tfds.core.DatasetNotFoundError as error:
        raise ValueError(
            f"tfds knows no dataset {name!r}, the name behind 'tfds:': see "
            'https://www.tensorflow.org/datasets/catalog/overview'
        ) from error
    except ImportError as error:
        raise ValueError(
            f"'tfds:{name}' cannot be prepared without {error.name}: install that, "
            f'or {_TFDS_REMEDY}'
        ) from error
    return builder
