"""Datasets: each gives batches of arrays from a grain pipeline.

All batches have 'tokens', int32 [B, L], and 'weights', float32 [B, L] or [B], which are
0 for padding; `batch_spec` says what else. 'train' never ends; 'validation' and 'test'
are one pass in order, the last batch padded with rows of weight 0. get_state and
set_state (and orbax) save and restore the place in the stream.

Language modelling reads raw text ('bytes', 'duplication', 'enwik8', 'novel', 'text') or
images ('imagenet64'); the other datasets read labelled rows (see `tables`) and score
predictions.
"""

import inspect
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import grain
import numpy as np

from reformer_jax.data import batching
from reformer_jax.data import corpus
from reformer_jax.data import duplication
from reformer_jax.data import enwik8
from reformer_jax.data import images
from reformer_jax.data import text
from reformer_jax.data import tokenizers
from reformer_jax.data.tasks import classification
from reformer_jax.data.tasks import question_answering
from reformer_jax.data.tasks import tables
from reformer_jax.data.tasks import token_classification

__all__ = (
    'batch_spec',
    'batching',
    'build',
    'classes',
    'corpus',
    'decode',
    'encode',
    'encode_one',
    'head',
    'images',
    'is_images',
    'resolve',
    'score',
    'splits',
    'tokenizers',
    'vocab_size',
)

_LABELLED = {
    'classification': classification,
    'token_classification': token_classification,
    'question_answering': question_answering,
}
_DATASETS = {
    'bytes': text,
    'duplication': duplication,
    'enwik8': enwik8,
    'imagenet64': images,
    'novel': text,
    'text': text,
    **_LABELLED,
}
# Fields that a name stands for, and that cannot be set beside it.
_MEANT: dict[str, dict[str, Any]] = {
    'bytes': {'tokenizer': text.BYTES, 'masked_fraction': 0.0, 'whole': False},
    'novel': {'masked_fraction': 0.0, 'whole': True},
    'text': {'whole': False},
}


def build(config: Mapping[str, Any], split: str) -> grain.DatasetIterator:
    """Returns the iterator of one split of the dataset that `config` describes.

    Args:
      config: 'dataset' is the name of one; all other fields are the keyword arguments
        of that module's `build`.
      split: 'train', 'validation' or 'test', one of `splits`.

    Returns:
      Iterator over batches, dicts of the arrays that `batch_spec` describes.

    Raises:
      ValueError: for an unknown dataset or split; an unknown, missing or bad field.
      FileNotFoundError: if the data are not there and cannot be fetched.
    """
    module, fields = _select(config)
    return module.build(split, **fields)


def vocab_size(config: Mapping[str, Any]) -> int:
    """Returns the number of token ids of the dataset that `config` describes.

    Raises:
      ValueError: for an unknown dataset; an unknown or missing field.
      FileNotFoundError: if the tokenizer is not there.
    """
    module, fields = _select(config)
    return module.vocab_size(**fields)


def batch_spec(config: Mapping[str, Any]) -> batching.Spec:
    """Returns name -> (shape, dtype) of every array of a batch.

    Raises:
      ValueError: for an unknown dataset; an unknown or missing field.
      FileNotFoundError: if labels have to be found and the data are not there.
    """
    module, fields = _select(config)
    return module.batch_spec(**fields)


def head(config: Mapping[str, Any]) -> str:
    """Returns what the model has to predict.

    Returns:
      'lm', 'masked_lm', 'classification', 'token_classification' or
      'question_answering'.

    Raises:
      ValueError: for an unknown dataset; an unknown or missing field.
    """
    _, fields = _select(config)
    if config['dataset'] in _LABELLED:
        return config['dataset']
    return 'masked_lm' if fields.get('masked_fraction') else 'lm'


def classes(config: Mapping[str, Any]) -> int:
    """Returns the number of logits of a row or token; 0 for language modelling.

    Raises:
      ValueError: for an unknown dataset; an unknown, missing or bad field.
      FileNotFoundError: if labels have to be found and the data are not there.
    """
    module, fields = _select(config)
    return module.classes(**fields) if config['dataset'] in _LABELLED else 0


