"""Marked lines of a long text: the least task of finding what a target is made of."""

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Sequence

import numpy as np

from reformer_jax.data import batching
from reformer_jax.data import corpus
from reformer_jax.data import dataset
from reformer_jax.data import tokenizers

_BYTES = tokenizers.Bytes()
_MARKER_ID = _BYTES.vocab_size
_MARKER = '¶'.encode()
_LINE_END = ord('\n')
_LEAST_TARGET = 3  # a character, the line's end and the target's


@dataclasses.dataclass(frozen=True, kw_only=True)
class Marked(dataset.Dataset):
    """Windows of a text as sources; those of their lines that are marked as targets.

    A source is a window of bytes with a marker in front of some of its lines, chosen at
    random; the target is these lines in their order, each with its end, and the end
    token. Lines that are blank, or not wholly in the window behind the end of another,
    are not chosen, nor is one for which the target has no more room; where none can be,
    the target is the end token alone.

    Training takes windows from anywhere in the first 90 % of the bytes, without end;
    example i depends on (seed, i) alone. Those of validation and test are from 5 %
    each, and fixed, whatever the seed.

    Batches have 'source' [B, S], 'source_mask', True at tokens, 'tokens' [B, T] and
    'weights', 1 at tokens. In texts for `encode` and of `decode` the marker is a '¶',
    which in the text itself is two bytes like any.

    Attributes:
      path: see `corpus.read`; empty means the source text of Python's standard library.
      source_length: S, bytes of a window and its markers.
      target_length: T, tokens of a target at most.
      marks: lines that are marked at most.
      eval_examples: number of examples in validation, and in test.
    """

    path: str
    source_length: int
    target_length: int
    marks: int
    eval_examples: int

    def __post_init__(self):
        super().__post_init__()
        batching.check_sizes(
            source_length=self.source_length,
            target_length=self.target_length,
            marks=self.marks,
            eval_examples=self.eval_examples,
        )
        if self.marks >= self.source_length:
            raise ValueError(
                f'marks={self.marks} fill a source of source_length='
                f'{self.source_length}: give fewer than that'
            )
        if self.target_length < _LEAST_TARGET:
            raise ValueError(
                f'target_length={self.target_length} holds no line: give at least '
                f'{_LEAST_TARGET}, for a character, the end of its line and of the '
                'target'
            )

    @property
    def vocab_size(self) -> int:
        return _MARKER_ID + 1

    @property
    def spec(self) -> batching.Spec:
        lengths = self.source_length, self.target_length
        return batching.pairs_spec(self.batch_size, *lengths)

    @property
    def files(self) -> Sequence[pathlib.Path]:
        return corpus.files(self.path)

    def encode(self, text: bytes) -> np.ndarray:
        parts = [_BYTES.encode(part) for part in text.split(_MARKER)]
        marks = np.cumsum([part.size for part in parts])[:-1]
        return np.insert(np.concatenate(parts), marks, _MARKER_ID)

    def decode(self, tokens: np.ndarray) -> bytes:
        parts = np.split(tokens, np.flatnonzero(tokens == _MARKER_ID))
        return _MARKER.join(map(_BYTES.decode, parts))

    @property
    def _window(self) -> int:
        """Bytes of a window."""
        return self.source_length - self.marks

    def _stream(self, split: str) -> dataset.Stream:
        text = batching.take_split(_corpus(self.path), split)
        self._check(split, text)
        seed = self.seed if split == 'train' else 0

        def assemble(numbers: np.ndarray, spec: batching.Spec) -> batching.Batch:
            examples = [
                self._example(text, np.random.default_rng((seed, int(number))))
                for number in numbers
            ]
            sources, targets = zip(*examples, strict=True)
            return batching.pad_pairs(sources, targets, spec)

        count = None if split == 'train' else self.eval_examples
        return self._in_order(count, assemble)

    def _check(self, split: str, text: np.ndarray) -> None:
        if text.size < self._window:
            raise ValueError(
                f'the {split} split has {text.size} bytes, and a window '
                f'{self._window}: give a text of at least {20 * self._window} bytes as '
                'config.data.path, or a smaller config.data.source_length'
            )
        sizes = np.diff(np.flatnonzero(text == _LINE_END))
        longest = min(self.target_length - 1, self._window - 1)
        if not ((sizes > 1) & (sizes <= longest)).any():
            raise ValueError(
                f'the {split} split has no line of 2 to {longest} bytes to mark, its '
                'end among them: give another text as config.data.path, or a larger '
                'config.data.target_length or source_length'
            )

    def _example(
        self, text: np.ndarray, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """A source [<= S] and its target [<= T]."""
        start = int(generator.integers(text.size - self._window + 1))
        window = text[start : start + self._window]
        chosen = self._choose(window, generator)
        tokens = _BYTES.encode(window)
        source = np.insert(tokens, [first for first, _ in chosen], _MARKER_ID)
        lines = [tokens[first:end] for first, end in chosen]
        end = np.array([_BYTES.separator_id], np.int32)
        return source, np.concatenate([*lines, end])

    def _choose(
        self, window: np.ndarray, generator: np.random.Generator
    ) -> list[tuple[int, int]]:
        """Where the lines that are marked begin, and end, in order."""
        behind_ends = (np.flatnonzero(window == _LINE_END) + 1).tolist()
        lines = list(itertools.pairwise(behind_ends))
        chosen: list[tuple[int, int]] = []
        room = self.target_length - 1
        for place in generator.permutation(len(lines)):
            first, end = lines[place]
            fits = end - first <= room and len(chosen) < self.marks
            if fits and window[first:end].tobytes().strip():
                chosen.append((first, end))
                room -= end - first
        return sorted(chosen)


@functools.lru_cache(maxsize=2)
def _corpus(path: str) -> np.ndarray:
    return corpus.read(path)
