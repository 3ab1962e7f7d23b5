"""Tests of language modelling on any text: windows, masking, saved state, errors."""

import itertools
import json

import numpy as np
import pytest

from reformer_jax import data
from reformer_jax.data import corpus
from reformer_jax.data import text as text_dataset
from reformer_jax.data import tokenizers

LINES = ''.join(f'{n} naïve foxes walk over {n * n} dogs\n' for n in range(400))
LENGTH = 32


@pytest.fixture(scope='module')
def path(tmp_path_factory):
    file = tmp_path_factory.mktemp('text') / 'text'
    file.write_text(LINES, 'utf-8')
    return str(file)


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    file = tmp_path_factory.mktemp('model') / 'spiece.model'
    tokenizers.train([LINES], file, vocab_size=320)
    return str(file)


def config(path, **changes):
    fields = {'dataset': 'text', 'path': path, 'tokenizer': 'bytes', 'length': LENGTH}
    return {**fields, 'batch_size': 7, 'seed': 3, **changes}


def masked(path, **changes):
    return config(path, **{'masked_fraction': 0.15, **changes})


def take(iterator, count):
    return list(itertools.islice(iterator, count))


def stack(batches):
    return {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}


def assert_same_batches(left, right):
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert set(one) == set(other)
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.parametrize('split', ['train', 'validation', 'test'])
def test_bytes_as_in_the_dataset_of_bytes(path, split):
    expected = {**config(path), 'dataset': 'bytes'}
    del expected['tokenizer']
    left = take(data.open(config(path)).batches(split), 120)
    assert_same_batches(left, take(data.open(expected).batches(split), 120))


@pytest.mark.parametrize('fraction', [0.0, 0.15])
@pytest.mark.parametrize('split', ['train', 'test'])
def test_batches_are_what_the_spec_says(path, model, split, fraction):
    for name in ('bytes', model):
        settings = config(path, tokenizer=name, masked_fraction=fraction)
        spec = data.open(settings).spec
        assert set(spec) == {'tokens', 'weights'} | (
            {'targets', 'mask'} if fraction else set()
        )
        for batch in take(data.open(settings).batches(split), 40):
            assert {n: (a.shape, a.dtype) for n, a in batch.items()} == spec
    assert data.open(settings).head == ('masked_lm' if fraction else 'lm')
    assert data.open(settings).classes == 0
    assert data.open(settings).splits == ('train', 'validation', 'test')
    assert data.open(settings).resolved() == data.open(settings)
    assert data.open(settings).score(split, np.zeros((1, 2))) == {}


