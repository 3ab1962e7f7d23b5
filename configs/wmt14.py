"""English to German on WMT14: the paper's translation experiments (section 5, Table 4).

Attention is full, as sentences are shorter than 128 tokens; encoder and decoder have
six layers each, all reversible. The paper has on newstest2014, which is the test split:

                                              BLEU   sacreBLEU, uncased   cased
  base, 100,000 steps                         27.6                 27.4    26.9
  base, 500,000 steps, no weight sharing      28.0                 27.9    27.4
  big, 300,000 steps, no weight sharing       29.1                 28.9    28.4

eval.py's bleu_intl_lowercase is the column in the middle, bleu_intl the last one. The
first is of tokens with compounds split, which sacrebleu does not compute, nor do we.

  python train.py --config=configs/wmt14.py --workdir=runs/wmt14
      base on 8 devices; on one, --config.accumulate=8
  python train.py --config=configs/wmt14.py:base_500k --workdir=...
  python train.py --config=configs/wmt14.py:big --workdir=...
  python train.py --config=configs/wmt14.py:small --workdir=...
      base, 20,000 steps of 24,576 target tokens: an hour of one GPU if it does
      150,000 a second, which is an estimate
  python eval.py --workdir=runs/wmt14 --splits=test
      with 4 beams and a length penalty of 0.6; for others, give the config as well:
      --config=configs/wmt14.py --config.decoding.beams=1
  python reports/table4.py runs/wmt14

None of it has been run: where this was written there was neither the data nor an
accelerator. The 4.5 million pairs come through tensorflow_datasets and are held in
memory, as texts and as tokens.

A batch has 65,536 target tokens, padding included: of the bucket of 32 tokens it is 256
pairs a device, as in the paper. Optimizer and schedule are those of trax's gin files.
The last 20 checkpoints are kept, so that their mean can be evaluated.
"""

import ml_collections

from reformer_jax import data
from reformer_jax.model import config as model_config
from reformer_jax.training import config as training_config
from reformer_jax.training import optimizer as optimizer_lib


def get_config(variant: str = '') -> ml_collections.ConfigDict:
    """The experiment: '' or 'base', 'base_500k', 'big', 'small'."""
    variants = {
        '': {},
        'base': {},
        'base_500k': {'steps': 500_000, 'model': _NOTHING_SHARED},
        'big': _big(),
        'small': _small(),
    }
    if variant not in variants:
        raise ValueError(
            f'unknown variant {variant!r}: use wmt14.py, or wmt14.py: with '
            f'{", ".join(filter(None, variants))}.'
        )
    config = _base()
    config.update(variants[variant])
    return config


_NOTHING_SHARED = {'share_embedding': False, 'tie_output': False}


def _base() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict(training_config.defaults())
    config.steps = 100_000
    config.log_every = 100
    config.eval_every = 1000
    config.checkpoint_every = 1000
    config.keep_checkpoints = 20
    config.data = data.defaults('pairs') | {
        'source': 'tfds:wmt14_translate/de-en',
        'source_column': 'en',
        'target_column': 'de',
        'tokenizer': 'train:32768',
        'lengths': (16, 32, 64, 128, 256),
        'batch_size': 256,  # of 256 tokens, or 2,048 of 32
        'seed': 0,
    }
    config.model = model_config.defaults() | {
        'vocab_size': 32_768,
        'length': 512,
        'd_model': 512,
        'd_ff': 2048,
        'heads': 8,
        'head_size': 64,
        'layers': 6,
        'pattern': ('full',),
        'activation': 'relu',
        'positions': 'sinusoidal',
        'stack': 'reversible',
        'combine': 'average',
        'share_embedding': True,
        'tie_output': True,
        'dropout': 0.1,
        'label_smoothing': 0.1,
        'dtype': 'bfloat16',
        'encoder': {'layers': 6},
    }
    config.decoding = training_config.decoding_defaults()
    config.optimizer = optimizer_lib.defaults() | {
        'name': 'adam',
        # trax: 0.088 * min(1, step / 8000) / sqrt(max(step, 8000)), 9.8e-4 at most
        'learning_rate': 0.088 / 8000**0.5,
        'warmup_steps': 8000,
        'decay': 'rsqrt',
        'b2': 0.98,
        'eps': 1e-9,
    }
    return config


def _big() -> dict:
    return {
        'steps': 300_000,
        'model': {
            'd_model': 1024,
            'd_ff': 4096,
            'heads': 16,
            'dropout': 0.3,
            **_NOTHING_SHARED,
        },
        'optimizer': {'learning_rate': 0.0625 / 8000**0.5},  # trax; 7.0e-4
    }


def _small() -> dict:
    """With the batches, peak and warm-up of Vaswani et al. 2017."""
    return {
        'steps': 20_000,
        'data': {'batch_size': 96},  # 24,576 target tokens
        'optimizer': {'learning_rate': 512**-0.5 / 4000**0.5, 'warmup_steps': 4000},
    }
