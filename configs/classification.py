"""Classification of texts, from a pretrained model or from scratch.

  python train.py --config=configs/classification.py --config.init_from=runs/masked \\
      --config.data.source=FILE --workdir=runs/classes
      FILE: .jsonl, .json, .csv or .tsv, packed or not, with the columns text and label,
      split 90 / 5 / 5 %, or a folder with one file per split; other columns with
      --config.data.text_columns="('sentence',)" --config.data.label_column=...
  python train.py --config=configs/classification.py:imdb --config.init_from=...
  python train.py --config=configs/classification.py:sst2 --config.init_from=...
      IMDB reviews, and SST-2 of GLUE, through tensorflow_datasets

init_from is a run folder (configs/masked_text.py) or one that Hugging Face transformers
saved; the architecture comes from there. Without it the model below is trained.
Labels are found in the data; data.kind='multi' has several per text, 'regression'
numbers. optimizer.frozen='embedding|position_tables' trains the rest only.
"""

import ml_collections

from reformer_jax import data
from reformer_jax.model import config as model_config
from reformer_jax.training import config as training_config
from reformer_jax.training import optimizer as optimizer_lib

_SOURCES = {
    '': {'source': '', 'text_columns': ('text',), 'length': 256},
    'imdb': {'source': 'tfds:imdb_reviews', 'text_columns': ('text',), 'length': 1024},
    'sst2': {
        'source': 'tfds:glue/sst2',
        'text_columns': ('sentence',),
        'length': 256,
    },
}


def get_config(variant: str = '') -> ml_collections.ConfigDict:
    """The experiment; variant '' for local files, or 'imdb', 'sst2'."""
    if variant not in _SOURCES:
        raise ValueError(
            f'unknown variant {variant!r}: use classification.py, or with :imdb or '
            ':sst2.'
        )
    config = ml_collections.ConfigDict(training_config.defaults())
    config.steps = 2000
    config.eval_every = 500
    config.checkpoint_every = 500
    config.keep_checkpoints = 1
    config.data = data.defaults('classification') | {
        'label_column': 'label',
        'kind': 'single',
        'labels': (),  # empty: found in the data
        'tokenizer': '',  # empty: that of init_from, or bytes
        'batch_size': 16,
        'seed': 0,
        **_SOURCES[variant],
    }
    config.model = model_config.defaults() | {
        'vocab_size': 259,
        'length': config.data.length,
        'd_model': 128,
        'd_ff': 512,
        'heads': 2,
        'head_size': 64,
        'layers': 4,
        'pattern': ('local', 'lsh'),
        'causal': False,
        'head': 'classification',
        'pooling': 'mean',
        'local_chunk_length': 32,
        'lsh_chunk_length': 32,
        'local_chunks_after': 1,
        'lsh_chunks_after': 1,
        'rounds': 2,
        'activation': 'gelu',
        'axial_shape': (config.data.length // 16, 16),
        'axial_sizes': (32, 96),
        'dropout': 0.1,
    }
    config.optimizer = optimizer_lib.defaults() | {
        'name': 'adamw',
        'learning_rate': 5e-4,
        'warmup_steps': 100,
        'decay': 'cosine',
        'weight_decay': 0.01,
        'clip_norm': 1.0,
    }
    return config
