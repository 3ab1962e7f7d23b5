"""The duplication task 0w0w (paper section 5, Table 2): copy a random word exactly.

The paper's model: one layer, d_model = d_ff = 256, 4 heads, symbols 1 to 127,
|w| = 511, 1,024 tokens, 150,000 steps. It gets 99.9 % of the second half's symbols when
trained and evaluated with 4 hash rounds, 100 % evaluated with 8. The paper does not
state chunk, positions, optimizer and schedule. Axial positions, which a single layer
cannot shift across their rows, stop at 77 % on the small task; learned ones do not.

  python train.py --config=configs/duplication.py --workdir=...
  python train.py --config=configs/duplication.py:tiny     2 CPU cores, |w| = 31
  python sweep.py --config=configs/duplication.py:tiny --workdir=runs/table2
      all of Table 2: trained with full and LSH attention, evaluated with each
  python reports/table2.py runs/table2

The paper's model and task on one CPU core:

  python train.py --config=configs/duplication.py:short --workdir=runs/duplication_short
      words of 31 symbols first: 500 steps
  python sweep.py --config=configs/duplication.py:cpu --workdir=runs/table2
      from there 10,000 steps of one sequence a row, with activations saved instead of
      recomputed, the same function: 13 minutes trained with 4 rounds (then 100.0 %
      evaluated with 8), 8 minutes with one (98.5 %)

Every sequence has all 511 pairs of positions, so a small batch learns more a second.
From fresh parameters the loss stays at log2(127) = 7 bits for 2,300 steps at a learning
rate of 1e-3, and for longer at others; but once it has left, 3e-3 learns many times
faster. What words of 31 symbols teach, to attend by position and to copy, takes the
plateau away. Their 64 tokens are one chunk, so that attention is exact and all rows may
start from the same parameters.
"""

import ml_collections

from reformer_jax import data
from reformer_jax.model import config as model_config
from reformer_jax.training import config as training_config
from reformer_jax.training import optimizer as optimizer_lib


def get_config(variant: str = '') -> ml_collections.ConfigDict:
    """The experiment: '' is the paper's, 'cpu' the same in fewer and smaller steps
    from what 'short' has learned, 'tiny' has |w| = 31."""
    if variant not in ('', 'short', 'cpu', 'tiny'):
        raise ValueError(
            f'unknown variant {variant!r}: use duplication.py, or with :short, :cpu or '
            ':tiny.'
        )
    config = ml_collections.ConfigDict(training_config.defaults())
    config.steps = 150_000
    config.log_every = 100
    config.checkpoint_every = 5000
    config.data = data.defaults('duplication') | {
        'half_length': 511,
        'symbols': 127,
        'batch_size': 64,
        'seed': 0,
        'eval_examples': 512,
    }
    config.model = model_config.defaults() | {
        'vocab_size': 128,
        'length': 1024,
        'd_model': 256,
        'd_ff': 256,
        'heads': 4,
        'head_size': 64,
        'layers': 1,
        'pattern': ('lsh',),
        'lsh_chunk_length': 64,
        'buckets': (),
        'rounds': 4,
        'rule': 'reformer',
        'dense_length': 0,  # LSH attention is what is measured, however short
        'shared_qk': True,  # for --config.model.pattern="('full',)"
        'positions': 'learned',
        'dropout': 0.0,
    }
    config.optimizer = optimizer_lib.defaults() | {
        'name': 'adam',
        'learning_rate': 1e-3,
        'warmup_steps': 1000,
        'decay': 'rsqrt',
    }
    if variant:
        config.update({'short': _short, 'cpu': _cpu, 'tiny': _tiny}[variant]())
    return config


def sweep(add):
    """The rows of Table 2: what is trained with."""
    add({'model.pattern': ('full',)})
    for rounds in (4, 2, 1):
        add({'model.rounds': rounds})


def evaluations(add):
    """The columns of Table 2: what each is evaluated with."""
    add({'model.pattern': ('full',)})
    for rounds in (8, 4, 2, 1):
        add({'model.pattern': ('lsh',), 'model.rounds': rounds})


def _cpu() -> dict:
    return {
        'steps': 10_000,
        'init_from': 'runs/duplication_short',
        'eval_every': 1000,
        'eval_batches': 16,
        'checkpoint_every': 1000,
        'data': {'batch_size': 1},
        'model': {'stack': 'residual'},
        'optimizer': {'learning_rate': 3e-3, 'warmup_steps': 300, 'decay': 'cosine'},
    }


def _short() -> dict:
    """64 tokens are one chunk: attention is exact, whatever the row of the table."""
    return {
        'steps': 500,
        'data': {'half_length': 31, 'batch_size': 16},
        'model': {'stack': 'residual'},
        'optimizer': {'warmup_steps': 100, 'decay': 'constant'},
    }


def _tiny() -> dict:
    return {
        'steps': 2000,
        'eval_every': 500,
        'checkpoint_every': 500,
        'data': {'half_length': 31, 'batch_size': 64},
        'model': {
            'length': 64,
            'd_model': 128,
            'd_ff': 128,
            'head_size': 32,
            'lsh_chunk_length': 8,
        },
        'optimizer': {'warmup_steps': 200, 'decay': 'constant'},
    }
