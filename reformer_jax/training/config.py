"""The config of a run, checked: what is wrong with it is said before any work."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from reformer_jax import data
from reformer_jax import sharding
from reformer_jax.attention import choice
from reformer_jax.attention import fields as fields_lib
from reformer_jax.generation import translation
from reformer_jax.model import config as model_config
from reformer_jax.training import optimizer as optimizer_lib


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """The top level of a config.

    Attributes:
      steps: optimizer steps of the run.
      mesh: devices along the axes data, fsdp, model, ring and sequence.
      placement: of parameters on these, before the rules of sharding.py: pairs of a
        regular expression of names and an axis, axes or None for each dimension, such
        as (('^head.output$', (None, 'model')),).
      data: data.Dataset.
      model: model.ModelConfig.
      optimizer: optimizer.OptimizerConfig.
      seed: of parameters, dropout and hashes (the data have their own).
      minutes: stop after so many minutes of this call, with a checkpoint and the final
        evaluation; 0 for no limit.
      log_every: steps between progress lines.
      eval_every: steps between evaluations on the validation split; 0 for only the
        final one.
      eval_batches: batches of a periodic evaluation; 0 for the whole split. The final
        one is always over the whole split.
      checkpoint_every: steps between checkpoints; 0 for only the final one.
      keep_checkpoints: how many of the latest to keep, besides the best.
      init_from: folder that training starts from instead of fresh parameters, a Hugging
        Face model or a run; '' for none. See start.py.
      decoding: of translations, generation.translation.Decoding; {} is its defaults.
      data_may_change: whether a run resumes though files of its data have changed.
      log_may_fail: whether a run goes on while metrics.jsonl cannot be written.
      accumulate: parts that a batch is cut into, one forward and backward pass each.
    """

    steps: int
    mesh: Mapping[str, int]
    data: data.Dataset
    model: model_config.ModelConfig
    optimizer: optimizer_lib.OptimizerConfig
    seed: int = 0
    minutes: float = 0.0
    log_every: int = 50
    eval_every: int = 1000
    eval_batches: int = 0
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    init_from: str = ''
    data_may_change: bool = False
    log_may_fail: bool = False
    accumulate: int = 1
    placement: tuple[Any, ...] = ()
    decoding: translation.Decoding = translation.Decoding()


def absent(config: Mapping[str, Any]) -> dict[str, Any]:
    """What is meant in older run folders by fields that were added to configs later."""
    return {
        'data': data.defaults(config['data']['dataset']),
        'model': model_config.defaults(),
        'optimizer': optimizer_lib.defaults(),
    }


def defaults() -> dict[str, Any]:
    """The top level of a config, for configs to start from: steps, data, model and
    optimizer are theirs."""
    mesh = {'data': -1, 'fsdp': 1, 'model': 1, 'ring': 1, 'sequence': 1}
    return model_config.defaults(RunConfig) | {'mesh': mesh, 'decoding': {}}


def decoding_defaults() -> dict[str, Any]:
    """Of `decoding`, for configs of pairs to list."""
    return model_config.defaults(translation.Decoding)


def run_config(fields: Mapping[str, Any]) -> RunConfig:
    """A config's fields as checked dataclasses; a ValueError names an unknown one."""
    checked = dict(fields)
    for name, kind in (
        ('model', model_config.ModelConfig),
        ('optimizer', optimizer_lib.OptimizerConfig),
        ('decoding', translation.Decoding),
    ):
        checked[name] = _section(kind, fields.get(name) or {}, f'{name}.')
    if 'data' in fields:
        checked['data'] = data.open(fields['data'])
    run = _section(RunConfig, checked, '')
    fields_lib.check(run.decoding, 'decoding.')
    fields_lib.check(run, 'config.')
    for name in ('steps', 'log_every', 'keep_checkpoints', 'accumulate'):
        if getattr(run, name) < 1:
            raise ValueError(f'config.{name}={getattr(run, name)} must be at least 1.')
    for name in ('minutes', 'eval_every', 'eval_batches', 'checkpoint_every', 'seed'):
        if getattr(run, name) < 0:
            raise ValueError(f'config.{name}={getattr(run, name)} is negative.')
    return run


