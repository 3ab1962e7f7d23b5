"""Tests of the datasets: contents, order, saved state, error messages."""

import ast
import itertools
import json
import pathlib

import grain
import ml_collections
import numpy as np
import pytest
from orbax import checkpoint

from reformer_jax import data
from reformer_jax.data import batching
from reformer_jax.data import corpus
from reformer_jax.data import duplication
from reformer_jax.data import enwik8

TEXT = np.random.default_rng(0).integers(0, 256, 4000, np.uint8)
LENGTH = 16
TRAIN = bytes(TEXT[:3600])
WINDOWS = 224  # (3600 - 15) // 16: those that fit behind every offset


@pytest.fixture
def path(tmp_path):
    file = tmp_path / 'text'
    file.write_bytes(TEXT.tobytes())
    return str(file)


def bytes_config(path, **changes):
    fields = {'dataset': 'bytes', 'path': path, 'length': LENGTH}
    return {**fields, 'batch_size': 9, 'seed': 3, **changes}


def duplication_config(**changes):
    fields = {'dataset': 'duplication', 'half_length': 6, 'symbols': 9}
    return {**fields, 'batch_size': 4, 'seed': 3, 'eval_examples': 10, **changes}


def take(iterator, count):
    return list(itertools.islice(iterator, count))


def assert_same_batches(left, right):
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        np.testing.assert_array_equal(one['tokens'], other['tokens'])
        np.testing.assert_array_equal(one['weights'], other['weights'])


def assert_layout(batch, batch_size, length):
    assert set(batch) == {'tokens', 'weights'}
    assert batch['tokens'].dtype == np.int32
    assert batch['weights'].dtype == np.float32
    assert batch['tokens'].shape == batch['weights'].shape == (batch_size, length)


def window_starts(iterator, count):
    """Positions in the training text of the next `count` windows."""
    rows = itertools.chain.from_iterable(batch['tokens'] for batch in iterator)
    return [TRAIN.find(bytes((row - 2).tolist())) for row in take(rows, count)]


# Windows of a text.


def test_training_batches_are_windows_of_the_training_text(path):
    iterator = data.open(bytes_config(path)).batches('train')
    for batch in take(iterator, 60):  # more than two epochs
        assert_layout(batch, 9, LENGTH)
        assert (batch['weights'] == 1).all()
        for row in batch['tokens']:
            assert bytes((row - 2).tolist()) in TRAIN


def test_an_epoch_uses_each_window_once_in_a_fresh_order_and_offset(path):
    iterator = data.open(bytes_config(path, batch_size=8)).batches('train')
    epochs = [window_starts(iterator, WINDOWS) for _ in range(4)]
    for starts in epochs:
        expected = min(starts) + LENGTH * np.arange(WINDOWS)
        np.testing.assert_array_equal(np.sort(starts), expected)
        assert starts != sorted(starts)
    assert len({min(starts) for starts in epochs}) > 1
    orders = {tuple(np.subtract(starts, min(starts))) for starts in epochs}
    assert len(orders) == len(epochs)


def test_offsets_reach_every_alignment(path):
    config = bytes_config(path, length=64, batch_size=55)  # one epoch a batch
    batches = take(data.open(config).batches('train'), 800)
    starts = {TRAIN.find(bytes((b['tokens'][0] - 2).tolist())) for b in batches}
    assert -1 not in starts
    assert {start % 64 for start in starts} == set(range(64))


def test_one_window_may_fill_the_training_text(path):
    config = bytes_config(path, length=3600, batch_size=2)
    for batch in take(data.open(config).batches('train'), 2):
        np.testing.assert_array_equal(batch['tokens'] - 2, [TEXT[:3600]] * 2)


def test_the_seed_decides_the_training_order(path):
    first = take(data.open(bytes_config(path)).batches('train'), 30)
    assert_same_batches(first, take(data.open(bytes_config(path)).batches('train'), 30))
    other = take(data.open(bytes_config(path, seed=4)).batches('train'), 30)
    assert not np.array_equal(first[0]['tokens'], other[0]['tokens'])


@pytest.mark.parametrize(
    ('split', 'begin', 'end'), [('validation', 3600, 3800), ('test', 3800, 4000)]
)
def test_evaluation_counts_each_byte_once_and_pads(path, split, begin, end):
    config = bytes_config(path, batch_size=5)
    batches = list(
        data.open(config).batches(split)
    )  # 200 bytes: 12.5 windows, 2.6 batches
    assert len(batches) == 3
    for batch in batches:
        assert_layout(batch, 5, LENGTH)
        assert (batch['tokens'][batch['weights'] == 0] == 0).all()
    tokens = np.concatenate([batch['tokens'] for batch in batches]).ravel()
    weights = np.concatenate([batch['weights'] for batch in batches]).ravel()
    np.testing.assert_array_equal(tokens[:200] - 2, TEXT[begin:end])
    np.testing.assert_array_equal(weights, np.arange(3 * 5 * LENGTH) < 200)


