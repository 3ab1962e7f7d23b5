"""Write the marked lines of a long text: an LSH encoder that a decoder has to search.

The source is a window of 4,096 tokens of any text, bytes, with a marker in front of up
to four of its lines; the target is these lines, see reformer_jax/data/marked.py. So it
is known what a summary has to be, and the accuracy that is reported is the share of its
bytes that are right, each with those before it given.

  python train.py --config=configs/summarise.py:marked --workdir=runs/marked
      the source text of Python's standard library; --config.data.path=FILE for another

The encoder has a local layer in front of that with LSH attention, so that a byte can
know what its line begins with.

Not trained to the end yet: what it reaches is not known. A step took 2.5 seconds on 2
cores that another run kept busy.
"""

import ml_collections

from reformer_jax import data
from reformer_jax.model import config as model_config
from reformer_jax.training import config as training_config
from reformer_jax.training import optimizer as optimizer_lib


def get_config(variant: str = '') -> ml_collections.ConfigDict:
    """The experiment; '' is 'marked'."""
    if variant not in ('', 'marked'):
        raise ValueError(f'unknown variant {variant!r}: use summarise.py:marked.')
    config = ml_collections.ConfigDict(training_config.defaults())
    config.steps = 2000
    config.eval_every = 250
    config.checkpoint_every = 250
    config.data = data.defaults('marked') | {
        'path': '',
        'source_length': 4096,
        'target_length': 256,
        'marks': 4,
        'batch_size': 4,
        'seed': 0,
        'eval_examples': 64,
    }
    config.model = model_config.defaults() | {
        'vocab_size': 259,
        'length': 256,
        'd_model': 256,
        'd_ff': 512,
        'heads': 4,
        'head_size': 64,
        'layers': 2,
        'pattern': ('full',),
        'positions': 'learned',
        'encoder': {
            'length': 4096,
            'layers': 2,
            'pattern': ('local', 'lsh'),
            'local_chunk_length': 64,
            'local_chunks_after': 1,
            'lsh_chunk_length': 64,
            'lsh_chunks_after': 1,
            'rounds': 2,
            'rule': 'reformer',
            'positions': 'axial',
            'axial_shape': (64, 64),
            'axial_sizes': (128, 128),
            # In whole sources the backward pass came back to other streams: products
            # of 4,096 rows and more, on 2 cores with jax 0.10.
            'feed_forward_chunk_length': 512,
        },
    }
    config.optimizer = optimizer_lib.defaults() | {
        'name': 'adam',
        'learning_rate': 1e-3,
        'warmup_steps': 200,
        'decay': 'cosine',
        'clip_norm': 1.0,
    }
    return config
