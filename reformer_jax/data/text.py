"""Language modelling, causal or masked, on any text with any tokenizer.

The text is read in windows, or all of it as one sequence (dataset 'novel'): so the
text-generation notebook of the original Reformer trains on "Crime and Punishment", one
example of 2^19 tokens, its padding cut at random into a part before the text and one
behind it, lest the model learn the words by heart through the position embeddings. The
parts held out for validation and test are ours.
"""

import codecs
import concurrent.futures
import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from reformer_jax import progress
from reformer_jax.data import batching
from reformer_jax.data import corpus
from reformer_jax.data import dataset
from reformer_jax.data import tokenizers

# Bytes given to the tokenizer at once: long enough that the space which SentencePiece
# puts in front of each piece does not count.
_PIECE = 100_000
# Of the chosen places (Devlin et al. 2018, section 3.1): 80 % masked, 10 % random.
_MASKED, _RANDOM = 0.8, 0.1
_LEAST = 20  # tokens of which 5 % are one


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text(dataset.Tokenized):
    """A local text, split 90 / 5 / 5 % of its bytes, in windows of L tokens.

    Training is endless: each epoch takes windows side by side from a fresh offset in
    [0, L), so that the model sees every alignment, each once in a fresh order; at most
    2 L - 2 tokens at the two ends of the text are left out of an epoch. In validation
    and test every token is in one window; with a stride windows overlap, and of all but
    the first only the last `stride` tokens have weight 1, so that every token counts
    once, with at least L - stride tokens before it in sight.

    For masked modelling, places are chosen in each window: 80 % of them get the mask
    token, the last of the vocabulary, 10 % any token and 10 % stay as they are.
    Training chooses anew in every epoch, as a function of the seed and the example's
    number; in validation and test the choice is fixed, whatever the seed. Batches then
    have the corrupted 'tokens', 'weights' 1 at the chosen places, and also 'targets':
    int32 [B, L], the tokens as they were, and 'mask': bool [B, L], True where there is
    one.

    As 'novel' the split is 90 / 5 / 5 % of the tokens, and every training example is
    the whole training part: between padding if it is shorter than L, at a random place,
    so that all positions are trained; else a window of it from a random place on.
    Validation and test are one example each: the last L tokens of the text up to the
    end of their part, or all with padding behind. Only the tokens of the part have
    weight 1, so that their loss is with all of the text before them in sight. Of a part
    longer than L only the last L are measured.

    Attributes:
      path: a file (plain or packed), folder or glob, see `corpus.read`; empty
        means the source text of Python's standard library.
      masked_fraction: share of the tokens of a window that are chosen, at least one of
        them, in [0, 1); 0 is causal language modelling, all that 'novel' knows.
      stride: tokens from one window to the next in validation and test, at most L; 0 is
        L.
    """

    path: str
    masked_fraction: float = 0.0
    stride: int = 0

    def __post_init__(self):
        super().__post_init__()
        fraction = self.masked_fraction
        if isinstance(fraction, bool) or not 0 <= fraction < 1:
            raise ValueError(
                f'masked_fraction={fraction!r}: give a number in [0, 1), such as '
                '0.15; 0 is causal language modelling'
            )
        if self.whole and fraction:
            raise ValueError(
                f"masked_fraction={fraction!r}: dataset 'novel' is for causal language "
                "modelling, set it to 0 or use dataset 'text'"
            )
        stride = self.stride
        if not batching.is_integer(stride) or not 0 <= stride <= self.length:
            raise ValueError(
                f'{stride=!r}: give an integer in [0, {self.length}], the length, or 0 '
                'for windows that do not overlap'
            )
        if stride and (self.whole or fraction):
            raise ValueError(
                f"{stride=}: there are no windows of dataset 'novel', and masked ones "
                'have all of their tokens in sight; set it to 0'
            )

    @property
    def whole(self) -> bool:
        """Whether the text is one sequence."""
        return self.dataset == 'novel'

    @property
    def head(self) -> str:
        return 'masked_lm' if self.masked_fraction else 'lm'

    @property
    def vocab_size(self) -> int:
        return super().vocab_size + (1 if self.masked_fraction else 0)

    @property
    def spec(self) -> batching.Spec:
        spec = batching.language_model_spec(self.batch_size, self.length)
        if self.masked_fraction:
            shape = (self.batch_size, self.length)
            spec |= {'targets': (shape, batching.INT), 'mask': (shape, batching.BOOL)}
        return spec

    @property
    def files(self) -> Sequence[pathlib.Path]:
        return corpus.files(self.path)

    def read(self, split: str) -> np.ndarray:
        """The bytes of a split, or of all of a novel, uint8 [n]; kept when read."""
        text = _corpus(self.path)
        return text if self.whole else batching.take_split(text, split)

    def _stream(self, split: str) -> dataset.Stream:
        tokenizers.load(self.tokenizer)  # an error of it before the text is read
        return self._whole(split) if self.whole else self._windows(split)

    def _integers(self, split: str) -> np.ndarray:
        """Tokens [n], or bytes, which become four times as large in a window only."""
        if self.tokenizer == tokenizers.BYTES:
            return self.read(split)
        # One value for all datasets that make something else of the same tokens.
        same = dataclasses.replace(
            self, length=1, batch_size=1, seed=0, masked_fraction=0.0
        )
        return _tokenize(same, split)

    # Windows.

    def _windows(self, split: str) -> dataset.Stream:
        text, length, train = self._integers(split), self.length, split == 'train'
        needed = length if train else 1
        if text.size < needed:
            unit = 'bytes' if text.dtype == np.uint8 else 'tokens'
            least = -(-length * 100 // 90) if train else _LEAST
            raise ValueError(
                f'the {split} split has {text.size} {unit} and needs at least {needed} '
                f'({length=}): give a corpus of at least {least} {unit}, or a smaller '
                '--config.data.length'
            )
        training_starts = _training_starts(text.size, length, self.seed)
        stride = self.stride or length

        def assemble(numbers: np.ndarray, _: batching.Spec) -> batching.Batch:
            starts = training_starts(numbers) if train else stride * numbers
            windows = [_as_tokens(text[s : s + length]) for s in starts]
            tokens, mask = self._pad(windows)
            if self.masked_fraction:
                return self._mask(tokens, mask, numbers, split)
            weights = mask.astype(np.float32)
            if not train:
                weights[: len(numbers)][numbers > 0, : length - stride] = 0
            return {'tokens': tokens, 'weights': weights}

        if train:
            return self._in_order(None, assemble)
        further = max(0, text.size - length)
        return self._in_order(1 - (-further // stride), assemble)

    def _mask(
        self, targets: np.ndarray, mask: np.ndarray, numbers: np.ndarray, split: str
    ) -> batching.Batch:
        """The batch of these windows [B, L], which are the examples `numbers`."""
        stream = (self.seed if split == 'train' else 0, batching.SPLITS.index(split))
        tokens, weights = targets.copy(), np.zeros(targets.shape, np.float32)
        mask_id = self.vocab_size - 1
        for row, number in enumerate(numbers):
            generator = np.random.default_rng((*stream, number))
            size = int(mask[row].sum())
            count = max(1, round(self.masked_fraction * size))
            places = generator.permutation(size)[:count]
            kind = generator.random(count)
            anything = generator.integers(mask_id, size=count)
            tokens[row, places] = np.select(
                [kind < _MASKED, kind < _MASKED + _RANDOM],
                [mask_id, anything],
                targets[row, places],
            )
            weights[row, places] = 1
        return {'tokens': tokens, 'targets': targets, 'weights': weights, 'mask': mask}

    # The whole text as one sequence.

    def _whole(self, split: str) -> dataset.Stream:
        text, length, train = self._integers(''), self.length, split == 'train'
        if text.size < _LEAST:
            raise ValueError(
                f'the text at {self.path!r} has {text.size} tokens and needs at least '
                f'{_LEAST}, so that 5 % of it can be held out: give a longer one with '
                '--config.data.path=FILE'
            )
        sizes = [batching.take_split(text, name).size for name in batching.SPLITS]
        place = batching.SPLITS.index(split)
        first, end = sum(sizes[:place]), sum(sizes[: place + 1])
        # Where examples start: before the text if they begin with padding.
        earliest, latest = min(0, end - length), max(0, end - length)
        starts = batching.endless_order(
            1, lambda rng: rng.integers(earliest, latest + 1, size=1), self.seed
        )

        def assemble(numbers: np.ndarray, spec: batching.Spec) -> batching.Batch:
            rows = starts(numbers) if train else np.full(numbers.size, latest)
            places = rows[:, None] + np.arange(length)
            inside = (places >= 0) & (places < end)
            tokens = _as_tokens(text.take(places, mode='clip'))
            padded, _ = self._pad(np.where(inside, tokens, self.pad_id))
            weights = np.zeros(*spec['weights'])
            weights[: len(rows)] = inside & (places >= first)
            return {'tokens': padded, 'weights': weights}

        return self._in_order(None if train else 1, assemble)


@functools.lru_cache(maxsize=2)
def _corpus(path: str) -> np.ndarray:
    return corpus.read(path)


@functools.lru_cache(maxsize=3)
def _tokenize(text: Text, split: str) -> np.ndarray:
    """The tokens of a split in pieces, or of a novel at once, int32 [n]."""
    content, encode = text.read(split).tobytes(), text.encode
    if text.whole:
        pieces, told = [content], f'the text at {text.path!r}'
    else:
        pieces = list(tokenizers.pieces(_whole_characters(content, split), _PIECE))
        told = f'the {split} split of the text at {text.path!r}'
    starts = itertools.accumulate(map(len, pieces), initial=0)
    for piece, start in zip(pieces, starts, strict=False):
        tokenizers.as_text(piece, told, start)  # an error of it before the long work
    if text.whole:
        return encode(content)
    with concurrent.futures.ThreadPoolExecutor() as threads:
        encoded = progress.track(
            threads.map(encode, pieces), f'tokenizing the {split} split', len(pieces)
        )
        return np.concatenate([np.zeros(0, np.int32), *encoded])


def _whole_characters(content: bytes, split: str) -> bytes:
    """A split without the parts of a character that its ends cut in two."""
    first, end = 0, len(content)
    if split != 'train':
        while first < min(3, end) and content[first] & 0xC0 == 0x80:
            first += 1
    if split != 'test':
        decoder = codecs.getincrementaldecoder('utf-8')('replace')
        decoder.decode(content[-4:])
        end -= len(decoder.getstate()[0])
    return content[first:end]


def _as_tokens(integers: np.ndarray) -> np.ndarray:
    """Bytes as tokens; tokens as they are."""
    is_bytes = integers.dtype == np.uint8
    return tokenizers.Bytes().encode(integers) if is_bytes else integers


def _training_starts(
    size: int, length: int, seed: int
) -> Callable[[np.ndarray], np.ndarray]:
    """Window starts of example numbers; a pure function of (seed, number)."""
    # The largest number of windows that fits behind every offset, and at least one.
    windows = max(1, (size - length + 1) // length)
    offsets = min(length, size - windows * length + 1)

    def order(generator: np.random.Generator) -> np.ndarray:
        return generator.integers(offsets) + length * generator.permutation(windows)

    return batching.endless_order(windows, order, seed)
