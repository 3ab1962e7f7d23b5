"""Small labelled files, configs that read them, and a tokenizer: for several tests."""

import itertools
import json

import numpy as np

from reformer_jax.data import tokenizers

NAMES = ('bad', 'good', 'odd')


def train_tokenizer(folder):
    """Path of a SentencePiece model of 300 pieces."""
    file = folder / 'spiece.model'
    text = 'Zoë lives in São Paulo and works for the United Nations. Where? ' * 3
    tokenizers.train([text], file, vocab_size=300, model_type='bpe')
    return str(file)


def write_json(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows), 'utf-8')
    return str(path)


def write_splits(folder, train, evaluation):
    write_json(folder / 'train.jsonl', train)
    write_json(folder / 'validation.jsonl', evaluation)
    write_json(folder / 'test.jsonl', evaluation)
    return str(folder)


def common(dataset, source, **changes):
    fields = {'dataset': dataset, 'source': source, 'tokenizer': 'bytes'}
    return {**fields, 'length': 16, 'batch_size': 4, 'seed': 3, **changes}


def classification(source, **changes):
    fields = {'text_columns': ('text',), 'label_column': 'label', 'kind': 'single'}
    return common('classification', source, **{**fields, 'labels': (), **changes})


def named_entities(source, **changes):
    fields = {'words_column': 'words', 'tags_column': 'tags', 'labels': ()}
    return common('token_classification', source, **{**fields, **changes})


def answering(source, **changes):
    fields = {'question_column': 'question', 'context_column': 'context'}
    fields |= {'answers_column': 'answers', 'length': 60}
    return common('question_answering', source, **{**fields, **changes})


def take(iterator, count):
    return list(itertools.islice(iterator, count))


def stack(batches):
    return {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}


def assert_same_batches(left, right):
    assert len(left) == len(right) > 0
    for one, other in zip(left, right, strict=True):
        assert set(one) == set(other)
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def letters(tokens):
    return bytes((tokens[tokens >= 2] - 2).tolist()).decode()
