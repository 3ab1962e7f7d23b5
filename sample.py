"""Continues a text with a run's model: python sample.py --workdir=runs/text_tiny

The prompt comes from --prompt, --prompt_file or stdin; the text streams to stdout, all
else goes to stderr. Of several samples the first streams and the others follow it. For
the duplication task both are numbers: --prompt='0 5 9 7 0' --temperature=0.
A run on images draws images, into one PNG file: from nothing, or the lower halves of
--images=4 of the validation split or of --prompt_file, a PNG, a folder or an .npz:
  python sample.py --workdir=runs/imagenet64_tiny --images=4 --num_samples=3
A run on pairs translates each line: python sample.py --workdir=RUN < sentences.en
"""

import os
import sys
from typing import Any

import jax
from absl import app
from absl import flags

from reformer_jax import data
from reformer_jax.generation import decoding
from reformer_jax.generation import show
from reformer_jax.training import command_line
from reformer_jax.training import start

command_line.define_distributed()
_CONFIG = command_line.define_config("Default: the run's own.")
_WORKDIR = flags.DEFINE_string('workdir', None, 'Run folder.', required=True)
_PROMPT = flags.DEFINE_string('prompt', None, 'Text to continue or translate.')
_PROMPT_FILE = flags.DEFINE_string('prompt_file', None, 'File with it; else stdin.')
_TOKENS = command_line.define_count('tokens', 256, 'How many to add.')
_NUM_SAMPLES = command_line.define_count('num_samples', 1, 'Continuations.')
_TEMPERATURE = flags.DEFINE_float('temperature', 1.0, '0 takes the likeliest token.')
_TOP_K = flags.DEFINE_integer('top_k', None, 'Only so many likeliest tokens.')
_TOP_P = flags.DEFINE_float('top_p', None, 'Only those of this probability.')
_STOP = flags.DEFINE_string('stop', None, 'Text that ends a sample before it.')
_SEED = flags.DEFINE_integer('seed', 0, 'Of the samples.', -(2**31), 2**32 - 1)
_BEAMS = flags.DEFINE_integer('beams', None, "Default: the config's.", lower_bound=1)
_IMAGES = flags.DEFINE_integer('images', 0, 'How many to complete.', lower_bound=0)
_OUTPUT = flags.DEFINE_string('output', None, 'PNG file. Default: WORKDIR/samples/...')
_OF_TEXT = 'tokens', 'num_samples', 'temperature', 'top_k', 'top_p', 'stop', 'seed'
_CHECKPOINT = flags.DEFINE_string('checkpoint', None, "Step, 'best' or 'average:N'.")


def main() -> None:
    first = jax.process_index() == 0
    if not first:  # makes the same
        sys.stdout = open(os.devnull, 'w')
    run = start.open(_CONFIG.value, _WORKDIR.value)
    settings: dict[str, Any] = {'temperature': _TEMPERATURE.value}
    settings |= {'top_k': _TOP_K.value, 'top_p': _TOP_P.value}
    decoding.sampling_of(run.config.model.vocab_size, **settings)
    settings |= {'key': jax.random.key(_SEED.value), 'samples': _NUM_SAMPLES.value}
    dataset, truth, text = run.config.data, None, b''
    if isinstance(dataset, data.images.Images):
        _refuse('images', 'prompt', 'tokens', 'stop', 'beams')
        show.check_new(_OUTPUT.value)
        truth = show.given(dataset, _PROMPT_FILE.value, _IMAGES.value)
    elif isinstance(dataset, data.pairs.Pairs):
        _refuse('pairs', *_OF_TEXT, 'images', 'output')
        text = _prompt()
    else:
        _refuse('text', 'images', 'output', 'beams')
        show.check_continues(dataset)
        prompt = show.text_prompt(dataset, _prompt(), _STOP.value)
    with jax.set_mesh(run.mesh):
        model, step = run.restore_model(_CHECKPOINT.value)
        print(f'checkpoint of step {step}', file=sys.stderr)
        if truth is not None:
            picture = show.draw(model, truth, **settings)
            if first:
                print(show.save(picture, _OUTPUT.value, run.workdir, step))
        elif isinstance(dataset, data.pairs.Pairs):
            how = run.config.decoding
            show.write_translations(model, dataset, text, how, _BEAMS.value)
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
        return show.from_file(_PROMPT_FILE.value)
    if jax.process_count() > 1:
        raise app.UsageError('several processes: give --prompt or --prompt_file')
    return show.typed()


if __name__ == '__main__':
    command_line.run(main)