def test_splits_are_90_5_5_percent_by_integer_arithmetic():
    text = np.arange(39, dtype=np.uint8)
    parts = [batching.take_split(text, s) for s in ('train', 'validation', 'test')]
    assert [part.size for part in parts] == [35, 2, 2]
    np.testing.assert_array_equal(np.concatenate(parts), text)


def test_a_text_is_read_once_in_a_run(path, monkeypatch):
    reads = []

    def read(path):
        reads.append(path)
        return TEXT

    monkeypatch.setattr(corpus, 'read', read)
    for split in ('train', 'validation', 'validation', 'test'):
        next(data.open(bytes_config(path)).batches(split))
    assert reads == [path]


# Saved state.


@pytest.mark.parametrize('steps', [0, 3, 24, 25, 60])  # an epoch is 24.9 batches
def test_restored_iterator_continues_exactly(path, steps):
    iterator = data.open(bytes_config(path)).batches('train')
    take(iterator, steps)
    state = json.loads(json.dumps(iterator.get_state()))
    expected = take(iterator, 30)
    for advance in (0, 7):
        restored = data.open(bytes_config(path)).batches('train')
        take(restored, advance)
        restored.set_state(state)
        assert_same_batches(take(restored, 30), expected)


@pytest.mark.parametrize('split', ['train', 'validation'])
def test_restored_duplication_continues_exactly(split):
    iterator = data.open(duplication_config()).batches(split)
    next(iterator)
    state = iterator.get_state()
    restored = data.open(duplication_config()).batches(split)
    restored.set_state(state)
    expected = take(iterator, 5)
    assert len(expected) == {'train': 5, 'validation': 2}[split]
    assert_same_batches(take(restored, 5), expected)


def test_orbax_saves_and_restores_the_place(path, tmp_path):
    iterator = data.open(bytes_config(path)).batches('train')
    take(iterator, 26)
    with checkpoint.CheckpointManager(tmp_path / 'checkpoints') as manager:
        save = grain.checkpoint.CheckpointSave(iterator)
        manager.save(26, args=checkpoint.args.Composite(data=save))
        manager.wait_until_finished()
        expected = take(iterator, 5)
        restored = data.open(bytes_config(path)).batches('train')
        restore = grain.checkpoint.CheckpointRestore(restored)
        manager.restore(26, args=checkpoint.args.Composite(data=restore))
    assert_same_batches(take(restored, 5), expected)


# Duplication.


def test_duplication_repeats_a_word_and_weighs_its_second_copy():
    for batch in take(data.open(duplication_config()).batches('train'), 20):
        assert_layout(batch, 4, 14)
        tokens = batch['tokens'].reshape(4, 2, 7)
        np.testing.assert_array_equal(tokens[:, 0], tokens[:, 1])
        assert (tokens[:, :, 0] == 0).all()
        assert (tokens[:, :, 1:] > 0).all()
        np.testing.assert_array_equal(batch['weights'], [[0] * 8 + [1] * 6] * 4)


