"""Batches of some rows, as each of several processes reads them."""

import itertools

import labelled_rows
import numpy as np
import pytest

from reformer_jax import data

_TEXT = 'to be or not to be;\nthat is the question\n'
_BATCH = {'batch_size': 6, 'seed': 3}


def _write(folder):
    (folder / 'text').write_text(_TEXT * 300)
    for split in ('train', 'validation', 'test'):
        rows = [
            f'{{"text": "{"ab" * (n % 5 + 1)}", "label": {n % 2}}}' for n in range(20)
        ]
        (folder / f'{split}.jsonl').write_text('\n'.join(rows))
        lines = ['a' * (n % 9 + 1) for n in range(20)]
        for column in ('en', 'de'):
            (folder / f'{split}.{column}').write_text('\n'.join(lines) + '\n')


def _open(name, folder):
    text, words = str(folder / 'text'), {'symbols': 9, 'eval_examples': 10}
    fields = {
        'bytes': {'path': text, 'length': 16},
        'masked': {'path': text, 'length': 16, 'masked_fraction': 0.2},
        'novel': {'path': text, 'length': 16},
        'duplication': {'half_length': 6, **words},
        'copy_reverse': {'word_length': 6, **words},
        'marked': {
            'path': text,
            'source_length': 64,
            'target_length': 32,
            'marks': 2,
            'eval_examples': 10,
        },
        'listops': {'length': 16, 'longer_than': 8, 'shorter_than': 17},
        'classification': labelled_rows.classification(str(folder)) | _BATCH,
        'pairs': {
            'source': f'{folder}/{{split}}.{{column}}',
            'source_column': 'en',
            'target_column': 'de',
            'lengths': (6, 12),
            'tokenizer': 'bytes',
        },
    }[name]
    return data.open({'dataset': name.replace('masked', 'text'), **_BATCH, **fields})


@pytest.mark.parametrize('split', ['train', 'validation'])
@pytest.mark.parametrize(
    'name',
    (
        'bytes masked novel duplication copy_reverse marked listops '
        'classification pairs'
    ).split(),
)
def test_some_rows_are_those_of_the_whole_batch(tmp_path, name, split):
    """Two processes, of which one has rows that do not lie together; of the last batch
    of an evaluation one may have none that is real."""
    _write(tmp_path)
    dataset = _open(name, tmp_path)
    whole = list(itertools.islice(dataset.batches(split), 8))
    for wanted in (
        lambda rows: np.flatnonzero(np.arange(rows) // 2 % 2 == 0),
        lambda rows: np.arange(rows // 2, rows),
    ):
        parts = list(itertools.islice(dataset.batches(split, wanted), 8))
        assert len(parts) == len(whole)
        for part, batch in zip(parts, whole, strict=True):
            rows = wanted(len(batch['tokens']))
            real = batch['weights'][rows].reshape(len(rows), -1).any(axis=1)
            assert part.keys() == batch.keys()
            for field, values in batch.items():
                np.testing.assert_array_equal(part[field][real], values[rows][real])
            assert not part['weights'][~real].any()
            assert {x.shape[0] for x in part.values()} == {len(rows)}
