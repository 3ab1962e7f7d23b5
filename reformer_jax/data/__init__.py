"""Datasets: `open` makes one of config.data; see `Dataset` for what it gives.

Language modelling reads raw text ('bytes', 'text', 'novel', 'enwik8'), a task made of
numbers ('duplication') or images ('imagenet64'); an encoder-decoder pairs of texts
('pairs'), of words ('copy_reverse') or of a text and its marked lines ('marked'). The
other datasets score predictions: 'listops' is generated, 'cifar10' reads images, the
rest labelled rows (see tasks.tables).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from reformer_jax.data import batching
from reformer_jax.data import copy_reverse
from reformer_jax.data import corpus
from reformer_jax.data import duplication
from reformer_jax.data import enwik8
from reformer_jax.data import fingerprint
from reformer_jax.data import images
from reformer_jax.data import marked
from reformer_jax.data import pairs
from reformer_jax.data import text
from reformer_jax.data import tokenizers
from reformer_jax.data.dataset import Dataset
from reformer_jax.data.tasks import cifar10
from reformer_jax.data.tasks import classification
from reformer_jax.data.tasks import listops
from reformer_jax.data.tasks import question_answering
from reformer_jax.data.tasks import token_classification

__all__ = (
    'Dataset',
    'batching',
    'corpus',
    'defaults',
    'fingerprint',
    'images',
    'open',
    'pairs',
    'tokenizers',
)

_DATASETS: dict[str, type[Dataset]] = {
    'bytes': text.Text,
    'cifar10': cifar10.Cifar10,
    'copy_reverse': copy_reverse.CopyReverse,
    'classification': classification.Classification,
    'duplication': duplication.Duplication,
    'enwik8': enwik8.Enwik8,
    'imagenet64': images.Images,
    'listops': listops.ListOps,
    'marked': marked.Marked,
    'novel': text.Text,
    'pairs': pairs.Pairs,
    'question_answering': question_answering.QuestionAnswering,
    'text': text.Text,
    'token_classification': token_classification.TokenClassification,
}


def open(config: Mapping[str, Any]) -> Dataset:
    """Returns the dataset of config.data; no file is read yet.

    Args:
      config: 'dataset' is its name, all else are fields of its class; those that have a
        default may be missing.

    Raises:
      ValueError: for an unknown dataset; an unknown, missing or bad field.
    """
    fields = dict(config)
    kind = _kind(fields.get('dataset'))
    known = {field.name: field for field in dataclasses.fields(kind)}
    unknown = [name for name in fields if name not in known]
    missing = [
        name
        for name, field in known.items()
        if name not in fields and field.default is dataclasses.MISSING
    ]
    for problem, names in (('unknown', unknown), ('missing', missing)):
        if names:
            raise ValueError(
                f'{problem} field {", ".join(map(repr, names))} of dataset '
                f'{fields["dataset"]!r}: config.data takes {", ".join(known)}'
            )
    return kind(**fields)


def defaults(dataset: str) -> dict[str, Any]:
    """The name and the fields that have a default, for configs to start from: a field
    that is not in a config can't be set on the command line.

    Raises:
      ValueError: for an unknown dataset.
    """
    fields = dataclasses.fields(_kind(dataset))
    given = {f.name: f.default for f in fields if f.default is not dataclasses.MISSING}
    return {'dataset': dataset, **given}


def _kind(dataset: str | None) -> type[Dataset]:
    if dataset not in _DATASETS:
        raise ValueError(
            f'unknown dataset {dataset!r}: set config.data.dataset to one of '
            f'{", ".join(_DATASETS)}'
        )
    return _DATASETS[dataset]