def _section(kind: Any, fields: Any, prefix: str) -> Any:
    known = [field.name for field in dataclasses.fields(kind)]
    unknown = sorted(set(fields) - set(known))
    optional = model_config.defaults(kind)
    missing = sorted(set(known) - set(fields) - set(optional))
    for problem, names in (('unknown', unknown), ('missing', missing)):
        if names:
            raise ValueError(
                f'{problem} config field {", ".join(prefix + n for n in names)}: there '
                f'are {", ".join(prefix + n for n in known)}.'
            )
    return kind(**fields)


def check(run: RunConfig) -> None:
    """Raises a ValueError if model and data do not fit each other."""
    needed, classes, vocab_size = run.data.head, run.data.classes, run.data.vocab_size
    if run.model.head != needed:
        raise ValueError(
            f'dataset {run.data.dataset!r} is for a model with head={needed!r}, not '
            f'with model.head={run.model.head!r}: change config.model.head or the data.'
        )
    encoder, source = run.model.encoder, run.data.spec.get('source')
    if (encoder is None) != (source is None):
        has, remedy = 'sources', 'set config.model.encoder, or change the data'
        if encoder is not None:
            has, remedy = 'no sources', 'leave config.model.encoder empty'
        if run.init_from:
            remedy = (
                f'it is that of {run.init_from}: start from another, or change the data'
            )
        raise ValueError(
            f'dataset {run.data.dataset!r} has {has}, and the model has '
            f'{"no" if encoder is None else "an"} encoder: {remedy}.'
        )
    if source is not None and needed == 'lm' and run.model.start_token < 0:
        raise ValueError(
            f'model.start_token={run.model.start_token}: a target begins with a token '
            'that is given; set it to 0, the padding.'
        )
    if encoder is not None and source is not None:
        model_config.check_length(encoder, source[0][1], 'model.encoder')
        if vocab_size > encoder.vocab_size:
            raise ValueError(
                f'the data have token ids up to {vocab_size - 1}, but model.encoder.'
                f'vocab_size={encoder.vocab_size}: set it to at least {vocab_size}.'
            )
    if needed.endswith('classification') and run.model.classes != classes:
        raise ValueError(
            f'the data have {classes} classes and the model model.classes='
            f'{run.model.classes}: set it to {classes}, or to 0 when a run starts.'
        )
    (batch_size, length), _ = run.data.spec['tokens']
    if vocab_size > run.model.vocab_size:
        remedy = f'set it to at least {vocab_size}.'
        if run.init_from:
            remedy = f'use the tokenizer that {run.init_from} was trained with.'
        raise ValueError(
            f'the data have token ids up to {vocab_size - 1}, but model.vocab_size='
            f'{run.model.vocab_size}: {remedy}'
        )
    if batch_size % run.accumulate:
        raise ValueError(
            f'data.batch_size={batch_size} is no multiple of accumulate='
            f'{run.accumulate}: change one of them.'
        )
    model_config.check_length(run.model, length)


def check_devices(run: RunConfig, mesh: jax.sharding.Mesh) -> None:
    """Raises a ValueError if the devices do not divide batch and heads, or only
    interpret the kernel that is asked for."""
    (batch_size, _), _ = run.data.spec['tokens']
    for name, model in (('tokens', run.model), ('source', run.model.encoder)):
        if model is None:
            continue
        if choice.is_interpreted(model.implementation):
            raise ValueError(
                f'model.implementation={model.implementation!r} is for an accelerator '
                "and JAX runs on a CPU, which would interpret it: set it to ''."
            )
        length = run.data.spec[name][0][1]
        sharding.check(
            mesh,
            batch_size=batch_size // run.accumulate,
            heads=model.heads_at_once or model.heads,
            length=model_config.padded_length(model, length),
        )
        model_config.check_ring(model, length, mesh.shape.get('ring', 1))
