"""Tests of the labelled datasets: batches, order, labels, scores, errors."""

import dataclasses
import json
import math

import labelled_rows
import ml_collections
import numpy as np
import pytest

from reformer_jax import data
from reformer_jax.data import tokenizers
from reformer_jax.data.tasks import labels
from reformer_jax.data.tasks import scores

SPLITS = ('train', 'validation', 'test')


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    return labelled_rows.train_tokenizer(tmp_path_factory.mktemp('model'))


@pytest.fixture
def configs(tmp_path, model):
    """A config of each dataset and kind, with 21 rows for training and 6 for tests."""
    rows = [
        {
            'text': f'text {n}',
            'other': f'{n} é',
            'label': labelled_rows.NAMES[n % 3],
            'several': list(labelled_rows.NAMES[: n % 3]),
            'number': n / 4,
            'words': ['Zoë', f'saw{n}', 'Paulo'],
            'tags': ['B-PER', 'O', 'I-PER'],
            'question': 'Who?',
            'context': f'Then Zoë {n} came.',
            'answers': {'text': [f'Zoë {n}'], 'answer_start': [5]},
        }
        for n in range(27)
    ]
    source = labelled_rows.write_splits(tmp_path / 'rows', rows[:21], rows[21:])
    return {
        'single': labelled_rows.classification(source),
        'pair': labelled_rows.classification(
            source, text_columns=('text', 'other'), tokenizer=model, batch_size=5
        ),
        'multi': labelled_rows.classification(
            source, kind='multi', label_column='several'
        ),
        'regression': labelled_rows.classification(
            source, kind='regression', label_column='number'
        ),
        'words': labelled_rows.named_entities(source, tokenizer=model),
        'answers': labelled_rows.answering(source, tokenizer=model),
    }


KINDS = ('single', 'pair', 'multi', 'regression', 'words', 'answers')


@pytest.mark.parametrize('kind', KINDS)
def test_batches_are_what_the_spec_says(configs, kind):
    config = configs[kind]
    spec = data.open(config).spec
    rows = {'labels', 'mask', 'tokens', 'weights'}
    assert set(spec) == rows | ({'candidates'} if kind == 'answers' else set())
    for split in SPLITS:
        for batch in labelled_rows.take(data.open(config).batches(split), 9):
            assert {n: (a.shape, a.dtype) for n, a in batch.items()} == spec
    assert data.open(config).vocab_size == (
        258 if config['tokenizer'] == 'bytes' else 300
    )
    assert data.open(config).head == config['dataset']
    assert data.open(config).splits == SPLITS
    assert data.open(config).classes == {
        **{'single': 3, 'pair': 3, 'multi': 2, 'regression': 1},
        **{'words': 3, 'answers': 2},
    }.get(kind)


