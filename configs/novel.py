"""A whole novel as one sequence of 524,288 tokens: "Crime and Punishment", or any text.

The text-generation notebook of the original Reformer (trax, models/reformer): 6 layers,
attention local/lsh, one hash round, d_model 256, axial positions (512, 1024); Adam at
0.01 with a cosine over 1,000 steps, of which the notebook runs 600. Ours are bytes, or
subwords of the text itself, instead of its own 320 subwords; the last 10 % of the text
held out, where it trains on all; the rule 'reformer' instead of trax's; one sequence a
step: for the notebook's 8, each with the novel at a place of its own, use 8 devices and
--config.data.batch_size=8.

  python train.py --config=configs/novel.py --config.data.path=FILE
      any file, folder or glob, packed or not, without one the source text of Python's
      standard library; a text of more than 524,288 tokens is read in windows. One step
      has been run, on 2 CPU cores that had other work to do: 5 minutes (of subwords,
      below), 5.3 GiB
  python convert.py tokenizer FILE novel.model --vocab_size=672
  python train.py --config=configs/novel.py --config.data.path=FILE \\
      --config.data.tokenizer=novel.model --config.model.vocab_size=672 \\
      --workdir=runs/novel_subwords
      subwords: "Crime and Punishment" has 1,201,733 bytes, or 518,966 of these
  python train.py --config=configs/novel.py:tiny --config.data.path=FILE
      65,536 tokens a sequence, 8 minutes on 2 CPU cores: 3.43 bits per byte of "Crime
      and Punishment" in validation. That is what frequencies of pairs of bytes give
      (3.41): 150 steps, however long, are few
"""

import ml_collections

from reformer_jax import data
from reformer_jax.model import config as model_config
from reformer_jax.training import config as training_config
from reformer_jax.training import optimizer as optimizer_lib


def get_config(variant: str = '') -> ml_collections.ConfigDict:
    """The experiment; variant 'tiny' is for 2 CPU cores."""
    if variant not in ('', 'tiny'):
        raise ValueError(f'unknown variant {variant!r}: use novel.py or novel.py:tiny.')
    config = ml_collections.ConfigDict(training_config.defaults())
    config.steps = 1000
    config.log_every = 10
    config.eval_every = 50
    config.checkpoint_every = 100
    config.data = data.defaults('novel') | {
        'path': '',  # empty: the standard library
        'tokenizer': '',  # empty: that of init_from, or bytes
        'length': 2**19,
        'batch_size': 1,
        'seed': 0,
    }
    config.model = model_config.defaults() | {
        'vocab_size': 258,  # 256 bytes, padding, one unused
        'length': 2**19,
        'd_model': 256,
        'd_ff': 512,
        'heads': 2,
        'head_size': 64,
        'layers': 6,
        'pattern': ('local', 'lsh'),
        'local_chunk_length': 64,
        'lsh_chunk_length': 64,
        'buckets': (64, 128),
        'rounds': 1,
        'rule': 'reformer',
        'positions': 'axial',
        'axial_shape': (512, 1024),
        'axial_sizes': (64, 192),
        'heads_at_once': 1,
        'dropout': 0.05,
        'local_attention_dropout': 0.05,
        'feed_forward_chunk_length': 16_384,
        'loss_chunk_length': 16_384,
    }
    config.optimizer = optimizer_lib.defaults() | {
        'name': 'adam',
        # trax: 0.01 * min(1, step / 100) * (1 + cos(pi * (step - 100) / 900)) / 2
        'learning_rate': 0.01,
        'warmup_steps': 100,
        'decay': 'cosine',
        'b1': 0.86,
        'b2': 0.92,
        'eps': 1e-9,
    }
    if variant == 'tiny':
        config.update(_tiny())
    return config


def _tiny() -> dict:
    """65,536 tokens a sequence, 0.16 million parameters."""
    return {
        'steps': 150,
        'data': {'length': 2**16},
        'model': {
            'length': 2**16,
            'd_model': 64,
            'd_ff': 256,
            'head_size': 32,
            'layers': 2,
            'buckets': (),
            'axial_shape': (256, 256),
            'axial_sizes': (16, 48),
            'heads_at_once': 0,
            'dropout': 0.0,
            'local_attention_dropout': 0.0,
        },
        'optimizer': {'warmup_steps': 20},
    }
