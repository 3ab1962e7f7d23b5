"""Images that a model draws: whole ones, and the lower halves of given ones."""

import datetime
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image

from reformer_jax import data
from reformer_jax import decoding
from reformer_jax import model as model_lib
from reformer_jax import transcript
from reformer_jax.data import imagenet64

_GAP = 2  # pixels between images
_WHITE = 255
_HIDDEN = 128  # grey, of the half that is not given


def given(config: Mapping[str, Any], path: str | None, count: int) -> np.ndarray:
    """The images to be completed, as tokens.

    Args:
      config: of the data of the run.
      path: an image, a folder of images or an .npz; None for the validation split.
      count: so many at most; of the validation split exactly, 0 for none. 0 with a path
        takes all.

    Returns:
      int32 [N, L].

    Raises:
      FileNotFoundError: nothing is at `path`.
      ValueError: an image is not of 64x64 RGB pixels, or there are not so many.
    """
    if path is not None:
        images = imagenet64.read_images(path, count)
        images = imagenet64.average(images, config.get('shrink', 1))
        return imagenet64.to_tokens(images)
    (_, length), _ = data.batch_spec(config)['tokens']
    rows: list[np.ndarray] = []
    if count:
        for batch in data.build(config, 'validation'):
            rows.extend(batch['tokens'][batch['weights'].any(axis=1)])
            if len(rows) >= count:
                break
    if len(rows) < count:
        raise ValueError(
            f'--images={count}, and the validation split has {len(rows)}: ask for '
            'fewer.'
        )
    return np.array(rows[:count], np.int32).reshape(count, length)


def draw(
    model: model_lib.Reformer,
    truth_NL: np.ndarray,
    *,
    key: jax.Array,
    samples: int,
    **settings: Any,
) -> np.ndarray:
    """Completes lower halves, or draws whole images where none are given.

    Args:
      model: of images; its length is theirs.
      truth_NL: the whole images as tokens, of which the upper halves are read.
      key: random key.
      samples: of each image.
      settings: temperature, top_k and top_p of decoding.stream.

    Returns:
      uint8 [height, width, 3], a row for each image: itself, its given half, the
      completions. Without images all samples in one row.
    """
    count, length = truth_NL.shape
    half = length // 2 if count else 0
    prompt = truth_NL[:, :half] if count else np.zeros((1, 0), np.int32)
    parts = decoding.stream(
        model, prompt, key=key, steps=length - half, samples=samples, **settings
    )
    print(f'compiling, then drawing {length - half:,} tokens each', file=sys.stderr)
    new = transcript.collect(parts, steps=length - half)
    whole = np.concatenate([np.repeat(prompt, samples, axis=0), new], axis=1)
    images = imagenet64.to_images(whole)
    drawn = images.reshape(len(prompt), samples, *images.shape[1:])
    if not count:
        return grid([list(drawn[0])])
    shown = imagenet64.to_images(np.where(np.arange(length) < half, truth_NL, _HIDDEN))
    truth = imagenet64.to_images(truth_NL)
    return grid(
        [
            [image, upper, *completions]
            for image, upper, completions in zip(truth, shown, drawn, strict=True)
        ]
    )


def grid(rows: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Images in rows and columns, white between them.

    Args:
      rows: as many images in each, uint8 [S, S, 3].

    Returns:
      uint8 [height, width, 3].
    """
    side = rows[0][0].shape[0]
    step = side + _GAP
    height, width = len(rows) * step - _GAP, len(rows[0]) * step - _GAP
    picture = np.full((height, width, 3), _WHITE, np.uint8)
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            picture[y * step : y * step + side, x * step : x * step + side] = image
    return picture


def save(
    picture: np.ndarray, path: str | None, workdir: str, step: int
) -> pathlib.Path:
    """Writes a picture as a new PNG file.

    Args:
      picture: uint8 [height, width, 3].
      path: of the file; None for `<workdir>/samples/step_<step>_<time>.png`.
      workdir: the run folder.
      step: of the checkpoint.

    Raises:
      FileExistsError: there is such a file.
    """
    if path is None:
        now = datetime.datetime.now(datetime.UTC).strftime('%Y%m%dT%H%M%S%f')
        file = pathlib.Path(workdir) / 'samples' / f'step_{step}_{now}.png'
    else:
        file = pathlib.Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, 'xb') as stream:
        Image.fromarray(picture).save(stream, 'png')
    return file
