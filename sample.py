"""Continues a text with a run's model: python sample.py --workdir=runs/text_tiny

The prompt comes from --prompt, --prompt_file or stdin; the text streams to stdout, all
else goes to stderr. Of several samples, which are made together, the first streams and
the others follow it. For the duplication task prompt and output are numbers:
  python sample.py --workdir=runs/duplication_tiny --prompt='0 5 9 7 0' --temperature=0

A run on images draws images, into one PNG file: from nothing, or the lower halves of
--images=4 of the validation split or of --prompt_file, a PNG, a folder or an .npz:
  python sample.py --workdir=runs/imagenet64_tiny --images=4 --num_samples=3
"""

import pathlib
import sys
from typing import Any

import jax
import ml_collections
from absl import app
from absl import flags
from absl import logging
from ml_collections import config_flags

from reformer_jax import data
from reformer_jax.generation import show
from reformer_jax.runs import checkpoint
from reformer_jax.training import start
from reformer_jax.training import state

_CONFIG = config_flags.DEFINE_config_file('config', None, "Default: the run's own.")
_WORKDIR = flags.DEFINE_string('workdir', None, 'Run folder.', required=True)
_PROMPT = flags.DEFINE_string('prompt', None, 'Text to continue.')
_PROMPT_FILE = flags.DEFINE_string('prompt_file', None, 'File with it; else stdin.')
_TOKENS = flags.DEFINE_integer('tokens', 256, 'How many to add.')
_NUM_SAMPLES = flags.DEFINE_integer('num_samples', 1, 'Continuations.')
_TEMPERATURE = flags.DEFINE_float('temperature', 1.0, '0 takes the likeliest token.')
_TOP_K = flags.DEFINE_integer('top_k', None, 'Only so many likeliest tokens.')
_TOP_P = flags.DEFINE_float('top_p', None, 'Only the likeliest of this probability.')
_STOP = flags.DEFINE_string('stop', None, 'Text, one token long, that ends a sample.')
_SEED = flags.DEFINE_integer('seed', 0, 'The same seed gives the same samples.')
_IMAGES = flags.DEFINE_integer('images', 0, 'How many to complete.', lower_bound=0)
_OUTPUT = flags.DEFINE_string('output', None, 'PNG file. Default: WORKDIR/samples/...')
_CHECKPOINT = flags.DEFINE_string('checkpoint', None, "Step, or 'best'; else the last.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f'unexpected arguments: {argv[1:]}')
    logging.set_verbosity(logging.WARNING)
    workdir = _WORKDIR.value
    config = _CONFIG.value or ml_collections.ConfigDict(checkpoint.load_config(workdir))
    run = state.prepare(start.resolve(config, workdir))
    settings: dict[str, Any] = {
        'key': jax.random.key(_SEED.value),
        'temperature': _TEMPERATURE.value,
        'top_k': _TOP_K.value,
        'top_p': _TOP_P.value,
        'samples': _NUM_SAMPLES.value,
    }
    dataset = run.config.data
    truth = None
    if isinstance(dataset, data.images.Images):
        _refuse('images', 'prompt', 'tokens', 'stop')
        show.check_new(_OUTPUT.value)
        truth = show.given(dataset, _PROMPT_FILE.value, _IMAGES.value)
    else:
        _refuse('text', 'images', 'output')
        prompt = show.text_prompt(dataset, _prompt(), _STOP.value)
    with jax.set_mesh(run.mesh):
        at = _CHECKPOINT.value
        model, step = state.restore_model(run.config, run.mesh, workdir, at)
        print(f'checkpoint of step {step}', file=sys.stderr)
        if truth is not None:
            picture = show.draw(model, truth, **settings)
            print(show.save(picture, _OUTPUT.value, workdir, step))
        else:
            show.write_text(model, prompt, tokens=_TOKENS.value, **settings)


def _refuse(kind: str, *names: str) -> None:
    for name in names:
        if flags.FLAGS[name].present:
            raise app.UsageError(f'the run is on {kind}, leave out --{name}')


def _prompt() -> bytes:
    if _PROMPT.value is not None and _PROMPT_FILE.value is not None:
        raise app.UsageError('give --prompt or --prompt_file, not both')
    if _PROMPT.value is not None:
        return _PROMPT.value.encode('utf-8', 'surrogateescape')
    if _PROMPT_FILE.value is not None:
        return pathlib.Path(_PROMPT_FILE.value).read_bytes()
    if sys.stdin.isatty():
        print('type the text to continue, then Ctrl-D:', file=sys.stderr)
    return sys.stdin.buffer.read()


if __name__ == '__main__':
    app.run(main)
