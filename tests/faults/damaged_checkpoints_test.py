"""Checkpoints whose files are not as they were written, and folders of any name."""

import contextlib
import os
import pathlib
import random
import shutil

import grain
import jax.numpy as jnp
import numpy as np
import pytest

from reformer_jax.runs import checkpoint
from reformer_jax.runs import folder as run_folder
from reformer_jax.runs import integrity

# A restore that meets damage leaves the reads of other arrays; where one of them ends
# late, TensorStore calls back into asyncio's loop, which has been closed.
pytestmark = pytest.mark.filterwarnings(
    'ignore:(?s)Exception ignored in.*Event loop is closed'
    ':pytest.PytestUnraisableExceptionWarning'
)

_STATE = {'a': jnp.arange(3000.0), 'b/c': jnp.ones((3, 4))}
_ARRAYS = '/d/'


def _iterator():
    return iter(grain.MapDataset.range(50).seed(1).shuffle().batch(4).to_iter_dataset())


def _of_step(step):
    return {name: array + step for name, array in _STATE.items()}


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    """A run with checkpoints of steps 1, 2 and 3, the second the best."""
    workdir, iterator = tmp_path_factory.mktemp('runs') / 'saved', _iterator()
    with checkpoint.Checkpointer(workdir, keep=3) as saver:
        for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0)):
            next(iterator)
            saver.save(step, _of_step(step), iterator)
            saver.record(step, {'loss': loss})
    return workdir


@pytest.fixture
def run(saved, tmp_path):
    return pathlib.Path(shutil.copytree(saved, tmp_path / 'run'))


def _files(workdir, step=3):
    folder = workdir / 'checkpoints' / str(step)
    return sorted(path for path in folder.rglob('*') if path.is_file())


def _flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


