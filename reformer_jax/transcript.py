"""Samples as text: the first is printed while it is made, the others follow it."""

import codecs
import sys
import time
from collections.abc import Callable, Iterable

import numpy as np

_SECONDS_BETWEEN_LINES = 10

# Parts that come before the speed does: the first two wait for the compiler.
_PARTS_UNTIMED = 2


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
