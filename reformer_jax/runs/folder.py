"""Run folders: the config of a run and the record of its starts.

A run folder (`workdir`) holds

    config.json, config.1.json, ...   the run's config, and its allowed later changes
    runs.jsonl                        one line per start: when, what command and code
    data.json, data.1.json, ...       what the files of the data are known again by
    .lock                             see lock.py
    checkpoints/<step>/               see checkpoint.py
    metrics.jsonl, tensorboard/       see metrics.py
    evaluations/                      one file per call of eval.py
    result.json                       written when a run is complete
    tokenizer.model or .json          of the data, if they are not bytes
"""

import contextlib
import datetime
import importlib.metadata
import itertools
import json
import os
import pathlib
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from reformer_jax.runs import writing

# Config fields that a resumed run may change. These say how long, how often and on
# which devices, not what is computed:
CHANGEABLE = (
    'steps',
    'minutes',
    'log_every',
    'eval_every',
    'eval_batches',
    'checkpoint_every',
    'keep_checkpoints',
    'log_may_fail',
    'decoding',
    'mesh',
    'placement',
    # No more than whether the run stops: what is finite is computed all the same.
    'optimizer.skips',
    'data_may_change',
)
# And these in how much memory, or by which code, the same function is computed. (What
# is drawn for dropout, with accumulate for hashes too, may be something else.)
SAVES_MEMORY = (
    'accumulate',
    'model.feed_forward_chunk_length',
    'model.heads_at_once',
    'model.implementation',
    'model.loss_chunk_length',
    'model.stack',
    *(
        f'model.encoder.{name}'
        for name in (
            'feed_forward_chunk_length',
            'heads_at_once',
            'implementation',
            'stack',
        )
    ),
)

ABSENT = '(absent)'
_LISTED = 8  # differences an error message names before it only counts them
# data.tokenizer of texts read as bytes, which need no file.
NO_TOKENIZER = 'bytes'
_TOKENIZER = 'tokenizer.model'
_TOKENIZER_JSON = 'tokenizer.json'
_RESULT = 'result.json'
_TEMPORARY = '.config.json.tmp'
LOCK = '.lock'
_PACKAGES = ('jax', 'flax', 'optax', 'orbax-checkpoint', 'grain')


def default_workdir(file: str, prefix: str = '') -> str:
    """The run folder of a config file that none was named for: runs/text_tiny."""
    name = re.sub(r'\W+', '_', re.sub(r'^.*/|\.py', '', file)).strip('_')
    return f'runs/{prefix}{name}'


def open_workdir(
    workdir: str | os.PathLike[str],
    config: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
) -> pathlib.Path:
    """Makes `workdir` the folder of this run, or opens it to resume the run in it.

    Writes the config the first time; later, checks that the run is the same one, see
    `CHANGEABLE`. Appends one line to `runs.jsonl`. Process 0 does this for all.

    Args:
      workdir: a folder on a mounted file system; created when absent.
      config: of values that JSON can hold.
      defaults: values of fields that a config from before they existed lacks.
      data: what the files of the data are known by; recorded, and checked unless the
        config says data_may_change. None or {} if there are none.

    Returns:
      The absolute path of the folder.

    Raises:
      ValueError: the folder cannot be created or written, or the config is not JSON
        or differs from the one in the folder, or the data do.
      FileExistsError: `workdir` is a file, or a folder of something else.
    """
    path = absolute(workdir)
    if jax.process_index() != 0:
        return path
    config, record = as_json(config), _run_record()
    make(path)
    earlier = _numbered(path, 'config')
    if earlier:
        saved = check_same_run(path, config, defaults)
        _check_data(path, data, config)
        if saved != config:
            write_json(path / f'config.{len(earlier)}.json', config)
    else:
        write_json(path / 'config.json', config)
    records = _numbered(path, 'data')
    if data and not (records and read_json(records[-1]) == data):
        number = f'.{len(records)}' if records else ''
        write_json(path / f'data{number}.json', data)
    starts = writing.Lines(path / 'runs.jsonl')
    starts.add(json.dumps(record) + '\n')
    starts.close()
    if starts.problem:
        raise writing.failure(path / 'runs.jsonl', starts.problem)
    return path


