"""The training loop end to end, on small models and generated data."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from configs import copy_reverse
from configs import duplication
from configs import imagenet64
from configs import multi30k
from configs import text
from reformer_jax import sharding
from reformer_jax.model import config as model_config
from reformer_jax.runs import checkpoint
from reformer_jax.runs import folder as run_folder
from reformer_jax.runs import metrics
from reformer_jax.training import config as training_config
from reformer_jax.training import evaluation
from reformer_jax.training import loop
from reformer_jax.training import optimizer as optimizer_lib
from reformer_jax.training import start
from reformer_jax.training import state as state_lib
from reformer_jax.training import step as step_lib


@pytest.fixture(scope='module')
def text_file(tmp_path_factory):
    path = tmp_path_factory.mktemp('data') / 'text.txt'
    words = np.random.default_rng(0).choice(['ab', 'cde ', 'f\n', 'ghi'], 8000)
    path.write_text(''.join(words))
    return str(path)


def _config(text_file, **changes) -> ml_collections.ConfigDict:
    config = text.get_config('tiny')
    config.minutes = 0.0
    config.steps = 6
    config.log_every = 2
    config.eval_every = 0
    config.checkpoint_every = 0
    config.data.update({'path': text_file, 'length': 64, 'batch_size': 4})
    config.model.update(
        {
            'length': 64,
            'd_model': 16,
            'd_ff': 32,
            'heads': 2,
            'head_size': 8,
            'layers': 2,
            'local_chunk_length': 16,
            'lsh_chunk_length': 16,
            'dense_length': 0,
            'axial_shape': (8, 8),
            'axial_sizes': (8, 8),
            'dropout': 0.1,
            'attention_dropout': 0.1,
        }
    )
    config.update_from_flattened_dict(changes)
    return config


_WITHOUT_DROPOUT = {'model.dropout': 0.0, 'model.attention_dropout': 0.0}


def _arrays(workdir) -> dict[str, np.ndarray]:
    run = start.open(None, str(workdir))
    with checkpoint.Checkpointer(workdir) as checkpointer:
        state, _ = checkpointer.restore(run.state)
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def _losses(workdir) -> dict[int, float]:
    records = metrics.read(pathlib.Path(workdir) / 'metrics.jsonl')
    return {r['step']: r['loss'] for r in records if r['split'] == 'train'}


@pytest.fixture(scope='module')
def finished(text_file, tmp_path_factory):
    """A run of six steps, and its final metrics."""
    workdir = str(tmp_path_factory.mktemp('runs') / 'whole')
    return workdir, loop.train(_config(text_file), workdir)


@pytest.mark.slow
def test_resumed_is_uninterrupted_bit_for_bit(finished, text_file, tmp_path):
    whole, final = finished
    resumed = str(tmp_path / 'resumed')
    # Stopped by a lower limit of steps: of a constant schedule nothing else changes.
    loop.train(_config(text_file, steps=4), resumed)
    again = loop.train(_config(text_file, steps=6), resumed)
    assert again == final
    assert _losses(resumed) == _losses(whole)
    expected, actual = _arrays(whole), _arrays(resumed)
    assert expected.keys() == actual.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(array, actual[name], err_msg=name)


def test_a_run_goes_on_before_a_damaged_checkpoint(
    finished, text_file, tmp_path, capsys
):
    whole, final = finished
    workdir = tmp_path / 'run'
    loop.train(_config(text_file, steps=4, checkpoint_every=2), str(workdir))
    arrays = (workdir / 'checkpoints' / '4' / 'state' / 'd').iterdir()
    largest = max(arrays, key=lambda file: file.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    with pytest.raises(ValueError, match=f'{largest.name} .* --checkpoint=2'):
        evaluation.evaluate(None, str(workdir))
    capsys.readouterr()
    assert loop.train(_config(text_file), str(workdir)) == final
    assert 'moved to damaged_4, going on from step 2' in capsys.readouterr().out
    expected, actual = _arrays(whole), _arrays(workdir)
    for name, array in expected.items():
        np.testing.assert_array_equal(array, actual[name], err_msg=name)


def test_a_complete_run_says_what_it_came_to(finished, text_file, tmp_path):
    workdir, final = finished
    result = run_folder.load_result(workdir)
    assert result == {'step': 6, 'steps': 6, 'minutes': 0.0, 'validation': final}
    # A run that was stopped by its time limit is complete as well.
    loop.train(_config(text_file, minutes=1e-4), str(tmp_path / 'timed'))
    timed = run_folder.load_result(tmp_path / 'timed')
    assert timed['step'] < 6 and (timed['steps'], timed['minutes']) == (6, 1e-4)


def test_a_finished_run_is_left_as_it_is(finished, text_file):
    workdir, final = finished
    before = (pathlib.Path(workdir) / 'metrics.jsonl').read_text()
    assert loop.train(_config(text_file), workdir) == final
    assert (pathlib.Path(workdir) / 'metrics.jsonl').read_text() == before


@pytest.fixture
def stop_while_evaluating(monkeypatch):
    """Sends SIGTERM before the first batch of an evaluation."""
    check = model_config.check_tokens

    def with_a_signal(batches):
        calls = iter(range(batches + 1))

        def checked(*arguments):
            if next(calls, None) == batches:
                os.kill(os.getpid(), signal.SIGTERM)
            check(*arguments)

        monkeypatch.setattr(model_config, 'check_tokens', checked)

    return with_a_signal


def _validations(workdir):
    records = metrics.read(pathlib.Path(workdir) / 'metrics.jsonl')
    return {r['step']: r['loss'] for r in records if r['split'] == 'validation'}


def test_a_signal_in_the_last_step_costs_no_evaluation(
    finished, text_file, tmp_path, stop_while_evaluating
):
    workdir = str(tmp_path / 'run')
    stop_while_evaluating(5)  # with the last batch of training
    assert loop.train(_config(text_file), workdir) == {}
    assert run_folder.load_result(workdir) is None and not _validations(workdir)
    assert loop.train(_config(text_file), workdir) == finished[1]
    assert _validations(workdir) == {6: finished[1]['loss']}
    with checkpoint.Checkpointer(workdir) as checkpointer:
        assert checkpointer.best_step() == 6


def test_the_last_checkpoint_does_not_wait_for_the_evaluation(
    finished, text_file, tmp_path, stop_while_evaluating
):
    workdir = str(tmp_path / 'run')
    stop_while_evaluating(6)  # with the first batch of the final evaluation
    assert loop.train(_config(text_file), workdir) == {}
    with checkpoint.Checkpointer(workdir) as checkpointer:
        assert checkpointer.latest_step() == 6 and checkpointer.best_step() is None
    assert loop.train(_config(text_file), workdir) == finished[1]


def test_an_evaluation_in_between_is_made_up_for(
    text_file, tmp_path, stop_while_evaluating
):
    config = _config(text_file, eval_every=2, eval_batches=2, checkpoint_every=2)
    loop.train(config, str(tmp_path / 'whole'))
    stop_while_evaluating(2)
    workdir = str(tmp_path / 'stopped')
    assert loop.train(config, workdir) == {} and not _validations(workdir)
    loop.train(config, workdir)
    assert _validations(workdir) == _validations(tmp_path / 'whole')
    assert list(_validations(workdir)) == [2, 4, 6]


def test_a_loss_that_is_no_number_is_no_evaluation(finished, monkeypatch):
    workdir, means = finished[0], metrics.means
    evaluations = len(run_folder.load_evaluations(workdir))
    monkeypatch.setattr(metrics, 'means', lambda sums: means(sums) | {'loss': np.nan})
    with pytest.raises(FloatingPointError, match='loss on validation after 6 .* nan'):
        evaluation.evaluate(None, workdir)
    assert len(run_folder.load_evaluations(workdir)) == evaluations


def test_a_run_does_not_go_on_with_other_data(finished, text_file, tmp_path):
    """Not even where all of what was to be done is."""
    shutil.copytree(finished[0], tmp_path / 'run')
    shutil.copy(text_file, tmp_path / 'kept')
    with open(text_file, 'a') as file:
        file.write('more')
    try:
        with pytest.raises(ValueError, match=r'text.txt.bytes: was \d+, is \d+'):
            loop.train(_config(text_file), str(tmp_path / 'run'))
        config = _config(text_file, data_may_change=True)
        assert loop.train(config, str(tmp_path / 'run')) == finished[1]
    finally:
        shutil.copy(tmp_path / 'kept', text_file)


def test_profile(text_file, tmp_path):
    config = _config(text_file, steps=3)
    with pytest.raises(ValueError, match='--profile=3: give the first and the last'):
        loop.train(config, str(tmp_path / 'run'), profile='3')
    assert not (tmp_path / 'run').exists()
    loop.train(config, str(tmp_path / 'run'), profile='2:3')
    assert list((tmp_path / 'run' / 'profile').rglob('*.xplane.pb'))
    with pytest.raises(ValueError, match='--profile=2:3: this run does steps 4 to 4'):
        loop.train(_config(text_file, steps=4), str(tmp_path / 'run'), profile='2:3')


@pytest.mark.slow
def test_a_run_goes_on_in_less_memory(text_file, tmp_path):
    """As the same function: without dropout the same to rounding."""
    config = _config(text_file, steps=3, **_WITHOUT_DROPOUT)
    loop.train(config, str(tmp_path / 'run'))
    shutil.copytree(tmp_path / 'run', tmp_path / 'less')
    config.steps = 6
    final = loop.train(config, str(tmp_path / 'run'))
    config.model.update(
        {'stack': 'checkpoint', 'heads_at_once': 1, 'loss_chunk_length': 16}
    )
    less = loop.train(config, str(tmp_path / 'less'))
    assert less['loss'] == pytest.approx(final['loss'], abs=1e-4)


def test_metrics_have_what_readers_expect(finished):
    records = metrics.read(pathlib.Path(finished[0]) / 'metrics.jsonl')
    train = [r for r in records if r['split'] == 'train']
    assert [r['step'] for r in train] == [2, 4, 6]
    common = {'step', 'split', 'loss', 'bits_per_dim', 'accuracy'}
    assert common | {'learning_rate', 'grad_norm', 'tokens_per_second'} <= set(train[0])
    assert records[-1]['split'] == 'validation'
    assert list((pathlib.Path(finished[0]) / 'tensorboard').iterdir())


@pytest.mark.slow
def test_training_lowers_the_loss(text_file, tmp_path):
    config = _config(text_file, steps=40, log_every=5)
    config.optimizer.warmup_steps = 5
    loop.train(config, str(tmp_path / 'run'))
    losses = _losses(tmp_path / 'run')
    assert losses[40] < 0.75 * losses[5]


def test_evaluation_counts_every_byte(finished, text_file):
    workdir, final = finished
    config = _config(text_file)
    results = evaluation.evaluate(config, workdir, splits=('validation', 'test'))
    size = pathlib.Path(text_file).stat().st_size
    tokens = size * 95 // 100 - size * 90 // 100
    assert results['validation']['tokens'] == tokens == final['tokens']
    assert results['validation']['loss'] == pytest.approx(final['loss'], rel=1e-6)
    files = list((pathlib.Path(workdir) / 'evaluations').iterdir())
    assert json.loads(files[0].read_text())['results']['test'] == results['test']


@pytest.mark.slow
def test_evaluation_is_on_all_that_was_not_trained_on(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8)
    np.savez(tmp_path / 'images.npz', validation=images, train=images)
    config = imagenet64.get_config('tiny')
    config.steps = 1
    config.data.update({'source': str(tmp_path / 'images.npz'), 'shrink': 16})
    config.model.update({'length': 48, 'axial_shape': (4, 4, 3)})
    loop.train(config, str(tmp_path / 'run'))
    results = evaluation.evaluate(config, str(tmp_path / 'run'))
    assert list(results) == ['validation']
    assert results['validation']['tokens'] == 4 * 48


def test_evaluation_may_change_the_attention(finished, text_file):
    workdir, final = finished
    more = _config(text_file)
    more.model.rounds = 4
    values = evaluation.evaluate(more, workdir, splits=('validation',))['validation']
    assert values['loss'] != final['loss']
    assert values['loss'] == pytest.approx(final['loss'], rel=0.05)


@pytest.mark.slow
def test_accumulated_gradients_are_those_of_the_whole_batch(text_file):
    config = _config(text_file)
    config.model.update(
        {'dropout': 0.0, 'attention_dropout': 0.0, 'pattern': ('local',)}
    )
    run = start.open(config, 'none')
    state = state_lib.init_state(run.config.model, run.optimizer, 0)
    tokens = jax.random.randint(jax.random.key(1), (4, 64), 2, 258)
    weights = jax.random.bernoulli(jax.random.key(2), 0.6, (4, 64)).astype(jnp.float32)
    batch = {'tokens': tokens, 'weights': weights}
    totals = []
    for accumulate in (1, 2):
        step = jax.jit(
            lambda state, batch, accumulate=accumulate: step_lib.train_step(
                state,
                batch,
                jax.random.key(0),
                optimizer=run.optimizer,
                schedule=optimizer_lib.schedule(run.config.optimizer, 6),
                accumulate=accumulate,
            )[1]
        )
        totals.append(step(state, batch))
    for name, value in totals[0].items():
        np.testing.assert_allclose(totals[1][name], value, rtol=1e-5, err_msg=name)


@pytest.mark.slow
def test_padding_positions_do_not_count(text_file):
    run = start.open(_config(text_file), 'none')
    model = state_lib.init_state(run.config.model, run.optimizer, 0).model
    tokens = jax.random.randint(jax.random.key(1), (4, 64), 2, 258)
    half = jnp.where(jnp.arange(64) < 32, 1.0, 0.0) * jnp.ones((4, 1))
    total, _ = step_lib.evaluate(model, {'tokens': tokens, 'weights': half})
    nothing, _ = step_lib.evaluate(model, {'tokens': tokens, 'weights': 0 * half})
    assert total['weight'] == 128
    assert nothing['loss'] == nothing['accuracy'] == 0


def test_time_limit_stops_with_a_checkpoint(text_file, tmp_path, capsys):
    config = _config(text_file, steps=100_000, minutes=0.005)
    loop.train(config, str(tmp_path / 'run'))
    assert 'final validation after' in capsys.readouterr().out
    with checkpoint.Checkpointer(tmp_path / 'run') as checkpointer:
        assert 0 <= checkpointer.latest_step() < 100_000


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_before_a_checkpoint(text_file, tmp_path):
    config = _config(text_file, steps=20, log_every=1)
    config.optimizer.update({'learning_rate': 1e30, 'clip_norm': 0.0})
    with pytest.raises(FloatingPointError, match='learning_rate'):
        loop.train(config, str(tmp_path / 'run'))
    with checkpoint.Checkpointer(tmp_path / 'run') as checkpointer:
        assert checkpointer.latest_step() is None


@pytest.mark.slow
def test_another_config_does_not_touch_the_run(finished, text_file, tmp_path):
    workdir = str(tmp_path / 'copy')
    shutil.copytree(finished[0], workdir)
    config = _config(text_file)
    config.model.d_ff = 64
    with pytest.raises(ValueError, match=r'model\.d_ff.*32.*64'):
        loop.train(config, workdir)
    other = _config(text_file)
    other.model.d_ff = 64
    with pytest.raises(ValueError, match='d_ff|hidden'):
        evaluation.evaluate(other, workdir)


@pytest.mark.parametrize(
    ('field', 'value', 'message'),
    [
        ('model.axial_shape', (4, 8), r'32 positions for length=64: enlarge'),
        ('model.lsh_chunk_length', 0, r'lsh: chunk_length=0 must be at least 1'),
        ('init_from', 'no/such/model', r"init_from='no/such/model' is no folder"),
        ('model.head', 'none', r"is for a model with head='lm', not .*head='none'"),
        ('optimizer.frozen', 'embeding', r"frozen='embeding' is found in no parameter"),
        ('optimizer.frozen', '.', r"frozen='.' is found in every parameter"),
        ('optimizer.frozen', '(', r"frozen='\(' is no regular expression"),
        ('model.buckets', (7,), r'7 is not an even number'),
        ('model.vocab_size', 100, r'token ids up to 257.*at least 258'),
        ('model.length', 32, r'64 tokens is longer than the model'),
        ('model.pattern', ('lhs',), r"'lhs', which is none of"),
        ('optimizer.name', 'sgd', r"optimizer.name='sgd' is none of"),
        ('mesh.data', 3, r'does not make up the 1 devices'),
        ('accumulate', 3, r'batch_size=4 is no multiple of accumulate=3'),
        ('steps', 0, r'config.steps=0 must be at least 1'),
        ('steps', True, r'config.steps=True must be a whole number'),
        ('minutes', np.nan, r'config.minutes=nan must be a finite number'),
        ('seed', 2**40, r'config.seed=1099511627776 must be a whole number below'),
        ('data.path', 'nowhere.txt', r'nowhere.txt'),
        ('data.length', 10**6, r'needs at least'),
    ],
)
def test_bad_config_is_an_error_before_anything(
    text_file, tmp_path, field, value, message
):
    config = _config(text_file)
    with config.unlocked():
        config.update_from_flattened_dict({field: value})
    if field == 'data.length':
        config.model.length = value
        config.model.update({'positions': 'none', 'lsh_chunk_length': value})
        config.model.local_chunk_length = value
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        loop.train(config, str(tmp_path / 'run'))
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('section', ['', 'model', 'optimizer', 'data'])
def test_an_unknown_field_is_named(text_file, section):
    config = _config(text_file)
    with config.unlocked():
        (config[section] if section else config).wdith = 1
    with pytest.raises(ValueError, match='wdith'):
        start.open(config, 'none')


@pytest.mark.slow
@pytest.mark.parametrize('door', ['train.py', 'eval.py', 'sample.py'])
def test_an_unknown_field_on_the_command_line_is_named(door, tmp_path):
    flags = [
        '--config=configs/text.py',
        f'--workdir={tmp_path}/run',
        '--config.model.wdith=3',
    ]
    done = subprocess.run(
        [sys.executable, door, *flags], capture_output=True, text=True, check=False
    )
    last = done.stderr.splitlines()[-1]
    assert done.returncode and 'unknown config field model.wdith: there are' in last
    assert not (tmp_path / 'run').exists()


def test_an_older_run_folder_lacks_fields_of_the_data(tmp_path):
    """They had the values that are the defaults today."""
    config = text.get_config('tiny').to_dict()
    older = {k: config['data'][k] for k in ('dataset', 'path', 'length', 'batch_size')}
    run_folder.open_workdir(tmp_path, config | {'data': older | {'seed': 0}})
    absent = training_config.absent(config)
    run_folder.check_same_run(tmp_path, config, absent)
    config['data']['masked_fraction'] = 0.15
    with pytest.raises(ValueError, match='masked_fraction: 0.0 in the folder, 0.15'):
        run_folder.check_same_run(tmp_path, config, absent)


def test_rounds_at_evaluation_do_not_decide_what_is_exact(text_file, tmp_path):
    """By themselves 8 rounds would be exact attention, under the name of LSH."""
    config = _config(text_file)
    config.model.update({'rounds': 2, 'dense_length': -1, 'length': 64})
    config.model.update({'lsh_chunk_length': 8, 'positions': 'none'})
    config.data.length = 64
    trained = start.open(config, str(tmp_path))
    run_folder.open_workdir(tmp_path, trained.fields)
    config.model.rounds = 8
    assert start.open(config, 'none').config.model.lsh.exact
    evaluated = start.open(config, str(tmp_path))
    assert evaluated.config.model.rounds == 8
    assert not evaluated.config.model.lsh.exact and not trained.config.model.lsh.exact
    config.model.rule = 'strict'  # which knows no exact length
    assert start.open(config, str(tmp_path)).config.model.dense_length == -1


def _copy_reverse():
    config = copy_reverse.get_config('lsh')
    config.update({'steps': 6, 'checkpoint_every': 3, 'eval_every': 0, 'log_every': 1})
    config.data.update({'word_length': 16, 'batch_size': 4, 'eval_examples': 6})
    small = {'length': 16, 'd_model': 16, 'd_ff': 16, 'head_size': 8, 'rounds': 1}
    config.model.update(small | {'layers': 1, 'lsh_chunk_length': 4})
    return config


@pytest.mark.slow
def test_an_encoder_decoder_trains_resumes_and_is_evaluated(tmp_path, capsys):
    whole = loop.train(_copy_reverse(), str(tmp_path / 'whole'))
    config = _copy_reverse()
    config.steps = 3
    loop.train(config, str(tmp_path / 'parts'))
    config.steps = 6
    config.optimizer.learning_rate = 1e-3
    assert loop.train(config, str(tmp_path / 'parts')) == whole
    values = evaluation.evaluate(None, str(tmp_path / 'parts'), splits=('validation',))
    assert values['validation']['loss'] == pytest.approx(whole['loss'], rel=1e-6)
    assert "rule strict; the encoder's LSH: xla" in capsys.readouterr().out


def test_rounds_at_evaluation_do_not_decide_what_is_exact_in_an_encoder(tmp_path):
    config = _copy_reverse()
    config.model.update({'rounds': 2, 'dense_length': -1, 'lsh_chunk_length': 2})
    trained = start.open(config, str(tmp_path))
    run_folder.open_workdir(tmp_path, trained.fields)
    assert not trained.config.model.encoder.lsh.exact
    for rule in ('strict', 'reformer'):
        config.model.update({'rounds': 8, 'rule': rule})
        assert start.open(config, 'none').config.model.encoder.lsh.exact
        evaluated = start.open(config, str(tmp_path)).config.model
        assert evaluated.encoder.rounds == 8 and not evaluated.encoder.lsh.exact


@pytest.mark.parametrize('has_encoder', [False, True])
def test_data_and_model_without_each_others_source(text_file, has_encoder):
    config = _config(text_file) if has_encoder else _copy_reverse()
    config.model.encoder = {'pattern': ('full',), 'layers': 1} if has_encoder else None
    message = 'no sources, and the model has an' if has_encoder else 'sources.* has no'
    with pytest.raises(ValueError, match=message):
        start.open(config, 'none')


@pytest.mark.parametrize(
    ('encoder', 'message'),
    [
        ({'length': 8}, 'length=8: shorten it or enlarge config.model.encoder.length'),
        ({'vocab_size': 100}, 'up to 127, but model.encoder.vocab_size=100: set it to'),
    ],
)
def test_sources_that_do_not_fit_the_encoder(encoder, message):
    config = _copy_reverse()
    config.model.update({'share_embedding': False})
    config.model.encoder = dict(config.model.encoder) | encoder
    with pytest.raises(ValueError, match=message):
        start.open(config, 'none')


def test_heads_of_the_encoder_are_split_too():
    config = _copy_reverse()
    config.model.encoder = dict(config.model.encoder) | {'heads_at_once': 1}
    run = start.open(config, 'none')
    mesh = jax.sharding.AbstractMesh((1, 1, 2), ('data', 'fsdp', 'model'))
    with pytest.raises(ValueError, match='1 heads .* do not split over .* = 2 devices'):
        training_config.check_devices(run.config, mesh)


def test_devices_that_do_not_divide_the_batch(monkeypatch):
    mesh = jax.sharding.AbstractMesh((3, 1, 1, 1, 1), sharding.AXES)
    monkeypatch.setattr(sharding, 'make_mesh', lambda _: mesh)
    run = start.open(_copy_reverse(), 'none')
    with pytest.raises(ValueError, match='does not split over data . fsdp = 3 devices'):
        start.check_batches(run)


def test_an_encoder_from_another_run_keeps_the_configs_other_fields(tmp_path, capsys):
    source = _copy_reverse()
    source.model.update({'rounds': 2, 'dense_length': 0})
    source.model.encoder = dict(source.model.encoder) | {'d_ff': 24, 'dropout': 0.3}
    run_folder.open_workdir(tmp_path, start.open(source, str(tmp_path)).fields)
    config = _copy_reverse()
    config.init_from = str(tmp_path)
    config.model.update({'dropout': 0.1, 'rounds': 3})
    encoder = start.open(config, 'none').config.model.encoder
    assert (encoder.d_ff, encoder.dropout, encoder.rounds) == (24, 0.1, 3)
    told = capsys.readouterr().out
    assert 'encoder.' not in told  # nothing that the config says is replaced
    config.model.encoder = dict(config.model.encoder) | {'d_ff': 8, 'dropout': 0.2}
    encoder = start.open(config, 'none').config.model.encoder
    assert (encoder.d_ff, encoder.dropout) == (24, 0.2)
    assert 'encoder.d_ff=24 (not 8)' in capsys.readouterr().out


@pytest.mark.parametrize('shared_qk', [True, False])
def test_full_attention_starts_from_lsh_where_it_shares_queries(tmp_path, shared_qk):
    source = duplication.get_config('short')
    source.model.shared_qk = shared_qk
    run_folder.open_workdir(tmp_path, start.open(source, str(tmp_path)).fields)
    config = duplication.get_config('cpu')
    config.init_from = str(tmp_path)
    for pattern in (('lsh',), ('full',)):
        config.model.pattern = pattern
        found = start.open(config, 'none').config.model.pattern
        assert found == (pattern if shared_qk else ('lsh',))


def test_token_ids_out_of_range_are_an_error(tmp_path):
    config = duplication.get_config('tiny')
    config.model.vocab_size = 100
    with pytest.raises(ValueError, match='up to 127'):
        loop.train(config, str(tmp_path / 'run'))


@pytest.fixture(scope='module')
def pairs_files(tmp_path_factory):
    """Line-aligned files of words and the same words backwards."""
    folder = tmp_path_factory.mktemp('pairs')
    generator = np.random.default_rng(0)
    for split, count in (('train', 200), ('validation', 20), ('test', 9)):
        lines = [
            list(generator.choice(['ab', 'cde', 'f', 'ghi'], generator.integers(1, 9)))
            for _ in range(count)
        ]
        for column, step in (('en', 1), ('de', -1)):
            text = ''.join(' '.join(words[::step]) + '\n' for words in lines)
            (folder / f'{split}.{column}').write_text(text)
    return f'{folder}/{{split}}.{{column}}'


def _pairs(files, **changes):
    config = multi30k.get_config()
    config.update({'steps': 12, 'log_every': 1, 'eval_every': 0, 'checkpoint_every': 0})
    config.data.update(
        {
            'source': files,
            'split_names': {name: name for name in ('train', 'validation', 'test')},
            'tokenizer': 'train:272',
            'lengths': (6, 12),
            'batch_size': 4,
        }
    )
    small = {'vocab_size': 272, 'length': 24, 'd_model': 16, 'd_ff': 16, 'head_size': 8}
    config.model.update(small | {'heads': 2, 'layers': 1})
    config.model.encoder.layers = 1
    config.optimizer.decay = 'constant'
    config.update_from_flattened_dict(changes)
    return config


@pytest.mark.slow
def test_pairs_train_and_resume_across_shapes_of_batches(pairs_files, tmp_path, capsys):
    whole = loop.train(_pairs(pairs_files), str(tmp_path / 'whole'))
    for steps in (5, 12):
        parts = loop.train(_pairs(pairs_files, steps=steps), str(tmp_path / 'parts'))
    assert parts == whole and whole['tokens'] > 100
    assert _losses(tmp_path / 'parts') == _losses(tmp_path / 'whole')
    run = start.open(_pairs(pairs_files), str(tmp_path / 'whole'))
    first = next(run.config.data.batches('train'))
    logged = metrics.read(tmp_path / 'whole' / 'metrics.jsonl')[0]
    share = logged['source_tokens_per_second'] / logged['tokens_per_second']
    assert share == pytest.approx(first['source_mask'].sum() / first['weights'].sum())
    said = capsys.readouterr().out
    assert 'compiled the training step for 2 shapes of batches' in said
    assert '158 pairs, ' in said and '42 longer than (12, 12) left out' in said
    # The tokenizer is the run's own.
    run = start.open(None, str(tmp_path / 'parts'))
    assert run.config.data.tokenizer == str(tmp_path / 'parts' / 'tokenizer.model')
    assert run.config.data.vocab_size == 272
    # It is recorded as it was asked for, and another size is not this run's.
    recorded = run_folder.recorded_config(tmp_path / 'parts')
    assert recorded['data']['tokenizer'] == 'train:272'
    assert not (tmp_path / 'parts' / 'config.2.json').exists()
    config = _pairs(pairs_files, **{'data.tokenizer': 'train:271'})
    with pytest.raises(ValueError, match='train:271.*that was kept has 272 tokens'):
        start.open(config, str(tmp_path / 'parts'))
    # Who starts from a run reads its tokens.
    config = _pairs(pairs_files, init_from=str(tmp_path / 'parts'))
    tokenizer = start.open(config, 'none').config.data.tokenizer
    assert tokenizer == str(tmp_path / 'parts' / 'tokenizer.model')
    (tmp_path / 'parts' / 'tokenizer.model').unlink()
    with pytest.raises(ValueError, match='has no tokenizer.model, and data.tokenizer='):
        start.open(config, 'none')
    # What is reported is the likelihood; what is trained has some of all tokens.
    lines = metrics.read(tmp_path / 'whole' / 'metrics.jsonl')
    trained = [line for line in lines if line['split'] == 'train']
    assert all(line['smoothed_loss'] != line['loss'] for line in trained)


@pytest.fixture(scope='module')
def translating(pairs_files, tmp_path_factory):
    """A run on pairs with three checkpoints, and its final metrics."""
    workdir = str(tmp_path_factory.mktemp('runs') / 'pairs')
    changes = {'steps': 6, 'checkpoint_every': 2, 'keep_checkpoints': 3}
    return workdir, loop.train(_pairs(pairs_files, **changes), workdir)


@pytest.mark.slow
def test_translations_are_scored_and_written(translating, pairs_files, monkeypatch):
    workdir, final = translating
    config = _pairs(pairs_files)
    config.decoding.beams = 1  # as the final evaluation of training
    values = evaluation.evaluate(config, workdir, splits=('validation',))
    assert values['validation'] == {'step': 6, **final}
    (record,) = run_folder.load_evaluations(workdir)
    assert record['signatures']['bleu'].startswith('nrefs:1|case:mixed|eff:no|tok:13a|')
    for file in (pathlib.Path(workdir) / 'evaluations').iterdir():
        file.unlink()

    # Others than those of six steps, which all have the score 0: every source itself.
    def repeat(model, dataset, texts, how, stopped):
        return list(texts)

    monkeypatch.setattr(evaluation.translation, 'translate', repeat)
    values = evaluation.evaluate(config, workdir)
    for split, count in (('validation', 20), ('test', 9)):
        (file,) = pathlib.Path(workdir).glob(f'evaluations/*.{split}.hypotheses')
        reference = pathlib.Path(pairs_files.format(split=split, column='de'))
        source = pathlib.Path(pairs_files.format(split=split, column='en'))
        assert file.read_text() == source.read_text()
        assert file.read_text().count('\n') == count and values[split]['bleu'] > 1
        done = subprocess.run(
            [sys.executable, '-m', 'sacrebleu', reference, '-i', file, '-w', '6', '-b'],
            capture_output=True,
            text=True,
            check=True,
        )
        assert values[split]['bleu'] == pytest.approx(float(done.stdout), abs=1e-6)


@pytest.mark.slow
def test_a_signal_ends_the_final_translation(translating, pairs_files, tmp_path):
    workdir, _ = translating
    run = start.open(_pairs(pairs_files), workdir)
    model, _ = run.restore_model()
    how = run.config.decoding
    answers = iter([False, True])
    found = evaluation.translate_split(run, model, 'test', how, lambda: next(answers))
    assert found is None
    with jax.set_mesh(run.mesh):
        (scores, _, lines) = evaluation.translate_split(run, model, 'test', how)
    assert len(lines) == 9
    assert scores.get('left_out', 0) == run.config.data.left_out('test')


@pytest.mark.slow
def test_mean_of_the_last_checkpoints(translating):
    workdir, _ = translating
    run = start.open(None, workdir)
    models = [run.restore_model(step)[0] for step in (4, 6)]
    mean, step = run.restore_model('average:2')
    assert step == 6
    for wanted, array in zip(
        jax.tree.leaves(jax.tree.map(lambda a, b: (a + b) / 2, *models)),
        jax.tree.leaves(mean),
        strict=True,
    ):
        np.testing.assert_allclose(array, wanted, rtol=1e-6)
    assert not _equal(mean, models[1])
    assert _equal(run.restore_model('average:1')[0], models[1])
    with pytest.raises(ValueError, match='mean of 4 checkpoints, and .* has 3'):
        run.restore_model('average:4')
    with pytest.raises(ValueError, match='checkpoint=average:x: give the number'):
        run.restore_model('average:x')


def _equal(a, b) -> bool:
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(x, y) for x, y in leaves)


def test_what_translation_would_refuse_is_said_before_training(pairs_files, tmp_path):
    config = _pairs(pairs_files, **{'model.length': 12})
    config.data.lengths = (4, 8)
    with pytest.raises(ValueError, match='line .* of the validation split has .*=12'):
        loop.train(config, str(tmp_path / 'run'))
    config = _pairs(pairs_files, **{'model.start_token': -1})
    with pytest.raises(ValueError, match='model.start_token=-1: a target begins'):
        loop.train(config, str(tmp_path / 'run'))
    assert not (tmp_path / 'run').exists()


def test_first_loss_of_tied_logits_is_about_that_of_guessing(pairs_files):
    config = _pairs(pairs_files, steps=1)
    config.model.d_model = 64
    run = start.open(config, 'none')
    with jax.set_mesh(run.mesh):
        model = start.first_state(run, {}).model
        batch = next(run.read('train'))
        sums, _ = jax.jit(step_lib.evaluate)(model, batch)
    assert sums['loss'] / sums['weight'] < np.log(272) + 2
