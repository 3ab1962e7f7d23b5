"""Tests of question answering: spans, cuts, comparison of answers, errors."""

import labelled_rows
import numpy as np
import pytest

from reformer_jax import data
from reformer_jax.data import tokenizers
from reformer_jax.data.tasks import scores


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    return labelled_rows.train_tokenizer(tmp_path_factory.mktemp('model'))


def test_spans_candidates_and_answers(tmp_path, model):
    context = 'Zoë lives in São Paulo, not in Paulo. oooo'
    rows = [
        {'question': 'Wo?', 'context': context, 'answers': answers}
        for answers in (
            {'text': ['Paulo', 'São Paulo'], 'answer_start': [31, 13]},
            {'text': ['Paulo'], 'answer_start': [30]},  # near is good enough
            {'text': ['Zoë']},
            ['São Paulo', 'nowhere'],
            'Paulo',
            {'text': ['ooo'], 'answer_start': [39]},  # not the first of 'oooo'
            [{'text': 'Paulo', 'answer_start': 31}, {'text': 'Zoë', 'answer_start': 0}],
            [{'text': 'Zoë', 'answer_start': 0}],
            "{'text': ['São Paulo'], 'answer_start': [13]}",
            '[{"text": "São Paulo", "answer_start": 13}]',
        )
    ]
    source = labelled_rows.write_splits(tmp_path, rows, rows)
    expected = ['Paulo', 'Paulo', 'Zoë', 'São Paulo', 'Paulo', 'ooo']
    expected += ['Paulo', 'Zoë', 'São Paulo', 'São Paulo']
    for name in ('bytes', model):
        config = labelled_rows.answering(source, tokenizer=name, batch_size=10)
        batch = next(data.open(config).batches('validation'))
        assert (batch['weights'] == 1).all()
        for row, candidates in zip(batch['tokens'], batch['candidates'], strict=True):
            assert data.open(config).decode(row[candidates]).decode().strip() == context
            before = np.flatnonzero(candidates)[0]
            assert row[before - 1] == tokenizers.load(name).separator_id
            question = data.open(config).decode(row[: before - 1])
            assert question.strip() == b'Wo?'
        np.testing.assert_array_equal(
            batch['mask'], batch['tokens'] != tokenizers.load(name).pad_id
        )
        for row, (first, last), text in zip(
            batch['tokens'], batch['labels'], expected, strict=True
        ):
            found = data.open(config).decode(row[first : last + 1]).decode()
            assert found.strip() == text
        assert batch['labels'][0, 0] > batch['labels'][4, 0]
        np.testing.assert_array_equal(batch['labels'][0], batch['labels'][1])
        assert batch['labels'][5, 1] == batch['mask'][5].sum() - 1
        score = data.open(config).score('validation', batch['labels'])
        assert score == {'exact_match': 1, 'f1': 1, 'accuracy': 1}


def test_cut_answers_leave_training_but_count_in_scores(tmp_path):
    rows = [
        {'question': '??', 'context': 'ab cd ef', 'answers': answer}
        for answer in ('ab', 'ef', 'cd')
    ]
    source = labelled_rows.write_splits(tmp_path, rows, rows)
    config = labelled_rows.answering(
        source, length=8, batch_size=2
    )  # '??' separator 'ab cd'
    for batch in labelled_rows.take(data.open(config).batches('train'), 4):
        assert sorted(batch['labels'].tolist()) == [[3, 4], [6, 7]]
        assert (batch['weights'] == 1).all()
    batches = labelled_rows.stack(list(data.open(config).batches('validation')))
    np.testing.assert_array_equal(batches['weights'], [1, 0, 1, 0])
    np.testing.assert_array_equal(batches['labels'][1], [0, 0])
    assert batches['candidates'][1].any()
    score = data.open(config).score('validation', batches['labels'][:3])
    assert score == pytest.approx(
        {'exact_match': 2 / 3, 'f1': 2 / 3, 'accuracy': 2 / 3}
    )
    short = labelled_rows.answering(source, length=4, batch_size=2)
    with pytest.raises(ValueError, match=r'no answer of .*ends within length=4 tokens'):
        data.open(short).batches('train')
    assert not next(data.open(short).batches('validation'))['weights'].any()
    nothing = labelled_rows.answering(source, length=2, batch_size=2)
    assert not next(data.open(nothing).batches('validation'))['candidates'].any()


def test_spans_that_are_no_text_are_empty_answers(tmp_path):
    rows = [{'question': '??', 'context': 'ab cd ef', 'answers': 'ab cd'}]
    source = labelled_rows.write_splits(tmp_path, rows, rows)
    config = labelled_rows.answering(source)

    def score(first, last):
        predictions = np.array([[first, last]], np.int32)
        return data.open(config).score('validation', predictions)['f1']

    assert score(3, 7) == 1
    assert score(3, 4) == pytest.approx(2 / 3)
    assert score(3, 10) == pytest.approx(2 * 2 / 5)
    for first, last in ((4, 3), (2, 4), (0, 0), (3, 11), (-1, 4)):
        assert score(first, last) == 0


def test_answers_are_compared_as_squad_does():
    assert scores.answer('The  Cat!', ['dog', 'a cat']) == (1, 1)
    assert scores.answer('black cat', ['the cat', 'dog']) == (0, pytest.approx(2 / 3))
    assert scores.answer('cat cat', ['cat']) == (0, pytest.approx(2 / 3))
    assert scores.answer('', ['cat']) == (0, 0)
    assert scores.answer('the', ['a']) == (1, 0)  # both are empty
    assert scores.answer("theatre's", ['theatres']) == (1, 1)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'answers': 'xyz'}, "line 2 of .*'xyz' is not in the context: correct or"),
        ({'answers': []}, 'line 2 of .*: no answer; each row needs one'),
        ({'answers': {'text': [' ']}}, 'line 2 of .*: no answer; each row needs one'),
        ({'answers': 3}, 'line 2 of .*the answers must be .*, not 3'),
        ({'answers': {'x': 1}}, 'line 2 of .*the answers must be .*, not None'),
        (
            {'answers': {'text': ['ab'], 'answer_start': [0, 1]}},
            r'line 2 of .*: answer_start \[0, 1\] must be a list of 1 whole numbers',
        ),
        ({'question': ' '}, "line 2 of .*: question ' ' is no text, or an empty one"),
        ({'context': None}, 'line 2 of .*: context None is no text'),
    ],
)
def test_errors_of_answers(tmp_path, changes, message):
    row = {'question': '?', 'context': 'ab', 'answers': 'ab'}
    source = labelled_rows.write_splits(tmp_path, [row, {**row, **changes}], [row])
    with pytest.raises(ValueError, match=message):
        data.open(labelled_rows.answering(source)).batches('train')