def make(workdir: str | os.PathLike[str]) -> pathlib.Path:
    """Makes a folder that may become or is a run's; errors as of `open_workdir`."""
    path = absolute(workdir)
    if path.is_file():
        raise FileExistsError(f'workdir {path} is a file. Give --workdir a folder.')
    try:
        path.mkdir(parents=True, exist_ok=True)
        problem = '' if os.access(path, os.W_OK | os.X_OK) else 'cannot be written to'
    except OSError as error:
        problem = f'cannot be created ({error.strerror})'
    if problem:
        raise ValueError(
            f'workdir {path} {problem}. Give --workdir a folder you may write to.'
        )
    entries = sorted({p.name for p in path.iterdir()} - {_TEMPORARY, LOCK})
    if entries and not _numbered(path, 'config'):
        raise FileExistsError(
            f'workdir {path} is not empty ({", ".join(entries[:3])}) and has no '
            'config.json: it is not a run folder, and is left as it is. Give '
            '--workdir a new or an empty folder.'
        )
    return path


def _check_data(
    path: pathlib.Path, data: Mapping[str, Any] | None, config: Mapping[str, Any]
) -> None:
    """Raises a ValueError if the data are not those on record, or says it where they
    may change. Runs of before have no record."""
    records = _numbered(path, 'data')
    differing = differing_fields(read_json(records[-1]), data or {}) if records else {}
    if not differing:
        return
    lines = [f'{name}: was {old}, is {new}' for name, (old, new) in differing.items()]
    told = f'the data of the run in {path} have changed:\n{listed(lines)}'
    if not config.get('data_may_change'):
        raise ValueError(
            f'{told}\nPut back the files that it began with, or go on with these by '
            '--config.data_may_change=True.'
        )
    print(f'WARNING: {told}', flush=True)


def load_config(workdir: str | os.PathLike[str]) -> dict[str, Any]:
    """As `recorded_config`, with the run's own copy of the tokenizer."""
    config = recorded_config(workdir)
    if tokenizer := find_tokenizer(workdir):
        config['data']['tokenizer'] = tokenizer
    return config


def recorded_config(workdir: str | os.PathLike[str]) -> dict[str, Any]:
    """The newest config of the run in `workdir`, as it was given to it.

    Raises:
      FileNotFoundError: there is no run in `workdir`.
      ValueError: there is a model of transformers, or a file is damaged.
    """
    path = absolute(workdir)
    files = _numbered(path, 'config')
    if not files:
        raise FileNotFoundError(
            f'no config.json in {path}: no run was started there. Give --workdir the '
            'folder that train.py was started with.'
        )
    config = read_json(files[-1])
    if 'model_type' in config:
        raise ValueError(
            f'{path} is a folder of Hugging Face transformers, not a run: import it '
            'first, python convert.py import FOLDER WORKDIR.'
        )
    for section in ('data', 'model'):
        if not isinstance(config.get(section), dict):
            raise ValueError(
                f'{files[-1]} has no section {section!r}: it was changed by hand or '
                'damaged. Restore it from a copy, or use another --workdir.'
            )
    return _with_todays_names(config)


@contextlib.contextmanager
def naming_config(workdir: str | os.PathLike[str]) -> Iterator[None]:
    """Has a ValueError or TypeError name the file of the config of a run."""
    try:
        yield
    except (TypeError, ValueError) as error:
        file = _numbered(absolute(workdir), 'config')[-1]
        if str(file) in str(error):
            raise
        raise ValueError(f'in {file}: {error}') from error


def find_tokenizer(folder: str | os.PathLike[str]) -> str | None:
    """The SentencePiece model in a run folder or in a Hugging Face one, or else the
    tokenizer.json, if any."""
    names = (_TOKENIZER, 'spiece.model', _TOKENIZER_JSON)
    files = (absolute(folder) / name for name in names)
    return next((str(file) for file in files if file.is_file()), None)


