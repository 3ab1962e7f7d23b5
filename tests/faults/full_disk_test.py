"""Disks that are full, and folders that cannot be written: no hang, nothing lost."""

import contextlib
import json
import resource
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX import record_writer

from reformer_jax.model import config as model_config
from reformer_jax.runs import checkpoint
from reformer_jax.runs import folder as run_folder
from reformer_jax.runs import lock
from reformer_jax.runs import metrics
from reformer_jax.runs import writing
from reformer_jax.sweeps import launching
from reformer_jax.training import evaluation
from reformer_jax.training import loop
from reformer_jax.training import start

_FULL = '/dev/full'  # takes nothing, for there is no space left
_NO_SPACE = r'metrics.jsonl cannot be written \(No space left on device\): make space'


@contextlib.contextmanager
def _no_file_larger_than(size):
    """As a disk that takes a part of what is written and then is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_lines_wait_whole_until_there_is_space(tmp_path):
    path = tmp_path / 'lines'
    lines = writing.Lines(path)
    with _no_file_larger_than(25):
        for number in range(4):
            lines.add(f'number {number}\n')
            assert bool(lines.problem) == (number > 1)
    assert path.read_text() == 'number 0\nnumber 1\n'
    assert (
        lines.problem == 'File too large' and lines.waiting == b'number 2\nnumber 3\n'
    )
    lines.add('number 4\n')
    lines.close()
    assert path.read_text() == ''.join(f'number {number}\n' for number in range(5))
    assert not lines.problem and not lines.waiting


def test_lines_of_a_file_that_was_removed(tmp_path):
    lines = writing.Lines(tmp_path / 'lines')
    (tmp_path / 'lines').unlink()
    lines.add('lost\n')
    assert lines.problem == 'it has been removed' and lines.waiting == b'lost\n'
    lines.close()


def test_a_file_is_written_whole_or_not(tmp_path):
    run_folder.write_json(tmp_path / 'a.json', {'a': 1})
    with _no_file_larger_than(20):
        with pytest.raises(OSError, match=r'a.json cannot be written \(File too large'):
            run_folder.write_json(tmp_path / 'a.json', {'a': 'long' * 10})
    assert [path.name for path in tmp_path.iterdir()] == ['a.json']
    assert json.loads((tmp_path / 'a.json').read_text()) == {'a': 1}


def test_no_part_of_a_start_is_recorded(tmp_path):
    config = {'data': {}, 'model': {}}
    run_folder.open_workdir(tmp_path, config)
    before = (tmp_path / 'runs.jsonl').read_bytes()
    with _no_file_larger_than(len(before) + 20):
        with pytest.raises(OSError, match=r'runs.jsonl cannot be written \(File too'):
            run_folder.open_workdir(tmp_path, config)
    assert (tmp_path / 'runs.jsonl').read_bytes() == before


def test_a_lock_without_space(tmp_path):
    with _no_file_larger_than(0):
        with pytest.raises(OSError, match=r'.lock cannot be written \(File too large'):
            with lock.hold(tmp_path):
                pytest.fail('held')


def test_a_log_of_a_sweep_without_space(tmp_path):
    with _no_file_larger_than(0):
        with pytest.raises(OSError, match=r'log cannot be written \(File too large'):
            launching._Processes(0).call(['true'], tmp_path / 'log', None)


def test_tensorboard_is_given_up(tmp_path, monkeypatch, capsys):
    opened = record_writer.RecordWriter
    monkeypatch.setattr(record_writer, 'RecordWriter', lambda _: opened(_FULL))
    with metrics.Writer(tmp_path, 0) as writer:
        for step in range(1, 100):  # tensorboardX's own writer hangs after ten
            writer.write(step, 'train', {'loss': 1.0, 'accuracy': 0.5})
    assert capsys.readouterr().out.count('TensorBoard gets no more of this run') == 1
    assert len(metrics.read(tmp_path / 'metrics.jsonl')) == 99


def test_tensorboard_without_a_folder(tmp_path, capsys):
    (tmp_path / 'tensorboard').write_text('')
    with metrics.Writer(tmp_path, 0) as writer:
        writer.write(1, 'train', {'loss': 1.0})
    assert 'tensorboard cannot be written (File exists)' in capsys.readouterr().out
    assert len(metrics.read(tmp_path / 'metrics.jsonl')) == 1


def test_standard_output_is_given_up(monkeypatch, capsys):
    full = open(_FULL, 'w')
    monkeypatch.setattr(sys, 'stdout', full)
    for _ in range(3):
        metrics.say('step')
    sys.stdout.close()
    with contextlib.suppress(OSError):
        full.close()
    told = capsys.readouterr().err
    assert told == 'WARNING: no more is said here (No space left on device)\n'


def test_a_checkpoint_without_space(tmp_path, caplog):
    arrays = {'a': jnp.arange(10_000.0)}
    message = r'checkpoints cannot be written \(File too large\).*Earlier .* are intact'
    with pytest.raises(OSError, match=message):
        with checkpoint.Checkpointer(tmp_path, keep=3) as checkpointer:
            checkpointer.save(1, arrays)
            assert checkpointer.latest_step() == 1
            with _no_file_larger_than(20_000):
                checkpointer.save(2, arrays)
                checkpointer.latest_step()
    assert not caplog.records  # no pages of orbax
    template = {'a': arrays['a']}
    with checkpoint.Checkpointer(tmp_path, keep=3) as checkpointer:
        restored, step = checkpointer.restore(template)
        assert step == 1
        np.testing.assert_array_equal(restored['a'], arrays['a'])
        checkpointer.save(2, arrays)
        assert checkpointer.latest_step() == 2


def test_another_error_is_told_with_that_of_the_checkpoint(tmp_path):
    with pytest.raises(KeyError) as raised:
        with (
            _no_file_larger_than(20_000),
            checkpoint.Checkpointer(tmp_path, keep=3) as checkpointer,
        ):
            checkpointer.save(2, {'a': jnp.arange(10_000.0)})
            raise KeyError('other')
    (note,) = raised.value.__notes__
    assert 'checkpoints cannot be written (File too large)' in note


@pytest.fixture(scope='module')
def whole(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp('runs') / 'whole'
    loop.train(config, str(workdir))
    return workdir


def _outcome(workdir):
    run = start.open(None, str(workdir))
    with checkpoint.Checkpointer(workdir) as checkpointer:
        state, step = checkpointer.restore(run.state)
    arrays = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]
    return arrays, step, run_folder.load_result(workdir)


def _lines(text):
    records = [json.loads(line) for line in text.splitlines()]
    return [(line['split'], line['step'], line['loss']) for line in records]


@pytest.fixture
def unwritten(config, tmp_path):
    """A run folder whose metrics.jsonl takes nothing."""
    workdir = tmp_path / 'run'
    run_folder.open_workdir(workdir, start.open(config, str(workdir)).fields)
    (workdir / 'metrics.jsonl').symlink_to(_FULL)
    return workdir


def test_a_run_stops_where_its_metrics_cannot_be_written(
    config, whole, unwritten, capsys
):
    with pytest.raises(OSError, match=f'{_NO_SPACE}.* Step 1 is saved'):
        loop.train(config, str(unwritten))
    lost = capsys.readouterr().out.partition('It lacks:\n')[2]
    assert [line[:2] for line in _lines(lost)] == [('train', 1)]
    (unwritten / 'metrics.jsonl').unlink()
    loop.train(config, str(unwritten))
    assert _outcome(unwritten) == _outcome(whole)
    written = lost + (unwritten / 'metrics.jsonl').read_text()
    assert _lines(written) == _lines((whole / 'metrics.jsonl').read_text())


def test_the_last_evaluation_is_made_up_for(config, whole, tmp_path, monkeypatch):
    workdir = str(tmp_path / 'run')
    add = writing.Lines.add

    def without_space(lines, line=''):
        if '"step": 6, "split": "validation"' in line:
            lines.waiting, lines.problem = line.encode(), 'No space left on device'
        else:
            add(lines, line)

    monkeypatch.setattr(writing.Lines, 'add', without_space)
    with pytest.raises(OSError, match=f'{_NO_SPACE}.* Step 6 is saved'):
        loop.train(config, workdir)
    assert run_folder.load_result(workdir) is None
    monkeypatch.undo()
    loop.train(config, workdir)
    assert _outcome(workdir) == _outcome(whole)
    lines = [(tmp_path / 'run', whole)[i] / 'metrics.jsonl' for i in (0, 1)]
    assert _lines(lines[0].read_text()) == _lines(lines[1].read_text())


def test_a_run_goes_on_without_metrics_if_told_to(config, whole, unwritten, capsys):
    config = config.copy_and_resolve_references()
    config.log_may_fail = True
    loop.train(config, str(unwritten))
    assert _outcome(unwritten) == _outcome(whole)
    told = capsys.readouterr().out
    assert told.count('WARNING') == 2  # once, and at the end
    lost = told.partition('It lacks:\n')[2]
    assert _lines(lost) == _lines((whole / 'metrics.jsonl').read_text())


def test_a_folder_that_is_removed_stays_so(config, tmp_path, monkeypatch):
    config = config.copy_and_resolve_references()
    config.update({'checkpoint_every': 0, 'eval_every': 0})
    check, calls = model_config.check_tokens, iter(range(3))

    def checked(*arguments):
        if next(calls, None) == 2:
            shutil.rmtree(tmp_path / 'run')
        check(*arguments)

    monkeypatch.setattr(model_config, 'check_tokens', checked)
    with pytest.raises(FileNotFoundError, match='has been removed: the run ends'):
        loop.train(config, str(tmp_path / 'run'))
    assert not (tmp_path / 'run').exists()


def test_an_evaluation_that_cannot_be_written_is_printed(whole, tmp_path, capsys):
    workdir = tmp_path / 'run'
    shutil.copytree(whole, workdir)
    (workdir / 'evaluations').write_text('')
    with pytest.raises(OSError, match=r'evaluations cannot be written \(File exists'):
        evaluation.evaluate(None, str(workdir), splits=('test',))
    assert 'bits_per_dim' in capsys.readouterr().out
