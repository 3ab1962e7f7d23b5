"""What a model makes, shown: text on stdout while it is made, images in a PNG file."""

import codecs
import dataclasses
import datetime
import itertools
import pathlib
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from reformer_jax import data
from reformer_jax import model as model_lib
from reformer_jax import progress
from reformer_jax.data import images as images_lib
from reformer_jax.generation import decoding
from reformer_jax.generation import translation

# Parts that come before the speed does: the first two wait for the compiler.
_PARTS_UNTIMED = 2

_LINES = 64  # translated before they are printed

_GAP = 2  # pixels between images
_WHITE = 255
_HIDDEN = 128  # grey, of the half that is not given


class Stop(NamedTuple):
    """A text that ends a sample, which has all that is before it.

    It may begin and end within tokens, but not begin before the sample.

    Attributes:
      text: the text, not empty.
      word: whether only white space stands in front of it, if anything.
    """

    text: bytes
    word: bool

    def place(self, made: bytes) -> int:
        """Where in a sample it begins first; -1 if it is not there."""
        pattern = (rb'(?<!\S)' if self.word else b'') + re.escape(self.text)
        found = re.search(pattern, made)
        return found.start() if found else -1


class TextPrompt(NamedTuple):
    """A text to continue, as the model of a dataset reads it.

    Attributes:
      text: the prompt.
      tokens_P: its token ids.
      stop: what ends a sample, or None.
      decode: from tokens [n] to their bytes; what two parts give, joined, is both.
    """

    text: bytes
    tokens_P: np.ndarray
    stop: Stop | None
    decode: Callable[[np.ndarray], bytes]


def check_continues(dataset: data.Dataset) -> None:
    """Raises a ValueError if a model of the dataset predicts no next token."""
    if dataset.head != 'lm':
        raise ValueError(
            f'dataset {dataset.dataset!r} is for model.head={dataset.head!r}, which '
            'gives no next token: use eval.py.'
        )


def text_prompt(
    dataset: data.Dataset, text: bytes, stop: str | None = None
) -> TextPrompt:
    """A prompt of a dataset's text; `stop`, any text of it, ends a sample.

    Raises:
      ValueError: the prompt or `stop` is no text of the dataset, or `stop` is empty; a
        model of the dataset predicts no next token.
    """
    check_continues(dataset)
    return TextPrompt(text, dataset.encode(text), _stop(dataset, stop), dataset.decode)


def _stop(dataset: data.Dataset, stop: str | None) -> Stop | None:
    if stop is None:
        return None
    text = stop.encode('utf-8', 'surrogateescape')
    if dataset.numbers:
        text = dataset.decode(dataset.encode(text))
    if not text:
        raise ValueError('the text to stop at is empty: leave out --stop, or give one.')
    return Stop(text, dataset.numbers)


def write_text(
    model: model_lib.Reformer, prompt: TextPrompt, *, tokens: int, **settings: Any
) -> None:
    """Continues a text on stdout by so many tokens at most.

    Settings are key, samples, temperature, top_k and top_p of decoding.stream, whose
    errors come before anything is printed.
    """
    parts = decoding.stream(model, prompt.tokens_P[None], steps=tokens, **settings)
    print(
        f'compiling, then reading the {prompt.tokens_P.size:,} tokens of the prompt',
        file=sys.stderr,
    )
    write(prompt, parts, steps=tokens)


