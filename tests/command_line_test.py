"""Bad command lines: one line on stderr, with the value and what to do, at once."""

import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).parents[1]
# Imports once, then forks a process for each command line, before JAX has any thread.
_CALLS = """
import contextlib, json, os, runpy, sys
from reformer_jax.generation import show
from reformer_jax.sweeps import launching
from reformer_jax.training import loop
for number, line in enumerate(json.load(sys.stdin)):
    if not (child := os.fork()):
        for stream, name in ((1, 'out'), (2, 'err')):
            os.dup2(os.open(f'{number}.{name}', os.O_CREAT | os.O_WRONLY), stream)
        sys.argv, code = line, 0
        sys.path[0] = os.path.dirname(os.path.abspath(line[0]))
        try:
            runpy.run_path(line[0], run_name='__main__')
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
            code = 99
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

# Command, exit status, what its line says; TEXT is the first of these.
_TEXT = '--config=configs/text.py:tiny'
_BAD = [
    ('train.py', 2, '--config'),
    ('train.py --config=configs/txt.py', 2, 'configs/txt.py'),
    ('train.py --config=configs', 2, 'configs'),
    ('train.py --config=configs/text.py:big', 2, "'big'.*tiny"),
    ('train.py TEXT --workdri=x', 2, 'workdri.*workdir'),
    ('eval.py --workdir=x more', 2, 'unexpected.*more'),
    ('train.py TEXT --config.optimiser.eps=1', 2, "'optimiser'.*optimizer"),
    (
        'train.py TEXT --config.model.widht=3',
        1,
        'model\\.widht: there are .*model\\.d_model',
    ),
    (
        'train.py TEXT --config.data.batch_size=many',
        2,
        'config\\.data\\.batch_size=many.*integer',
    ),
    ('train.py TEXT --config.steps=None', 2, 'config.steps=None.*int'),
    ('train.py TEXT --config.model.heads=2.5', 2, 'heads=2.5.*int'),
    ('train.py TEXT --config.model.causal=7', 2, 'causal=7.*boolean'),
    ("train.py TEXT '--config.model.axial_sizes=(3, 4'", 2, 'axial_sizes=.3, 4'),
    ('train.py TEXT --config.seed', 2, 'config.seed'),
    ('train.py TEXT --config.optimizer.b2=inf', 1, 'optimizer.b2=inf.*finite'),
    (
        'train.py TEXT --config.model.pattern=local --config.model.rounds=-1',
        1,
        'model.rounds=-1.*at least 1',
    ),
    (
        'train.py TEXT --config.model.pattern=local --config.model.buckets=4,3',
        1,
        '3 is not an even number.*use 4',
    ),
    (
        'train.py TEXT --config.model.implementation=mosaic_tpu',
        1,
        "mosaic_tpu.*CPU.*''",
    ),
    ('train.py TEXT --config.model.d_ff=300000000000', 1, 'd_ff=300000000000'),
    (
        'train.py TEXT --config.data.batch_size=4000000000',
        1,
        'data.batch_size=4000000000.*GiB.*smaller',
    ),
    ('train.py TEXT --config.data.path=nothing.txt', 1, 'nothing.txt'),
    ('eval.py --workdir=nowhere', 1, 'nowhere.*train.py'),
    ('eval.py --workdir=x --processes=2 --process=1', 2, '--processes.*--distributed'),
    ('sample.py', 2, '--workdir'),
    ('sample.py --workdir=x --seed=9999999999', 2, '--seed'),
    ('sample.py --workdir=x --tokens=ten', 2, 'tokens=ten.*integer'),
    ('sample.py --workdir=x --images=-2', 2, 'images=-2'),
    ('sample.py --workdir=x --tokens=0', 2, '--tokens=0.*at least 1'),
    ('sample.py --workdir=x --num_samples=0', 2, '--num_samples=0.*at least 1'),
    ('sample.py TEXT --workdir=x --prompt=a --top_k=0', 1, 'top_k=0 .*258'),
    ('sample.py TEXT --workdir=x --prompt=a --top_p=1.5', 1, r'top_p=1.5 .*\(0, 1\]'),
    (
        'sample.py --config=configs/masked_text.py:tiny --config.data.path=text.txt '
        '--workdir=x --prompt_file=nothing',
        1,
        'gives no next token: use eval.py',
    ),
    ('sweep.py TEXT', 1, 'has no sweep: define sweep'),
    ('train.py --config=wrong.py', 2, 'wrong.py, line 2'),
    ('train.py --config=five.py', 2, 'returned 5.*ConfigDict'),
    ('train.py --config=empty.py', 2, 'get_config'),
    ('train.py --config=notes.py', 2, 'syntax.*notes\\.py, line 1'),
    ('sweep.py --config=five_points.py', 1, 'add\\(5,?\\)'),
    ('sweep.py --config=two_numbers.py', 1, '\\{1: 2\\}.*dict'),
    ('sweep.py --config=two_points.py', 1, 'add\\(.*dict of fields'),
    ('sweep.py --config=failing.py', 1, 'failing.py.*KeyError'),
    ('convert.py', 2, 'command.*usage'),
    ('convert.py exprot', 2, 'exprot'),
    ('convert.py tokenizer text.txt new --vocab_size=9999', 1, '9999.*3,000 bytes'),
    ('sweep.py TEXT --seeds=0', 2, '--seeds=0 must be at least 1'),
    ('sweep.py TEXT --parallel=-1', 2, '--parallel=-1 must be at least 1'),
    ('convert.py import nowhere new', 1, 'nowhere'),
    ('convert.py tokenizer text.txt new.model --vocab_size=x', 2, 'vocab_size.*x'),
    ('reports/table2.py', 2, 'folders.*usage'),
    ('reports/bits_per_dim.py nowhere', 1, 'nowhere'),
    ('reports/decoding.py x --sequences=0', 2, '0 is no .*least 1'),
    ('reports/gpu.py .', 1, 'gpu.sh'),
    ('reports/gpu.py cut', 1, 'attention.jsonl, line 1'),
    ('reports/gpu.py other', 1, "attention.jsonl.*'length'"),
    ('reports/misspelled.py text.txt new', 1, 'text.txt.*passage'),
    ('benchmarks/attention.py many', 2, 'many'),
]
# Command, exit status, what stderr has.
_NOT_ONE_LINE = [
    ('convert.py --help', 0, ''),
    ('train.py --config=configs/txt.py --debug', 99, 'Traceback'),
    ('train.py TEXT --debug --config.steps=0', 99, 'Traceback'),
    ('reports/gpu.py . --debug', 99, 'Traceback'),
]
_FILES = {
    'text.txt': 'ab\n' * 1000,
    'wrong.py': 'def get_config():\n    return nothing\n',
    'five.py': 'def get_config():\n    return 5\n',
    'empty.py': '',
    'notes.py': 'this is no Python\n',
    **{
        f'{name}.py': f'from configs import text\nget_config = text.get_config\n\n\n'
        f'def sweep(add):\n    {body}\n'
        for name, body in {
            'five_points': 'add(5)',
            'two_numbers': 'add({1: 2})',
            'two_points': "add({'seed': 1}, {'seed': 2})",
            'failing': "add({}['rounds'])",
        }.items()
    },
    'cut/attention.jsonl': '{"length": 1',
    'other/attention.jsonl': '{"tokens": 1}\n',
}


@pytest.fixture(scope='module')
def ends(tmp_path_factory):
    """Exit status, stderr and new files of every command line."""
    folder = tmp_path_factory.mktemp('calls')
    for name, content in _FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)
    (folder / 'configs').symlink_to(_ROOT / 'configs')
    before = set(folder.rglob('*'))
    commands = [command for command, _, _ in [*_BAD, *_NOT_ONE_LINE]]
    lines = [shlex.split(command.replace('TEXT', _TEXT)) for command in commands]
    done = subprocess.run(
        [sys.executable, '-c', _CALLS],
        input=json.dumps([[str(_ROOT / line[0]), *line[1:]] for line in lines]),
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {'PYTHONPATH': str(_ROOT), 'PYTHONDONTWRITEBYTECODE': '1'},
    )
    assert not done.returncode, done.stderr
    codes = map(int, done.stdout.split())
    errors = [(folder / f'{n}.err').read_text() for n in range(len(lines))]
    after = (path for path in folder.rglob('*') if path.suffix not in ('.out', '.err'))
    found = dict(zip(commands, zip(codes, errors, strict=True), strict=True))
    return found, set(after) - before


@pytest.mark.parametrize('case', _BAD, ids=lambda case: case[0])
def test_an_error_is_one_line(ends, case):
    command, status, told = case
    code, error = ends[0][command]
    assert code == status, error
    program = pathlib.Path(command.split()[0]).name
    assert re.fullmatch(f'{program}: .*\n', error), error
    assert re.search(told, error), error


def test_nothing_is_made(ends):
    assert not ends[1]


@pytest.mark.parametrize('case', _NOT_ONE_LINE, ids=lambda case: case[0])
def test_a_traceback_only_where_it_is_asked_for(ends, case):
    command, status, told = case
    code, error = ends[0][command]
    assert code == status and told in error
