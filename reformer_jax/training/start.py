"""What a run starts from: the model of a Hugging Face folder, or of another run.

A config with init_from takes from there all that gives the parameters their meaning
(_ARCHITECTURE), and keeps its own head, dropout, rounds, dtype, stack and the like.
"""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from reformer_jax import data
from reformer_jax import huggingface
from reformer_jax import model as model_lib
from reformer_jax import sharding
from reformer_jax.runs import checkpoint
from reformer_jax.runs import folder as run_folder
from reformer_jax.training import config as training_config
from reformer_jax.training import state as state_lib

_ARCHITECTURE = (
    'vocab_size',
    'length',
    'd_model',
    'd_ff',
    'heads',
    'head_size',
    'layers',
    'pattern',
    'causal',
    'local_chunk_length',
    'local_chunks_before',
    'local_chunks_after',
    'lsh_chunk_length',
    'lsh_chunks_before',
    'lsh_chunks_after',
    'buckets',
    'rule',
    'within_bucket',
    'dense_length',
    'shared_qk',
    'activation',
    'positions',
    'axial_shape',
    'axial_sizes',
    'norm_epsilon',
    'streams',
    'combine',
    'start_token',
    'tie_output',
)
# Also taken where the head is of the same kind.
_OF_HEAD = ('pooling', 'classes')
_VOCABULARY_AXES = {'embedding': 0, 'head.output': 1, 'head.output_bias': 0}
# Bytes, padding and an unused token; and the mask.
_BYTE_VOCABULARIES = (258, 259)


def resolve(
    config: ml_collections.ConfigDict, workdir: str
) -> ml_collections.ConfigDict:
    """The config with all that is found elsewhere filled in, as a run folder keeps it.

    That is the architecture of init_from (of the run itself, if it has been started),
    the tokenizer there for data.tokenizer='', labels of the run or of the same head
    there or else found in the data, and the number of classes. What replaces a setting
    is printed.

    Raises:
      FileNotFoundError: init_from is no folder of a model.
      ValueError: what is there is damaged or has no tokenizer that can be read.
    """
    fields = config.to_dict()
    if not isinstance(fields.get('data'), dict) or 'model' not in fields:
        return config  # run_config says what is missing
    fields['data'] = data.defaults(fields['data'].get('dataset')) | fields['data']
    source, started = fields.get('init_from'), _run_fields(workdir)
    given: dict[str, Any] = {}
    if source:
        same = started and started.get('init_from') == source
        given = started if started and same else _source_fields(source)
    if fields['data'].get('tokenizer') == '':
        fields['data']['tokenizer'] = _tokenizer(workdir, source, given)
    same_head = given.get('model', {}).get('head') == fields['model'].get('head')
    if 'labels' in fields['data'] and not fields['data']['labels']:
        known = started or (given if same_head else {})
        fields['data']['labels'] = known.get('data', {}).get('labels', ())
    dataset = data.open(fields['data']).resolved()
    fields['data'] = dataclasses.asdict(dataset)
    if given:
        names = (*_ARCHITECTURE, *(_OF_HEAD if same_head else ()))
        taken = {name: given['model'][name] for name in names if name in given['model']}
        all_but_mask = dataset.vocab_size - 1
        if dataset.head == 'masked_lm' and taken['vocab_size'] == all_but_mask:
            taken['vocab_size'] += 1
        _say_what_is_replaced(fields['model'], taken, source)
        fields['model'] |= taken
    if dataset.head.endswith('classification'):
        fields['model']['classes'] = fields['model'].get('classes') or dataset.classes
    return ml_collections.ConfigDict(fields)


def load_parameters(
    config: training_config.RunConfig, mesh: jax.sharding.Mesh
) -> dict[str, jax.Array]:
    """Parameters to start from by their names, those of another kind of head left out.

    Raises:
      FileNotFoundError: init_from holds no model or no checkpoint.
      ValueError: a file is damaged or does not fit its config.
    """
    if huggingface.is_model(config.init_from):
        _, model = huggingface.load(config.init_from)
    else:
        fields = checkpoint.load_config(config.init_from)
        source = training_config.run_config(ml_collections.ConfigDict(fields))
        model, _ = state_lib.restore_model(source, mesh, config.init_from)
    same_head = model.config.head == config.model.head
    leaves = jax.tree_util.tree_leaves_with_path(model)
    named = {sharding.leaf_name(path): leaf for path, leaf in leaves}
    return {
        name: leaf
        for name, leaf in named.items()
        if same_head or not name.startswith('head.')
    }


