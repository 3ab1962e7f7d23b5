"""Rows of the datasets of tensorflow_datasets, prepared without TensorFlow."""

import functools
import importlib
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from reformer_jax.data import downloads

# What some datasets call our splits; GLUE's MNLI has two of each.
_NAMES = {
    'train': ('train',),
    'validation': ('validation', 'validation_matched'),
    'test': ('test', 'test_matched'),
}
_REMEDY = (
    'prepare it on a machine with network and give its folder with '
    '--config.data.data_dir=FOLDER, or give a local file as config.data.source'
)


def splits(name: str, *, data_dir: str | None) -> dict[str, str]:
    """Returns the dataset's names of those of our splits that it has.

    Raises:
      FileNotFoundError: if the dataset has to be downloaded and cannot be.
      ValueError: if tfds has no such dataset or cannot prepare it here.
    """
    there = _builder(name, data_dir).info.splits
    found = {
        split: next((theirs for theirs in names if theirs in there), '')
        for split, names in _NAMES.items()
    }
    return {split: theirs for split, theirs in found.items() if theirs}


def read(name: str, split: str, *, data_dir: str | None) -> list[dict[str, Any]]:
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


def label_names(name: str, column: str, *, data_dir: str | None) -> tuple[str, ...]:
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
        downloads.prepare(builder, urls)
    except downloads.ERRORS as error:
        raise FileNotFoundError(
            f"'tfds:{name}' is not prepared in {data_dir or 'the folder of tfds'!r} "
            f'and cannot be downloaded ({error}): {_REMEDY}'
        ) from error
    except tfds.core.DatasetNotFoundError as error:
        raise ValueError(
            f"tfds knows no dataset {name!r}, the name behind 'tfds:': see "
            'https://www.tensorflow.org/datasets/catalog/overview'
        ) from error
    except ImportError as error:
        raise ValueError(
            f"'tfds:{name}' cannot be prepared without {error.name}: install that, "
            f'or {_REMEDY}'
        ) from error
    return builder
