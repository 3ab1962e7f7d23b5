"""What a run starts from: the model of a Hugging Face folder, or of another run.

A config with init_from takes from there all that gives the parameters their meaning
(_ARCHITECTURE), and keeps its own head, dropout, rounds, dtype, stack and the like.
"""

import dataclasses
import pathlib
from typing import Any

import jax
import ml_collections

from reformer_jax import checkpoint
from reformer_jax import data
from reformer_jax import experiment
from reformer_jax import huggingface
from reformer_jax import model as model_lib
from reformer_jax import preparation
from reformer_jax import run_folder
from reformer_jax import sharding

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
    'combine',
    'start_token',
    'tie_output',
)
# Heads with the same parameters for the same purpose.
_VOCABULARY_HEADS = {'lm', 'masked_lm'}


def resolve(
    config: ml_collections.ConfigDict, workdir: str
) -> ml_collections.ConfigDict:
    """The config with all that is found elsewhere filled in, as a run folder keeps it.

    That is the architecture of init_from (of the run itself, if it has been started),
    the tokenizer there for data.tokenizer='', labels found in the data, and the number
    of classes.

    Raises:
      FileNotFoundError: init_from is no folder of a model.
      ValueError: what is there is damaged.
    """
    fields = config.to_dict()
    source = fields.get('init_from')
    if fields['data'].get('tokenizer') == '':
        fields['data']['tokenizer'] = _tokenizer(workdir, source)
    fields['data'] = data.resolve(fields['data'])
    if source:
        found = _started_config(workdir, source) or _source_config(source)
        fields['model'] |= {name: found[name] for name in _ARCHITECTURE}
    if data.head(fields['data']).endswith('classification'):
        fields['model'].setdefault('classes', 0)
        fields['model']['classes'] = fields['model']['classes'] or data.classes(
            fields['data']
        )
    return ml_collections.ConfigDict(fields)


def load_parameters(
    config: experiment.RunConfig, mesh: jax.sharding.Mesh
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
        source = experiment.run_config(ml_collections.ConfigDict(fields))
        model, _ = preparation.restore_model(source, mesh, config.init_from)
    heads = {model.config.head, config.model.head}
    same_head = len(heads) == 1 or heads == _VOCABULARY_HEADS
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

    Only a head may stay fresh, also one for another number of classes.

    Raises:
      ValueError: a parameter is missing or has another shape.
    """
    fresh: list[str] = []

    def replace(path: Any, leaf: jax.Array) -> jax.Array:
        name = sharding.leaf_name(path)
        found = parameters.get(name)
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


def _tokenizer(workdir: str, source: str | None) -> str:
    found = run_folder.find_tokenizer(workdir)
    if found is None and source:
        found = run_folder.find_tokenizer(source)
    return found or run_folder.NO_TOKENIZER


def _started_config(workdir: str, source: str) -> dict[str, Any] | None:
    """The model section of the run in a folder if it started from the same source."""
    try:
        fields = checkpoint.load_config(workdir)
    except FileNotFoundError:
        return None
    return fields['model'] if fields.get('init_from') == source else None


def _source_config(source: str) -> dict[str, Any]:
    if huggingface.is_model(source):
        return dataclasses.asdict(huggingface.load_config(source))
    if not pathlib.Path(source).expanduser().is_dir():
        raise FileNotFoundError(
            f'config.init_from={source!r} is no folder: give one that transformers '
            'saved a Reformer in (config.json, model.safetensors), or a run folder.'
        )
    fields = checkpoint.load_config(source)
    return dataclasses.asdict(
        experiment.run_config(ml_collections.ConfigDict(fields)).model
    )
