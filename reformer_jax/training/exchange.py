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
_TOKENIZER_JSON = 'tokenizer.json'
_TOKENIZER_CONFIG = 'tokenizer_config.json'

# Bytes, padding and an unused token; and the mask.
_BYTE_VOCABULARIES = (258, 259)
# A tokenizer that is not ours to read leaves one of these.
_OTHER_TOKENIZERS = ('vocab.json', 'vocab.txt', 'merges.txt', _TOKENIZER_CONFIG)

# Texts of which a tokenizer.json may make others: those of equally likely cuts.
_TIES = 0.01

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


def tokenizer_of(folder: str, vocab_size: int) -> str:
    """The tokenizer that came with a model of transformers: its file, or bytes.

    Raises:
      ValueError: it is neither there in a form that can be read, nor can the model be
        one of bytes.
    """
    if found := run_folder.find_tokenizer(folder):
        return tokenizers.BYTES if tokenizers.is_of_bytes(found) else found
    others = [
        n for n in _OTHER_TOKENIZERS if (run_folder.absolute(folder) / n).exists()
    ]
    if others or vocab_size not in _BYTE_VOCABULARIES:
        unread = f' ({", ".join(others)} will not do)' if others else ''
        raise ValueError(
            f'{folder} has a vocabulary of {vocab_size} tokens and no spiece.model: '
            f'copy it there, or a {_TOKENIZER_JSON}{unread}, or name the tokenizer by '
            '--config.data.tokenizer=FILE, in convert.py --tokenizer=FILE '
            "('bytes' for bytes)."
        )
    return tokenizers.BYTES


def import_folder(
    folder: str, workdir: str, *, pytorch: bool = False, tokenizer: str = ''
) -> None:
    """Makes a run folder of a model that transformers saved.

    Without a `tokenizer` (a file or 'bytes') it is the one in the folder.

    Raises:
      FileExistsError: there is something in `workdir`.
      FileNotFoundError, ValueError: as huggingface.load; there is no tokenizer that can
        be read, or it is of another model.
    """
    size = huggingface.load_config(folder, pytorch=pytorch).vocab_size
    tokenizer = tokenizer or tokenizer_of(folder, size)
    if (tokens := tokenizers.load(tokenizer).vocab_size) > size:
        raise ValueError(
            f'{tokenizer} has {tokens} tokens, the model only vocab_size={size}: it is '
            'the tokenizer of another model.'
        )
    config, model = huggingface.load(folder, pytorch=pytorch)
    if checkpoint.exists(workdir):
        raise FileExistsError(f'{workdir} is a run already: give a new folder.')
    names = huggingface.labels(folder) or fields_lib.numbered(config.classes)
    fields = _run_fields(config, tokenizer, names)
    path = run_folder.open_workdir(workdir, fields)
    if tokenizer != tokenizers.BYTES:
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
    name = fields['data'].get('tokenizer')  # tokens of other data are no text
    files = _tokenizer_files(name) if name else {}
    target = pathlib.Path(folder).expanduser()
    for name in files:
        if (target / name).exists():
            raise FileExistsError(
                f'{target / name} exists and is left as it is: give a new folder.'
            )
    like = _original(workdir, fields.get('init_from', '')) or {}
    if config.head == 'classification' and fields['data'].get('labels'):
        like |= fields_lib.label_fields(fields['data']['labels'])
    huggingface.save(folder, config, model, like=like)
    for name, content in files.items():
        (target / name).write_bytes(content)
    if config.head == 'lm' and config.start_token >= 0:
        print(
            f'the model was trained with token {config.start_token} before every '
            'text, which transformers does not put there: do so yourself'
        )


def _tokenizer_files(name: str) -> dict[str, bytes]:
    """What transformers needs to make the same tokens; says where it does not."""
    tokenizer, files = tokenizers.load(name), {}
    if isinstance(tokenizer, tokenizers.SentencePiece):
        files[_SENTENCEPIECE] = pathlib.Path(name).read_bytes()
    if isinstance(tokenizer, tokenizers.TokenizerJson):
        text, others = pathlib.Path(name).read_text(encoding='utf-8'), 0.0
    else:
        try:
            text, others = tokenizer.to_json()
        except ValueError as error:
            print(
                f'{_SENTENCEPIECE} alone, of which transformers makes others: {error}'
            )
            return files
    if others:
        print(
            f'transformers makes other tokens than {_SENTENCEPIECE} of {others:.2%} of '
            f'random texts, with the {_TOKENIZER_JSON} for it'
        )
    if others > _TIES:
        print(f'so the {_TOKENIZER_JSON} is left out: make one yourself')
        return files
    config = tokenizers.config_of(text)
    if not isinstance(tokenizer, tokenizers.TokenizerJson):
        # '</s>' written out in a text is not the end of it.
        config['split_special_tokens'] = True
    told = json.dumps(config, indent=2) + '\n'
    return files | {_TOKENIZER_JSON: text.encode(), _TOKENIZER_CONFIG: told.encode()}


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
