"""Between the folders of Hugging Face transformers and run folders; see convert.py."""

import dataclasses
import json
import pathlib
import shutil
from typing import Any

from reformer_jax import huggingface
from reformer_jax import sharding
from reformer_jax.data import tokenizers
from reformer_jax.huggingface import fields as fields_lib
from reformer_jax.model import config as model_config
from reformer_jax.runs import checkpoint
from reformer_jax.runs import folder as run_folder
from reformer_jax.training import config as training_config
from reformer_jax.training import optimizer as optimizer_lib
from reformer_jax.training import state as state_lib

# In an imported run folder: the config.json that the model came with.
_ORIGINAL = 'huggingface.json'
_SENTENCEPIECE = 'spiece.model'

# Columns that data of a head are to have.
_COLUMNS: dict[str, dict[str, Any]] = {
    'classification': {
        'text_columns': ('text',),
        'label_column': 'label',
        'kind': 'single',
    },
    'question_answering': {
        'question_column': 'question',
        'context_column': 'context',
        'answers_column': 'answers',
    },
}


def import_folder(folder: str, workdir: str, *, pytorch: bool = False) -> None:
    """Makes a run folder of a model that transformers saved.

    Raises:
      FileExistsError: there is something in `workdir`.
      FileNotFoundError, ValueError: as huggingface.load.
    """
    config, model = huggingface.load(folder, pytorch=pytorch)
    if checkpoint.exists(workdir):
        raise FileExistsError(f'{workdir} is a run already: give a new folder.')
    tokenizer = run_folder.find_tokenizer(folder) or run_folder.NO_TOKENIZER
    if tokenizer == run_folder.NO_TOKENIZER:
        print(f'no {_SENTENCEPIECE} in {folder}: texts will be read as bytes')
    elif (size := tokenizers.load(tokenizer).vocab_size) > config.vocab_size:
        raise ValueError(
            f'{tokenizer} has {size} tokens, the model only vocab_size='
            f'{config.vocab_size}: it is the tokenizer of another model.'
        )
    names = huggingface.labels(folder) or fields_lib.numbered(config.classes)
    fields = _run_fields(config, tokenizer, names)
    path = run_folder.open_workdir(workdir, fields)
    if tokenizer != run_folder.NO_TOKENIZER:
        run_folder.keep_tokenizer(path, tokenizer)
    shutil.copyfile(
        pathlib.Path(folder).expanduser() / huggingface.CONFIG, path / _ORIGINAL
    )
    run = training_config.run_config(fields)
    optimizer = optimizer_lib.build(run.optimizer, run.steps)
    state = state_lib.init_state(config, optimizer, run.seed)
    with checkpoint.Checkpointer(path, keep=1) as checkpointer:
        checkpointer.save(0, dataclasses.replace(state, model=model))


def export_run(
    workdir: str,
    folder: str,
    *,
    step: str | None = None,
    rule_trax: bool = False,
) -> None:
    """Writes the model of a checkpoint (`step`) into a new folder, for transformers.

    With `rule_trax` a model of another rule, or with exact attention in LSH layers, is
    exported as what transformers computes: the same parameters, rule 'trax', LSH beyond
    one chunk.

    Raises:
      FileExistsError: the folder holds a model.
      ValueError: transformers has no such model.
    """
    fields = run_folder.load_config(workdir)
    model, _ = state_lib.restore_model(workdir, sharding.make_mesh(), step=step)
    config = model.config
    if rule_trax:
        config = dataclasses.replace(config, rule='trax', dense_length=0)
    tokenizer = run_folder.find_tokenizer(workdir)
    target = pathlib.Path(folder).expanduser() / _SENTENCEPIECE
    if tokenizer and target.exists():
        raise FileExistsError(f'{target} exists and stays as it is: give a new folder.')
    like = _original(workdir, fields.get('init_from', '')) or {}
    if config.head == 'classification' and fields['data'].get('labels'):
        like |= fields_lib.label_fields(fields['data']['labels'])
    huggingface.save(folder, config, model, like=like)
    if tokenizer:
        shutil.copyfile(tokenizer, target)
    if config.head == 'lm' and config.start_token >= 0:
        print(
            f'the model was trained with token {config.start_token} before every '
            'text, which transformers does not put there: do so yourself'
        )


def _original(workdir: str, source: str) -> dict[str, Any] | None:
    """The config.json that a run's model, or what it started from, came with."""
    if source and huggingface.is_model(source):
        return huggingface.load_fields(source)
    for folder in filter(None, (workdir, source)):
        file = run_folder.absolute(folder) / _ORIGINAL
        if file.is_file():
            return json.loads(file.read_text(encoding='utf-8'))
    return None


def _run_fields(
    config: model_config.ModelConfig, tokenizer: str, labels: tuple[str, ...]
) -> dict[str, Any]:
    """The config of an imported run: its model, and data of the kind it is for."""
    data = {'tokenizer': tokenizer, 'length': config.length, 'batch_size': 1, 'seed': 0}
    if config.head in _COLUMNS:
        data |= {'dataset': config.head, 'source': '', **_COLUMNS[config.head]}
        if config.head == 'classification':
            data['labels'] = labels
    else:
        masked = 0.15 if config.head == 'masked_lm' else 0.0
        data |= {'dataset': 'text', 'path': '', 'masked_fraction': masked}
    return {
        **training_config.defaults(),
        'steps': 1,
        'log_every': 1,
        'eval_every': 0,
        'checkpoint_every': 0,
        'keep_checkpoints': 1,
        'data': data,
        'model': dataclasses.asdict(config),
        'optimizer': {**optimizer_lib.defaults(), 'name': 'adafactor'},
    }