def put(
    model: model_lib.Reformer, parameters: dict[str, jax.Array]
) -> tuple[model_lib.Reformer, list[str]]:
    """The model with its parameters replaced; and the names of those that stay fresh.

    Only a head may stay fresh, also one for another number of classes; and the last
    token of a vocabulary that is larger by one.

    Raises:
      ValueError: a parameter is missing or has another shape.
    """
    fresh: list[str] = []

    def replace(path: Any, leaf: jax.Array) -> jax.Array:
        name = sharding.leaf_name(path)
        found = parameters.get(name)
        if found is not None and found.shape != leaf.shape:
            found = _with_one_more_token(name, found, leaf)
        if found is not None and found.shape == leaf.shape:
            return jax.device_put(found, leaf.sharding)
        if not name.startswith('head.'):
            there = 'none' if found is None else f'one of shape {found.shape}'
            raise ValueError(
                f'the model needs the parameter {name} of shape {leaf.shape}, and '
                f'init_from has {there}: let the config take its architecture from '
                'there.'
            )
        fresh.append(name)
        return leaf

    return jax.tree_util.tree_map_with_path(replace, model), fresh


def _with_one_more_token(
    name: str, found: jax.Array, fresh: jax.Array
) -> jax.Array | None:
    """A parameter over the vocabulary, its last token from the fresh one."""
    axis = _VOCABULARY_AXES.get(name)
    if axis is None or found.shape[axis] + 1 != fresh.shape[axis]:
        return found
    last = jax.lax.slice_in_dim(fresh, found.shape[axis], fresh.shape[axis], axis=axis)
    return jnp.concatenate([found, jax.device_put(last, found.sharding)], axis=axis)


def _say_what_is_replaced(
    model: dict[str, Any], taken: dict[str, Any], source: str
) -> None:
    def plain(value):
        return list(value) if isinstance(value, tuple | list) else value

    replaced = [
        f'{name}={plain(value)} (not {plain(model[name])})'
        for name, value in taken.items()
        if name in model and plain(model[name]) != plain(value)
    ]
    if replaced and jax.process_index() == 0:
        print(f'model from {source}: {", ".join(replaced)}', flush=True)


def _tokenizer(workdir: str, source: str | None, given: dict[str, Any]) -> str:
    """The file in the run folder or the source; bytes where these were meant."""
    found = run_folder.find_tokenizer(workdir)
    if found is None and source:
        found = run_folder.find_tokenizer(source)
    if found is None and source and huggingface.is_model(source):
        size = given['model']['vocab_size']
        if size not in _BYTE_VOCABULARIES:
            raise ValueError(
                f'{source} has a vocabulary of {size} tokens and no spiece.model: copy '
                "it there, or give --config.data.tokenizer=FILE ('bytes' for bytes)."
            )
    return found or run_folder.NO_TOKENIZER


def _run_fields(workdir: str) -> dict[str, Any] | None:
    """The config of the run in a folder, if there is one."""
    try:
        return checkpoint.load_config(workdir)
    except FileNotFoundError:
        return None


def _source_fields(source: str) -> dict[str, Any]:
    """The config of a run, or as much of one as a Hugging Face folder has."""
    if huggingface.is_model(source):
        model = dataclasses.asdict(huggingface.load_config(source))
        return {'model': model, 'data': {'labels': huggingface.labels(source)}}
    if not pathlib.Path(source).expanduser().is_dir():
        raise FileNotFoundError(
            f'config.init_from={source!r} is no folder: give one that transformers '
            'saved a Reformer in (config.json, model.safetensors), or a run folder.'
        )
    fields = checkpoint.load_config(source)
    run = training_config.run_config(ml_collections.ConfigDict(fields))
    return fields | {'model': dataclasses.asdict(run.model)}
