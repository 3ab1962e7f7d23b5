"""The paper's ablations (section 5, Figures 3 to 5): small models, compared.

"3-layer models so as to make it tractable to compare with the regular Transformer":
d_model 1024, d_ff 4096, 8 heads, 8 sequences per step, Adafactor; enwik8 in sequences
of 65,536 bytes, imagenet64 in sequences of 12,288. Optimizer constants, steps and (on
enwik8) dropout are those of trax's first reformer_enwik8.gin (October 2019); chunks and
axial positions are ours, the paper does not state them. No cost is stated where a
variant has not been run: at this size none has, for want of an accelerator.

What is compared is in five files that build on this one, each with a sweep:
  shared_qk.py    Figure 3, left: shared or separate queries and keys
  reversible.py   Figure 3, right: reversible or with saved activations
  rounds.py       Figure 4: hash rounds against full attention
  depth.py        Figure 5, left: 3 to 20 layers
  length.py       Figure 5, right: speed against length

  python sweep.py --config=configs/rounds.py:imagenet64 --workdir=...
  python sweep.py --config=configs/rounds.py:tiny --config.data.path=FILE
      3 layers of d_model 128 on 512 bytes of any text: minutes a run on 2 CPU cores
  python sweep.py --config=configs/rounds.py:imagenet64_tiny --config.data.source=FILE
      the same on images of 16x16 pixels, FILE an .npz or a folder (data/images.py)

Variants: '' (enwik8), imagenet64, tiny, imagenet64_tiny.
"""

import ml_collections

from reformer_jax import data
from reformer_jax.model import config as model_config
from reformer_jax.training import config as training_config
from reformer_jax.training import optimizer as optimizer_lib


def get_config(variant: str = '') -> ml_collections.ConfigDict:
    """The model with LSH attention of 4 rounds; see above for the variants."""
    variants = {
        '': (),
        'imagenet64': (_imagenet64,),
        'tiny': (_tiny, _tiny_enwik8),
        'imagenet64_tiny': (_imagenet64, _tiny, _tiny_imagenet64),
    }
    if variant not in variants:
        raise ValueError(
            f'unknown variant {variant!r}: use the file alone, or with one of '
            f'{", ".join(":" + name for name in variants if name)}.'
        )
    config = _enwik8()
    for change in variants[variant]:
        fields = change()
        if 'dataset' in fields.get('data', ()):
            config.data = fields.pop('data')
        config.update(fields)
    return config


def get_full_attention(variant: str = '') -> ml_collections.ConfigDict:
    """The same model with full attention, as in Figure 3."""
    config = get_config(variant)
    config.model.pattern = ('full',)
    return config


def _enwik8() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict(training_config.defaults())
    config.steps = 60_000
    config.eval_batches = 4
    config.checkpoint_every = 5000
    config.keep_checkpoints = 1
    config.data = data.defaults('enwik8') | {
        'path': '',
        'length': 65_536,
        'batch_size': 8,
        'seed': 0,
    }
    config.model = model_config.defaults() | {
        'vocab_size': 258,
        'length': 65_536,
        'd_model': 1024,
        'd_ff': 4096,
        'heads': 8,
        'head_size': 64,
        'layers': 3,
        'pattern': ('lsh',),
        'lsh_chunk_length': 128,
        'buckets': (),
        'rounds': 4,
        'rule': 'reformer',
        'dense_length': 0,  # LSH attention is what is measured, however many rounds
        'shared_qk': True,  # of full attention, as LSH attention has it
        'positions': 'axial',
        'axial_shape': (128, 512),
        'axial_sizes': (256, 768),
        'dropout': 0.1,
        'attention_dropout': 0.1,
        'feed_forward_chunk_length': 4096,
        'loss_chunk_length': 4096,
        'dtype': 'bfloat16',
    }
    config.optimizer = optimizer_lib.defaults() | {
        'name': 'adafactor',
        # trax: 2.0 * min(1, step / 8000) / sqrt(max(step, 8000))
        'learning_rate': 2.0 / 8000**0.5,
        'warmup_steps': 8000,
        'decay': 'rsqrt',
    }
    return config


def _imagenet64() -> dict:
    return {
        'data': data.defaults('imagenet64')
        | {
            'source': 'downsampled_imagenet/64x64',
            'shrink': 1,
            'batch_size': 8,
            'seed': 0,
        },
        'model': {
            'vocab_size': 256,
            'length': 12_288,
            'activation': 'gelu',
            'axial_shape': (64, 64, 3),
            'axial_sizes': (384, 384, 256),
            'dropout': 0.0,
            'attention_dropout': 0.0,
        },
    }


def _tiny() -> dict:
    """d_model 128, float32, no dropout: minutes on 2 CPU cores."""
    return {
        'steps': 1500,
        'log_every': 20,
        'eval_every': 250,
        'eval_batches': 40,
        'checkpoint_every': 500,
        'data': {'batch_size': 2},
        'model': {
            'd_model': 128,
            'd_ff': 512,
            'heads': 2,
            'head_size': 64,
            'lsh_chunk_length': 16,
            'dropout': 0.0,
            'attention_dropout': 0.0,
            'feed_forward_chunk_length': 0,
            'loss_chunk_length': 0,
            'dtype': 'float32',
        },
        'optimizer': {
            'name': 'adam',
            'learning_rate': 2e-3,
            'warmup_steps': 100,
            'decay': 'cosine',
            'clip_norm': 1.0,
        },
    }


def _tiny_enwik8() -> dict:
    """512 bytes a sequence."""
    return {
        'data': {'length': 512},
        'model': {
            'length': 512,
            'axial_shape': (16, 32),
            'axial_sizes': (64, 64),
        },
    }


def _tiny_imagenet64() -> dict:
    """Images of 16x16 pixels, 768 tokens."""
    return {
        'data': {'shrink': 4},
        'model': {
            'length': 768,
            'axial_shape': (16, 16, 3),
            'axial_sizes': (48, 48, 32),
        },
    }
