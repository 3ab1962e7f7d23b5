"""Marked lines: what targets are, what examples depend on, held-out parts, errors."""

import itertools

import numpy as np
import pytest

from reformer_jax import data

_SPLITS = ('train', 'validation', 'test')
_MARKER = '¶'.encode()
_MARKER_ID, _END_ID = 258, 1


def _line(number):
    """A line that says where it stands; some are longer, some blank."""
    if number % 7 == 3:
        return '  \n'
    return f'{number} é' + ' long' * (8 if number % 5 == 0 else number % 4) + '\n'


@pytest.fixture(scope='module')
def text():
    return ''.join(map(_line, range(2000))).encode()


@pytest.fixture
def path(text, tmp_path):
    (tmp_path / 'text').write_bytes(text)
    return str(tmp_path / 'text')


def _open(path, **changes):
    fields = {
        'dataset': 'marked',
        'path': path,
        'source_length': 200,
        'target_length': 40,
        'marks': 3,
        'batch_size': 4,
        'seed': 5,
        'eval_examples': 10,
    }
    return data.open(fields | changes)


def _examples(dataset, split, count):
    """Sources and targets as bytes, the end taken off."""
    batches = itertools.islice(dataset.batches(split), -(-count // dataset.batch_size))
    found = []
    for batch in batches:
        for row in range(dataset.batch_size):
            real = batch['weights'][row] > 0
            if real.any():
                assert np.array_equal(real, batch['tokens'][row] > 0)
                target = batch['tokens'][row][real]
                assert target[-1] == _END_ID and _END_ID not in target[:-1]
                mask = batch['source_mask'][row]
                assert np.array_equal(mask, batch['source'][row] > 0)
                source = batch['source'][row][mask]
                found.append((dataset.decode(source), dataset.decode(target)))
    return found[:count]


@pytest.mark.parametrize('split', _SPLITS)
def test_targets_are_the_marked_lines(path, text, split):
    dataset = _open(path)
    examples = _examples(dataset, split, 10 if split != 'train' else 400)
    marks = set()
    for source, target in examples:
        parts = source.split(_MARKER)
        lines = [part[: part.index(b'\n') + 1] for part in parts[1:]]
        assert target == b''.join(lines)
        assert all(part.endswith(b'\n') for part in parts[:-1])  # of the line before
        window = b''.join(parts)
        assert window in text and len(window) == 200 - 3
        assert all(line.strip() for line in lines)
        assert len(target) + 1 <= 40
        marks.add(len(lines))
    assert marks <= {1, 2, 3} and 3 in marks
    assert split != 'train' or len(marks) > 1  # the third may not fit


def test_every_line_that_fits_is_chosen_sometimes(path):
    """Also the longest that do, and lines at the ends of a window."""
    chosen, places, before = set(), set(), set()
    for source, target in _examples(_open(path, target_length=50), 'train', 1000):
        chosen.update(target.splitlines(keepends=True))
        parts = source.split(_MARKER)
        before.add(parts[0].count(b'\n'))
        places.add('first' if parts[0].count(b'\n') == 1 else '')
        places.add('last' if parts[-1].count(b'\n') == 1 else '')
    lines = (_line(number).encode() for number in range(1000, 1800))
    sizes = {len(line) for line in lines if line.strip()}
    assert max(sizes) == 48 and sizes <= {len(line) for line in chosen}
    assert places == {'', 'first', 'last'} and max(before) > 9


def test_lines_that_do_not_fit_are_not_chosen(path):
    found = _examples(_open(path, target_length=12, marks=5), 'train', 200)
    assert {len(target) for _, target in found} >= {0, 11}
    assert max(len(target) for _, target in found) == 11
    some = next(source for source, target in found if not target)
    assert len(some) == 195 and _MARKER not in some


def test_a_line_as_long_as_the_target_has_room_for_it(tmp_path):
    file = tmp_path / 'text'
    file.write_bytes(b'123456789\n' * 300)
    found = _examples(_open(str(file), target_length=11, marks=2), 'train', 20)
    assert {target for _, target in found} == {b'123456789\n'}
    with pytest.raises(ValueError, match='no line of 2 to 9 bytes'):
        _open(str(file), target_length=10).batches('train')


def test_training_examples_depend_on_seed_and_number_alone(path):
    expected = _examples(_open(path), 'train', 24)
    assert _examples(_open(path, batch_size=3, eval_examples=2), 'train', 24) == (
        expected
    )
    assert len({source for source, _ in expected}) == 24
    other = _examples(_open(path, seed=6), 'train', 24)
    assert not {source for source, _ in expected} & {source for source, _ in other}
    iterator = _open(path).batches('train')
    batches = list(itertools.islice(iterator, 3))
    state = iterator.get_state()
    following = next(iterator)
    restored = _open(path).batches('train')
    restored.set_state(state)
    for name, array in next(restored).items():
        np.testing.assert_array_equal(array, following[name])
    assert not np.array_equal(following['source'], batches[-1]['source'])


def test_held_out_parts_are_disjoint_and_fixed(path, text):
    first = {split: _examples(_open(path), split, 10) for split in _SPLITS}
    assert [len(found) for found in first.values()] == [10, 10, 10]
    again = {split: _examples(_open(path, seed=9), split, 10) for split in _SPLITS}
    assert first['train'] != again['train']
    for split in _SPLITS[1:]:
        assert first[split] == again[split]
        assert len({source for source, _ in first[split]}) == 10
    ends = [len(text) * share // 100 for share in (0, 90, 95, 100)]
    for place, split in enumerate(_SPLITS):
        starts = [
            text.index(source.replace(_MARKER, b''))
            for source, _ in _examples(_open(path), split, 2000)
        ]
        assert min(starts) >= ends[place] and max(starts) + 197 <= ends[place + 1]
        # All of the part.
        if split == 'train':
            assert min(starts) < 200 and max(starts) + 400 > ends[1]


def test_spec_says_what_batches_hold(path):
    dataset = _open(path)
    for split in _SPLITS:
        batches = list(itertools.islice(dataset.batches(split), 5))
        assert len(batches) == (5 if split == 'train' else 3)
        for batch in batches:
            shapes = {n: (array.shape, array.dtype) for n, array in batch.items()}
            assert shapes == dataset.spec
    assert [row.any() for row in batches[-1]['weights']] == [True, True, False, False]
    assert dataset.vocab_size == 259
    assert max(batch['source'].max() for batch in batches) == _MARKER_ID


def test_texts_as_tokens_and_back(path):
    dataset = _open(path)
    text = 'a\n¶é\n¶b'.encode()
    tokens = dataset.encode(text)
    wanted = [99, 12, _MARKER_ID, *dataset.encode('é'.encode()), 12, _MARKER_ID, 100]
    assert tokens.dtype == np.int32 and tokens.tolist() == wanted
    assert dataset.decode(tokens) == text
    assert dataset.decode(tokens[:3]) + dataset.decode(tokens[3:]) == text
    assert dataset.decode(np.array([0, 99, 1, 400])) == b'a'
    assert dataset.encode(b'').size == 0 and dataset.decode(tokens[:0]) == b''


def test_the_standard_library_where_no_path_is_given():
    dataset = _open('', source_length=1000, target_length=80)
    (source, target), *_ = _examples(dataset, 'train', 1)
    assert source.count(_MARKER) >= 1 and target.endswith(b'\n')


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        *(
            ({name: 0}, f'{name}=0: give a positive integer')
            for name in ('source_length', 'target_length', 'marks', 'eval_examples')
        ),
        ({'marks': 200}, 'marks=200 fill a source of source_length=200: give fewer'),
        ({'target_length': 2}, 'target_length=2 holds no line: give at least 3'),
        (
            {'source_length': 4000},
            r'the validation split has \d+ bytes, and a window 3997: give a text of at '
            'least 79940 bytes as config.data.path, or a smaller config.data.source_le',
        ),
        (
            {'source_length': 4},
            'the validation split has no line of 2 to 0 bytes to mark',
        ),
    ],
)
def test_errors(path, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        _open(path, **changes).batches('validation')
    assert '\n' not in str(caught.value)


def test_a_text_without_lines_is_refused(tmp_path):
    file = tmp_path / 'text'
    file.write_bytes(b'x' * 20 * 197)
    message = (
        'the train split has no line of 2 to 39 bytes to mark, its end among them: '
        'give another text as config.data.path, or a larger config.data.target_length '
        'or source_length'
    )
    with pytest.raises(ValueError, match=message):
        _open(str(file)).batches('train')
    blank = tmp_path / 'blank'
    blank.write_bytes(b'\n' * 20 * 197)
    with pytest.raises(ValueError, match=message):
        _open(str(blank)).batches('train')
    enough = tmp_path / 'enough'  # for every split
    enough.write_bytes(b'x\n' * 10 * 197)
    for split in _SPLITS:
        assert _examples(_open(str(enough)), split, 1)[0][1] == b'x\nx\nx\n'