@pytest.mark.parametrize('kind', KINDS)
def test_an_epoch_reads_every_row_once_in_a_fresh_order(configs, kind):
    config = {**configs[kind], 'batch_size': 7, 'length': 60}
    epochs = []
    iterator = data.open(config).batches('train')
    for _ in range(3):
        epoch = labelled_rows.stack(labelled_rows.take(iterator, 3))
        assert (epoch['weights'] if kind != 'words' else epoch['mask']).any(-1).all()
        epochs.append([bytes(row) for row in epoch['tokens']])
        assert len(set(epochs[-1])) == 21
    assert set(epochs[0]) == set(epochs[1]) == set(epochs[2])
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize('kind', KINDS)
def test_training_is_a_function_of_seed_and_number(configs, kind):
    def examples(batch_size, **changes):
        config = {**configs[kind], 'batch_size': batch_size, **changes}
        return labelled_rows.stack(
            labelled_rows.take(data.open(config).batches('train'), 60 // batch_size)
        )

    left, right = examples(4), examples(15)
    for name in left:
        np.testing.assert_array_equal(left[name], right[name])
    assert not np.array_equal(left['tokens'], examples(4, seed=4)['tokens'])


@pytest.mark.parametrize('kind', KINDS)
def test_evaluation_is_one_pass_in_order_with_padding_rows(configs, kind):
    config = {**configs[kind], 'batch_size': 4}
    whole = next(data.open({**config, 'batch_size': 6}).batches('validation'))
    batches = list(data.open(config).batches('validation'))
    assert len(batches) == 2
    both = labelled_rows.stack(batches)
    for name in both:
        np.testing.assert_array_equal(both[name][:6], whole[name])
        assert not both[name][6:].any(), name
    assert whole['mask'].any(1).all() and whole['weights'].any()
    labelled_rows.assert_same_batches(
        batches, list(data.open({**config, 'seed': 9}).batches('validation'))
    )


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('split', ['train', 'test'])
def test_restored_iterator_continues_exactly(configs, kind, split):
    config = {**configs[kind], 'batch_size': 2}
    iterator = data.open(config).batches(split)
    next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    restored = data.open(config).batches(split)
    labelled_rows.take(restored, 2)
    restored.set_state(state)
    labelled_rows.assert_same_batches(
        labelled_rows.take(restored, 30), labelled_rows.take(iterator, 30)
    )


@pytest.mark.parametrize('kind', KINDS)
def test_a_resolved_config_is_complete_and_survives_json(configs, kind):
    config = ml_collections.ConfigDict(configs[kind]).lock()
    found = dataclasses.asdict(data.open(config).resolved())
    names = {
        **{
            'single': labelled_rows.NAMES,
            'pair': labelled_rows.NAMES,
            'multi': labelled_rows.NAMES[:2],
            'regression': (),
        },
        'words': ('B-PER', 'I-PER', 'O'),
    }
    assert found.get('labels') == names.get(kind)
    given = {'data_dir': '', **configs[kind]}
    assert {**found, 'labels': 0} == {**given, 'labels': 0}
    again = json.loads(json.dumps(found))  # tuples become lists
    expected = labelled_rows.take(data.open(config).batches('train'), 8)
    labelled_rows.assert_same_batches(
        labelled_rows.take(data.open(again).batches('train'), 8), expected
    )
    assert data.open(again).spec == data.open(config).spec
    shape = (
        2,
        *{'words': (16,), 'answers': (2,)}.get(kind, (data.open(config).classes,)),
    )
    predictions = np.zeros(shape, np.int32)
    score = data.open(config).score('test', predictions)
    assert data.open(again).score('test', predictions) == score
    assert (
        data.open(again).encode(b'a').tolist()
        == data.open(config).encode(b'a').tolist()
    )


@pytest.mark.parametrize('kind', KINDS)
def test_predictions_of_a_wrong_shape_are_refused(configs, kind):
    tail = {'words': (16,), 'answers': (2,)}.get(
        kind, (data.open(configs[kind]).classes,)
    )
    for shape in ((0, *tail), (7, *tail), (3, *tail, 1), (3, 9)):
        with pytest.raises(ValueError, match=r'predictions have shape .*from 1 to 6'):
            data.open(configs[kind]).score('validation', np.zeros(shape, np.int32))


@pytest.mark.parametrize('kind', KINDS)
def test_bad_arguments_are_named(configs, kind):
    for name, value, error in (
        ('length', 0, 'length=0: give a positive integer'),
        ('seed', -1, 'seed=-1: give an integer'),
        ('source', 'none.csv', "nothing at 'none.csv'"),
        ('tokenizer', 'none.model', "no tokenizer at 'none.model'"),
        ('lenght', 1, "unknown field 'lenght'"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=error):
            data.open({**configs[kind], name: value}).batches('train')
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        data.open(configs[kind]).batches('dev')


# Classification.


def test_texts_pairs_and_their_padding(configs, model):
    batch = next(data.open(configs['single']).batches('validation'))
    assert [labelled_rows.letters(row) for row in batch['tokens']] == [
        f'text {n}' for n in range(21, 25)
    ]
    np.testing.assert_array_equal(batch['mask'].sum(1), [7] * 4)
    np.testing.assert_array_equal(batch['mask'], batch['tokens'] > 0)
    np.testing.assert_array_equal(batch['labels'], [0, 1, 2, 0])
    pair = next(data.open(configs['pair']).batches('validation'))
    tokenizer = tokenizers.load(model)
    expected = [*tokenizer.encode('text 21'), 2, *tokenizer.encode('21 é')]
    np.testing.assert_array_equal(pair['tokens'][0][pair['mask'][0]], expected)
    cut = next(data.open({**configs['pair'], 'length': 9}).batches('validation'))
    np.testing.assert_array_equal(cut['tokens'][0], expected[:9])
    assert cut['mask'].all()


def test_targets_of_several_labels_and_of_numbers(configs):
    batch = next(data.open(configs['multi']).batches('validation'))
    expected = [[0, 0], [1, 0], [1, 1], [0, 0]]
    np.testing.assert_array_equal(batch['labels'], expected)
    assert (batch['weights'] == 1).all()  # no label is an answer, too
    batch = next(data.open(configs['regression']).batches('validation'))
    np.testing.assert_array_equal(batch['labels'], [5.25, 5.5, 5.75, 6])


def test_csv_has_labels_as_strings(tmp_path):
    rows = ''.join(f'text {n},{n % 2},a b,{n}.5\n' for n in range(40))
    (tmp_path / 'a.csv').write_text('text,label,several,number\n' + rows)
    source = str(tmp_path / 'a.csv')
    assert data.open(labelled_rows.classification(source)).resolved().labels == (
        '0',
        '1',
    )
    config = labelled_rows.classification(source, batch_size=36)
    batch = next(data.open(config).batches('train'))
    for row, label in zip(batch['tokens'], batch['labels'], strict=True):
        assert label == int(labelled_rows.letters(row)[5:]) % 2
    config = labelled_rows.classification(source, kind='multi', label_column='several')
    assert data.open(config).resolved().labels == ('a', 'b')
    config = labelled_rows.classification(
        source, kind='regression', label_column='number'
    )
    batch = next(data.open(config).batches('train'))
    for row, label in zip(batch['tokens'], batch['labels'], strict=True):
        assert label == int(labelled_rows.letters(row)[5:]) + 0.5


def _line(row):
    return f'line {row}'


@pytest.mark.parametrize(
    ('rows', 'names', 'found'),
    [
        ([[3], [0]], ('0', '1', '2', '3'), [[3], [0]]),
        ([['1'], ['0', 1.0], [True]], ('0', '1'), [[1], [0, 1], [1]]),
        ([['b', 'a'], [], ['b', '2']], ('2', 'a', 'b'), [[2, 1], [], [2, 0]]),
        ([['01'], ['02'], ['00']], ('0', '1', '2'), [[1], [2], [0]]),
        ([['1.0'], ['0.0'], ['1']], ('0', '1'), [[1], [0], [1]]),
        ([['+1'], [' 0'], ['2.']], ('0', '1', '2'), [[1], [0], [2]]),
        ([[-1], [1]], ('-1', '1'), [[0], [1]]),
        ([['-1'], ['+1'], [1.0]], ('-1', '1'), [[0], [1], [1]]),
        ([['yes'], ['No'], ['no']], ('No', 'no', 'yes'), [[2], [0], [1]]),
        ([['tag'], []], ('tag',), [[0], []]),
        ([['1.0'], ['x'], ['1'], ['01']], ('1.0', 'x'), [[0], [1], [0], [0]]),
        ([['001'], ['E11']], ('001', 'E11'), [[0], [1]]),
        ([['none'], ['some']], ('none', 'some'), [[0], [1]]),
    ],
)
def test_labels_in_any_notation(rows, names, found):
    assert labels.find(rows, 'c', _line) == names
    assert labels.classes(rows, names, _line) == found


@pytest.mark.parametrize(
    ('rows', 'message'),
    [
        ([['a'], ['a']], "column 'c' has the one label 'a' in every row"),
        ([[7], ['07']], "the one label '0?7' in every row"),
        ([[0], [-1], [1]], 'line 1: column .c. has the label -1, which hides'),
        ([[1], [0], ['-02']], 'line 2: column .c. has the label -2, which hides'),
        ([['a'], [None], ['']], 'line 1: column .c. has no label there'),
        ([['1'], ['0'], ['nan']], 'line 2: column .c. has no label there'),
        (
            [['pos'], ['nan'], ['neg']],
            "line 1: .*label 'nan' there.*config.data.labels",
        ),
        ([['some'], ['so'], ['None']], "line 2: .*label 'None' there"),
        ([['1.0'], ['N/A'], ['']], 'line 1: column .c. has no label there'),
        ([['None'], [0], [True]], 'line 0: column .c. has no label there'),
    ],
)
def test_labels_that_nothing_is_learned_from(rows, message):
    with pytest.raises(ValueError, match=message):
        labels.find(rows, 'c', _line)


def test_names_of_labels():
    assert labels.given([1, 'x']) == ('1', 'x')

    def classes(rows, names):
        return labels.classes(rows, names, lambda row: f'line {row}')

    # Numbers are places among names, but names among numbers.
    assert classes([['y', 0], ['1']], ('x', 'y')) == [[1, 0], [1]]
    assert classes([[1, '2']], ('1', '2')) == [[0, 1]]
    with pytest.raises(ValueError, match="line 0: label '0': the labels are 1, 2"):
        classes([[0]], ('1', '2'))


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'kind': 'both'}, "kind='both': give one of single, multi, regression"),
        ({'text_columns': 'text'}, "text_columns='text': give a tuple of one column"),
        ({'text_columns': ('a', 'b', 'c')}, 'one column, or of two'),
        ({'text_columns': ()}, r'text_columns=\(\): give a tuple'),
        ({'text_columns': ('a', 'text')}, "has no column 'a': it has .*, text"),
        ({'text_columns': ('number',)}, 'line 1 of .*: 0.0 is no text'),
        ({'label_column': 'a'}, "has no column 'a': it has label, number"),
        ({'labels': 'bad'}, "labels='bad': give a tuple of names"),
        ({'labels': ('a', 'a')}, r"labels=\('a', 'a'\): give each name once"),
        (
            {'labels': ('bad', 'good')},
            r"line 3 of .*train.jsonl: label 'odd': the labels are bad, good",
        ),
        ({'kind': 'multi', 'label_column': 'number'}, 'line 1 .*: 0.0 is no list, nor'),
        (
            {'kind': 'regression', 'labels': ('a',)},
            r"labels=\('a',\): regression has n",
        ),
        ({'kind': 'regression'}, "line 1 of .*: label 'bad' is no number"),
    ],
)
def test_errors_of_classification(tmp_path, changes, message):
    rows = [{'text': 'a', 'label': name, 'number': 0.0} for name in labelled_rows.NAMES]
    source = labelled_rows.write_splits(tmp_path, rows, rows)
    with pytest.raises(ValueError, match=message):
        data.open(labelled_rows.classification(source, **changes)).batches('train')