_DAMAGES = {
    'deleted': pathlib.Path.unlink,
    'emptied': lambda file: file.write_bytes(b''),
    'cut': lambda file: os.truncate(file, file.stat().st_size // 2),
    'garbled': lambda file: file.write_bytes(random.Random(0).randbytes(99)),
    'of one bit': _flip,
}


def _resume(workdir):
    iterator = _iterator()
    with checkpoint.Checkpointer(workdir, keep=3) as saver:
        restored = saver.resume(_STATE, iterator)
    assert restored is not None
    state, step = restored
    np.testing.assert_array_equal(state['a'], _STATE['a'] + step)
    expected = _iterator()
    for _ in range(step):
        next(expected)
    np.testing.assert_array_equal(next(iterator), next(expected))
    return step


@pytest.mark.parametrize('damage', _DAMAGES)
def test_a_damaged_checkpoint_is_named_and_moved_aside(run, damage, capsys):
    for file in _files(run):
        name = file.relative_to(run / 'checkpoints' / '3').as_posix()
        content = file.read_bytes()
        _DAMAGES[damage](file)
        if name in ('_CHECKPOINT_METADATA', 'commit_success.txt') or (
            name == integrity.FILE and damage == 'deleted'
        ):  # is not read
            assert _resume(run) == 3
        else:
            with checkpoint.Checkpointer(run) as reader:
                with pytest.raises(ValueError, match='checkpoint 3 .* --checkp') as why:
                    reader.restore(_STATE)
            capsys.readouterr()
            assert _resume(run) == 2
            said = capsys.readouterr().out
            assert 'moved to damaged_3, going on from step 2' in said
            # Of one bit of the digests another file may seem to be damaged.
            if name != integrity.FILE:
                assert f': {name} ' in said and f': {name} ' in str(why.value)
            aside = run / 'checkpoints' / 'damaged_3'
            assert len(list(aside.rglob('*'))) >= 20  # none is lost
            aside.rename(aside.with_name('3'))
        file.write_bytes(content)
    assert _resume(run) == 3


def test_a_resumed_run_goes_on_beside_what_was_moved_aside(run):
    for _ in range(2):
        _flip(_files(run)[-1])
        with checkpoint.Checkpointer(run, keep=1) as saver:
            _, step = saver.resume(_STATE, _iterator())
            assert step == 2
            assert saver.save(3, _of_step(3), _iterator())
    names = {path.name for path in (run / 'checkpoints').iterdir()}
    assert names == {'2', '3', 'damaged_3', 'damaged_3.1'}


def test_nothing_is_trained_where_no_checkpoint_is_intact(run):
    for step in (1, 2, 3):
        _flip(max(_files(run, step), key=lambda file: file.stat().st_size))
    for _ in range(2):  # none is moved aside
        with checkpoint.Checkpointer(run, keep=3) as saver:
            with pytest.raises(ValueError, match='no checkpoint .* is intact, so noth'):
                saver.resume(_STATE, _iterator())
    for step in (1, 2, 3):
        folder = run / 'checkpoints' / str(step)
        folder.rename(folder.with_name(f'damaged_{step}'))
    assert checkpoint.exists(run)
    with checkpoint.Checkpointer(run, keep=3) as saver:
        with pytest.raises(ValueError, match='damaged_2: moved aside'):
            saver.resume(_STATE, _iterator())


def test_a_run_without_checkpoints_starts(tmp_path):
    assert not checkpoint.exists(tmp_path)
    with checkpoint.Checkpointer(tmp_path, keep=1) as saver:
        assert saver.resume(_STATE, _iterator()) is None


def test_a_damaged_best_one_is_not_passed_over(run):
    folder = run / 'checkpoints' / '2'
    digests = (folder / integrity.FILE).read_text()
    for known in (digests.replace('metrics', 'metrik'), digests):
        (folder / integrity.FILE).write_text(known)
        with checkpoint.Checkpointer(run) as reader:
            with pytest.raises(
                ValueError, match='checkpoint 2 .* metrics/metrics is not'
            ):
                reader.restore(_STATE, step='best')
        _flip(folder / 'metrics' / 'metrics')
    with checkpoint.Checkpointer(run, keep=1) as saver:
        saver.save(4, _of_step(4), _iterator())
    assert (run / 'checkpoints' / '2').is_dir()  # it may be the best


# orbax closes its event loop under the other arrays' reads when one fails.
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_from_before_digests(run, capsys):
    os.remove(run / 'checkpoints' / '3' / integrity.FILE)
    assert _resume(run) == 3
    assert 'is not verified: it has no digests' in capsys.readouterr().err
    with checkpoint.Checkpointer(run, keep=3) as saver:
        saver.record(3, {'loss': 0.5})
        assert saver.best_step() == 3
    for name in ('data/process_0-of-1.json', 'state/_METADATA', 'state/manifest.ocdbt'):
        file = run / 'checkpoints' / '3' / name
        content = file.read_bytes()
        file.write_bytes(b'{"x')
        with checkpoint.Checkpointer(run) as reader:
            with pytest.raises(ValueError, match='checkpoint 3 .* is damaged') as why:
                reader.restore(_STATE, _iterator())
            assert len(str(why.value).splitlines()) == 1
        file.write_bytes(content)


@pytest.mark.parametrize('writes', [1, 2])
def test_a_kill_while_metrics_are_recorded(run, monkeypatch, writes):
    write_json, calls = run_folder.write_json, []

    def killed(file, fields):
        calls.append(file)
        if len(calls) > writes:
            raise KeyboardInterrupt
        write_json(file, fields)

    def killed_rename(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_folder, 'write_json', killed)
    monkeypatch.setattr(pathlib.Path, 'replace', killed_rename)
    with checkpoint.Checkpointer(run, keep=3) as saver:
        with pytest.raises(KeyboardInterrupt):
            saver.record(3, {'loss': 0.5})
        assert len(calls) == min(writes + 1, 2)
        monkeypatch.undo()
        assert saver.best_step() == 2
        saver.record(3, {'loss': 0.25})
        assert saver.best_step() == 3
    assert _resume(run) == 3


def test_a_kill_while_a_checkpoint_is_removed_leaves_no_half_of_it(run, monkeypatch):
    def killed(folder, **_):
        if os.path.exists(folder):
            raise KeyboardInterrupt

    checkpoints = run / 'checkpoints'
    whole = len(list((checkpoints / '1').rglob('*')))
    with monkeypatch.context() as patched:
        patched.setattr(shutil, 'rmtree', killed)
        with pytest.raises(KeyboardInterrupt):
            with checkpoint.Checkpointer(run, keep=2) as saver:
                saver.save(4, _of_step(4), _iterator())
    assert not (checkpoints / '1').exists()
    assert len(list((checkpoints / 'removing' / '1').rglob('*'))) == whole
    with checkpoint.Checkpointer(run, keep=2) as saver:
        assert saver.latest_step() == 4
    assert {path.name for path in checkpoints.iterdir()} == {'2', '3', '4'}


def test_metrics_are_recorded_while_a_checkpoint_is_read(run, monkeypatch):
    digest = integrity._digest

    def recorded_before(file):
        monkeypatch.undo()
        with checkpoint.Checkpointer(run, keep=3) as saver:
            saver.record(3, {'loss': 0.5})
        return digest(file)

    monkeypatch.setattr(integrity, '_digest', recorded_before)
    with checkpoint.Checkpointer(run) as reader:
        assert reader.restore(_STATE)[1] == 3
        assert reader.best_step() == 3


def test_a_kill_before_the_digests_leaves_no_checkpoint(run, monkeypatch):
    def killed(*_, **__):
        raise OSError('killed')

    monkeypatch.setattr(integrity, 'seal', killed)
    with pytest.raises(OSError, match='killed'):
        with checkpoint.Checkpointer(run, keep=3) as saver:
            saver.save(4, _of_step(4), _iterator())
    assert not (run / 'checkpoints' / '4').exists()
    assert _resume(run) == 3


@pytest.mark.parametrize(
    'name',
    ['[1]', '[', 'a\\b', '*', '?', '\'"', ' a b ', 'ünï 日', 'a\nb', '%5B', 'a~'],
)
def test_a_folder_of_any_name(tmp_path, name):
    workdir = tmp_path / name / 'run'
    with checkpoint.Checkpointer(workdir, keep=1) as saver:
        iterator = _iterator()
        for step in (1, 2, 3):
            next(iterator)
            saver.save(step, _of_step(step), iterator)
    assert _resume(workdir) == 3
    assert _resume(workdir.rename(tmp_path / 'renamed')) == 3
    assert len(list((tmp_path / 'renamed' / 'checkpoints').iterdir())) == 1


def test_a_checkpoint_that_could_not_be_restored_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, '_plainly_named', contextlib.nullcontext)
    with pytest.raises(RuntimeError, match='checkpoint 1 in .* cannot be restored'):
        with checkpoint.Checkpointer(tmp_path / '[1]', keep=1) as saver:
            saver.save(1, _STATE)
    assert not checkpoint.exists(tmp_path / '[1]')
