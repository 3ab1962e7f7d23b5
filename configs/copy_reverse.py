"""Write a source backwards: the least task of an encoder-decoder.

One that lucidrains' ReformerEncDec did not learn (its issue 90: loss 2.08 with 768
symbols). 'lsh' and 'long' have LSH attention on both sides; the decoder's has the
strict rule, so that its likelihoods are exact.

  python train.py --config=configs/copy_reverse.py --workdir=...     64 symbols, exact
  python train.py --config=configs/copy_reverse.py:lsh --workdir=runs/lsh      64, LSH
  python train.py --config=configs/copy_reverse.py:long --workdir=runs/long \\
      --config.init_from=runs/lsh                                             768, LSH

Long words are learned from what short ones have taught: which symbol to write is known
then, and only its place is new. From fresh parameters a place is one of 768 that
attention begins with evenly, and the loss stays that of guessing for at least 1,600
steps.
"""

import ml_collections

from reformer_jax import data
from reformer_jax.model import config as model_config
from reformer_jax.training import config as training_config
from reformer_jax.training import optimizer as optimizer_lib

_VARIANTS = ('', 'lsh', 'long')


def get_config(variant: str = '') -> ml_collections.ConfigDict:
    """The experiment: words of 64 symbols, or of 768 ('long')."""
    if variant not in _VARIANTS:
        raise ValueError(
            f'unknown variant {variant!r}: use copy_reverse.py, copy_reverse.py:lsh or '
            'copy_reverse.py:long.'
        )
    config = ml_collections.ConfigDict(training_config.defaults())
    config.steps = 1200 if variant == 'long' else 2000
    config.eval_every = 400
    config.checkpoint_every = 400
    config.data = data.defaults('copy_reverse') | {
        'word_length': 768 if variant == 'long' else 64,
        'symbols': 127,
        'batch_size': 4 if variant == 'long' else 32,
        'seed': 0,
        'eval_examples': 128,
    }
    config.model = model_config.defaults() | {
        'vocab_size': 128,
        'length': 768,
        'd_model': 128,
        'd_ff': 256,
        'heads': 4,
        'head_size': 32,
        'layers': 2,
        'pattern': ('lsh',) if variant else ('full',),
        'lsh_chunk_length': 16,
        'rounds': 2,
        'rule': 'strict',
        'dense_length': 0,
        # A place of the source is the same turn of all places of the target, which one
        # product learns; learned positions would have to meet each place.
        'positions': 'sinusoidal',
        'encoder': {'rule': 'reformer', 'lsh_chunks_after': 1},
    }
    config.optimizer = optimizer_lib.defaults() | {
        'name': 'adam',
        'learning_rate': 1e-3,
        'warmup_steps': 200,
        'decay': 'cosine',
        'clip_norm': 1.0,
    }
    return config