def test_empty_texts_hidden_and_wrong_labels_are_named(tmp_path):
    rows = [{'a': 'x', 'b': 'y', 'label': 1}, {'a': ' ', 'b': 'y', 'label': 0}]
    hidden = [{'a': 'x', 'b': 'y', 'label': -1}]
    source = labelled_rows.write_splits(tmp_path / '1', rows, hidden)
    config = labelled_rows.classification(source, text_columns=('a',))
    with pytest.raises(ValueError, match="line 2 of .*train.*' ' is no text, or an em"):
        data.open(config).batches('train')
    config = labelled_rows.classification(source, text_columns=('a', 'b'))
    next(data.open(config).batches('train'))  # one of a pair may be empty, as in QQP
    message = (
        "line 1 of .*test.*label '-1': the labels of this split are hidden; .*0, 1"
    )
    with pytest.raises(ValueError, match=message):
        data.open(config).batches('test')
    source = labelled_rows.write_splits(tmp_path / '2', hidden, hidden)
    with pytest.raises(
        ValueError, match="column 'label' has the label -1, which hides"
    ):
        data.open(labelled_rows.classification(source, text_columns=('a',))).batches(
            'train'
        )
    many = [{'text': 'x', 'label': 10_000}]
    source = labelled_rows.write_splits(tmp_path / '3', many, many)
    with pytest.raises(ValueError, match="column 'label' gives 10001 labels: .* 10000"):
        _ = data.open(labelled_rows.classification(source)).classes


