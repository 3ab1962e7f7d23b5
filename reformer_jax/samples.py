"""What sample.py does with a run: text to stdout, images into a file."""

import functools
import pathlib
import sys
from typing import Any

import jax

from reformer_jax import data
from reformer_jax import decoding
from reformer_jax import pictures
from reformer_jax import preparation
from reformer_jax import transcript


def write_text(
    run: preparation.Run,
    workdir: str,
    text: bytes,
    *,
    step: str | None,
    tokens: int,
    stop: str | None,
    **settings: Any,
) -> None:
    """Continues a text on stdout.

    Args:
      run: prepared from the config of the run folder, or another that fits it.
      workdir: the run folder.
      text: the prompt.
      step: of the checkpoint, 'best', or None for the newest.
      tokens: most to add.
      stop: text, one token long, that ends a sample.
      settings: key, samples, temperature, top_k, top_p of decoding.stream.

    Raises:
      ValueError: the prompt is no text of the dataset; as decoding.stream.
      FileNotFoundError: there is no such checkpoint.
    """
    prompt = data.encode(run.config.data, text)
    stop_token = None
    if stop is not None:
        end = stop.encode('utf-8', 'surrogateescape')
        stop_token = data.encode_one(run.config.data, end)
    with jax.set_mesh(run.mesh):
        model, found = preparation.restore_model(run.config, run.mesh, workdir, step)
        parts = decoding.stream(
            model, prompt[None], steps=tokens, stop_token=stop_token, **settings
        )
        print(
            f'checkpoint of step {found}: compiling, then reading the '
            f'{prompt.size:,} tokens of the prompt',
            file=sys.stderr,
        )
        decode = functools.partial(data.decode, run.config.data)
        transcript.write(text, parts, decode, stop=stop_token, steps=tokens)


def write_images(
    run: preparation.Run,
    workdir: str,
    output: str | None,
    *,
    path: str | None,
    count: int,
    step: str | None,
    **settings: Any,
) -> pathlib.Path:
    """Draws images into a PNG file, whose path it returns.

    Args:
      run: as in `write_text`, of images.
      workdir: the run folder.
      output: path of the new file; None for one in the run folder.
      path: of images to complete, see pictures.given.
      count: how many images to complete.
      step: as in `write_text`.
      settings: as in `write_text`.

    Raises:
      ValueError: images are not of the right size; as decoding.stream.
      FileNotFoundError: there is no such checkpoint, or no such image.
      FileExistsError: there is a file at `output`.
    """
    if output is not None and pathlib.Path(output).exists():
        raise FileExistsError(f'{output} exists: give --output a new file.')
    truth_NL = pictures.given(run.config.data, path, count)
    with jax.set_mesh(run.mesh):
        model, found = preparation.restore_model(run.config, run.mesh, workdir, step)
        picture = pictures.draw(model, truth_NL, **settings)
    return pictures.save(picture, output, workdir, found)