def splits(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the splits there are: 'train', 'validation' and most often 'test'.

    A split whose labels are hidden (GLUE's test) is none.

    Raises:
      ValueError: for an unknown dataset; an unknown, missing or bad field.
      FileNotFoundError: if the data are not there and cannot be fetched.
    """
    module, fields = _select(config)
    if module is images:
        return images.splits(**fields)
    if config['dataset'] not in _LABELLED:
        return batching.SPLITS
    found = tables.splits(fields['source'], fields.get('data_dir'))
    if module is not classification:
        return found
    return tuple(s for s in found if not classification.is_hidden(s, **fields))


def is_images(config: Mapping[str, Any]) -> bool:
    """Returns whether the sequences are images, which images.to_images shows.

    Raises:
      ValueError: for an unknown dataset; an unknown or missing field.
    """
    module, _ = _select(config)
    return module is images


def resolve(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the config with all that was found in the data (labels) filled in.

    Raises:
      ValueError: for an unknown dataset; an unknown, missing or bad field.
      FileNotFoundError: if labels have to be found and the data are not there.
    """
    module, fields = _select(config)
    if config['dataset'] in _LABELLED:
        return {'dataset': config['dataset'], **module.resolve(**fields)}
    return {'dataset': config['dataset'], **dict(config)}


def score(
    config: Mapping[str, Any], split: str, predictions: np.ndarray
) -> dict[str, float]:
    """Scores predictions for the first rows of a split as the task's benchmarks do.

    Args:
      config: as for `build`.
      split: 'train', 'validation' or 'test'.
      predictions: for N rows in the order of an evaluation, without padding rows:
        logits [N, classes] of 'classification', classes int [N, L] of
        'token_classification', first and last token int [N, 2] of
        'question_answering'.

    Returns:
      Name -> score; {} for language modelling.

    Raises:
      ValueError: for a bad config, as `build`; for predictions of another shape.
      FileNotFoundError: if the data are not there and cannot be fetched.
    """
    module, fields = _select(config)
    if config['dataset'] not in _LABELLED:
        return {}
    return module.score(split, predictions, **fields)


def encode(config: Mapping[str, Any], text: bytes) -> np.ndarray:
    """Returns the token ids [n] of a text, as the dataset would give them.

    Raises:
      ValueError: for an unknown dataset or field; a text with no tokens in the dataset.
    """
    module, fields = _select(config)
    return module.encode(text, **fields)


def encode_one(config: Mapping[str, Any], text: bytes) -> int:
    """Returns the id of a text that is one token.

    Raises:
      ValueError: it is none or several; as `encode`.
    """
    tokens = encode(config, text)
    # A tokenizer of subwords may put a token for the beginning in front.
    if not tokens.size or decode(config, tokens[-1:]).strip(b' ') != text.strip(b' '):
        raise ValueError(
            f'{text.decode("utf-8", "replace")!r} is {tokens.size} tokens: give a text '
            'that is a single one.'
        )
    return int(tokens[-1])


def decode(config: Mapping[str, Any], tokens: np.ndarray) -> bytes:
    """Returns the text of token ids [n]; what two parts give, joined, is what both do.

    Raises:
      ValueError: for an unknown dataset or field.
    """
    module, fields = _select(config)
    return module.decode(tokens, **fields)


def _select(config: Mapping[str, Any]) -> tuple[ModuleType, dict[str, Any]]:
    fields = {name: config[name] for name in config}
    dataset = fields.pop('dataset', None)
    if dataset not in _DATASETS:
        raise ValueError(
            f'unknown dataset {dataset!r}: set config.data.dataset to one of '
            f'{", ".join(_DATASETS)}'
        )
    module, meant = _DATASETS[dataset], _MEANT.get(dataset, {})
    parameters = [
        parameter
        for parameter in list(inspect.signature(module.build).parameters.values())[1:]
        if parameter.name not in meant
    ]
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
    return module, {**fields, **meant}