def test_scores_of_classification(configs):
    """The labels of the six rows are 0 1 2 0 1 2."""
    logits = np.eye(3)[[0, 1, 1, 0, 2, 2]]
    score = data.open(configs['single']).score('validation', logits)
    # Classes 0, 1, 2: F1 1, 1/2, 1/2.
    assert score == pytest.approx({'accuracy': 4 / 6, 'f1': 2 / 3})
    score = data.open(configs['single']).score('validation', logits[:2])
    assert score == {'accuracy': 1, 'f1': 1}  # class 2 is nowhere
    # Sets of the rows: {} {0} {0, 1} {} {0} {0, 1}.
    logits = np.array([[-1, -1], [1, 1], [0.1, 9], [0, -1], [-1, 1], [1, -1]])
    score = data.open(configs['multi']).score('validation', logits)
    # 4 of 6 labels found, 6 predicted.
    assert score == pytest.approx({'accuracy': 3 / 6, 'f1': 2 * 4 / (6 + 6)})
    numbers = np.array([[1], [3], [2], [5], [4], [6]], np.float32)
    score = data.open(configs['regression']).score('validation', numbers)
    # The ranks are the numbers themselves: two neighbours are swapped twice.
    correlation = pytest.approx(np.corrcoef(numbers.T, range(6))[0, 1])
    assert score == {'pearson': correlation, 'spearman': correlation}


