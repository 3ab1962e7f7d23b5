"""Masked language modelling, the pretraining of BERT, with a bidirectional Reformer.

Of the tokens of a text 15 % are hidden and predicted from both sides (Devlin et al.
2018): the model to fine-tune with configs/classification.py, named_entities.py and
question_answering.py.

  python train.py --config=configs/masked_text.py:tiny --workdir=runs/masked
      a few minutes on 2 CPU cores, on the source text of Python's standard library
  python train.py --config=configs/masked_text.py --config.data.path=FILE
      any file, folder or glob, packed or not; bytes unless
      --config.data.tokenizer=spiece.model, which
      `python convert.py tokenizer FILE spiece.model --vocab_size=8000` makes; set
      model.vocab_size to its size and one more
"""

import ml_collections

from reformer_jax import data
from reformer_jax.model import config as model_config
from reformer_jax.training import config as training_config
from reformer_jax.training import optimizer as optimizer_lib


def get_config(variant: str = '') -> ml_collections.ConfigDict:
    """The experiment; variant 'tiny' is for 2 CPU cores."""
    if variant not in ('', 'tiny'):
        raise ValueError(
            f'unknown variant {variant!r}: use masked_text.py or masked_text.py:tiny.'
        )
    config = ml_collections.ConfigDict(training_config.defaults())
    config.steps = 100_000
    config.eval_batches = 50
    config.data = data.defaults('text') | {
        'path': '',  # empty: the standard library
        'tokenizer': '',  # empty: that of init_from, or bytes
        'length': 4096,
        'batch_size': 32,
        'seed': 0,
        'masked_fraction': 0.15,
    }
    config.model = model_config.defaults() | {
        'vocab_size': 259,  # bytes, padding, separator, mask
        'length': 4096,
        'd_model': 512,
        'd_ff': 2048,
        'heads': 8,
        'head_size': 64,
        'layers': 12,
        'pattern': ('local', 'lsh'),
        'causal': False,
        'head': 'masked_lm',
        'local_chunks_after': 1,
        'lsh_chunks_after': 1,
        'rounds': 2,
        'activation': 'gelu',
        'axial_shape': (64, 64),
        'axial_sizes': (128, 384),
        'dropout': 0.1,
    }
    config.optimizer = optimizer_lib.defaults() | {
        'name': 'adamw',
        'learning_rate': 3e-4,
        'warmup_steps': 5000,
        'decay': 'cosine',
        'weight_decay': 0.01,
        'clip_norm': 1.0,
    }
    if variant == 'tiny':
        config.update(_tiny())
    return config


def _tiny() -> dict:
    """256 tokens a sequence, 0.9 million parameters."""
    return {
        'steps': 1500,
        'data': {'length': 256, 'batch_size': 8},
        'model': {
            'length': 256,
            'd_model': 128,
            'd_ff': 512,
            'heads': 2,
            'layers': 4,
            'local_chunk_length': 32,
            'lsh_chunk_length': 32,
            'axial_shape': (16, 16),
            'axial_sizes': (32, 96),
            'dropout': 0.0,
        },
        'optimizer': {'learning_rate': 2e-3, 'warmup_steps': 200, 'weight_decay': 0.0},
    }
