"""Pairs of texts: reading, buckets, the order of batches, a tokenizer of their own."""

import bz2
import collections
import gzip
import itertools
import json
import lzma

import numpy as np
import pytest

from reformer_jax import data
from reformer_jax.data import pairs as pairs_lib

_SPLITS = ('train', 'validation', 'test')


def _sentences(seed, count, most=20):
    """Lines of one to `most` words, and the words from last to first."""
    generator = np.random.default_rng(seed)
    words = np.array(['Ü', 'ab', 'cde', 'fg', '(h)'])
    lines = [
        list(generator.choice(words, generator.integers(1, most))) for _ in range(count)
    ]
    return [' '.join(x) for x in lines], [' '.join(x[::-1]) for x in lines]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Line-aligned files: train plain, the others packed."""
    path = tmp_path_factory.mktemp('pairs')
    for seed, (split, count) in enumerate(zip(_SPLITS, (300, 41, 23), strict=True)):
        for column, lines in zip(('en', 'de'), _sentences(seed, count), strict=True):
            text = ''.join(f'{line}\n' for line in lines)
            if split == 'train':
                (path / f'{split}.{column}').write_text(text, 'utf-8')
            else:
                (path / f'{split}.{column}.gz').write_bytes(
                    gzip.compress(text.encode())
                )
    return path


def _open(folder, **changes):
    fields = {
        'dataset': 'pairs',
        'source': f'{folder}/{{split}}.{{column}}',
        'source_column': 'en',
        'target_column': 'de',
        'lengths': (16, 32, 64),
        'batch_size': 2,
        'seed': 3,
    }
    return data.open(fields | changes)


def _rows(dataset, batch):
    """The pairs of a batch as texts."""
    for row in range(len(batch['tokens'])):
        real = batch['weights'][row] > 0
        if real.any():
            source = batch['source'][row][batch['source_mask'][row]]
            target = batch['tokens'][row][real]
            assert source[-1] == target[-1] == dataset.end_id
            sides = dataset.decode(source[:-1]), dataset.decode(target[:-1])
            yield tuple(side.decode() for side in sides)


def _take(dataset, count):
    return list(itertools.islice(dataset.batches('train'), count))


def _name(batch):
    return batch['source'].shape


@pytest.mark.parametrize('split', ['validation', 'test'])
def test_evaluation_has_every_pair_once(folder, split):
    dataset = _open(folder, lengths=(16, 32, 200))
    texts = dataset.texts(split)
    found = [pair for b in dataset.batches(split) for pair in _rows(dataset, b)]
    assert sorted(found) == sorted(zip(*texts, strict=True))
    shapes = {name[0] for spec in dataset.specs for name in (spec['source'],)}
    assert {_name(batch) for batch in dataset.batches(split)} <= shapes
    assert all(b['source'].shape == b['tokens'].shape for b in dataset.batches(split))


def test_an_epoch_has_every_pair_of_every_bucket(folder):
    dataset = _open(folder)
    wanted = collections.defaultdict(collections.Counter)
    for pair in zip(*dataset.texts('train'), strict=True):
        size = max(len(text.encode()) + 1 for text in pair)
        for rows, length in ((8, 16), (4, 32), (2, 64)):
            if size <= length:
                wanted[rows, length][pair] += 1
                break
    assert sum(c.total() for c in wanted.values()) < len(dataset.texts('train').sources)
    batches = {name: -(-c.total() // name[0]) for name, c in wanted.items()}
    epoch = sum(batches.values())
    stream = _take(dataset, 2 * epoch)
    found = collections.defaultdict(collections.Counter)
    for passes, part in enumerate((stream[:epoch], stream[epoch:]), 1):
        assert collections.Counter(map(_name, part)) == batches
        for batch in part:
            found[_name(batch)].update(_rows(dataset, batch))
        for name, pairs in found.items():
            for _ in range(passes):
                pairs = pairs - wanted[name]
            # The last batch has begun the next pass.
            more = batches[name] * name[0] - wanted[name].total()
            assert pairs.total() == passes * more
    first, second = ([*map(_name, p)] for p in (stream[:epoch], stream[epoch:]))
    assert first != second and first != sorted(first)


def test_batches_are_a_function_of_seed_and_number(folder):
    dataset = _open(folder)
    batches = _take(dataset, 30)
    assert len({_name(batch) for batch in batches}) == 3
    iterator = dataset.batches('train')
    for _ in range(11):
        next(iterator)
    state = iterator.get_state()
    again = _open(folder).batches('train')
    again.set_state(state)
    for wanted in batches[11:]:
        for name, array in next(again).items():
            np.testing.assert_array_equal(array, wanted[name])
    other = _take(_open(folder, seed=4), 30)
    assert [_name(a) for a in other] != [_name(b) for b in batches]


def test_a_shorter_bucket_has_as_many_times_more_rows_as_fit(folder):
    dataset = _open(folder, lengths=((8, 12), (20, 12), (20, 50)), batch_size=3)
    shapes = [(s['source'][0], s['tokens'][0]) for s in dataset.specs]
    assert shapes == [((12, 8), (12, 12)), ((6, 20), (6, 12)), ((3, 20), (3, 50))]
    assert dataset.spec == dataset.specs[-1]
    for batch in _take(dataset, 20):
        assert (batch['source'].shape, batch['tokens'].shape) in shapes


def test_what_is_left_out_is_told(tmp_path):
    (tmp_path / 'train.en').write_text('a b c\n\nlonger than all\nd\n')
    (tmp_path / 'train.de').write_text('x y z\nw\nlonger than all\nv\n')
    dataset = _open(tmp_path, lengths=(6, 8), split_names={'train': 'train'})
    assert dataset.splits == ('train',)
    pairs = {pair for batch in _take(dataset, 9) for pair in _rows(dataset, batch)}
    assert pairs == {('a b c', 'x y z'), ('d', 'v')}
    # Tokens 6 and 2 of the two rows of 6 and no row of 8.
    assert dataset.told == (
        '2 pairs, 67% of their batches tokens; 1 longer than (8, 8) left out; '
        '1 with an empty side left out'
    )
    with pytest.raises(ValueError, match='1 pairs of the train split do not fit'):
        _open(
            tmp_path, lengths=8, too_long='error', split_names={'train': 'train'}
        ).batches('train')


def test_several_files_of_a_split(folder):
    names = {'train': ('train', 'test'), 'validation': 'validation'}
    dataset = _open(folder, split_names=names)
    sources, targets = dataset.texts('train')
    assert len(sources) == len(targets) == 300 + 23
    assert dataset.splits == ('train', 'validation')
    # As JSON gives it back.
    listed = [['train', ['train', 'test']], ['validation', ['validation']]]
    assert _open(folder, split_names=listed) == dataset


def test_pairs_of_a_table(tmp_path):
    file = tmp_path / 'pairs.tsv'
    sources, targets = _sentences(0, 40)
    lines = [f'{s}\t{t}' for s, t in zip(sources, targets, strict=True)]
    file.write_text('\n'.join(['en\tde', *lines]), 'utf-8')
    dataset = _open(folder=None, source=str(file))
    found = [dataset.texts(split) for split in _SPLITS]
    assert [len(texts.sources) for texts in found] == [36, 2, 2]
    pairs = {pair for texts in found for pair in zip(*texts, strict=True)}
    assert pairs == set(zip(sources, targets, strict=True))
    with pytest.raises(ValueError, match="has no column 'fr'"):
        _open(folder=None, source=str(file), source_column='fr').texts('train')


def test_pairs_as_hugging_face_has_them(tmp_path):
    pairs = [{'en': f'one {n}', 'de': f'eins {n}'} for n in range(40)]
    rows = [json.dumps({'id': n, 'translation': p}) for n, p in enumerate(pairs)]
    (tmp_path / 'pairs.jsonl').write_text('\n'.join(rows))
    dataset = _open(folder=None, source=str(tmp_path / 'pairs.jsonl'))
    assert dataset.texts('test') == (['one 15', 'one 31'], ['eins 15', 'eins 31'])
    rows[5] = json.dumps({'translation': {'en': 'one'}})
    (tmp_path / 'less.jsonl').write_text('\n'.join(rows))
    with pytest.raises(ValueError, match="line 6 of .*less.jsonl has no column 'de'"):
        _open(folder=None, source=str(tmp_path / 'less.jsonl')).texts('train')


def test_a_tokenizer_made_of_both_sides(folder):
    dataset = _open(folder, tokenizer='train:274')
    assert dataset.vocab_size == 274
    made = dataset.with_tokenizer(None)
    assert made.vocab_size == 274 and made.with_tokenizer('none') is made
    assert dataset.with_tokenizer(made.tokenizer) == made
    with pytest.raises(ValueError, match='train:273.*that was kept has 274 tokens'):
        _open(folder, tokenizer='train:273').with_tokenizer(made.tokenizer)
    for text in itertools.chain(*dataset.texts('test')):
        assert made.decode(made.encode(text.encode())).decode().strip() == text
    mean = np.mean([len(made.encode(t.encode())) for t in made.texts('train').targets])
    assert mean < 0.7 * np.mean([len(t) for t in made.texts('train').targets])
    with pytest.raises(ValueError, match=r"data.tokenizer='train:9000'.*<= \d+"):
        _open(folder, tokenizer='train:9000').with_tokenizer(None)
    again = _open(folder, tokenizer='train:274', seed=9).with_tokenizer(None)
    assert again.tokenizer == made.tokenizer


@pytest.mark.parametrize('most', [7, 10, 20])
def test_a_tokenizer_of_many_pairs_is_made_of_a_sample(tmp_path, monkeypatch, most):
    for column in ('en', 'de'):
        lines = ''.join(f'{column} {n}\n' for n in range(20))
        (tmp_path / f'train.{column}').write_text(lines)
    monkeypatch.setattr(pairs_lib, '_TOKENIZER_LINES', most)
    given = []

    def train(texts, path, *, vocab_size):
        assert vocab_size == 300
        given.extend(texts)
        path.write_bytes(b'')

    monkeypatch.setattr(pairs_lib.tokenizers, 'train', train)
    dataset = _open(tmp_path, tokenizer='train:300', split_names={'train': 'train'})
    pairs_lib._trained(dataset)
    places = {7: [0, 2, 5, 8, 11, 14, 17], 10: range(0, 20, 2), 20: range(20)}[most]
    assert given == [f'{column} {n}' for column in ('en', 'de') for n in places]


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'lengths': ()}, r'lengths=\(\): give ascending'),
        ({'lengths': (16, 16)}, r'lengths=\(16, 16\)'),
        ({'lengths': ((16, 8), (8, 16))}, 'ascending'),
        ({'lengths': (0, 16)}, 'ascending'),
        ({'lengths': (2.5,)}, 'ascending'),
        ({'lengths': ((1, 2, 3),)}, 'ascending'),
        ({'too_long': 'cut'}, "too_long='cut': give one of skip, error"),
        ({'source': 'a.{column}'}, "a.{column}' has no '{split}', so that train and v"),
        ({'tokenizer': 'train:259'}, "'train:259': give train: and a number"),
        ({'tokenizer': 'train:many'}, 'such as train:8000'),
        ({'split_names': {'tests': 'x'}}, 'split_names=.*give names for train'),
        ({'lengths': 2}, 'no pair of the train split fits lengths'),
        ({'source_column': 'fr'}, "no file '.*train.fr', plain or packed"),
        ({'split_names': {'test': 'test'}}, 'has no train split, only test'),
    ],
)
def test_errors(folder, changes, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        _open(folder, **changes).batches('train')


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'one\ntwo\n', "has 2 lines and '.*train.de' 1"),
        (b'\xff\n', 'is not UTF-8'),
        (b'', "has 0 lines and '.*train.de' 1"),
        (b'   \n', 'has no pair of two texts'),
    ],
)
def test_damaged_files(tmp_path, content, message):
    (tmp_path / 'train.en').write_bytes(content)
    (tmp_path / 'train.de').write_bytes(b'eins\n')
    with pytest.raises(ValueError, match=message):
        _open(tmp_path).batches('train')


def test_lines_end_where_files_say_so(tmp_path):
    """Not at other characters that Python calls the end of a line."""
    (tmp_path / 'train.en').write_bytes('a\u2028b\r\nc\x0cd'.encode())
    (tmp_path / 'train.de').write_bytes('\ufeffe\nf\n'.encode())
    assert _open(tmp_path).texts('train') == (['a\u2028b', 'c\x0cd'], ['e', 'f'])


@pytest.mark.parametrize(
    ('name', 'content'),
    [
        ('train.en', b'one\rtwo \rthree\r'),
        ('train.en', b'one\rtwo \rthree'),
        ('train.en', 'one\r\ntwo \r\nthree\r\n'.encode('utf-16')),
        ('train.en', 'one\ntwo \nthree'.encode('utf-16-le')),
        ('train.en', 'one\ntwo \nthree\n'.encode('utf-8-sig')),
        ('train.en.GZ', gzip.compress(b'one\ntwo \nthree\n')),
        ('train.en.bz2', bz2.compress(b'one\ntwo \nthree\n')),
        ('train.en.Xz', lzma.compress(b'one\rtwo \rthree\r')),
        ('train.en', gzip.compress(b'one\ntwo \nthree\n')),
    ],
    ids=itertools.count(),
)
def test_files_as_people_have_them(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    (tmp_path / 'train.de').write_text('eins\nzwei\ndrei\n')
    (tmp_path / 'train.en.old').write_text('none')
    sources, targets = _open(tmp_path).texts('train')
    assert sources == ['one', 'two ', 'three']
    assert targets == ['eins', 'zwei', 'drei']


def test_a_carriage_return_within_a_line_is_no_end(tmp_path):
    (tmp_path / 'train.en').write_bytes(b'a\rb\nc\r\n')
    (tmp_path / 'train.de').write_bytes(b'd\ne\n')
    assert _open(tmp_path).texts('train') == (['a\rb', 'c'], ['d', 'e'])


def test_utf16_without_a_mark_is_no_utf8(tmp_path):
    """All of its bytes may be characters of UTF-8."""
    for column in ('en', 'de'):
        text = '\u0434\u0430\n\u043d\u0435\n'.encode('utf-16-le')
        (tmp_path / f'train.{column}').write_bytes(text)
    with pytest.raises(ValueError, match="train.en' has zeros around its line ends"):
        _open(tmp_path).texts('train')
