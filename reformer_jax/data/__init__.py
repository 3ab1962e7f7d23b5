"""Datasets: each gives batches of tokens and loss weights from a grain pipeline.

Iterators yield {'tokens': int32 [B, L], 'weights': float32 [B, L]}. 'train' never
ends; 'validation' and 'test' are one pass in order, the last batch padded with rows of
weight 0. get_state and set_state (and orbax) save and restore the place in the stream.
"""

import inspect
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import grain
import numpy as np

from reformer_jax.data import byte_text
from reformer_jax.data import duplication
from reformer_jax.data import enwik8

_DATASETS = {'bytes': byte_text, 'duplication': duplication, 'enwik8': enwik8}


def build(config: Mapping[str, Any], split: str) -> grain.DatasetIterator:
    """Returns the iterator of one split of the dataset that `config` describes.

    Args:
      config: 'dataset' is 'bytes', 'duplication' or 'enwik8'; all other fields are the
        keyword arguments of that module's `build`.
      split: 'train', 'validation' or 'test'.

    Returns:
      Iterator over {'tokens': int32 [B, L], 'weights': float32 [B, L]}.

    Raises:
      ValueError: for an unknown dataset or split; an unknown, missing or bad field.
      FileNotFoundError: if the data are not there and cannot be fetched.
    """
    module, fields = _resolve(config)
    return module.build(split, **fields)


def vocab_size(config: Mapping[str, Any]) -> int:
    """Returns the number of token ids of the dataset that `config` describes.

    Raises:
      ValueError: for an unknown dataset; an unknown or missing field.
    """
    module, fields = _resolve(config)
    return module.vocab_size(**fields)


def batch_shape(config: Mapping[str, Any]) -> tuple[int, int]:
    """Returns (B, L) of the batches of the dataset that `config` describes.

    Raises:
      ValueError: for an unknown dataset; an unknown or missing field.
    """
    module, fields = _resolve(config)
    return fields['batch_size'], module.example_length(**fields)


def encode(config: Mapping[str, Any], text: bytes) -> np.ndarray:
    """Returns the token ids [n] of a text, as the dataset would give them.

    Raises:
      ValueError: for an unknown dataset or field; a text with no tokens in the dataset.
    """
    module, fields = _resolve(config)
    return module.encode(text, **fields)


def decode(config: Mapping[str, Any], tokens: np.ndarray) -> bytes:
    """Returns the text of token ids [n]; what two parts give, joined, is what both do.

    Raises:
      ValueError: for an unknown dataset or field.
    """
    module, fields = _resolve(config)
    return module.decode(tokens, **fields)


def _resolve(config: Mapping[str, Any]) -> tuple[ModuleType, dict[str, Any]]:
    fields = {name: config[name] for name in config}
    dataset = fields.pop('dataset', None)
    if dataset not in _DATASETS:
        raise ValueError(
            f'unknown dataset {dataset!r}: set config.data.dataset to one of '
            f'{", ".join(_DATASETS)}'
        )
    module = _DATASETS[dataset]
    parameters = list(inspect.signature(module.build).parameters.values())[1:]
    allowed = [parameter.name for parameter in parameters]
    missing = [
        parameter.name
        for parameter in parameters
        if parameter.default is parameter.empty and parameter.name not in fields
    ]
    for kind, names in (
        ('unknown', [name for name in fields if name not in allowed]),
        ('missing', missing),
    ):
        if names:
            raise ValueError(
                f'{kind} field {", ".join(map(repr, names))} of dataset {dataset!r}: '
                f'config.data takes {", ".join(["dataset", *allowed])}'
            )
    return module, fields
