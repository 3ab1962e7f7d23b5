"""The tasks of Long Range Arena train and are scored, small."""

import numpy as np
import pytest

from configs import lra
from reformer_jax.training import evaluation
from reformer_jax.training import loop

_SMALL = {
    'd_model': 16,
    'd_ff': 16,
    'heads': 2,
    'head_size': 8,
    'layers': 2,
    'local_chunk_length': 8,
    'lsh_chunk_length': 8,
}


def _small(variant, **model):
    config = lra.get_config(variant)
    config.model.update(_SMALL | model)
    config.update({'steps': 2, 'eval_every': 0, 'checkpoint_every': 0})
    return config


@pytest.mark.slow
def test_listops(tmp_path):
    config = _small('listops_short', length=64)
    limits = {'length': 64, 'longer_than': 32, 'shorter_than': 64, 'batch_size': 100}
    config.data.update(limits)
    final = loop.train(config, str(tmp_path / 'run'))
    assert final['examples'] == 2000 and 0 < final['accuracy'] < 1
    results = evaluation.evaluate(None, str(tmp_path / 'run'))
    assert results['validation']['accuracy'] == final['accuracy']
    assert results['test']['examples'] == 2000


@pytest.mark.slow
def test_image(tmp_path):
    for name in ('test_batch', *(f'data_batch_{part}' for part in range(1, 6))):
        records = np.random.default_rng(0).integers(0, 10, (4, 3073), np.uint8)
        records.tofile(tmp_path / f'{name}.bin')
    config = _small('image')
    config.data.update({'source': str(tmp_path), 'batch_size': 2})
    assert loop.train(config, str(tmp_path / 'run'))['examples'] == 2
