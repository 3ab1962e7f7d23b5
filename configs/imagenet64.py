"""Images of 64x64 pixels as sequences of 12,288 tokens (paper section 5).

Model, optimizer and schedule follow trax's reformer_imagenet64.gin: 6 layers, d_model
1024, d_ff 4096, 8 heads of 64, LSH attention with chunks of 128 and 192 buckets, axial
positions (64, 64, 3), 8 images a step, one a device. The paper has curves and no number
for this set; tables elsewhere say 3.74 bits/dim for 6 layers and 3.71 for 12.

  python train.py --config=configs/imagenet64.py --workdir=...
      the paper's model on 8 devices; on fewer, --config.accumulate=8
  python train.py --config=configs/imagenet64.py:small
      one GPU (sized by a cost model, not yet run)
  python train.py --config=configs/imagenet64.py:tiny --config.data.source=FILE
      2 CPU cores, a quarter of an hour; FILE an .npz or a folder of images
  python sample.py --workdir=... --num_samples=4          images from nothing
  python sample.py --workdir=... --num_samples=3 --images=4
      the lower halves of four validation images, three times each
  python sample.py --workdir=... --prompt_file=IMAGE      of your own

Data: 'downsampled_imagenet/64x64', which published bits/dim are of, through
tensorflow_datasets; or local files, see reformer_jax/data/images.py.
"""

import ml_collections

from reformer_jax import data
from reformer_jax.model import config as model_config
from reformer_jax.training import config as training_config
from reformer_jax.training import optimizer as optimizer_lib


def get_config(variant: str = '') -> ml_collections.ConfigDict:
    """The experiment: '' is the paper's; or 'small', 'tiny'."""
    variants = {'': _paper, 'small': _small, 'tiny': _tiny}
    if variant not in variants:
        raise ValueError(
            f'unknown variant {variant!r}: use imagenet64.py, or imagenet64.py: with '
            'small or tiny.'
        )
    config = _paper()
    if variant:
        config.update(variants[variant]())
    return config


def _paper() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict(training_config.defaults())
    config.steps = 500_000
    config.log_every = 20
    config.eval_batches = 64
    config.data = data.defaults('imagenet64') | {
        'source': 'downsampled_imagenet/64x64',
        'shrink': 1,
        'batch_size': 8,
        'seed': 0,
    }
    config.model = model_config.defaults() | {
        'vocab_size': 256,
        'length': 12_288,
        'd_model': 1024,
        'd_ff': 4096,
        'heads': 8,
        'head_size': 64,
        'layers': 6,
        'pattern': ('lsh',),
        'lsh_chunk_length': 128,
        'buckets': (192,),
        'rounds': 2,
        'rule': 'reformer',
        'activation': 'gelu',
        'positions': 'axial',
        'axial_shape': (64, 64, 3),
        'axial_sizes': (384, 384, 256),
        'dropout': 0.0,
        'stack': 'reversible',
        'feed_forward_chunk_length': 4096,
        'loss_chunk_length': 4096,
        'dtype': 'bfloat16',
    }
    config.optimizer = optimizer_lib.defaults() | {
        'name': 'adam',
        # trax: 0.03125 * min(1, step / 8000) / sqrt(max(step, 8000))
        'learning_rate': 0.03125 / 8000**0.5,
        'warmup_steps': 8000,
        'decay': 'rsqrt',
        'b1': 0.9,
        'b2': 0.98,
        'eps': 1e-9,
    }
    return config


def _small() -> dict:
    return {
        'steps': 10_000,
        'eval_batches': 8,
        'model': {
            'd_model': 512,
            'd_ff': 2048,
            'axial_sizes': (192, 192, 128),
        },
        'optimizer': {
            'learning_rate': 1e-3,
            'warmup_steps': 500,
            'decay': 'cosine',
            'clip_norm': 1.0,
        },
    }


def _tiny() -> dict:
    """12,288 tokens as well, one image a step, float32.

    With a local layer, of half a row of pixels: LSH layers alone take longer to find
    the pixel before (7.0 bits/dim after 560 steps).
    """
    return {
        'steps': 900,
        'log_every': 10,
        'eval_every': 200,
        'eval_batches': 10,
        'checkpoint_every': 200,
        'data': {'batch_size': 1},
        'model': {
            'd_model': 128,
            'd_ff': 256,
            'heads': 2,
            'layers': 2,
            'pattern': ('local', 'lsh'),
            'local_chunk_length': 96,
            'lsh_chunk_length': 64,
            'buckets': (),
            'rounds': 1,
            'axial_sizes': (48, 48, 32),
            'feed_forward_chunk_length': 0,
            'dtype': 'float32',
        },
        'optimizer': {
            'learning_rate': 2e-3,
            'warmup_steps': 50,
            'decay': 'cosine',
            'clip_norm': 1.0,
        },
    }
