"""Hugging Face folders to run folders and back; a text to a tokenizer.

python convert.py import FOLDER WORKDIR
    a run folder with the model as its checkpoint of step 0, to sample from; a
    classifier is evaluated with eval.py --config=configs/classification.py
    --config.init_from=FOLDER --config.data.source=... --workdir=WORKDIR
python convert.py export WORKDIR FOLDER
    a run's model for transformers, with the config.json of what it started from
python convert.py tokenizer TEXT spiece.model --vocab_size=8000
    a SentencePiece model of a text, for --config.data.tokenizer=spiece.model
"""

import argparse
import sys
from collections.abc import Sequence

from reformer_jax.data import corpus
from reformer_jax.data import tokenizers
from reformer_jax.training import command_line
from reformer_jax.training import exchange


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The arguments of one of the commands."""
    parser = command_line.ArgumentParser(prog='convert.py', description=__doc__)
    commands = parser.add_subparsers(dest='command', required=True)
    importing = commands.add_parser('import', help='a folder of transformers')
    importing.add_argument('folder')
    importing.add_argument('workdir', help='the new run folder')
    importing.add_argument(
        '--pytorch', action='store_true', help='also read a pytorch_model.bin'
    )
    importing.add_argument(
        '--tokenizer', default='', help="file, or 'bytes'; default: that of the folder"
    )
    exporting = commands.add_parser('export', help="a run's model")
    exporting.add_argument('workdir', help='the run folder')
    exporting.add_argument('folder', help='the new folder')
    exporting.add_argument('--checkpoint', help="step, or 'best'; default: the newest")
    exporting.add_argument(
        '--rule_trax',
        action='store_true',
        help="as what transformers computes, rule 'trax', whatever the run's rule",
    )
    training = commands.add_parser('tokenizer', help='a SentencePiece model')
    training.add_argument(
        'text', help='file, folder or glob, packed (gzip, bzip2, xz, zip, tar) or not'
    )
    training.add_argument('model', help='file to write')
    training.add_argument('--vocab_size', required=True, type=int, help='token ids')
    training.add_argument(
        '--model_type', default='unigram', choices=tokenizers.MODEL_TYPES
    )
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    given = parse(arguments)
    match given.command:
        case 'import':
            exchange.import_folder(
                given.folder,
                given.workdir,
                pytorch=given.pytorch,
                tokenizer=given.tokenizer,
            )
            print(f'wrote {given.workdir}')
        case 'export':
            exchange.export_run(
                given.workdir,
                given.folder,
                step=given.checkpoint,
                rule_trax=given.rule_trax,
            )
            print(f'wrote {given.folder}')
        case 'tokenizer':
            content = corpus.read(given.text).tobytes()
            if given.vocab_size > len(content):
                raise ValueError(
                    f'--vocab_size={given.vocab_size} is more than the '
                    f'{len(content):,} bytes of {given.text}: ask for fewer tokens.'
                )
            tokenizers.train(
                [tokenizers.as_text(content, f'{given.text!r}')],
                given.model,
                vocab_size=given.vocab_size,
                model_type=given.model_type,
            )
            print(f'{given.model}: {given.vocab_size} tokens')


if __name__ == '__main__':
    command_line.script(main, sys.argv[1:])