def check_tokenizer(workdir: str | os.PathLike[str], source: str) -> None:
    """Raises a ValueError if the run folder has another tokenizer than `source`."""
    kept = find_tokenizer(workdir)
    if kept and absolute(kept).read_bytes() != absolute(source).read_bytes():
        raise ValueError(
            f'the tokenizer {source} differs from the one that the run started with, '
            f'{kept}. Use that one, or another --workdir.'
        )


def keep_tokenizer(workdir: str | os.PathLike[str], source: str) -> None:
    """Copies a tokenizer into a run folder that has none; process 0 does."""
    if jax.process_index() == 0 and not find_tokenizer(workdir):
        name = _TOKENIZER_JSON if source.endswith('.json') else _TOKENIZER
        writing.whole(absolute(workdir) / name, absolute(source).read_bytes())


def write_evaluation(
    workdir: str | os.PathLike[str],
    step: int,
    record: Mapping[str, Any],
    lines: Mapping[str, Sequence[str]] | None = None,
) -> pathlib.Path:
    """Writes a new file `<workdir>/evaluations/step_<step>_<time>.json`, and before it
    the lines of each name beside it, as `step_<step>_<time>.<name>`."""
    folder = absolute(workdir) / 'evaluations'
    with writing.named(folder):
        folder.mkdir(exist_ok=True)
    now = datetime.datetime.now(datetime.UTC).strftime('%Y%m%dT%H%M%S%f')
    path = folder / f'step_{step}_{now}.json'
    for name, texts in (lines or {}).items():
        content = ''.join(f'{text}\n' for text in texts)
        writing.whole(path.with_suffix(f'.{name}'), content.encode())
    write_json(path, record)
    return path