@pytest.mark.parametrize('half_length', [1, 4, 6, 511])
def test_duplication_symbols_are_uniform(half_length):
    config = duplication_config(half_length=half_length, batch_size=5000 // half_length)
    batches = take(data.open(config).batches('train'), 4)
    words = np.concatenate([b['tokens'][:, half_length + 2 :] for b in batches])
    counts = np.bincount(words.ravel(), minlength=10)
    assert len(counts) == 10 and counts[0] == 0
    np.testing.assert_allclose(counts[1:] / words.size, 1 / 9, atol=0.012)  # 5 sigma


def test_duplication_examples_depend_on_seed_and_number_alone():
    def examples(batch_size, seed=3):
        config = duplication_config(batch_size=batch_size, seed=seed)
        batches = take(data.open(config).batches('train'), 60 // batch_size)
        return np.concatenate([batch['tokens'] for batch in batches])

    np.testing.assert_array_equal(examples(4), examples(15))
    assert len(np.unique(examples(4), axis=0)) == 60
    assert not np.array_equal(examples(4), examples(4, seed=4))


def test_duplication_examples_stay_what_they_are():
    """Published runs depend on this stream: a change of it must be on purpose."""
    batch = take(data.open(duplication_config()).batches('train'), 2)[1]
    np.testing.assert_array_equal(batch['tokens'][1, 1:7], [3, 6, 7, 5, 9, 6])


def test_duplication_evaluates_on_fixed_examples_never_trained_on():
    def words(split, seed):
        config = duplication_config(half_length=40, seed=seed)
        batches = take(data.open(config).batches(split), 100)
        rows = np.concatenate([batch['tokens'] for batch in batches])
        weights = np.concatenate([batch['weights'] for batch in batches])
        assert not rows[weights.sum(1) == 0].any()
        return [tuple(row) for row in rows[weights.sum(1) > 0]]

    seen = {split: words(split, 0) for split in ('train', 'validation', 'test')}
    assert [len(rows) for rows in seen.values()] == [400, 10, 10]
    assert len(set(itertools.chain.from_iterable(seen.values()))) == 420
    assert seen['validation'] == words('validation', 7)
    assert seen['test'] == words('test', 7)


def test_copy_reverse_has_sources_and_their_reverse():
    fields = {'dataset': 'copy_reverse', 'word_length': 6, 'symbols': 9}
    fields |= {'batch_size': 4, 'seed': 0, 'eval_examples': 10}
    dataset = data.open(fields)
    batches = {split: take(dataset.batches(split), 5) for split in dataset.splits}
    for batch in itertools.chain.from_iterable(batches.values()):
        assert {n: (x.shape, x.dtype) for n, x in batch.items()} == dataset.spec
        np.testing.assert_array_equal(batch['tokens'], batch['source'][:, ::-1])
        real = batch['source'].any(axis=1)
        assert (batch['source'][real] > 0).all() and not batch['source'][~real].any()
        np.testing.assert_array_equal(batch['weights'], np.repeat(real[:, None], 6, 1))
    # Words are those of the duplication task.
    words = duplication_config(half_length=6, seed=0)
    [first] = take(data.open(words).batches('train'), 1)
    source = batches['train'][0]['source']
    np.testing.assert_array_equal(source, first['tokens'][:, 1:7])
    assert [len(batches[split]) for split in dataset.splits] == [5, 3, 3]
    assert dataset.vocab_size == 10
    with pytest.raises(ValueError, match='word_length=0'):
        data.open(fields | {'word_length': 0})
    with pytest.raises(ValueError, match="'10' is no token of the copy_reverse task"):
        dataset.encode(b'3 10')


def test_vocabularies_hold_every_token(path):
    assert data.open(duplication_config()).vocab_size == 10
    assert data.open(bytes_config(path)).vocab_size == 258
    assert data.open(bytes_config(path, dataset='enwik8')).vocab_size == 258
    tokens = np.arange(258)[2:]
    pathlib.Path(path).write_bytes(bytes(range(256)) * 20)
    config = bytes_config(path, length=256, batch_size=1)
    batch = next(data.open(config).batches('test'))
    np.testing.assert_array_equal(batch['tokens'][0], tokens)


def test_spec_says_what_batches_hold(path):
    tokens, weights = np.dtype(np.int32), np.dtype(np.float32)
    for config in (bytes_config(path), bytes_config(path, dataset='enwik8')):
        shape = (9, LENGTH)
        expected = {'tokens': (shape, tokens), 'weights': (shape, weights)}
        assert data.open(config).spec == expected
    expected = {'tokens': ((4, 14), tokens), 'weights': ((4, 14), weights)}
    assert data.open(duplication_config()).spec == expected


def test_language_modelling_has_no_classes_and_no_scores(path):
    for config in (bytes_config(path), duplication_config()):
        assert data.open(config).head == 'lm'
        assert data.open(config).classes == 0
        assert data.open(config).splits == ('train', 'validation', 'test')
        assert data.open(config).resolved() == data.open(config)
        assert data.open(config).score('test', np.zeros((1, 2))) == {}


# Errors.


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'split': 'eval'}, "unknown split 'eval'.*train, validation, test"),
        ({'length': 0}, 'length=0: give a positive integer'),
        ({'length': 1.5}, 'length=1.5: give a positive integer'),
        ({'batch_size': -2}, 'batch_size=-2: give a positive integer'),
        ({'batch_size': True}, 'batch_size=True: give a positive integer'),
        ({'seed': -1}, r'seed=-1: give an integer in \[0, 2\*\*32\)'),
        ({'seed': 2**32}, r'seed=4294967296: give an integer in \[0, 2\*\*32\)'),
    ],
)
@pytest.mark.parametrize('dataset', ['bytes', 'enwik8'])
def test_bad_arguments_are_named_before_anything_is_read(
    monkeypatch, dataset, changes, message
):
    monkeypatch.setattr(corpus, 'read', lambda path: pytest.fail('read too early'))
    monkeypatch.setattr(enwik8, 'load', lambda *_: pytest.fail('loaded too early'))
    split = changes.get('split', 'train')
    fields = {name: value for name, value in changes.items() if name != 'split'}
    for path in ('', 'somewhere'):
        config = bytes_config(path, dataset=dataset, **fields)
        with pytest.raises(ValueError, match=message):
            data.open(config).batches(split)