def write(prompt: TextPrompt, parts: Iterable[np.ndarray], *, steps: int) -> None:
    """Prints samples to stdout, the first while it is made, and progress to stderr.

    Args:
      prompt: stands before all samples; bytes that are no UTF-8 are shown as U+FFFD.
      parts: new tokens of all samples, [N, n] each (decoding.stream); no more are taken
        once all samples have stopped.
      steps: most tokens of a sample.
    """
    # Keeps the bytes of an unfinished character for the next part.
    decoder = codecs.getincrementaldecoder('utf-8')('replace')
    print(decoder.decode(prompt.text), end='', flush=True)
    parts, made = _until_stopped(parts, prompt), list[_Part]()
    text, shown, stopped = b'', 0, False
    # On a terminal the text itself shows how far it is, and a bar would cut it.
    for part_Nn in _watched(parts, made, steps, shown=not sys.stdout.isatty()):
        text += prompt.decode(part_Nn[0])
        end, stopped = _end(text, prompt.stop)
        print(decoder.decode(text[shown:end]), end='', flush=True)
        shown = end
        if stopped:
            break
    rest = b'' if stopped else text[shown:]
    print(decoder.decode(rest, final=True), flush=True)
    tokens_NT = _collect(parts, made, steps)
    for number, tokens_T in enumerate(tokens_NT[1:]):
        text = prompt.decode(tokens_T)
        end, stopped = _end(text, prompt.stop)
        text = prompt.text + (text[:end] if stopped else text)
        print(f'\n=== sample {number + 2} ===\n{text.decode("utf-8", "replace")}')


def from_file(path: str) -> bytes:
    """The content of a file; of a pipe all that comes through it, after a word."""
    file = pathlib.Path(path).expanduser()
    if file.is_fifo():
        print(f'reading {path} to its end', file=sys.stderr, flush=True)
    return file.read_bytes()


def typed() -> bytes:
    """What comes from stdin."""
    if sys.stdin.isatty():
        print('type the text, then Ctrl-D:', file=sys.stderr)
    return sys.stdin.buffer.read()


def write_translations(
    model: model_lib.Reformer,
    dataset: data.pairs.Pairs,
    text: bytes,
    how: translation.Decoding,
    beams: int | None = None,
) -> None:
    """Prints the translation of each line, some lines at a time; '' for an empty one.

    With `beams`, if given, instead of those of `how`. A ValueError names a line that is
    too long for the model, before any is translated.
    """
    lines = data.pairs.parallel.lines(text, 'the input')
    translation.check(model.config, dataset, lines)
    how = dataclasses.replace(how, beams=how.beams if beams is None else beams)
    for start in range(0, len(lines), _LINES):
        part = lines[start : start + _LINES]
        for line in translation.translate(model, dataset, part, how):
            print(line)
        sys.stdout.flush()


class _Part(NamedTuple):
    """New tokens [N, n], and when they came."""

    tokens_Nn: np.ndarray
    second: float


def _watched(
    parts: Iterator[np.ndarray], made: list[_Part], steps: int, *, shown: bool
) -> Iterator[np.ndarray]:
    """Passes the parts on, adds them to those made already and shows how many."""
    with progress.bar('sampling', steps, 'tokens', shown=shown) as advance:
        advance(sum(part.tokens_Nn.shape[1] for part in made))
        for tokens_Nn in parts:
            made.append(_Part(tokens_Nn, time.monotonic()))
            advance(tokens_Nn.shape[1])
            yield tokens_Nn


def _collect(parts: Iterator[np.ndarray], made: list[_Part], steps: int) -> np.ndarray:
    """All tokens [N, T], of those made and of the rest; says how fast they came."""
    for _ in _watched(parts, made, steps, shown=True):
        pass
    tokens_NT = np.concatenate([part.tokens_Nn for part in made], axis=1)
    line = f'{tokens_NT.shape[1]:,} of {steps:,} tokens'
    if timed := sum(part.tokens_Nn.size for part in made[_PARTS_UNTIMED:]):
        seconds = made[-1].second - made[_PARTS_UNTIMED - 1].second
        line += f', {timed / seconds:,.1f} tokens/s'
    print(line, file=sys.stderr, flush=True)
    return tokens_NT


def _until_stopped(
    parts: Iterable[np.ndarray], prompt: TextPrompt
) -> Iterator[np.ndarray]:
    """Passes the parts on until every sample has stopped."""
    texts: list[bytes] = []
    for part_Nn in parts:
        yield part_Nn
        new = [prompt.decode(row_n) for row_n in part_Nn]
        texts = [a + b for a, b in itertools.zip_longest(texts, new, fillvalue=b'')]
        if all(_end(text, prompt.stop)[1] for text in texts):
            return