def test_scores_at_their_limits():
    binary = scores.single(np.eye(2)[[1, 1, 0, 0]], np.array([1, 0, 1, 1]))
    assert binary == pytest.approx({'accuracy': 1 / 4, 'f1': 2 / 5})
    nothing = scores.single(np.eye(2)[[0, 0]], np.array([0, 0]))
    assert nothing == {'accuracy': 1, 'f1': 0}
    same = scores.regression(np.ones((4, 1)), np.arange(4))
    assert same == {'pearson': 0, 'spearman': 0}
    numbers = 1e4 + np.arange(4, dtype=np.float32)[:, None]
    offset = scores.regression(numbers, -np.arange(4))
    assert offset == {'pearson': pytest.approx(-1), 'spearman': pytest.approx(-1)}
    exponential = scores.regression(np.exp(numbers - 1e4), np.arange(4))
    assert exponential['pearson'] < 0.95 and exponential['spearman'] == 1
    assert scores.multi(np.full((2, 2), -1), np.zeros((2, 2))) == {
        'accuracy': 1,
        'f1': 0,
    }


@pytest.mark.parametrize('label', [None, '', ' ', ['x'], {'a': 1}, 0.5, math.nan])
def test_what_is_no_label_is_refused(tmp_path, label):
    rows = [{'text': 'a', 'label': 'x'}, {'text': 'b', 'label': label}]
    source = labelled_rows.write_splits(tmp_path, rows, rows)
    with pytest.raises(
        ValueError, match="line 2 of .*column 'label' has no label there"
    ):
        _ = data.open(labelled_rows.classification(source)).classes


def test_a_split_of_hidden_labels_is_none(tmp_path):
    rows = [{'text': 'a', 'label': 0}, {'text': 'b', 'label': 1}]
    source = labelled_rows.write_splits(tmp_path, rows, rows)
    config = labelled_rows.classification(source)
    assert data.open(config).splits == SPLITS
    hidden = [{'text': 'a', 'label': -1}, {'text': 'b', 'label': -1}]
    labelled_rows.write_json(tmp_path / 'other' / 'train.jsonl', rows)
    labelled_rows.write_json(tmp_path / 'other' / 'validation.jsonl', rows)
    labelled_rows.write_json(tmp_path / 'other' / 'test.jsonl', hidden)
    config = labelled_rows.classification(str(tmp_path / 'other'))
    assert data.open(config).splits == ('train', 'validation')


@pytest.mark.parametrize('kind', ['single', 'multi'])
@pytest.mark.parametrize('only', ['train', 'validation', 'test'])
def test_a_label_of_one_split_only_is_a_class(tmp_path, only, kind):
    for split in SPLITS:
        rows = [{'text': 'a', 'label': name} for name in ('a', 'b')]
        rows += [{'text': 'a', 'label': 'rare'}] * (split == only)
        labelled_rows.write_json(tmp_path / f'{split}.jsonl', rows)
    dataset = data.open(labelled_rows.classification(str(tmp_path), kind=kind))
    assert dataset.resolved().labels == ('a', 'b', 'rare')
    for split in SPLITS:
        next(dataset.batches(split))


