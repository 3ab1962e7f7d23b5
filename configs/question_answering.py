"""Question answering: the span of a text that answers a question (SQuAD).

  python train.py --config=configs/question_answering.py \\
      --config.init_from=runs/masked --config.data.source=FILE --workdir=runs/answers
      FILE: .jsonl, .json (SQuAD's own too), .csv or .tsv, packed or not, with the
      columns question, context and answers (a list of texts, one text, or SQuAD's
      {"text": [...], "answer_start": [...]})
  python train.py --config=configs/question_answering.py:squad --config.init_from=...
      SQuAD 1.1 through tensorflow_datasets

Question and context are read as one sequence, at whatever length the model has: no
sliding windows. init_from as in configs/classification.py, whose model this is.
"""

import ml_collections

from configs import classification
from reformer_jax import data


def get_config(variant: str = '') -> ml_collections.ConfigDict:
    """The experiment; variant '' for local files, or 'squad'."""
    sources = {'': '', 'squad': 'tfds:squad'}
    if variant not in sources:
        raise ValueError(
            f'unknown variant {variant!r}: use question_answering.py, or with :squad.'
        )
    config = classification.get_config()
    length = 2048 if variant else 256
    config.data = data.defaults('question_answering') | {
        'source': sources[variant],
        'question_column': 'question',
        'context_column': 'context',
        'answers_column': 'answers',
        'tokenizer': '',
        'length': length,
        'batch_size': 16,
        'seed': 0,
    }
    config.model.head = 'question_answering'
    config.model.length = length
    config.model.axial_shape = (length // 16, 16)
    return config
