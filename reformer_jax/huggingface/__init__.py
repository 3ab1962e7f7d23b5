"""Reads and writes the folders of Hugging Face transformers' Reformer models.

A folder holds config.json (fields.py) and model.safetensors, whole or in shards
(files.py, tensors.py). All five classes: ReformerModel (head 'none'),
ReformerModelWithLMHead, ReformerForMaskedLM, ReformerForSequenceClassification,
ReformerForQuestionAnswering. The bias of the language modelling head is applied, which
transformers 5 forgets.
convert.py makes run folders of them, and them of run folders.
"""

import contextlib
import itertools
import json
import operator
import os
import pathlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from reformer_jax import model as model_lib
from reformer_jax.huggingface import fields as fields_lib
from reformer_jax.huggingface import files as files_lib
from reformer_jax.huggingface import tensors as tensors_lib
from reformer_jax.model import config as model_config

__all__ = (
    'CONFIG',
    'SAFETENSORS',
    'fields',
    'is_model',
    'labels',
    'load',
    'load_config',
    'load_fields',
    'save',
    'tensors',
)

CONFIG = 'config.json'
SAFETENSORS = files_lib.SAFETENSORS


def load(
    directory: str | os.PathLike[str], *, pytorch: bool = False
) -> tuple[model_config.ModelConfig, model_lib.Reformer]:
    """Reads a model that transformers saved; float32 whatever the file's dtype.

    Args:
      directory: with config.json and model.safetensors, or its shards and their index.
      pytorch: also read a pytorch_model.bin, where there is nothing better, with torch
        and its restricted unpickler (weights_only).

    Returns:
      The config and the model, on the default device.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: the config is of another model, or a file is damaged or does not have
        exactly the model's tensors, all of them finite.
    """
    folder = pathlib.Path(directory).expanduser()
    config = load_config(folder, pytorch=pytorch)
    if config.causal and config.head in ('classification', 'question_answering'):
        print(
            f'{folder / CONFIG} has is_decoder=true: as in transformers, no token '
            f'of this {config.head} model sees a later one, and the first only itself',
            file=sys.stderr,
        )
    weights = files_lib.find(folder, pytorch=pytorch)
    wanted = list(tensors_lib.tensors(config))
    _check({tensor.name: tensor.shape for tensor in wanted}, weights)
    abstract, structure = jax.tree.flatten(tensors_lib.abstract_model(config))
    leaves: list[Any] = []
    for number, of_leaf in itertools.groupby(wanted, operator.attrgetter('leaf')):
        parameter = np.empty(abstract[number].shape, np.float32)
        for tensor in of_leaf:
            tensors_lib.to_parameter(tensor, weights.read(tensor.name), parameter)
        leaves.append(jnp.asarray(parameter))
    return config, jax.tree.unflatten(structure, leaves)


def save(
    directory: str | os.PathLike[str],
    config: model_config.ModelConfig,
    model: model_lib.Reformer,
    *,
    like: Mapping[str, Any] | None = None,
) -> None:
    """Writes a model as transformers does; what load read gives the same files.

    Args:
      directory: created when absent; must not hold a model.
      config: of the model, see fields.from_model_config for what transformers has.
      model: its parameters are written as float32.
      like: fields of a config.json (load_fields) whose further fields are kept.

    Raises:
      FileExistsError: the folder holds a model.
      ValueError: transformers has no such model, or its numbers are not finite.
    """
    folder = pathlib.Path(directory).expanduser()
    fields = fields_lib.from_model_config(config, like)
    for name in (CONFIG, SAFETENSORS):
        if (folder / name).exists():
            raise FileExistsError(
                f'{folder / name} exists and is left as it is: give a new folder.'
            )
    leaves = jax.tree.leaves(model)
    arrays = {
        tensor.name: files_lib.finite(
            'the model', tensor.name, tensors_lib.to_file(tensor, leaves[tensor.leaf])
        )
        for tensor in tensors_lib.tensors(config)
    }
    folder.mkdir(parents=True, exist_ok=True)
    with _written_whole(folder / SAFETENSORS) as file:
        safetensors.numpy.save_file(arrays, file, metadata={'format': 'pt'})
    # Last, so that a folder with it is complete.
    with _written_whole(folder / CONFIG) as file:
        text = json.dumps(fields, indent=2, sort_keys=True) + '\n'
        file.write_text(text, encoding='utf-8')


