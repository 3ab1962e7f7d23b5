"""Reads and writes the folders of Hugging Face transformers' Reformer models.

A folder holds config.json (fields.py) and model.safetensors (tensors.py). All five
classes: ReformerModel (head 'none'), ReformerModelWithLMHead, ReformerForMaskedLM,
ReformerForSequenceClassification, ReformerForQuestionAnswering. The bias of the
language modelling head is applied, which transformers 5 forgets.
convert.py makes run folders of them, and them of run folders.
"""

import contextlib
import itertools
import json
import operator
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from reformer_jax import model as model_lib
from reformer_jax.huggingface import fields as fields_lib
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
SAFETENSORS = 'model.safetensors'
PYTORCH = 'pytorch_model.bin'
_LISTED = 8  # differences an error message names before it only counts them

# Shape of a tensor and the tensor itself, by its name.
Reader = tuple[Mapping[str, tuple[int, ...]], Callable[[str], np.ndarray]]


def load(
    directory: str | os.PathLike[str], *, pytorch: bool = False
) -> tuple[model_config.ModelConfig, model_lib.Reformer]:
    """Reads a model that transformers saved; float32 whatever the file's dtype.

    Args:
      directory: with config.json and model.safetensors.
      pytorch: also read a pytorch_model.bin, where there is nothing better, with torch
        and its restricted unpickler (weights_only).

    Returns:
      The config and the model, on the default device.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: the config is of another model, or a file is damaged or does not have
        exactly the model's tensors.
    """
    folder = pathlib.Path(directory).expanduser()
    config = load_config(folder)
    file = _weights(folder, pytorch)
    wanted = list(tensors_lib.tensors(config))
    abstract, structure = jax.tree.flatten(tensors_lib.abstract_model(config))
    leaves: list[Any] = []
    with _reader(file) as (shapes, read):
        _check({tensor.name: tensor.shape for tensor in wanted}, shapes, file)
        for number, of_leaf in itertools.groupby(wanted, operator.attrgetter('leaf')):
            parameter = np.empty(abstract[number].shape, np.float32)
            for tensor in of_leaf:
                tensors_lib.to_parameter(tensor, read(tensor.name), parameter)
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
      ValueError: transformers has no such model.
    """
    folder = pathlib.Path(directory).expanduser()
    fields = fields_lib.from_model_config(config, like)
    for name in (CONFIG, SAFETENSORS):
        if (folder / name).exists():
            raise FileExistsError(
                f'{folder / name} exists and is left as it is: give a new folder.'
            )
    folder.mkdir(parents=True, exist_ok=True)
    leaves = jax.tree.leaves(model)
    arrays = {
        tensor.name: tensors_lib.to_file(tensor, leaves[tensor.leaf])
        for tensor in tensors_lib.tensors(config)
    }
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


def load_config(directory: str | os.PathLike[str]) -> model_config.ModelConfig:
    """The config alone; errors as of `load`."""
    source = str(pathlib.Path(directory).expanduser() / CONFIG)
    return fields_lib.to_model_config(load_fields(directory), source)


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
        fields = json.loads(file.read_text(encoding='utf-8'))
    except ValueError as error:
        raise ValueError(f'{file} is not JSON ({error}): copy it again.') from error
    if not isinstance(fields, dict):
        raise ValueError(f'{file} holds no JSON object: copy it again.')
    return fields


def labels(directory: str | os.PathLike[str]) -> tuple[str, ...]:
    """Names of the classes in order; () where config.json has only numbers."""
    fields = load_fields(directory)
    names = fields.get('id2label') or {}
    found = tuple(str(names[key]) for key in sorted(names, key=int))
    return () if found == fields_lib.numbered(len(found)) else found


def is_model(directory: str | os.PathLike[str]) -> bool:
    """Whether a folder looks like one of transformers'."""
    return (pathlib.Path(directory).expanduser() / CONFIG).is_file() and (
        'model_type' in load_fields(directory)
    )


def _weights(folder: pathlib.Path, pytorch: bool) -> pathlib.Path:
    if (folder / SAFETENSORS).is_file():
        return folder / SAFETENSORS
    if not (folder / PYTORCH).is_file():
        raise FileNotFoundError(
            f'no {SAFETENSORS} in {folder}: copy it there, or save the model again in '
            'one piece (max_shard_size).'
        )
    if not pytorch:
        raise ValueError(
            f'{folder} has only {PYTORCH}, a pickle, which is not loaded unless asked '
            'for: import it once with --pytorch (pytorch=True), which takes torch.'
        )
    return folder / PYTORCH


@contextlib.contextmanager
def _reader(file: pathlib.Path) -> Iterator[Reader]:
    def read(name: str) -> np.ndarray:
        # The file is mapped: opened once for all, its pages would count as ours.
        with safetensors.safe_open(file, framework='numpy') as opened:
            return opened.get_tensor(name)

    try:
        if file.name == PYTORCH:
            yield _read_pytorch(file)
            return
        with safetensors.safe_open(file, framework='numpy') as opened:
            names = opened.keys()
            shapes = {n: tuple(opened.get_slice(n).get_shape()) for n in names}
        yield shapes, read
    except safetensors.SafetensorError as error:
        raise ValueError(
            f'{file} is truncated or damaged ({error}): copy it again.'
        ) from error


def _read_pytorch(file: pathlib.Path) -> Reader:
    try:
        import torch
    except ImportError as error:
        raise ValueError(
            f'{file} can only be read with torch, which is not installed: install it, '
            f'or save the model as {SAFETENSORS}.'
        ) from error
    try:
        state = torch.load(file, map_location='cpu', weights_only=True, mmap=True)
    except Exception as error:  # whatever the unpickler says
        raise ValueError(f'{file} cannot be read by torch ({error}).') from error
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    return shapes, lambda name: state[name].float().numpy()


def _check(
    expected: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
    file: pathlib.Path,
) -> None:
    """Raises a ValueError unless the file has the model's tensors and no others."""
    unknown = [n for n in found if n not in expected and not tensors_lib.is_ignored(n)]
    problems = [f'{name} is missing' for name in expected if name not in found]
    problems += [f'{name} is unknown' for name in unknown]
    problems += [
        f'{name} has shape {list(found[name])} instead of {list(shape)}'
        for name, shape in expected.items()
        if found.get(name, shape) != shape
    ]
    if problems:
        more = [f'and {len(problems) - _LISTED} more'] * (len(problems) > _LISTED)
        listed = '\n'.join(f'  {line}' for line in problems[:_LISTED] + more)
        raise ValueError(
            f'{file} does not fit the {CONFIG} beside it:\n'
            f'{listed}\n'
            'The two files are of different models: copy both again.'
        )
