"""Tests of a novel as one sequence: places, weights, saved state, errors."""

import itertools
import json

import numpy as np
import pytest

from reformer_jax import data
from reformer_jax.data import corpus
from reformer_jax.data import tokenizers

# 400 tokens: 360 for training, 20 for validation, 20 for test.
TEXT = bytes(np.random.default_rng(0).integers(0, 256, 400, np.uint8))
TOKENS = np.array([byte + 2 for byte in TEXT])
PARTS = {'train': (0, 360), 'validation': (360, 380), 'test': (380, 400)}
LINES = ''.join(f'{n} naïve foxes walk over {n * n} dogs\n' for n in range(400))


@pytest.fixture
def path(tmp_path):
    return write(tmp_path, TEXT)


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    file = tmp_path_factory.mktemp('model') / 'spiece.model'
    tokenizers.train([LINES], file, vocab_size=320)
    return str(file)


def write(folder, content):
    file = folder / 'novel'
    file.write_bytes(content)
    return str(file)


def config(path, **changes):
    fields = {'dataset': 'novel', 'path': path, 'tokenizer': 'bytes', 'length': 64}
    return {**fields, 'batch_size': 3, 'seed': 3, **changes}


def take(iterator, count):
    return list(itertools.islice(iterator, count))


def stack(batches):
    return {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}


def examples(settings, split, batches):
    return stack(take(data.open(settings).batches(split), batches))


def assert_same(left, right):
    assert set(left) == set(right)
    for name in left:
        np.testing.assert_array_equal(left[name], right[name])


# Training.


@pytest.mark.parametrize('length', [361, 370, 512])
def test_short_text_stands_at_every_place_between_padding(path, length):
    batch = examples(config(path, length=length), 'train', 400)
    places = batch['weights'].argmax(1)
    for place, tokens, weights in zip(places, *batch.values(), strict=True):
        around = (place, length - 360 - place)
        np.testing.assert_array_equal(tokens, np.pad(TOKENS[:360], around))
        np.testing.assert_array_equal(weights, np.pad(np.ones(360), around))
    assert set(places) == set(range(length - 360 + 1))


@pytest.mark.parametrize('length', [1, 250, 351, 360])
def test_long_text_is_read_in_windows_from_every_place(path, length):
    batch = examples(config(path, length=length), 'train', 800)
    assert (batch['weights'] == 1).all()
    windows = np.lib.stride_tricks.sliding_window_view(TOKENS[:360], length)
    assert {tuple(row) for row in batch['tokens']} == {tuple(row) for row in windows}


@pytest.mark.parametrize('length', [261, 459])
def test_places_are_uniform(path, length):
    batch = examples(config(path, length=length), 'train', 1000)
    first = batch['tokens'][:, 0] if length < 360 else batch['weights'].argmax(1)
    expected = TOKENS[:100] if length < 360 else np.arange(100)
    for part in (slice(10), slice(45, 55), slice(90, 100)):
        share = np.isin(first, expected[part]).mean()
        least = np.isin(expected, expected[part]).mean()  # some bytes occur twice
        assert abs(share - least) < 0.03  # 5 sigma of 3,000


def test_example_is_a_function_of_seed_and_number(path):
    once = examples(config(path, batch_size=3), 'train', 4)
    again = examples(config(path, batch_size=2), 'train', 6)
    assert_same(once, again)
    other = examples(config(path, seed=4), 'train', 4)
    same = (other['tokens'] == once['tokens']).all(1)
    assert same.sum() < 3 and len({tuple(row) for row in once['tokens']}) > 9


def test_held_out_text_is_in_no_training_example(tmp_path):
    path = write(tmp_path, b'a' * 360 + b'b' * 20 + b'c' * 20)
    for length in (50, 360, 400, 500):
        settings = config(path, length=length)
        trained = examples(settings, 'train', 100)
        assert set(trained['tokens'].flat) <= {0, ord('a') + 2}
        for split, letter in (('validation', 'b'), ('test', 'c')):
            batch = examples(settings, split, None)
            measured = batch['tokens'][batch['weights'] == 1]
            np.testing.assert_array_equal(measured, np.full(20, ord(letter) + 2))


# Validation and test.


@pytest.mark.parametrize('split', ['validation', 'test'])
@pytest.mark.parametrize('length', [1, 19, 20, 21, 200, 379, 380, 381, 400, 401, 512])
def test_held_out_part_stands_behind_all_before_it(path, split, length):
    (batch,) = data.open(config(path, length=length, seed=5)).batches(split)
    first, end = PARTS[split]
    seen = range(end)[-length:]
    tokens, weights = np.zeros((3, length)), np.zeros((3, length))
    for place, number in enumerate(seen):
        tokens[0, place] = TOKENS[number]
        weights[0, place] = first <= number
    assert_same(batch, {'tokens': tokens, 'weights': weights})
    assert weights.sum() == min(20, length)


@pytest.mark.parametrize('split', list(PARTS))
def test_padding_is_that_of_the_tokenizer(path, split, monkeypatch):
    monkeypatch.setattr(tokenizers.Bytes, 'pad_id', 1)
    batch = next(data.open(config(path, length=512)).batches(split))
    padding = batch['tokens'] == 1
    real = [360, 360, 360] if split == 'train' else [PARTS[split][1], 0, 0]
    np.testing.assert_array_equal(512 - padding.sum(1), real)
    assert 0 not in batch['tokens'] and not batch['weights'][padding].any()


