"""ListOps of Long Range Arena (Tay et al. 2020, arXiv:2011.04006), generated.

An example is an expression such as [MAX 4 [MIN 2 3 ] [SM 9 8 7 ] ], its class the
value, 0 to 9. It is drawn as the published program draws with its defaults
(google-research/long-range-arena, lra_benchmarks/data/listops.py): a place is a list
with probability 1/4, else a digit; a list has 2 to 10 arguments; at depth 10 there are
digits only; expressions of 501 to 1,999 tokens are kept. The program sets no seed, and
the files that were published are a download: these are other examples of the same
distribution. Its parentheses, which its reader drops, are left out.
"""

import dataclasses
import functools
import random
import statistics
from collections.abc import Callable, Sequence

import numpy as np

from reformer_jax.data import batching
from reformer_jax.data.tasks import sequences

_OPERATORS: dict[str, Callable[[list[int]], int]] = {
    '[MIN': min,
    '[MAX': max,
    '[MED': lambda values: int(statistics.median(values)),  # 4.5 is 4
    '[SM': lambda values: sum(values) % 10,
}
# Token ids; 0 is padding.
WORDS = ('', *_OPERATORS, ']', *'0123456789')
_FIRST_OPERATOR, _END, _ZERO = map(WORDS.index, ('[MIN', ']', '0'))
_FUNCTIONS = dict(enumerate(_OPERATORS.values(), _FIRST_OPERATOR))

_LIST_PROBABILITY = 0.25
_DEPTH = 10
_ARGUMENTS = (2, 10)
_COUNTS = {'train': 96_000, 'validation': 2_000, 'test': 2_000}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ListOps(sequences.Sequences):
    """Expressions and their values.

    96,000, 2,000 and 2,000 examples, each a function of its split and number (and of
    the limits) alone, whatever the seed. It is made when it is first asked for, in
    about 1 ms, and kept, a byte a token.

    Attributes:
      length: L, tokens of a row, what an expression leaves of them is padding.
      longer_than: expressions have more tokens than that.
      shorter_than: and fewer than that.
    """

    length: int
    longer_than: int = 500
    shorter_than: int = 2000

    def __post_init__(self):
        super().__post_init__()
        batching.check_sizes(
            length=self.length,
            longer_than=self.longer_than,
            shorter_than=self.shorter_than,
        )
        # At 4 tokens two arguments fit: there is always something to draw.
        least = max(self.longer_than + 2, 5)
        if self.shorter_than < least:
            raise ValueError(
                f'shorter_than={self.shorter_than} leaves no expression of more than '
                f'longer_than={self.longer_than} tokens: give at least {least}'
            )
        if self.length < self.shorter_than - 1:
            raise ValueError(
                f'length={self.length} is too short for expressions of up to '
                f'{self.shorter_than - 1} tokens: enlarge it, or lower shorter_than='
                f'{self.shorter_than}'
            )

    @property
    def vocab_size(self) -> int:
        return len(WORDS)

    @property
    def classes(self) -> int:
        return 10

    def encode(self, text: bytes) -> np.ndarray:
        words = text.decode('utf-8', 'replace').split()
        if unknown := set(words).difference(WORDS):
            raise ValueError(
                f'{min(unknown)!r} is no word of ListOps: give {" ".join(WORDS[1:])}, '
                'with spaces between them'
            )
        return np.array([WORDS.index(word) for word in words], np.int32)

    def decode(self, tokens: np.ndarray) -> bytes:
        known = (int(token) for token in tokens if 0 < token < len(WORDS))
        return b''.join(WORDS[token].encode() + b' ' for token in known)

    @property
    def _length(self) -> int:
        return self.length

    def _count(self, split: str) -> int:
        return _COUNTS[split]

    def _examples(
        self, split: str, numbers: np.ndarray
    ) -> tuple[Sequence[np.ndarray], np.ndarray]:
        limits = self.longer_than, self.shorter_than
        examples = [_example(split, int(number), *limits) for number in numbers]
        return [e[0] for e in examples], np.array([e[1] for e in examples], np.int32)


@functools.cache
def _example(
    split: str, number: int, longer_than: int, shorter_than: int
) -> tuple[np.ndarray, int]:
    """The tokens, uint8 [n], and the value of an example."""
    # The examples are a part of results: never change how they are drawn. Python keeps
    # what a seed gives, of random() though not of the functions made of it.
    draw = random.Random(f'listops {split} {number}').random
    tokens: list[int] = []
    while not longer_than < len(tokens) < shorter_than:
        tokens = expression(draw, shorter_than)
    return np.array(tokens, np.uint8), value(tokens)


def expression(draw: Callable[[], float], limit: int) -> list[int]:
    """Draws an expression.

    Args:
      draw: gives the next number of a uniform distribution over [0, 1).
      limit: an expression that reaches so many tokens is given up, and ends there.

    Returns:
      Its tokens.
    """
    least, most = _ARGUMENTS
    tokens: list[int] = []
    # Of each list that is open, and of the whole, how many arguments are to come.
    missing = [1]
    while missing and len(tokens) < limit:
        missing[-1] -= 1
        if len(missing) < _DEPTH and draw() <= _LIST_PROBABILITY:
            tokens.append(_FIRST_OPERATOR + int(draw() * len(_OPERATORS)))
            missing.append(least + int(draw() * (most - least + 1)))
        else:
            tokens.append(_ZERO + int(draw() * 10))
        while missing and not missing[-1]:
            missing.pop()
            if missing:
                tokens.append(_END)
    return tokens


def value(tokens: Sequence[int]) -> int:
    """The value of an expression, 0 to 9."""
    lists: list[list[int]] = [[]]
    operators: list[int] = []
    for token in tokens:
        if token >= _ZERO:
            lists[-1].append(token - _ZERO)
        elif token == _END:
            arguments = lists.pop()
            lists[-1].append(_FUNCTIONS[operators.pop()](arguments))
        else:
            operators.append(token)
            lists.append([])
    return lists[0][0]
