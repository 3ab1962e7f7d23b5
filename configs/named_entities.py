"""Named entities: a tag for each word, scored by whole entities (CoNLL-2003).

  python train.py --config=configs/named_entities.py --config.init_from=runs/masked \\
      --config.data.source=FILE --workdir=runs/entities
      FILE: .jsonl with lists, or .csv or .tsv with words and tags separated by spaces;
      columns tokens and tags, others with --config.data.words_column=...
  python train.py --config=configs/named_entities.py:conll2003 --config.init_from=...
      through tensorflow_datasets

init_from as in configs/classification.py, whose model this is.
"""

import ml_collections

from configs import classification
from reformer_jax import data


def get_config(variant: str = '') -> ml_collections.ConfigDict:
    """The experiment; variant '' for local files, or 'conll2003'."""
    sources = {'': '', 'conll2003': 'tfds:conll2003'}
    if variant not in sources:
        raise ValueError(
            f'unknown variant {variant!r}: use named_entities.py, or with :conll2003.'
        )
    config = classification.get_config()
    config.data = data.defaults('token_classification') | {
        'source': sources[variant],
        'words_column': 'tokens',
        'tags_column': 'ner' if variant else 'tags',
        'labels': (),
        'tokenizer': '',
        'length': 256,
        'batch_size': 16,
        'seed': 0,
    }
    config.model.head = 'token_classification'
    return config
