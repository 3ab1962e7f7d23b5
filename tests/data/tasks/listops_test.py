"""Tests of ListOps: values, the distribution, examples by number, batches, errors."""

import hashlib
import itertools
import random
import re

import numpy as np
import pytest

from reformer_jax import data
from reformer_jax.data.tasks import listops

_SHORT = {'length': 16, 'longer_than': 6, 'shorter_than': 17}


def _open(**changes):
    fields = {'dataset': 'listops', 'length': 2048, 'batch_size': 8, 'seed': 3}
    return data.open({**fields, **changes})


def _take(dataset, split, count):
    return list(itertools.islice(dataset.batches(split), count))


def _rows(batches):
    """The real rows of batches, without padding, and their labels."""
    rows, labels = [], []
    for batch in batches:
        for tokens, mask, weight, label in zip(
            *(batch[name] for name in ('tokens', 'mask', 'weights', 'labels')),
            strict=True,
        ):
            if weight:
                rows.append(tokens[mask])
                labels.append(int(label))
    return rows, labels


def _reduce(text):
    """The value of an expression, from the inside out."""
    operations = {
        'MIN': np.min,
        'MAX': np.max,
        'MED': lambda x: np.floor(np.median(x)),
        'SM': lambda x: np.sum(x) % 10,
    }

    def of(match):
        numbers = np.array(match[2].split(), int)
        return str(int(operations[match[1]](numbers)))

    while '[' in text:
        text = re.sub(r'\[(\w+) ([\d ]+) \]', of, text)
    return int(text)


def _published(rng, depth=1):
    """Tokens of the published recursion, None for each argument and bracket."""
    if depth == 10 or rng.random() > 0.25:
        return [None]
    arguments = rng.integers(2, 11)
    parts = [_published(rng, depth + 1) for _ in range(arguments)]
    return [None, *itertools.chain(*parts), None]


@pytest.mark.parametrize(
    ('text', 'value'),
    [
        ('7', 7),
        ('[MIN 4 2 9 ]', 2),
        ('[MAX 4 2 9 ]', 9),
        ('[MED 4 2 9 ]', 4),
        ('[MED 1 4 5 9 ]', 4),  # 4.5, cut off as the published program does
        ('[MED 6 5 ]', 5),
        ('[SM 9 8 7 ]', 4),
        ('[MAX 4 [MIN 2 3 ] [SM 9 8 [MED 7 7 ] ] 1 ]', 4),
    ],
)
def test_values(text, value):
    assert listops.value(_open().encode(text.encode())) == value == _reduce(text)


def test_examples_are_expressions_within_the_limits_with_their_values():
    dataset = _open()
    rows, labels = _rows(_take(dataset, 'train', 6))
    assert len(rows) == 48
    for row, label in zip(rows, labels, strict=True):
        assert 500 < len(row) < 2000
        text = dataset.decode(row).decode()
        assert _reduce(text.strip()) == label
        np.testing.assert_array_equal(dataset.encode(text.encode()), row)
        arguments, deepest = [[]], 0
        for word in text.split():
            if word != ']':
                arguments[-1].append(word)
            if word.startswith('['):
                arguments.append([])
                deepest = max(deepest, len(arguments))
            if word == ']':
                assert 2 <= len(arguments.pop()) <= 10
        assert len(arguments) == len(arguments[0]) == 1  # all is closed
        assert deepest <= 10  # whose arguments are digits only


def test_expressions_are_drawn_as_published():
    """Against the published recursion: how often there is a list, how long it gets, how
    many are kept; and all operators, digits and numbers of arguments alike."""
    draw, rng = random.Random(0).random, np.random.default_rng(0)
    ours = [listops.expression(draw, 2000) for _ in range(6000)]
    theirs = [_published(rng) for _ in range(6000)]
    for low, high in ((0, 1), (1, 100), (100, 500), (500, 1999)):
        counts = [sum(low < len(x) <= high for x in some) for some in (ours, theirs)]
        assert abs(counts[0] - counts[1]) < 4 * sum(counts) ** 0.5, (low, high, counts)
    tokens = np.bincount(np.concatenate(ours), minlength=16)
    assert tokens[0] == 0
    for ids in (slice(1, 5), slice(6, 16)):  # operators; digits
        np.testing.assert_allclose(tokens[ids], tokens[ids].mean(), rtol=0.03)
    flat = [len(x) - 2 for x in ours if len(x) > 1 and sum(np.array(x) < 5) == 1]
    assert set(flat) == set(range(2, 11))
    # Depth 9 has lists, depth 10 none.
    depths = [
        max(itertools.accumulate(1 if t < 5 else -(t == 5) for t in x)) for x in ours
    ]
    assert max(depths) == 9


