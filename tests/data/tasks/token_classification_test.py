"""Tests of the classification of words: their places, cuts, entities, errors."""

import labelled_rows
import numpy as np
import pytest

from reformer_jax import data
from reformer_jax.data.tasks import scores
from reformer_jax.data.tasks import token_classification


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    return labelled_rows.train_tokenizer(tmp_path_factory.mktemp('model'))


@pytest.mark.parametrize('kind', ['bytes', 'model'])
def test_labels_stand_at_the_first_token_of_each_word(tmp_path, model, kind):
    words, tags = ['Zoë', 'lives', 'in', '日本', '!'], ['B-PER', 'O', 'O', 'B-LOC', 'O']
    rows = [{'words': words, 'tags': tags}]
    source = labelled_rows.write_splits(tmp_path, rows, rows)
    name = model if kind == 'model' else 'bytes'
    config = labelled_rows.named_entities(
        source, tokenizer=name, length=40, batch_size=2
    )
    batch = next(data.open(config).batches('train'))
    row, places = batch['tokens'][0], np.flatnonzero(batch['weights'][0])
    assert len(places) == 5
    names = data.open(config).resolved().labels
    assert [names[label] for label in batch['labels'][0, places]] == tags
    ends = [*places[1:], batch['mask'][0].sum()]
    parts = [
        data.open(config).decode(row[p:e]) for p, e in zip(places, ends, strict=True)
    ]
    assert [part.decode().strip() for part in parts] == words


def test_words_that_the_tokenizer_ignores_are_cut():
    class Ignoring:
        """'ab cd' as one token, z as none."""

        def encode_with_offsets(self, text):
            assert text == 'ab cd z e z'
            return np.array([7, 8]), np.array([0, 7]), np.array([5, 9])

    sentence = token_classification._sentence('ab cd z e z'.split(), Ignoring(), 5)
    np.testing.assert_array_equal(sentence.places, [0, 5, 5, 1, 5])


def test_words_beyond_the_length_count_as_outside(tmp_path):
    rows = [
        {'words': 'aa bb cc', 'tags': 'B-X I-X O'},
        {'words': 'aa bb cc dd', 'tags': 'O O B-Y O'},
    ]
    source = labelled_rows.write_splits(tmp_path, rows, rows)
    config = labelled_rows.named_entities(source, length=5)  # 'aa bb'
    labels_of = ('O', 'B-X', 'I-X', 'B-Y', 'I-Y')
    config['labels'] = labels_of
    batch = next(data.open(config).batches('validation'))
    np.testing.assert_array_equal(batch['weights'].sum(1), [2, 2, 0, 0])
    np.testing.assert_array_equal(batch['labels'][0], [1, 0, 0, 2, 0])
    score = data.open(config).score('validation', batch['labels'][:2])
    # Of 7 words one is missed, dd and cc of the first are O by luck; of 2 entities one.
    expected = {'accuracy': 6 / 7, 'precision': 1, 'recall': 0.5, 'f1': 2 / 3}
    assert score == pytest.approx(expected)
    # What is predicted between first tokens does not count.
    predictions = np.where(batch['weights'][:2] > 0, batch['labels'][:2], 3)
    assert data.open(config).score('validation', predictions) == score
    first = data.open(config).score('validation', predictions[:1])
    assert first == {'accuracy': 1, 'precision': 1, 'recall': 1, 'f1': 1}


def test_tags_without_entities_have_accuracy_alone(tmp_path):
    rows = [{'words': ['a', 'b'], 'tags': [0, 1]}]
    source = labelled_rows.write_splits(tmp_path, rows, rows)
    config = labelled_rows.named_entities(source)
    batch = next(data.open(config).batches('validation'))
    assert data.open(config).score('test', batch['labels'][:1]) == {'accuracy': 1}
    assert data.open(config).score('test', 0 * batch['labels'][:1]) == {'accuracy': 0.5}
    config['labels'] = ('O', 'B-X')  # numbers are places among the names
    assert data.open(config).score('test', 0 * batch['labels'][:1]) == {
        **{'accuracy': 0.5, 'precision': 0, 'recall': 0, 'f1': 0}
    }


@pytest.mark.parametrize(
    ('row', 'message'),
    [
        (
            {'words': ['a'], 'tags': []},
            "line 2 .*'words' has 1 words, but 'tags' has 0",
        ),
        ({'words': [], 'tags': []}, r'line 2 of .*train.*: \[\] are no words'),
        ({'words': [1], 'tags': ['O']}, r'line 2 of .*: \[1\] are no words'),
        ({'words': 3, 'tags': ['O']}, 'line 2 of .*: 3 is no list, nor names'),
        ({'words': ['a'], 'tags': ['X']}, "line 2 of .*: label 'X': the labels are O"),
        ({'words': 'a b', 'tags': 'O, O'}, "line 2 of .*: 'O, O': put spaces between"),
        ({'words': 'a b', 'tags': '[O O]'}, r"line 2 of .*: '\[O O\]': put spaces"),
        ({'words': 'a b', 'tags': 'O; O'}, "line 2 of .*: 'O; O': put spaces between"),
    ],
)
def test_errors_of_words(tmp_path, row, message):
    rows = [{'words': ['a'], 'tags': ['O']}, row]
    source = labelled_rows.write_splits(tmp_path, rows, rows)
    with pytest.raises(ValueError, match=message):
        data.open(labelled_rows.named_entities(source, labels=('O',))).batches('train')


def test_tags_that_are_punctuation(tmp_path):
    rows = [{'words': "so , '' he", 'tags': "RB , '' PRP"}]
    source = labelled_rows.write_splits(tmp_path, rows, rows)
    labels = data.open(labelled_rows.named_entities(source)).resolved().labels
    assert labels == ("''", ',', 'PRP', 'RB')


def test_entities_as_conlleval_reads_them():
    def entities(tags):
        return scores.entities(tags.split())

    assert entities('B-A I-A O B-A') == {(0, 1, 'A'), (3, 3, 'A')}
    assert entities('B-A B-A I-A') == {(0, 0, 'A'), (1, 2, 'A')}
    assert entities('B-A I-B I-B') == {(0, 0, 'A'), (1, 2, 'B')}
    assert entities('I-A I-A O I-A') == {(0, 1, 'A'), (3, 3, 'A')}
    assert entities('O O') == entities('') == set()


def test_scores_of_entities_are_those_of_seqeval():
    true = ['O O O B-MISC I-MISC I-MISC O'.split(), 'B-PER I-PER O'.split()]
    predicted = ['O O B-MISC I-MISC I-MISC I-MISC O'.split(), true[1]]
    # The example of seqeval's README.
    expected = {'precision': 0.5, 'recall': 0.5, 'f1': 0.5}
    assert scores.named_entities(predicted, true) == expected
