"""Continues a text with a run's model: python sample.py --workdir=runs/text_tiny

The prompt comes from --prompt, --prompt_file or stdin; the text streams to stdout, all
else goes to stderr. Of several samples, which are made together, the first streams and
the others follow it. For the duplication task prompt and output are numbers:
  python sample.py --workdir=runs/duplication_tiny --prompt='0 5 9 7 0' --temperature=0
"""

import functools
import pathlib
import sys

import jax
import ml_collections
from absl import app
from absl import flags
from absl import logging
from ml_collections import config_flags

from reformer_jax import checkpoint
from reformer_jax import data
from reformer_jax import decoding
from reformer_jax import initial
from reformer_jax import preparation
from reformer_jax import transcript

_CONFIG = config_flags.DEFINE_config_file('config', None, "Default: the run's own.")
_WORKDIR = flags.DEFINE_string('workdir', None, 'Run folder.')
_PROMPT = flags.DEFINE_string('prompt', None, 'Text to continue.')
_PROMPT_FILE = flags.DEFINE_string('prompt_file', None, 'File with it; else stdin.')
_TOKENS = flags.DEFINE_integer('tokens', 256, 'How many to add.')
_NUM_SAMPLES = flags.DEFINE_integer('num_samples', 1, 'Continuations.')
_TEMPERATURE = flags.DEFINE_float('temperature', 1.0, '0 takes the likeliest token.')
_TOP_K = flags.DEFINE_integer('top_k', None, 'Only so many likeliest tokens.')
_TOP_P = flags.DEFINE_float('top_p', None, 'Only the likeliest of this probability.')
_STOP = flags.DEFINE_string('stop', None, 'Text, one token long, that ends a sample.')
_SEED = flags.DEFINE_integer('seed', 0, 'The same seed gives the same samples.')
_CHECKPOINT = flags.DEFINE_string(
    'checkpoint', None, "Step of a checkpoint, or 'best'. Default: the newest."
)
flags.mark_flag_as_required('workdir')


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f'unexpected arguments: {argv[1:]}')
    logging.set_verbosity(logging.WARNING)
    workdir = _WORKDIR.value
    assert workdir is not None
    config = _CONFIG.value or ml_collections.ConfigDict(checkpoint.load_config(workdir))
    run = preparation.prepare(initial.resolve(config, workdir))
    text = _prompt()
    prompt = data.encode(run.config.data, text)
    stop = None
    if _STOP.value is not None:
        stop = data.encode_one(run.config.data, _bytes(_STOP.value))
    with jax.set_mesh(run.mesh):
        model, step = preparation.restore_model(
            run.config, run.mesh, workdir, _CHECKPOINT.value
        )
        parts = decoding.stream(
            model,
            prompt[None],
            key=jax.random.key(_SEED.value),
            steps=_TOKENS.value,
            temperature=_TEMPERATURE.value,
            top_k=_TOP_K.value,
            top_p=_TOP_P.value,
            stop_token=stop,
            samples=_NUM_SAMPLES.value,
        )
        print(
            f'checkpoint of step {step}: compiling, then reading the '
            f'{prompt.size:,} tokens of the prompt',
            file=sys.stderr,
        )
        decode = functools.partial(data.decode, run.config.data)
        transcript.write(text, parts, decode, stop=stop, steps=_TOKENS.value)


def _prompt() -> bytes:
    if _PROMPT.value is not None and _PROMPT_FILE.value is not None:
        raise app.UsageError('give --prompt or --prompt_file, not both')
    if _PROMPT.value is not None:
        return _bytes(_PROMPT.value)
    if _PROMPT_FILE.value is not None:
        return pathlib.Path(_PROMPT_FILE.value).read_bytes()
    if sys.stdin.isatty():
        print('type the text to continue, then Ctrl-D:', file=sys.stderr)
    return sys.stdin.buffer.read()


def _bytes(argument: str) -> bytes:
    return argument.encode('utf-8', 'surrogateescape')


if __name__ == '__main__':
    app.run(main)
