"""Figure 5 of the paper, right: speed against length, as many tokens in every step.

The paper's curves are of attention alone: full attention slows down with the length,
LSH attention does not. Here it is the training step, a few at each length; what counts
is metrics.jsonl's tokens_per_second.
Setting and variants are those of configs/ablation.py, on text only, with sinusoidal
positions, which need no shape. (benchmarks/figure5.py times single steps in turns.)

  python sweep.py --config=configs/length.py --workdir=runs/length
  python sweep.py --config=configs/length.py:tiny --config.data.path=FILE \\
      --workdir=runs/length                        2 CPU cores
  python reports/figure5.py runs/length
"""

import ml_collections

from configs import ablation

_TOKENS = 32_768  # in a step
_ATTENTIONS = (
    {'model.pattern': ('full',)},
    {'model.rounds': 8},
    {'model.rounds': 4},
    {'model.rounds': 2},
)


def get_config(variant: str = '') -> ml_collections.ConfigDict:
    """30 steps of 32,768 tokens; variants '' and 'tiny'."""
    if variant not in ('', 'tiny'):
        raise ValueError(
            f'unknown variant {variant!r}: use length.py or length.py:tiny.'
        )
    config = ablation.get_config(variant)
    config.steps = 8 if variant else 60
    config.log_every = 2 if variant else 20
    config.eval_every = 0
    config.checkpoint_every = 0
    config.data.length = config.model.length = _TOKENS
    config.data.batch_size = 1
    config.model.positions = 'sinusoidal'
    return config


def sweep(add):
    for length in (1024, 2048, 4096, 8192, 16_384, 32_768):
        sizes = {
            'data.length': length,
            'data.batch_size': _TOKENS // length,
            'model.length': length,
        }
        for attention in _ATTENTIONS:
            add({**attention, **sizes})