def test_evaluation_reads_all_tokens_of_its_part_once(path, model, monkeypatch):
    text_dataset._tokenize.cache_clear()
    monkeypatch.setattr(text_dataset, '_PIECE', 200)  # several pieces
    batches = stack(
        list(data.open(config(path, tokenizer=model)).batches('validation'))
    )
    tokens = batches['tokens'][batches['weights'] == 1]
    content = LINES.encode()
    part = content[len(content) * 90 // 100 : len(content) * 95 // 100]
    pieces = list(tokenizers.pieces(part, 200))
    assert len(pieces) > 3 and all(piece.endswith(b'\n') for piece in pieces[:-1])
    expected = b''.join(b' ' + piece for piece in pieces)
    assert data.open(config(path, tokenizer=model)).decode(tokens) == expected
    assert (batches['tokens'][batches['weights'] == 0] == 0).all()
    text_dataset._tokenize.cache_clear()


def test_the_text_is_tokenized_once(path, model, monkeypatch):
    settings = masked(path, tokenizer=model)
    next(data.open(settings).batches('train'))
    monkeypatch.setattr(corpus, 'read', lambda path: pytest.fail('read again'))
    next(data.open({**settings, 'masked_fraction': 0.0, 'length': 16}).batches('train'))


# Masking.


@pytest.mark.parametrize('name', ['bytes', 'model'])
def test_masking_has_the_shares_of_bert(path, model, name):
    settings = masked(path, tokenizer=model if name == 'model' else name)
    mask_id = tokenizers.load(settings['tokenizer']).vocab_size
    assert data.open(settings).vocab_size == mask_id + 1
    assert data.open({**settings, 'masked_fraction': 0.0}).vocab_size == mask_id
    batch = stack(take(data.open(settings).batches('train'), 2000))
    tokens, targets, weights = batch['tokens'], batch['targets'], batch['weights']
    assert (weights.sum(1) == 5).all()  # 0.15 * 32 = 4.8
    assert batch['mask'].all()
    assert (tokens == targets)[weights == 0].all() and (targets < mask_id).all()
    chosen, true = tokens[weights == 1], targets[weights == 1]
    same = (chosen == true).mean()
    assert abs((chosen == mask_id).mean() - 0.8) < 0.007  # 5 sigma
    assert abs(same - 0.1 - 0.1 / mask_id) < 0.006
    others = chosen[(chosen != mask_id) & (chosen != true)]
    assert len(np.unique(others)) == mask_id
    np.testing.assert_allclose(weights.mean(0), 5 / 32, atol=0.016)


def test_targets_are_the_windows_of_causal_modelling(path, model):
    for split in ('train', 'validation'):
        left = take(data.open(masked(path, tokenizer=model)).batches(split), 20)
        right = take(data.open(config(path, tokenizer=model)).batches(split), 20)
        for one, other in zip(left, right, strict=True):
            np.testing.assert_array_equal(one['targets'], other['tokens'])
            np.testing.assert_array_equal(one['mask'], other['weights'] == 1)


def test_at_least_one_place_is_chosen_and_none_in_padding(path):
    settings = masked(path, masked_fraction=0.001)
    batches = stack(list(data.open(settings).batches('test')))
    tokens = batches['mask'].sum(1)
    assert (tokens == 0).any() and ((0 < tokens) & (tokens < LENGTH)).any()
    np.testing.assert_array_equal(batches['weights'].sum(1), tokens > 0)
    assert not batches['weights'][~batches['mask']].any()
    for name in ('tokens', 'targets'):
        assert not batches[name][~batches['mask']].any()


def test_masking_is_a_function_of_seed_and_number(path):
    def examples(split, count, **changes):
        iterator = data.open(masked(path, **changes)).batches(split)
        return stack(take(iterator, count))

    whole = {'length': 13000, 'masked_fraction': 0.5}  # one window an epoch
    once = examples('train', 2, batch_size=3, **whole)
    again = examples('train', 3, batch_size=2, **whole)
    for name in once:
        np.testing.assert_array_equal(once[name], again[name])
    shared = once['weights'].mean(0)  # six epochs choose differently
    assert abs((shared == 0.5).mean() - 20 / 64) < 0.02
    other = examples('train', 2, batch_size=3, seed=4, **whole)
    assert abs((other['weights'] == once['weights']).mean() - 0.5) < 0.02
    for split in ('validation', 'test'):
        first, second = examples(split, 50, seed=1), examples(split, 50, seed=2)
        np.testing.assert_array_equal(first['tokens'], second['tokens'])


@pytest.mark.parametrize('split', ['train', 'validation'])
@pytest.mark.parametrize('fraction', [0.0, 0.15])
def test_restored_iterator_continues_exactly(path, model, split, fraction):
    settings = config(path, tokenizer=model, masked_fraction=fraction, batch_size=2)
    iterator = data.open(settings).batches(split)
    take(iterator, 2)
    state = json.loads(json.dumps(iterator.get_state()))
    restored = data.open(settings).batches(split)
    next(restored)
    restored.set_state(state)
    expected = take(iterator, 40)
    assert len(expected) > 2
    assert_same_batches(take(restored, 40), expected)


def test_encode_and_decode(path, model):
    for name in ('bytes', model):
        settings = masked(path, tokenizer=name)
        tokens = data.open(settings).encode('naïve dogs'.encode())
        tokens = np.append(tokens, data.open(settings).vocab_size - 1)  # the mask
        assert data.open(settings).decode(tokens).strip() == 'naïve dogs'.encode()


# Errors.


@pytest.mark.parametrize('fraction', [-0.1, 1, 1.5, True, float('nan')])
def test_bad_fractions_are_named_before_anything_is_read(monkeypatch, fraction):
    monkeypatch.setattr(corpus, 'read', lambda path: pytest.fail('read too early'))
    settings = config('somewhere', masked_fraction=fraction)
    message = rf'masked_fraction={fraction}: give a number in \[0, 1\)'
    with pytest.raises(ValueError, match=message):
        data.open(settings).batches('train')


def test_bad_arguments_are_named(monkeypatch, path):
    with pytest.raises(FileNotFoundError, match="no tokenizer at 'none.model'"):
        data.open(config(path, tokenizer='none.model')).batches('train')
    with pytest.raises(ValueError, match='length=0: give a positive integer'):
        data.open(config(path, length=0)).batches('train')
    message = r'the train split has \d+ bytes and needs at least 100000 '
    with pytest.raises(ValueError, match=message):
        data.open(config(path, length=100_000)).batches('train')


# --- Texts of subwords ------------------------------------------------------------


@pytest.mark.parametrize('fill', [0, 1, 2, 3])
def test_a_character_that_a_split_cuts_in_two_is_in_neither(tmp_path, model, fill):
    """Splits are of bytes; what is left of one would not be the text."""
    (tmp_path / 'text').write_text('x' * 10 * fill + 'é日👍' * 99, 'utf-8')
    dataset = data.open(config(str(tmp_path / 'text'), tokenizer=model, length=4))
    whole = (tmp_path / 'text').read_bytes()
    cut = 0
    for split in ('validation', 'test'):
        rows = stack(take(dataset.batches(split), 99))
        read = dataset.decode(rows['tokens'][rows['weights'] > 0]).removeprefix(b' ')
        assert read in whole and '\ufffd' not in read.decode()
        cut += len(dataset.read(split)) - len(read)
    assert 0 <= cut <= 3 * 3


@pytest.mark.parametrize(
    ('place', 'told'),
    [
        (0, r'train split of the text at .*text. is no UTF-8 at byte 0 \(0xe9\)'),
        (150_007, r'train split .* at byte 150,007'),
        (-1, r'test split of'),
    ],
)
def test_a_text_that_is_no_utf8_is_named(tmp_path, model, place, told):
    content = bytearray(b'a cafe on the corner\n' * 9000)
    content[place] = 0xE9
    (tmp_path / 'text').write_bytes(content)
    path = str(tmp_path / 'text')
    with pytest.raises(ValueError, match=f'the {told}'):
        for split in ('train', 'validation', 'test'):
            data.open(config(path, tokenizer=model)).batches(split)
    novel = config(path, dataset='novel', tokenizer=model)
    with pytest.raises(ValueError, match='the text at .* is no UTF-8 at byte'):
        data.open(novel).batches('test')
    assert data.open(config(path)).batches('test')  # bytes may be any


@pytest.mark.parametrize('stride', [1, 5, 8, 31, LENGTH])
def test_with_a_stride_every_token_counts_once_behind_others(path, stride):
    """As without, but each of them with at least L - stride tokens in sight."""
    dataset = data.open(config(path, stride=stride))
    text = dataset.encode(dataset.read('validation').tobytes())
    counted = np.zeros(text.size)
    windows = stack(list(dataset.batches('validation')))
    for number in range(1 - (LENGTH - text.size) // stride):
        start = stride * number
        here = text[start : start + LENGTH]
        np.testing.assert_array_equal(windows['tokens'][number, : len(here)], here)
        weights = windows['weights'][number]
        assert not weights[len(here) :].any()
        assert number == 0 or not weights[: LENGTH - stride].any()
        counted[start : start + LENGTH] += weights[: len(here)]
    assert (counted == 1).all()
    assert windows['weights'].sum() == text.size


def test_a_stride_is_of_validation_only(path):
    plain, strided = (data.open(config(path, stride=s)) for s in (0, 8))
    assert_same_batches(
        take(plain.batches('train'), 5), take(strided.batches('train'), 5)
    )


@pytest.mark.parametrize(
    ('changes', 'told'),
    [
        ({'stride': 33}, r'stride=33: give an integer in \[0, 32\], the length'),
        ({'stride': -1}, 'stride=-1: give an integer'),
        ({'stride': 2.0}, 'stride=2.0: give an integer'),
        ({'stride': 8, 'masked_fraction': 0.15}, 'stride=8: .* set it to 0'),
        ({'stride': 8, 'dataset': 'novel'}, 'stride=8: .* set it to 0'),
    ],
)
def test_strides_that_cannot_be(path, changes, told):
    with pytest.raises(ValueError, match=told):
        data.open(config(path, **changes))