@pytest.mark.parametrize(
    'name', ['half_length', 'symbols', 'batch_size', 'eval_examples']
)
def test_bad_duplication_arguments_are_named(name):
    with pytest.raises(ValueError, match=f'{name}=0: give a positive integer'):
        data.open(duplication_config(**{name: 0})).batches('train')
    with pytest.raises(ValueError, match='symbols=2147483648: .* less than'):
        data.open(duplication_config(symbols=2**31)).batches('train')
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        data.open(duplication_config()).batches('dev')


def test_too_short_texts_name_the_bytes_needed(tmp_path):
    file = tmp_path / 'short'
    file.write_bytes(b'x' * 1111)
    config = bytes_config(str(file), length=1000)
    message = 'train split has 999 bytes and needs at least 1000.*at least 1112 bytes'
    with pytest.raises(ValueError, match=message):
        data.open(config).batches('train')
    assert len(list(data.open(config).batches('test'))) == 1
    enough, few = tmp_path / 'enough', tmp_path / 'few'
    enough.write_bytes(b'x' * 1112)
    next(data.open({**config, 'path': str(enough)}).batches('train'))
    few.write_bytes(b'x' * 10)
    with pytest.raises(ValueError, match='validation split has 0 .*at least 20 bytes'):
        data.open({**config, 'path': str(few)}).batches('validation')


def test_config_errors_name_the_field_and_those_allowed(path):
    complete = bytes_config(path)
    allowed = 'config.data takes dataset, batch_size, seed, length, .*path'
    without = {name: complete[name] for name in complete if name != 'length'}
    cases = {
        r"unknown dataset 'wmt'.*bytes, .*duplication, enwik8": {
            **complete,
            'dataset': 'wmt',
        },
        r'unknown dataset None.*config\.data\.dataset': {'path': path},
        rf"unknown field 'lenght' of dataset 'bytes': {allowed}": {
            **complete,
            'lenght': 3,
        },
        rf"missing field 'length' of dataset 'bytes': {allowed}": without,
    }
    for message, config in cases.items():
        with pytest.raises(ValueError, match=message):
            data.open(config).batches('train')
        with pytest.raises(ValueError, match=message):
            _ = data.open(config).vocab_size


def test_config_may_be_a_config_dict(path):
    config = ml_collections.ConfigDict(bytes_config(path)).lock()
    expected = take(data.open(bytes_config(path)).batches('train'), 3)
    assert_same_batches(take(data.open(config).batches('train'), 3), expected)
    assert data.open(config).vocab_size == 258


def test_data_imports_neither_jax_nor_config_dicts():
    folder = pathlib.Path(duplication.__file__).parent
    imported = set()
    for file in folder.rglob('*.py'):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split('.')[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module.split('.')[0])
    assert {'grain', 'numpy'} <= imported
    assert imported.isdisjoint({'jax', 'flax', 'ml_collections', 'tensorflow'})


def test_text_as_tokens_and_back():
    config = {'dataset': 'bytes', 'path': '', 'length': 8, 'batch_size': 1, 'seed': 0}
    text = bytes(range(256)) + 'é'.encode()
    tokens = data.open(config).encode(text)
    assert tokens.dtype == np.int32 and tokens[:3].tolist() == [2, 3, 4]
    assert data.open(config).decode(tokens) == text
    # Padding, the unused id and ids beyond the bytes have no text.
    assert data.open(config).decode(np.array([0, 67, 1, 68, 258, 400])) == b'AB'


def test_duplication_tokens_as_text():
    config = {
        'dataset': 'duplication',
        'half_length': 3,
        'symbols': 9,
        'batch_size': 1,
        'seed': 0,
        'eval_examples': 1,
    }
    assert data.open(config).encode(b' 0 5\n9 ').tolist() == [0, 5, 9]
    assert (
        data.open(config).decode(np.array([5, 0]))
        + data.open(config).decode(np.array([9]))
        == b'5 0 9 '
    )
    for bad in (b'10', b'-1', b'x', '²'.encode()):
        with pytest.raises(ValueError, match='no token of the duplication task'):
            data.open(config).encode(bad)