def test_the_examples_stay_those_of_results():
    """They are never to change."""
    digest = hashlib.sha256()
    for split in ('train', 'validation', 'test'):
        for number in (0, 1, 1999):
            tokens, value = listops._example(split, number, 500, 2000)
            digest.update(tokens.tobytes() + bytes([value]))
    assert digest.hexdigest()[:16] == '55033459d7277e5e'


def test_an_example_depends_on_split_and_number_alone():
    first, again = _open(), _open(seed=4, batch_size=5)
    rows = _rows(_take(first, 'validation', 5))[0]
    others = _rows(_take(again, 'validation', 8))[0]
    for one, other in zip(rows, others, strict=True):
        np.testing.assert_array_equal(one, other)
    train, same = (_take(d, 'train', 2) for d in (first, _open()))
    np.testing.assert_array_equal(train[1]['tokens'], same[1]['tokens'])
    assert (train[0]['tokens'] != _take(_open(seed=4), 'train', 1)[0]['tokens']).any()


def test_splits_have_no_example_in_common():
    dataset = _open(batch_size=100)
    seen = [
        {row.tobytes() for row in _rows(_take(dataset, split, 1))[0]}
        for split in ('train', 'validation', 'test')
    ]
    assert len(set.union(*seen)) == 300


@pytest.mark.slow
def test_how_far_the_operator_of_the_root_gets():
    """The figure that docs/experiments.md puts beside the published ones."""
    dataset = _open()
    rows, labels = dataset._examples('test', np.arange(2000))
    guesses = {'[MIN': 0, '[MAX': 9, '[MED': 4, '[SM': 0}  # the most frequent ones
    guessed = np.array([guesses[listops.WORDS[row[0]]] for row in rows])
    assert (guessed == labels).mean() == 0.365


def test_splits_are_as_large_as_published():
    counts = {'train': 96_000, 'validation': 2_000, 'test': 2_000}
    assert {split: _open()._count(split) for split in counts} == counts
    assert _open()._stream('test').batches == 250


def test_batches_of_an_evaluation_and_their_scores():
    dataset = _open(batch_size=600, **_SHORT)
    batches = list(dataset.batches('test'))
    assert [batch['weights'].sum() for batch in batches] == [600, 600, 600, 200]
    for batch in batches:
        assert {n: (x.shape, x.dtype) for n, x in batch.items()} == dataset.spec
        assert not batch['tokens'][~batch['mask']].any()
        assert not batch['mask'][batch['weights'] == 0].any()
    rows, labels = _rows(batches)
    assert {len(row) for row in rows} == set(range(7, 17))
    logits = np.eye(10)[labels]
    assert dataset.score('test', logits)['accuracy'] == 1
    assert dataset.score('test', logits[:500])['accuracy'] == 1
    logits[:500] = -logits[:500]
    assert dataset.score('test', logits)['accuracy'] == 0.75
    with pytest.raises(ValueError, match=r"give \('N', 10\) with N from 1 to 2000"):
        dataset.score('test', logits[:, :9])


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'length': 1998}, 'length=1998 is too short .* up to 1999 tokens: enlarge it'),
        ({'shorter_than': 501}, 'shorter_than=501 leaves no .*: give at least 502'),
        ({'longer_than': 0}, 'longer_than=0: give a positive integer'),
        ({'longer_than': 1, 'shorter_than': 4}, 'give at least 5'),
        ({'shorter_than': 2.5}, 'shorter_than=2.5: give a positive integer'),
    ],
)
def test_impossible_limits(changes, message):
    with pytest.raises(ValueError, match=message):
        _open(**changes)


def test_the_tightest_limits_have_examples():
    dataset = _open(batch_size=4, length=4, longer_than=1, shorter_than=5)
    (batch,) = _take(dataset, 'train', 1)
    assert batch['mask'].all()  # a list of two digits


def test_text_that_is_no_expression():
    with pytest.raises(ValueError, match=r"'\[SUM' is no word of ListOps: give \[MIN"):
        _open().encode(b'[SUM 1 2 ]')
    assert _open().decode(np.array([0, 1, 6, 99])) == b'[MIN 0 '
