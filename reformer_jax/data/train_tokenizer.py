"""Trains a SentencePiece model on a text, from the command line.

python -m reformer_jax.data.train_tokenizer --text=FILE --vocab_size=8000 \
    --output=spiece.model
"""

import argparse

from reformer_jax.data import corpus
from reformer_jax.data import tokenizers


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description='Trains a SentencePiece model.')
    parser.add_argument(
        '--text', required=True, help='File, folder, glob, .gz, .xz or .zip.'
    )
    parser.add_argument('--vocab_size', required=True, type=int, help='Token ids.')
    parser.add_argument('--output', required=True, help='Model file to write.')
    parser.add_argument(
        '--model_type', default='unigram', choices=tokenizers.MODEL_TYPES
    )
    given = parser.parse_args(arguments)
    text = corpus.read(given.text).tobytes().decode('utf-8', 'replace')
    tokenizers.train(
        [text], given.output, vocab_size=given.vocab_size, model_type=given.model_type
    )
    print(f'{given.output}: {given.vocab_size} tokens')


if __name__ == '__main__':
    main()
