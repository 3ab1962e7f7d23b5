"""English to German on Multi30k: 29,000 captions of images, in an hour of 2 CPU cores.

The files are those of task 1 (github.com/multi30k/dataset, data/task1/raw):
train, val and test_2016_flickr, .en.gz and .de.gz each.

  python train.py --config=configs/multi30k.py --workdir=runs/multi30k \\
      --config.data.source='multi30k/{split}.{column}'

  python train.py --config=configs/multi30k.py:gpu ...      20 minutes of a GPU, not run
  python eval.py --workdir=runs/multi30k --splits=test

Encoder and decoder have three layers each, reversible, and one table of 4,000 pieces
for sources, targets and logits. With jax 0.12.0.1 a step takes 0.36 s on two quiet
cores (3,100 target tokens a second); after the 6,500 steps, one seed, the validation
loss is 1.876 nats a token, and BLEU (sacrebleu, cased, 13a) 34.25 on test_2016_flickr
and 33.65 on validation with 4 beams.
"""

from typing import Any

import ml_collections

from reformer_jax import data
from reformer_jax.model import config as model_config
from reformer_jax.training import config as training_config
from reformer_jax.training import optimizer as optimizer_lib


def get_config(variant: str = '') -> ml_collections.ConfigDict:
    """The experiment: '' is for a CPU, 'gpu' larger and for more epochs."""
    if variant not in ('', 'gpu'):
        raise ValueError(
            f'unknown variant {variant!r}: use multi30k.py or multi30k.py:gpu.'
        )
    config = ml_collections.ConfigDict(training_config.defaults())
    config.steps = 6500
    config.log_every = 100
    config.eval_every = 1000
    config.checkpoint_every = 1000
    config.data = data.defaults('pairs') | {
        'source': 'multi30k/{split}.{column}',
        'source_column': 'en',
        'target_column': 'de',
        'split_names': {
            'train': 'train',
            'validation': 'val',
            'test': 'test_2016_flickr',
        },
        'tokenizer': 'train:4000',
        'lengths': (12, 16, 24, 48),
        'batch_size': 32,
        'seed': 0,
    }
    config.model = model_config.defaults() | {
        'vocab_size': 4000,
        'length': 128,
        'd_model': 256,
        'd_ff': 1024,
        'heads': 4,
        'head_size': 64,
        'layers': 3,
        'pattern': ('full',),
        'positions': 'sinusoidal',
        'combine': 'average',
        'tie_output': True,
        'dropout': 0.1,
        'label_smoothing': 0.1,
        'encoder': {'layers': 3},
    }
    config.decoding = training_config.decoding_defaults()
    config.optimizer = optimizer_lib.defaults() | {
        'name': 'adam',
        'b2': 0.98,
        'learning_rate': 2e-3,
        'warmup_steps': 400,
        'decay': 'cosine',
        'clip_norm': 1.0,
    }
    if variant == 'gpu':
        config.update(_gpu())
    return config


def _gpu() -> dict[str, Any]:
    """About 50 epochs of 4,000 tokens a batch, which wants more dropout."""
    return {
        'steps': 8000,
        'keep_checkpoints': 10,
        'data': {'batch_size': 96, 'tokenizer': 'train:8000'},
        'model': {
            'vocab_size': 8000,
            'd_model': 512,
            'd_ff': 2048,
            'heads': 8,
            'dropout': 0.3,
            'dtype': 'bfloat16',
        },
        'optimizer': {'learning_rate': 1e-3, 'warmup_steps': 1000},
    }
