"""What a model makes, shown: text on stdout while it is made, images in a PNG file."""

import codecs
import datetime
import pathlib
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from reformer_jax import data
from reformer_jax import model as model_lib
from reformer_jax.data import images as images_lib
from reformer_jax.generation import decoding

_SECONDS_BETWEEN_LINES = 10

# Parts that come before the speed does: the first two wait for the compiler.
_PARTS_UNTIMED = 2

_GAP = 2  # pixels between images
_WHITE = 255
_HIDDEN = 128  # grey, of the half that is not given


class TextPrompt(NamedTuple):
    """A text to continue, as the model of a dataset reads it.

    Attributes:
      text: the prompt.
      tokens_P: its token ids.
      stop: token that ends a sample, or None.
      decode: from tokens [n] to their bytes.
    """

    text: bytes
    tokens_P: np.ndarray
    stop: int | None
    decode: Callable[[np.ndarray], bytes]


def text_prompt(
    dataset: data.Dataset, text: bytes, stop: str | None = None
) -> TextPrompt:
    """Reads a prompt.

    Args:
      dataset: of the run.
      text: the prompt.
      stop: text, one token long, that ends a sample.

    Raises:
      ValueError: the prompt is no text of the dataset, or `stop` is no single token.
    """
    tokens_P, stop_token = dataset.encode(text), None
    if stop is not None:
        stop_token = dataset.encode_one(stop.encode('utf-8', 'surrogateescape'))
    return TextPrompt(text, tokens_P, stop_token, dataset.decode)


def write_text(
    model: model_lib.Reformer, prompt: TextPrompt, *, tokens: int, **settings: Any
) -> None:
    """Continues a text on stdout.

    Args:
      model: of the dataset's tokens.
      prompt: what it continues.
      tokens: most to add.
      settings: key, samples, temperature, top_k, top_p of decoding.stream.

    Raises:
      ValueError: as decoding.stream.
    """
    stop = prompt.stop
    parts = decoding.stream(
        model, prompt.tokens_P[None], steps=tokens, stop_token=stop, **settings
    )
    print(
        f'compiling, then reading the {prompt.tokens_P.size:,} tokens of the prompt',
        file=sys.stderr,
    )
    write(prompt.text, parts, prompt.decode, stop=stop, steps=tokens)


def write(
    prompt: bytes,
    parts: Iterable[np.ndarray],
    decode: Callable[[np.ndarray], bytes],
    *,
    stop: int | None,
    steps: int,
) -> None:
    """Prints samples to stdout, and progress to stderr.

    Args:
      prompt: the text before all samples.
      parts: new tokens of all samples, [N, n] each (decoding.stream).
      decode: the bytes of tokens [n]; UTF-8, what is not is shown as U+FFFD.
      stop: token that ends a sample, not printed.
      steps: most tokens of a sample.
    """
    # Keeps the bytes of an unfinished character for the next part.
    decoder = codecs.getincrementaldecoder('utf-8')('replace')
    print(decoder.decode(prompt), end='', flush=True)
    tokens_NT = None
    timer = _Timer(steps)
    for part_Nn in parts:
        before_T = part_Nn[0, :0] if tokens_NT is None else tokens_NT[0]
        if stop is None or stop not in before_T:
            text = decode(_before_stop(part_Nn[0], stop))
            print(decoder.decode(text), end='', flush=True)
        tokens_NT = (
            part_Nn if tokens_NT is None else np.concatenate([tokens_NT, part_Nn], 1)
        )
        in_text = sys.stdout.isatty() and (stop is None or stop not in tokens_NT[0])
        timer.add(part_Nn, silent=in_text)
    print(decoder.decode(b'', final=True), flush=True)
    timer.say()
    for number, tokens_T in enumerate(() if tokens_NT is None else tokens_NT[1:]):
        text = prompt + decode(_before_stop(tokens_T, stop))
        print(f'\n=== sample {number + 2} ===\n{text.decode("utf-8", "replace")}')


def collect(parts: Iterable[np.ndarray], *, steps: int) -> np.ndarray:
    """All new tokens [N, T] of the parts [N, n], with progress on stderr."""
    timer = _Timer(steps)
    collected = []
    for part_Nn in parts:
        collected.append(part_Nn)
        timer.add(part_Nn, silent=False)
    timer.say()
    return np.concatenate(collected, axis=1)


class _Timer:
    """Counts tokens and says so now and then."""

    def __init__(self, steps: int):
        self._steps = steps
        self._parts = self._tokens = self._timed = 0
        self._started = self._said = time.monotonic()

    def add(self, part_Nn: np.ndarray, *, silent: bool) -> None:
        self._parts += 1
        self._tokens += part_Nn.shape[1]
        if self._parts > _PARTS_UNTIMED:
            self._timed += part_Nn.size
        else:
            self._started = self._said = time.monotonic()
        if time.monotonic() - self._said > _SECONDS_BETWEEN_LINES and not silent:
            self._said = time.monotonic()
            self.say()

    def say(self) -> None:
        line = f'{self._tokens:,} of {self._steps:,} tokens'
        if self._timed:
            speed = self._timed / (time.monotonic() - self._started)
            line += f', {speed:,.1f} tokens/s'
        print(line, file=sys.stderr, flush=True)


def _before_stop(tokens_T: np.ndarray, stop: int | None) -> np.ndarray:
    places = np.flatnonzero(tokens_T == stop)
    return tokens_T[: places[0]] if places.size else tokens_T


def given(dataset: images_lib.Images, path: str | None, count: int) -> np.ndarray:
    """The images to be completed, as tokens.

    Args:
      dataset: of the run.
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
        return dataset.read(path, count)
    (_, length), _ = dataset.spec['tokens']
    rows: list[np.ndarray] = []
    if count:
        for batch in dataset.batches('validation'):
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
    new = collect(parts, steps=length - half)
    whole = np.concatenate([np.repeat(prompt, samples, axis=0), new], axis=1)
    images = images_lib.to_images(whole)
    drawn = images.reshape(len(prompt), samples, *images.shape[1:])
    if not count:
        return grid([list(drawn[0])])
    shown = images_lib.to_images(np.where(np.arange(length) < half, truth_NL, _HIDDEN))
    truth = images_lib.to_images(truth_NL)
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


def check_new(path: str | None) -> None:
    """Raises a FileExistsError if a picture would replace a file."""
    if path is not None and pathlib.Path(path).exists():
        raise FileExistsError(f'{path} exists: give --output a new file.')


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