# Tokenizers.


@pytest.mark.parametrize('length', [1000, 16_384])
def test_subwords_are_split_by_their_number(tmp_path, model, length):
    path = write(tmp_path, LINES.encode())
    settings = config(path, tokenizer=model, length=length)
    tokens = tokenizers.load(model).encode(LINES)
    assert 2000 < tokens.size < 16_384 and data.open(settings).vocab_size == 320
    train_end, validation_end = tokens.size * 90 // 100, tokens.size * 95 // 100
    for split, part in (
        ('validation', tokens[train_end:validation_end]),
        ('test', tokens[validation_end:]),
    ):
        batch = examples(settings, split, None)
        measured = batch['tokens'][batch['weights'] == 1]
        np.testing.assert_array_equal(measured, part[-length:])
    trained = examples(settings, 'train', 1)
    row, weights = trained['tokens'][1], trained['weights'][1]
    text = data.open(settings).decode(row[weights == 1])
    assert (b' ' + LINES.encode()).find(text) >= 0
    assert weights.sum() == min(train_end, length)


def test_encode_and_decode(path, model):
    for name in ('bytes', model):
        settings = config(path, tokenizer=name)
        tokens = data.open(settings).encode('naïve dogs'.encode())
        expected = tokenizers.load(name).encode('naïve dogs')
        np.testing.assert_array_equal(tokens, expected)
        assert data.open(settings).decode(tokens).strip() == 'naïve dogs'.encode()


def test_tokens_are_bytes_unless_a_tokenizer_is_named(path):
    settings = config(path)
    del settings['tokenizer']
    for split in PARTS:
        batch = next(data.open(settings).batches(split))
        assert_same(batch, next(data.open(config(path)).batches(split)))
    assert data.open(settings).vocab_size == 258
    assert data.open(settings).decode(data.open(settings).encode(b'\xff.')) == b'\xff.'


def test_the_text_is_tokenized_once(path, monkeypatch):
    next(data.open(config(path)).batches('train'))
    monkeypatch.setattr(corpus, 'read', lambda path: pytest.fail('read again'))
    for split in PARTS:
        next(data.open(config(path, length=16, seed=1)).batches(split))


# The contract of all datasets.


@pytest.mark.parametrize('split', list(PARTS))
@pytest.mark.parametrize('length', [64, 512])
def test_batches_are_what_the_spec_says(path, split, length):
    settings = config(path, length=length)
    spec = data.open(settings).spec
    assert set(spec) == {'tokens', 'weights'}
    for batch in take(data.open(settings).batches(split), 3):
        assert {n: (a.shape, a.dtype) for n, a in batch.items()} == spec
    assert data.open(settings).head == 'lm' and data.open(settings).classes == 0
    assert data.open(settings).splits == tuple(PARTS)
    assert data.open(settings).resolved() == data.open(settings)
    assert data.open(settings).score(split, np.zeros((1, 2))) == {}


@pytest.mark.parametrize('length', [64, 512])
def test_restored_iterator_continues_exactly(path, length):
    settings = config(path, length=length)
    iterator = data.open(settings).batches('train')
    take(iterator, 20)  # more than are built ahead
    state = json.loads(json.dumps(iterator.get_state()))
    restored = data.open(settings).batches('train')
    next(restored)
    restored.set_state(state)
    assert_same(stack(take(restored, 20)), stack(take(iterator, 20)))


def test_restored_evaluation_has_ended(path):
    iterator = data.open(config(path)).batches('test')
    state = iterator.get_state()
    first = next(iterator)
    restored = data.open(config(path)).batches('test')
    restored.set_state(iterator.get_state())
    assert list(restored) == []
    restored.set_state(state)
    assert_same(next(restored), first)


# Errors.


def test_short_text_is_counted(tmp_path):
    path = write(tmp_path, TEXT[:19])
    message = (
        rf"the text at '{path}' has 19 tokens and needs at least 20, so that 5 % of it "
        'can be held out: give a longer one with --config.data.path=FILE'
    )
    for split in PARTS:
        with pytest.raises(ValueError, match=message):
            data.open(config(path)).batches(split)
    (tmp_path / 'longer').mkdir()
    path = write(tmp_path / 'longer', TEXT[:20])
    for split in PARTS:
        assert next(data.open(config(path)).batches(split))['weights'].any()


def test_bad_arguments_are_named_before_anything_is_read(monkeypatch):
    monkeypatch.setattr(corpus, 'read', lambda path: pytest.fail('read too early'))
    for changes, message in (
        ({'length': 0}, 'length=0: give a positive integer'),
        ({'batch_size': 1.0}, r'batch_size=1\.0: give a positive integer'),
        ({'seed': -1}, r'seed=-1: give an integer in \[0, 2\*\*32\)'),
    ):
        with pytest.raises(ValueError, match=message):
            data.open(config('somewhere', **changes)).batches('train')
    with pytest.raises(ValueError, match="unknown split 'valid'"):
        data.open(config('somewhere')).batches('valid')
    with pytest.raises(FileNotFoundError, match="no tokenizer at 'none.model'"):
        data.open(config('somewhere', tokenizer='none.model')).batches('train')


def test_missing_and_empty_texts_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='no file found at .*--config.data.pat'):
        data.open(config(str(tmp_path / 'none'))).batches('train')
    with pytest.raises(ValueError, match='holds no bytes'):
        data.open(config(write(tmp_path, b''))).batches('train')
