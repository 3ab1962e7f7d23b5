"""Steps that go wrong: nothing of them is saved, they are skipped or end the run."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import text
from reformer_jax import sharding
from reformer_jax.runs import checkpoint
from reformer_jax.runs import folder as run_folder
from reformer_jax.training import divergence
from reformer_jax.training import evaluation
from reformer_jax.training import loop
from reformer_jax.training import optimizer as optimizer_lib
from reformer_jax.training import start


@pytest.fixture
def config(tmp_path):
    """Of four steps that each are logged and saved."""
    (tmp_path / 'text.txt').write_text('the quick brown fox jumps over the dog\n' * 60)
    config = text.get_config('tiny')
    config.update({'steps': 4, 'log_every': 1, 'checkpoint_every': 1, 'eval_every': 0})
    config.keep_checkpoints = 9
    path = str(tmp_path / 'text.txt')
    config.data.update({'path': path, 'length': 16, 'batch_size': 2})
    sizes = {'length': 16, 'd_model': 8, 'd_ff': 8, 'heads': 1, 'head_size': 8}
    tables = {'axial_shape': (4, 4), 'axial_sizes': (4, 4)}
    layers = {'layers': 1, 'pattern': ('local',), 'local_chunk_length': 8}
    config.model.update({**sizes, **tables, **layers})
    return config


@pytest.fixture
def spoil(monkeypatch):
    """Makes the weights of some batches NaN, numbered from 1 as they are placed."""
    place = sharding.place_batch

    def choose(*numbers):
        count = 0

        def placed(batch, mesh):
            nonlocal count
            count += 1
            wrong = np.float32(np.nan if count in numbers else 1)
            return place(batch | {'weights': batch['weights'] * wrong}, mesh)

        monkeypatch.setattr(sharding, 'place_batch', placed)

    return choose


def _steps(workdir):
    with checkpoint.Checkpointer(workdir) as checkpointer:
        latest = checkpointer.latest_step() or 0
        return checkpointer.latest_steps(latest) if latest else []


def _lines(workdir):
    def refuse(name):
        raise AssertionError(f'{name} is no JSON')

    text = (workdir / 'metrics.jsonl').read_text()
    lines = [json.loads(x, parse_constant=refuse) for x in text.splitlines()]
    return [line for line in lines if line['split'] == 'train']


@pytest.mark.parametrize('log_every', [1, 10])
def test_nothing_is_saved_of_a_loss_that_is_no_number(
    config, spoil, tmp_path, log_every
):
    config.log_every = log_every
    spoil(3)
    message = 'step 3: the loss is nan; the checkpoint of step 2 is finite. Resume with'
    with pytest.raises(FloatingPointError, match=message):
        loop.train(config, str(tmp_path / 'run'))
    assert _steps(tmp_path / 'run') == [1, 2]
    spoil()  # and as the message says
    config.optimizer.skips = 10
    assert loop.train(config, str(tmp_path / 'run'))


def test_the_last_update_is_looked_at(config, tmp_path):
    """No loss is ever taken behind it."""
    config.steps = 1
    config.optimizer.update({'learning_rate': 1e38, 'warmup_steps': 1})
    message = 'step 1: the norm of the parameters .* is inf; no checkpoint was saved'
    with pytest.raises(FloatingPointError, match=message):
        loop.train(config, str(tmp_path / 'run'))
    assert _steps(tmp_path / 'run') == []
    assert run_folder.load_result(tmp_path / 'run') is None


def test_skipped_steps_leave_no_trace_but_their_count(config, spoil, tmp_path, capsys):
    config.log_every = 2
    config.optimizer.skips = 1
    spoil(2)
    config.steps = 3
    loop.train(config, str(tmp_path / 'run'))
    config.steps = 4
    spoil(1)  # of those after the resumption
    loop.train(config, str(tmp_path / 'run'))
    out = capsys.readouterr().out
    assert out.count('WARNING: skipped the update of 1 of the steps') == 2
    assert 'the last of step 4: the loss is nan' in out
    lines = _lines(tmp_path / 'run')
    assert [(x['step'], x['skipped']) for x in lines] == [(2, 1), (3, 0), (4, 1)]
    assert [x['loss'] is None for x in lines] == [False, False, True]
    arrays = _arrays(config, tmp_path / 'run')
    for before, after in ((1, 2), (3, 4)):
        _equal_but_for_the_step(arrays[before], arrays[after])
    (table,) = (name for name in arrays[2] if name.startswith('modelembedding'))
    assert not np.array_equal(arrays[2][table], arrays[3][table])


def _arrays(config, workdir):
    template = start.open(config, str(workdir)).state
    with checkpoint.Checkpointer(workdir) as checkpointer:
        states = {s: checkpointer.restore(template, step=s)[0] for s in (1, 2, 3, 4)}
    return {
        step: {
            jax.tree_util.keystr(path, simple=True): np.asarray(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        }
        for step, state in states.items()
    }


def _equal_but_for_the_step(before, after):
    assert after['step'] == before['step'] + 1
    for name in before.keys() - {'step'}:
        np.testing.assert_array_equal(before[name], after[name], err_msg=name)


def test_no_more_than_so_many_in_a_row(config, spoil, tmp_path):
    config.steps = 5
    config.optimizer.skips = 2
    spoil(1, 3, 4, 5)
    message = r'step 5: the loss is nan, after 2 skipped in a row .*step 4 is finite'
    with pytest.raises(FloatingPointError, match=message):
        loop.train(config, str(tmp_path / 'run'))
    assert _steps(tmp_path / 'run') == [1, 2, 3, 4]


def test_spikes_by_the_running_mean_of_those_before():
    config = optimizer_lib.OptimizerConfig(spike=4.0, frozen='none of these|b')
    optimizer = optimizer_lib.build(config, 10)
    parameters = {'a': jnp.zeros(2), 'b': jnp.zeros(1)}
    state, found = optimizer.init(parameters), []
    for size in (1.0, 3.0, 10.0):
        gradient = {'a': jnp.array([size, 0.0]), 'b': jnp.zeros(1)}
        found.append(optimizer_lib.of_mean(optax.tree.norm(gradient), state))
        _, state = optimizer.update(gradient, state, parameters)
    np.testing.assert_allclose(found, [0.0, 3.0, 10 / (0.99 + 0.03)], rtol=1e-6)


@pytest.mark.parametrize('skips', [0, 1])
def test_a_spike_is_no_step(config, tmp_path, monkeypatch, capsys, skips):
    config.optimizer.update({'skips': skips, 'spike': 4.0})
    real = optimizer_lib.of_mean

    def of_mean(norm, opt_state):
        mean = optax.tree.get(opt_state, 'norm_mean')
        return real(norm, opt_state) + jnp.where(mean > 0, 5.0, 0.0)

    monkeypatch.setattr(optimizer_lib, 'of_mean', of_mean)
    config.steps = 2
    if skips:
        assert loop.train(config, str(tmp_path / 'run'))
        assert 'skipped the update of 1 of the steps up to 2' in capsys.readouterr().out
        assert _lines(tmp_path / 'run')[1]['skipped'] == 1
        return
    message = r'step 2: the norm of the gradient, .* is \S+ times its running mean'
    with pytest.raises(FloatingPointError, match=message):
        loop.train(config, str(tmp_path / 'run'))
    assert _steps(tmp_path / 'run') == [1]


def test_a_loss_worse_than_guessing_is_said(config, tmp_path, capsys):
    checked = start.open(config, 'none').config
    divergence.warn_of_loss(checked, 'training', 7, 9 * np.log(258))
    assert not capsys.readouterr().out
    divergence.warn_of_loss(checked, 'training', 7, 1e7)
    assert 'WARNING: the training loss at step 7 is 1e+07' in capsys.readouterr().out
    config.optimizer.update({'learning_rate': 1e3, 'warmup_steps': 1})
    loop.train(config, str(tmp_path / 'run'))
    out = capsys.readouterr().out
    assert 'WARNING: the training loss at step 4 is' in out
    assert 'WARNING: the validation loss at step 4 is' in out


def test_a_final_evaluation_that_is_no_number_fails(config, tmp_path, monkeypatch):
    real = evaluation.evaluate_split
    monkeypatch.setattr(
        evaluation, 'evaluate_split', lambda *a, **k: real(*a, **k) | {'loss': np.nan}
    )
    config.steps = 1
    for _ in range(2):  # the same command, too
        with pytest.raises(FloatingPointError, match='loss after 1 steps is nan'):
            loop.train(config, str(tmp_path / 'run'))
    assert run_folder.load_result(tmp_path / 'run') is None