def test_the_row_without_a_label_is_named_in_its_split(tmp_path):
    rows = [{'text': 'a', 'label': 'x'}, {'text': 'b', 'label': 'y'}]
    source = labelled_rows.write_splits(tmp_path, rows, rows)
    labelled_rows.write_json(
        tmp_path / 'validation.jsonl', [*rows, {**rows[0], 'label': ''}]
    )
    with pytest.raises(ValueError, match='line 3 of .*validation.jsonl: .* no label'):
        _ = data.open(labelled_rows.classification(source)).classes


@pytest.mark.parametrize('lacking', [{}, {'label': ''}, {'label': None}])
def test_a_test_split_without_labels_is_none(tmp_path, lacking):
    """As in competitions, and in GLUE's own files."""
    rows = [{'text': 'a', 'label': 0}, {'text': 'b', 'label': 1}]
    source = labelled_rows.write_splits(tmp_path, rows, rows)
    labelled_rows.write_json(tmp_path / 'test.jsonl', [{'text': 'a', **lacking}] * 2)
    dataset = data.open(labelled_rows.classification(source))
    assert dataset.splits == ('train', 'validation')
    assert dataset.resolved().labels == ('0', '1')
    words = [{'words': ['a', 'b'], 'tags': ['X', 'O']}]
    labelled_rows.write_splits(tmp_path / 'words', words, words)
    labelled_rows.write_json(tmp_path / 'words' / 'test.jsonl', [{'words': ['a']}])
    dataset = data.open(labelled_rows.named_entities(str(tmp_path / 'words')))
    assert dataset.splits == ('train', 'validation')
    source = labelled_rows.write_splits(tmp_path / 'none', rows, [{'text': 'a'}])
    with pytest.raises(ValueError, match="validation.jsonl' has no column 'label'"):
        _ = data.open(labelled_rows.classification(source)).classes


@pytest.mark.parametrize('label', ['a,b', 'a, b', 'a;b', 'a|b', '[a b]', "{'a', 'b'}"])
def test_several_labels_have_spaces_between_them(tmp_path, label):
    rows = [{'text': 'a', 'label': 'a'}, {'text': 'b', 'label': label}]
    source = labelled_rows.write_splits(tmp_path, rows, rows)
    config = labelled_rows.classification(source, kind='multi')
    with pytest.raises(
        ValueError, match='line 2 of .*(spaces between labels|notation)'
    ):
        _ = data.open(config).classes
    rows = [{'text': 'a', 'label': ['a,b']}, {'text': 'b', 'label': '["a,b", "c"]'}]
    source = labelled_rows.write_splits(tmp_path / 'lists', rows, rows)
    config = labelled_rows.classification(source, kind='multi')
    assert data.open(config).resolved().labels == ('a,b', 'c')


@pytest.mark.parametrize('label', [[1, 0, 1], [0.0, 1.0, 0.0], '1 0 0', '[1, 0, 0]'])
def test_a_flag_for_each_label_is_no_label(tmp_path, label):
    rows = [{'text': 'a', 'label': label}, {'text': 'b', 'label': [0]}]
    source = labelled_rows.write_splits(tmp_path, rows, rows)
    config = labelled_rows.classification(source, kind='multi')
    with pytest.raises(ValueError, match='line 1 of .* tells of each label whether'):
        _ = data.open(config).classes


@pytest.mark.parametrize('label', ["['a']", '["b"]', '[1]', "['a' 'b']"])
def test_a_printed_list_is_no_single_label(tmp_path, label):
    rows = [{'text': 'a', 'label': 'a'}, {'text': 'b', 'label': label}]
    source = labelled_rows.write_splits(tmp_path, rows, rows)
    with pytest.raises(ValueError, match='line 2 of .*(has no label there|notation)'):
        _ = data.open(labelled_rows.classification(source)).classes


def test_rows_without_a_token_are_refused(tmp_path):
    """They would be taken for the padding of a batch."""
    rows = [{'words': ['a'], 'tags': ['X']}, {'words': [''], 'tags': ['O']}]
    source = labelled_rows.write_splits(tmp_path, rows, rows)
    config = labelled_rows.named_entities(source)
    with pytest.raises(ValueError, match=r"line 2 of .*\[''\] has no token for"):
        data.open(config).batches('validation')
