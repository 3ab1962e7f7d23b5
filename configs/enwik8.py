"""Byte language modelling on enwik8 with 65,536-token sequences (paper section 5).

The paper's model: 12 layers, d_model 1024, d_ff 4096, 8 heads of 128, attention
local/local/lsh/local, axial positions (128, 512). Model, optimizer and schedule follow
trax's reformer_enwik8.gin of January 2020; the paper reports 1.05 bits/dim on the test
set after "further tuning", 1.19 after 20k steps of a 12-layer model.

  python train.py --config=configs/enwik8.py --workdir=...
      the paper's model on 8 devices, a sequence each; on fewer, cut the batch of 8 into
      parts with --config.accumulate=8
  python train.py --config=configs/enwik8.py:small
      one GPU, half an hour (sized by a cost model, not yet run)
  python train.py --config=configs/enwik8.py:tiny
      2 CPU cores, a quarter of an hour
  python train.py --config=configs/enwik8.py:cpu --config.data.path=FILE --workdir=...
      one CPU core, 63 minutes, on the first 4,000,000 bytes: 1.92 bits per byte
  python train.py --config=configs/enwik8.py:million
      1,048,576 tokens a sequence

Data: enwik8 is downloaded by tensorflow_datasets; --config.data.path=FILE uses a local
copy, or any other file, folder or glob, packed or not, instead.
"""

import ml_collections

from reformer_jax import data
from reformer_jax.model import config as model_config
from reformer_jax.training import config as training_config
from reformer_jax.training import optimizer as optimizer_lib


def get_config(variant: str = '') -> ml_collections.ConfigDict:
    """The experiment: '' is the paper's; or 'small', 'tiny', 'cpu', 'million'."""
    variants = {
        '': (),
        'small': (_small,),
        'tiny': (_tiny,),
        'cpu': (_tiny, _cpu),
        'million': (_million,),
    }
    if variant not in variants:
        raise ValueError(
            f'unknown variant {variant!r}: use enwik8.py, or enwik8.py: with one of '
            f'{", ".join(name for name in variants if name)}.'
        )
    config = _paper()
    for change in variants[variant]:
        config.update(change())
    return config


def sweep(add):
    """LSH attention, and in its place exact attention, queries and keys shared too."""
    add({'model.pattern': ('local', 'local', 'lsh', 'local')})
    add({'model.pattern': ('local', 'local', 'full', 'local'), 'model.shared_qk': True})


def _paper() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict(training_config.defaults())
    config.steps = 100_000
    config.log_every = 20
    config.eval_every = 500
    config.eval_batches = 1
    config.data = data.defaults('enwik8') | {
        'path': '',
        'length': 65_536,
        'batch_size': 8,
        'seed': 0,
    }
    config.model = model_config.defaults() | {
        'vocab_size': 258,  # 256 bytes, padding, one unused
        'length': 65_536,
        'd_model': 1024,
        'd_ff': 4096,
        'heads': 8,
        'head_size': 128,
        'layers': 12,
        'pattern': ('local', 'local', 'lsh', 'local'),
        'local_chunk_length': 128,
        'lsh_chunk_length': 256,
        'buckets': (512,),
        'rounds': 2,
        'rule': 'reformer',
        'activation': 'relu',
        'positions': 'axial',
        'axial_shape': (128, 512),
        'axial_sizes': (256, 768),
        'heads_at_once': 1,
        'dropout': 0.2,
        'attention_dropout': 0.2,
        'local_attention_dropout': 0.2,
        'stack': 'reversible',
        'feed_forward_chunk_length': 4096,
        'loss_chunk_length': 4096,
        'dtype': 'bfloat16',
    }
    config.optimizer = optimizer_lib.defaults() | {
        'name': 'adam',
        # trax: 0.03125 * min(1, step / 2000) / sqrt(max(step, 2000))
        'learning_rate': 0.03125 / 2000**0.5,
        'warmup_steps': 2000,
        'decay': 'rsqrt',
        'b1': 0.9,
        'b2': 0.98,
        'eps': 1e-9,
        'clip_norm': 0.0,
    }
    return config


def _small() -> dict:
    """8,192 tokens a sequence; sized by the cost model for half an hour of one GPU."""
    return {
        'steps': 10_000,
        'eval_batches': 8,
        'data': {'length': 8192, 'batch_size': 8},
        'model': {
            'length': 8192,
            'd_model': 512,
            'd_ff': 2048,
            'head_size': 64,
            'layers': 8,
            'local_chunk_length': 64,
            'lsh_chunk_length': 64,
            'buckets': (),
            'axial_shape': (64, 128),
            'axial_sizes': (128, 384),
            'dropout': 0.1,
            'heads_at_once': 0,
            'attention_dropout': 0.0,
            'local_attention_dropout': 0.0,
            'feed_forward_chunk_length': 0,
        },
        'optimizer': {
            'learning_rate': 1e-3,
            'warmup_steps': 500,
            'decay': 'cosine',
            'clip_norm': 1.0,
        },
    }


def _tiny() -> dict:
    """1,024 tokens a sequence, float32, sized for 15 minutes of 2 CPU cores."""
    return {
        'steps': 1900,
        'log_every': 50,
        'eval_every': 500,
        'eval_batches': 20,
        'checkpoint_every': 1000,
        'data': {'length': 1024, 'batch_size': 2},
        'model': {
            'length': 1024,
            'd_model': 192,
            'd_ff': 768,
            'heads': 3,
            'head_size': 64,
            'layers': 4,
            'local_chunk_length': 64,
            'lsh_chunk_length': 64,
            'buckets': (),
            'rounds': 1,
            'axial_shape': (32, 32),
            'axial_sizes': (64, 128),
            'heads_at_once': 0,
            'dropout': 0.0,
            'attention_dropout': 0.0,
            'local_attention_dropout': 0.0,
            'feed_forward_chunk_length': 0,
            'loss_chunk_length': 0,
            'dtype': 'float32',
        },
        'optimizer': {
            'learning_rate': 2e-3,
            'warmup_steps': 100,
            'decay': 'cosine',
            'clip_norm': 1.0,
        },
    }


def _cpu() -> dict:
    """What differs from tiny; how it was chosen: docs/experiments.md."""
    return {
        'steps': 4800,
        'eval_every': 600,
        'eval_batches': 0,
        'checkpoint_every': 600,
        'data': {'batch_size': 4},
        'model': {
            'dense_length': 0,
            'axial_shape': (16, 64),
            'stack': 'residual',
            'dtype': 'bfloat16',
        },
        'optimizer': {
            'name': 'muon',
            'learning_rate': 1e-2,
            'warmup_steps': 150,
        },
    }


def _million() -> dict:
    """A step of 1,048,576 tokens in at most 16 GiB: d_model 512, 12 layers."""
    return {
        'data': {'length': 2**20, 'batch_size': 1},
        'model': {
            'length': 2**20,
            'd_model': 512,
            'd_ff': 2048,
            'head_size': 64,
            'local_chunk_length': 64,
            'lsh_chunk_length': 64,
            'buckets': (),
            'rounds': 2,
            'axial_shape': (1024, 1024),
            'axial_sizes': (128, 384),
        },
    }