@contextlib.contextmanager
def _written_whole(file: pathlib.Path) -> Iterator[pathlib.Path]:
    """A path to write to, which becomes `file` when all of it is there."""
    temporary = file.with_name(f'{file.name}.tmp')
    yield temporary
    os.rename(temporary, file)


def load_config(
    directory: str | os.PathLike[str], *, pytorch: bool = False
) -> model_config.ModelConfig:
    """The config alone; errors as of `load`."""
    folder = pathlib.Path(directory).expanduser()
    fields = load_fields(folder)
    if isinstance(fields.get('model'), dict):
        raise ValueError(
            f'{folder / CONFIG} is of a run, not of a Reformer that transformers '
            'saved: it needs no import.'
        )
    if not fields.get('architectures'):  # of a config that was saved by itself
        names = files_lib.find(folder, pytorch=pytorch).shapes
        fields['architectures'] = fields_lib.architectures(names, fields)
    return fields_lib.to_model_config(fields, str(folder / CONFIG))


def load_fields(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """The content of a folder's config.json.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is no JSON object.
    """
    file = pathlib.Path(directory).expanduser() / CONFIG
    if not file.is_file():
        raise FileNotFoundError(
            f'no {CONFIG} in {file.parent}: give the folder of a Reformer that '
            'transformers saved (save_pretrained).'
        )
    try:
        fields = json.loads(file.read_text(encoding='utf-8-sig'))
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{file} is not JSON ({error}): copy it again.') from error
    if not isinstance(fields, dict):
        raise ValueError(f'{file} holds no JSON object: copy it again.')
    return fields


def labels(directory: str | os.PathLike[str]) -> tuple[str, ...]:
    """Names of the classes in order; () where config.json has only numbers.

    Raises:
      ValueError: they are not numbered from 0 on; as `load_fields`.
    """
    fields = load_fields(directory)
    names = fields.get('id2label') or {}
    if not isinstance(names, dict):
        raise ValueError(
            f'{CONFIG} of {directory} has id2label={names!r}: write it as {{"0": name, '
            '...}, or leave it out.'
        )
    numbers = [str(number) for number in range(len(names))]
    if sorted(names) != sorted(numbers):
        raise ValueError(
            f'{CONFIG} of {directory} has id2label for {", ".join(names)}: number the '
            f'{len(names)} classes from 0 on.'
        )
    found = tuple(str(names[number]) for number in numbers)
    return () if found == fields_lib.numbered(len(found)) else found


def is_model(directory: str | os.PathLike[str]) -> bool:
    """Whether a folder looks like one of transformers'."""
    return (pathlib.Path(directory).expanduser() / CONFIG).is_file() and (
        'model_type' in load_fields(directory)
    )


def _check(
    expected: Mapping[str, tuple[int, ...]],
    weights: files_lib.Weights,
) -> None:
    """Raises a ValueError unless the files have the model's tensors and no others."""
    found = weights.shapes
    unknown = [n for n in found if n not in expected and not tensors_lib.is_ignored(n)]
    problems = [f'{name} is missing' for name in expected if name not in found]
    problems += [f'{name} is unknown' for name in unknown]
    problems += [
        f'{name} has shape {list(found[name])} instead of {list(shape)}'
        for name, shape in expected.items()
        if found.get(name, shape) != shape
    ]
    if problems:
        raise ValueError(
            f'{weights.source} does not fit the {CONFIG} beside it:\n'
            f'{files_lib.listed(problems)}\n'
            'The two files are of different models: copy both again.'
        )
