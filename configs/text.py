"""A small Reformer on the source of Python's own standard library: no download.

Paper section 5 in miniature: byte language modelling with local and LSH layers.

  python train.py --config=configs/text.py:tiny
      two minutes on 2 CPU cores
  python train.py --config=configs/text.py --config.data.path=FILE
      any file, folder or glob, packed or not, instead
"""

import ml_collections

from reformer_jax import data
from reformer_jax.model import config as model_config
from reformer_jax.training import config as training_config
from reformer_jax.training import optimizer as optimizer_lib


def get_config(variant: str = '') -> ml_collections.ConfigDict:
    """The experiment; variant 'tiny' is two minutes of it."""
    if variant not in ('', 'tiny'):
        raise ValueError(f'unknown variant {variant!r}: use text.py or text.py:tiny.')
    config = ml_collections.ConfigDict(training_config.defaults())
    config.steps = 2800 if variant == 'tiny' else 10_000
    config.eval_every = 500
    config.eval_batches = 50
    config.checkpoint_every = 500
    config.data = data.defaults('bytes') | {
        'path': '',  # empty: the standard library
        'length': 512,
        'batch_size': 2,
        'seed': 0,
    }
    config.model = model_config.defaults() | {
        'vocab_size': 258,
        'length': 512,
        'd_model': 128,
        'd_ff': 512,
        'heads': 2,
        'head_size': 64,
        'layers': 4,
        'pattern': ('local', 'lsh'),
        'local_chunk_length': 64,
        'lsh_chunk_length': 64,
        'buckets': (),
        'rounds': 1,
        'rule': 'reformer',
        'positions': 'axial',
        'axial_shape': (16, 32),
        'axial_sizes': (48, 80),
        'dropout': 0.0,
    }
    config.optimizer = optimizer_lib.defaults() | {
        'name': 'adam',
        'learning_rate': 2e-3,
        'warmup_steps': 200,
        'decay': 'rsqrt',
        'clip_norm': 1.0,
    }
    return config