def _end(text: bytes, stop: Stop | None) -> tuple[int, bool]:
    """How much of a sample may be shown, and whether it has stopped."""
    if stop is None:
        return len(text), False
    place = stop.place(text)
    # The last bytes may turn out to be the beginning of the stop.
    return (
        (place, True) if place >= 0 else (max(0, len(text) + 1 - len(stop.text)), False)
    )


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
    batches = dataset.batches('validation') if count else ()
    real = (batch['tokens'][batch['weights'].any(axis=1)] for batch in batches)
    rows = list(itertools.islice(itertools.chain.from_iterable(real), count))
    if len(rows) < count:
        raise ValueError(
            f'--images={count}, and the validation split has {len(rows)}: ask for '
            'fewer.'
        )
    return np.array(rows, np.int32).reshape(count, length)


def draw(
    model: model_lib.Reformer,
    truth_NL: np.ndarray,
    *,
    samples: int,
    **settings: Any,
) -> np.ndarray:
    """Completes lower halves, or draws whole images where none are given.

    Args:
      model: of images; its length is theirs.
      truth_NL: the whole images as tokens, of which the upper halves are read.
      samples: of each image.
      settings: key, temperature, top_k and top_p of decoding.stream.

    Returns:
      uint8 [height, width, 3], a row for each image: itself, its given half, the
      completions. Without images all samples in one row.
    """
    count, length = truth_NL.shape
    half = length // 2 if count else 0
    prompt = truth_NL[:, :half] if count else np.zeros((1, 0), np.int32)
    parts = decoding.stream(
        model, prompt, steps=length - half, samples=samples, **settings
    )
    print(f'compiling, then drawing {length - half:,} tokens each', file=sys.stderr)
    new = _collect(parts, [], length - half)
    whole = np.concatenate([np.repeat(prompt, samples, axis=0), new], axis=1)
    images = images_lib.to_images(whole)
    drawn = images.reshape(len(prompt), samples, *images.shape[1:])
    if not count:
        return grid(drawn)
    halves_NL = np.where(np.arange(length) < half, truth_NL, _HIDDEN)
    shown = [images_lib.to_images(tokens)[:, None] for tokens in (truth_NL, halves_NL)]
    return grid(np.concatenate([*shown, drawn], axis=1))


def grid(images: np.ndarray) -> np.ndarray:
    """Images uint8 [rows, columns, S, S, 3] as one [height, width, 3], with gaps."""
    gaps = [(0, 0), (0, 0), (0, _GAP), (0, _GAP), (0, 0)]
    tiles = np.pad(images, gaps, constant_values=_WHITE)
    rows, columns, side = tiles.shape[:3]
    picture = tiles.swapaxes(1, 2).reshape(rows * side, columns * side, 3)
    return picture[:-_GAP, :-_GAP]


def check_new(path: str | None) -> None:
    """Raises an OSError if a picture would replace a file or stand below one."""
    if path is None:
        return
    file = pathlib.Path(path).expanduser()
    if file.exists():
        raise FileExistsError(f'{path} exists: give --output a new file.')
    above = next(folder for folder in file.parents if folder.exists())
    if not above.is_dir():
        raise NotADirectoryError(f'{path}: {above} is a file, give --output a folder.')


def save(
    picture: np.ndarray, path: str | None, workdir: str, step: int
) -> pathlib.Path:
    """Writes a picture, uint8 [height, width, 3], as a new PNG file.

    Without a path that is `<workdir>/samples/step_<step>_<time>.png`. A
    FileExistsError if there is such a file.
    """
    now = datetime.datetime.now(datetime.UTC).strftime('%Y%m%dT%H%M%S%f')
    file = pathlib.Path(path or f'{workdir}/samples/step_{step}_{now}.png').expanduser()
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, 'xb') as stream:
        Image.fromarray(picture).save(stream, 'png')
    return file