def load_evaluations(workdir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """What `write_evaluation` wrote, oldest first."""
    files = (absolute(workdir) / 'evaluations').glob('step_*.json')
    by_time = sorted(files, key=lambda file: file.stem.rsplit('_', 1)[1])
    records = [read_json(file) for file in by_time]
    return [r | {'config': _with_todays_names(r.get('config', {}))} for r in records]


def write_result(workdir: str | os.PathLike[str], result: Mapping[str, Any]) -> None:
    """Writes what a run came to, for what it came to before it was prolonged: step,
    steps and minutes of the config, final metrics."""
    write_json(absolute(workdir) / _RESULT, result)


def load_result(workdir: str | os.PathLike[str]) -> dict[str, Any] | None:
    """What `write_result` wrote; None while there is nothing."""
    file = absolute(workdir) / _RESULT
    result = read_json(file) if file.is_file() else None
    if result is not None and not {'step', 'validation'} <= set(result):
        raise ValueError(
            f'{file} has no step and validation: it was changed by hand or damaged. '
            'Remove it, and the final evaluation is made again.'
        )
    return result


def absolute(workdir: str | os.PathLike[str]) -> pathlib.Path:
    if '://' in os.fspath(workdir):
        raise ValueError(
            f'workdir {workdir} is a URL, and a run folder must be on a mounted file '
            'system. Mount the bucket and give its path.'
        )
    return pathlib.Path(os.path.abspath(os.path.expanduser(workdir)))


def listed(lines: Sequence[str]) -> str:
    more = [f'and {len(lines) - _LISTED} more'] if len(lines) > _LISTED else []
    return '\n'.join(f'  {line}' for line in [*lines[:_LISTED], *more])


def flat(config: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
    """Dotted field names; an empty dict is a value."""
    fields: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            fields |= flat(value, f'{prefix}{name}.')
        else:
            fields[f'{prefix}{name}'] = value
    return fields


def _numbered(path: pathlib.Path, name: str) -> list[pathlib.Path]:
    """config.json, config.1.json, ... as far as they go, oldest first."""
    numbered = (path / f'{name}.{number}.json' for number in itertools.count(1))
    files = itertools.chain([path / f'{name}.json'], numbered)
    return list(itertools.takewhile(pathlib.Path.is_file, files))


def as_json(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config as it will be read back: tuples become lists, NaN becomes null."""
    for name, value in flat(config).items():
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f'config field {name}={value!r} cannot be written as JSON ({error}). '
                'Use numbers, strings, booleans, None, lists and dicts.'
            ) from error
    return json.loads(json.dumps(config), parse_constant=lambda _: None)


def _with_todays_names(config: dict[str, Any]) -> dict[str, Any]:
    """A config of an older run: within_bucket=True was what is rule 'bucket' now."""
    model = config.get('model', {})
    if model.pop('within_bucket', False):
        model['rule'] = 'bucket'
    return config


def read_json(file: pathlib.Path) -> dict[str, Any]:
    """What `write_json` wrote; a ValueError if it is no JSON object."""
    try:
        # Folders of before have NaN and Infinity, which are not JSON.
        text = file.read_text(encoding='utf-8')
        return dict(**json.loads(text, parse_constant=lambda _: None))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(
            f'{file} is no JSON object ({error}): it was changed by hand or damaged. '
            'Restore it from a copy, or use another --workdir.'
        ) from error


def write_json(file: pathlib.Path, fields: Mapping[str, Any]) -> None:
    """Writes all of a JSON file or nothing of it; numbers that are none as null."""
    text = json.dumps(as_json(fields), indent=2, allow_nan=False)
    writing.whole(file, f'{text}\n'.encode())


def check_same_run(
    workdir: str | os.PathLike[str],
    config: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Returns the newest config in a run folder, if `config` may resume its run.

    Raises:
      ValueError: it is another run's; arguments as in `open_workdir`.
    """
    saved = recorded_config(workdir)
    differing = [
        f'{name}: {old} in the folder, {new} now'
        for name, (old, new) in differing_fields(saved, config, defaults).items()
        if name not in SAVES_MEMORY and not is_changeable(name)
    ]
    if differing:
        raise ValueError(
            f'{_numbered(absolute(workdir), "config")[-1]} says that '
            f'workdir {absolute(workdir)} holds a run with another config:\n'
            f'{listed(differing)}\n'
            'Give the new config another --workdir, or set the old values to resume. '
            f'Only these may change: {", ".join(CHANGEABLE + SAVES_MEMORY)}.'
        )
    return saved


def is_changeable(name: str) -> bool:
    """Whether a field of this dotted name is one of `CHANGEABLE`, or in one."""
    return name in CHANGEABLE or name.split('.')[0] in CHANGEABLE


def differing_fields(
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
) -> dict[str, tuple[Any, Any]]:
    """The fields in which a recorded config (`old`) and a new one differ, with both
    values, by their dotted names; `defaults` as in `open_workdir`."""
    new = flat(new)
    known = flat(as_json(defaults or {}))
    old = {name: known[name] for name in new if name in known} | flat(old)
    pairs = {n: (old.get(n, ABSENT), new.get(n, ABSENT)) for n in old | new}
    return {
        name: pair
        for name, pair in pairs.items()
        if json.dumps(pair[0]) != json.dumps(pair[1])
        # A run has a copy of its tokenizer, wherever the file came from.
        and not (name == 'data.tokenizer' and NO_TOKENIZER not in pair)
    }


def _run_record() -> dict[str, Any]:
    now = datetime.datetime.now(datetime.UTC)
    return {
        'time': now.isoformat(timespec='seconds'),
        'command': sys.argv,
        'python': platform.python_version(),
        **{name: importlib.metadata.version(name) for name in _PACKAGES},
        'commit': _commit(),
        'device': jax.devices()[0].device_kind,
        'devices': jax.device_count(),
        'processor': _processor(),
        'cpu_cores': os.cpu_count(),
        'processes': jax.process_count(),
    }


def _processor() -> str:
    """The model of the CPU, as Linux or else Python names it."""
    cpuinfo = pathlib.Path('/proc/cpuinfo')
    text = cpuinfo.read_text('utf-8', 'replace') if cpuinfo.is_file() else ''
    found = re.search(r'^model name\s*:\s*(.*)', text, re.MULTILINE)
    return found[1] if found else platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of this code, `-dirty` when changed since; None outside of git."""
    root = pathlib.Path(__file__).resolve().parents[2]
    command = ['git', 'describe', '--always', '--dirty', '--abbrev=40', '--exclude=*']
    try:
        done = subprocess.run(
            command,
            cwd=root,
            # Not the commit of a repository that this code is installed in.
            env=os.environ | {'GIT_CEILING_DIRECTORIES': str(root.parent)},
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
