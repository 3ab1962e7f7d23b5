"""Runs that are interrupted anywhere come to what a whole one comes to."""

import os
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from reformer_jax.runs import checkpoint
from reformer_jax.runs import folder as run_folder
from reformer_jax.runs import lock
from reformer_jax.runs import metrics
from reformer_jax.training import evaluation
from reformer_jax.training import loop
from reformer_jax.training import start


class Killed(BaseException):
    """Stands for kill -9: nothing catches it."""


@pytest.fixture(scope='module')
def whole(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp('runs') / 'whole'
    loop.train(config, str(workdir))
    return _outcome(workdir)


def _outcome(workdir):
    """Arrays, metrics of checkpoints and of steps, and result of a complete run."""
    run = start.open(None, str(workdir))
    with checkpoint.Checkpointer(workdir) as checkpointer:
        state, step = checkpointer.restore(run.state)
    files = sorted(pathlib.Path(workdir).glob('checkpoints/*/metrics/metrics'))
    evaluated = {file.parts[-3]: file.read_text() for file in files}
    arrays = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]
    lines = metrics.read(pathlib.Path(workdir) / 'metrics.jsonl')
    for line in lines:
        line.pop('tokens_per_second', None)
    return arrays, step, evaluated, lines, run_folder.load_result(workdir)


def _on_call(monkeypatch, where, name, number, act):
    """Has the `number`-th call of a function, counted from 0, do something first."""
    original, calls = getattr(where, name), iter(range(number + 1))

    def called(*arguments, **named):
        if next(calls, None) == number:
            act()
        return original(*arguments, **named)

    monkeypatch.setattr(where, name, called)


def _kill():
    raise Killed


# Where a blow falls: a function and which of its calls.
_PLACES = [
    (start, 'open', 0),
    (start, 'first_state', 0),
    (loop, 'compile_train_step', 0),
    (evaluation, 'check_tokens', 2),  # the third step
    (checkpoint.Checkpointer, 'save', 0),
    (metrics.Writer, 'write', 4),
    (checkpoint.Checkpointer, 'record', 0),
    (metrics.Writer, 'replace', 1),
    (checkpoint.Checkpointer, 'save', 2),  # the last
    (checkpoint.Checkpointer, 'record', 2),  # of the final evaluation
    (metrics.Writer, 'replace', 2),
    (run_folder, 'write_result', 0),
]


@pytest.mark.parametrize('place', _PLACES, ids=lambda p: f'{p[1]}-{p[2]}')
def test_a_killed_run_comes_to_the_same(config, whole, tmp_path, monkeypatch, place):
    with monkeypatch.context() as patch:
        _on_call(patch, *place, _kill)
        with pytest.raises(Killed):
            loop.train(config, str(tmp_path))
    assert loop.train(config, str(tmp_path))
    assert _outcome(tmp_path) == whole


@pytest.mark.parametrize('place', _PLACES, ids=lambda p: f'{p[1]}-{p[2]}')
def test_a_signal_anywhere(config, whole, tmp_path, monkeypatch, place):
    number = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1]
    number = number[_PLACES.index(place) % 4]
    with monkeypatch.context() as patch:
        _on_call(patch, *place, lambda: os.kill(os.getpid(), number))
        finished = loop.train(config, str(tmp_path))
    if finished:  # nothing was left to be stopped
        assert run_folder.load_result(tmp_path)
    else:
        assert loop.train(config, str(tmp_path))
    assert _outcome(tmp_path) == whole


def test_a_signal_while_the_last_save_is_awaited(config, whole, tmp_path, monkeypatch):
    leave = checkpoint.Checkpointer.__exit__

    def interrupted(self, *error):
        os.kill(os.getpid(), signal.SIGINT)  # KeyboardInterrupt, were it not heard
        leave(self, *error)

    monkeypatch.setattr(checkpoint.Checkpointer, '__exit__', interrupted)
    loop.train(config, str(tmp_path))
    monkeypatch.undo()
    assert _outcome(tmp_path) == whole


@pytest.mark.parametrize('name', ['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGUSR1'])
def test_the_program_hears_signals_while_it_imports(tmp_path, name):
    # What train.py imports first.
    (tmp_path / 'absl.py').write_text(
        f'import os, signal\nos.kill(os.getpid(), signal.{name})\n'
    )
    done = subprocess.run(
        [sys.executable, pathlib.Path(__file__).parents[2] / 'train.py'],
        env=os.environ | {'PYTHONPATH': str(tmp_path)},
        capture_output=True,
        text=True,
    )
    told = f'stopped by {name}; the same command goes on\n'
    assert (done.returncode, done.stdout) == (os.EX_TEMPFAIL, told), done.stderr


def test_before_the_first_step_a_run_stops_at_once(
    config, tmp_path, monkeypatch, capsys
):
    _on_call(monkeypatch, start, 'open', 0, lambda: os.kill(os.getpid(), signal.SIGHUP))
    assert loop.train(config, str(tmp_path / 'run')) == {}
    assert 'stopped before the first step; the same' in capsys.readouterr().out
    assert not (tmp_path / 'run').exists()


def test_a_second_start_is_refused_at_once_and_harms_nothing(
    config, tmp_path, monkeypatch
):
    config = config.copy_and_resolve_references()
    config.steps = 1
    loop.train(config, str(tmp_path))
    before = {p: p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()}
    monkeypatch.setattr(lock, '_SECONDS', 0.1)
    _on_call(monkeypatch, start, 'open', 0, lambda: pytest.fail('long work'))
    config.steps = 2
    with lock.hold(tmp_path):
        with pytest.raises(ValueError, match=f'{tmp_path} is in use by process'):
            loop.train(config, str(tmp_path))
    after = {p: p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()}
    (tmp_path / '.lock').unlink()
    changed = {p.name for p in before | after if before.get(p) != after.get(p)}
    assert changed <= {'.lock'}


def test_a_run_keeps_its_folder(config, tmp_path, monkeypatch):
    monkeypatch.setattr(lock, '_SECONDS', 0.1)

    def second():
        with pytest.raises(ValueError, match='is in use by process'):
            loop.train(config, str(tmp_path))

    _on_call(monkeypatch, evaluation, 'check_tokens', 1, second)
    config = config.copy_and_resolve_references()
    config.steps = 1
    assert loop.train(config, str(tmp_path))
