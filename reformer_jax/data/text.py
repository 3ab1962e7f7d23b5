"""Language modelling, causal or masked, on any text with any tokenizer.

The text is read in windows, or all of it as one sequence (whole=True): so the
text-generation notebook of the original Reformer trains on "Crime and Punishment", one
example of 2^19 tokens, its padding cut at random into a part before the text and one
behind it, lest the model learn the words by heart through the position embeddings. The
parts held out for validation and test are ours.
"""

import concurrent.futures
import functools
import sys
from collections.abc import Callable
from typing import Any

import grain
import numpy as np

from reformer_jax.data import batching
from reformer_jax.data import corpus
from reformer_jax.data import tokenizers

# Bytes given to the tokenizer at once: long enough that the space which SentencePiece
# puts in front of each piece does not count.
_PIECE = 100_000
# Of the chosen places (Devlin et al. 2018, section 3.1): 80 % masked, 10 % random.
_MASKED, _RANDOM = 0.8, 0.1
_LEAST = 20  # tokens of which 5 % are one
BYTES = 'bytes'


def vocab_size(
    *, tokenizer: str = BYTES, masked_fraction: float = 0.0, **_: Any
) -> int:
    """Number of token ids: the tokenizer's, and the mask in masked modelling."""
    return tokenizers.load(tokenizer).vocab_size + (1 if masked_fraction else 0)


def batch_spec(
    *, batch_size: int, length: int, masked_fraction: float = 0.0, **_: Any
) -> batching.Spec:
    """Shapes and dtypes of a batch."""
    spec = batching.language_model_spec(batch_size, length)
    if masked_fraction:
        shape = (batch_size, length)
        spec['targets'] = (shape, np.dtype(np.int32))
        spec['mask'] = (shape, np.dtype(bool))
    return spec


def encode(text: bytes, *, tokenizer: str = BYTES, **_: Any) -> np.ndarray:
    """Token ids [n] of a text."""
    return tokenizers.load(tokenizer).encode(text)


def decode(tokens: np.ndarray, *, tokenizer: str = BYTES, **_: Any) -> bytes:
    """The text of token ids [n]; the mask has none."""
    return tokenizers.load(tokenizer).decode(tokens)


def build(
    split: str,
    *,
    path: str,
    length: int,
    batch_size: int,
    seed: int,
    tokenizer: str = BYTES,
    masked_fraction: float = 0.0,
    whole: bool = False,
) -> grain.DatasetIterator:
    """Iterates over a local text: windows of it, split 90 / 5 / 5 % of its bytes.

    For masked modelling, places are chosen in each window: 80 % of them get the mask
    token, 10 % any token and 10 % stay as they are. Training chooses anew in every
    epoch, as a function of the seed and the example's number; in validation and test
    the choice is fixed, whatever the seed.

    If whole, the split is 90 / 5 / 5 % of the tokens, and every training example is the
    whole training part: between padding if it is shorter than L, at a random place, so
    that all positions are trained; else a window of it from a random place on. It is a
    function of (seed, number of the example) alone. Validation and test are one example
    each: the last L tokens of the text up to the end of their part, or all with padding
    behind. Only the tokens of the part have weight 1, so that their loss is with all of
    the text before them in sight. Of a part longer than L only the last L are measured.

    Args:
      split: 'train', 'validation' or 'test'.
      path: a file (plain, .gz, .xz, .zip), folder or glob, see `corpus.read`; empty
        means the source text of Python's standard library.
      length: tokens per example, L.
      batch_size: examples per batch, B.
      seed: of order, window offsets, places and masking, in [0, 2**32).
      tokenizer: 'bytes', or the path of a SentencePiece model.
      masked_fraction: share of the tokens of a window that are chosen, at least one of
        them, in [0, 1); 0 is causal language modelling.
      whole: whether the text is one sequence.

    Returns:
      Iterator over {'tokens': int32 [B, L], 'weights': float32 [B, L]}; in masked
      modelling 'tokens' are the corrupted ones, 'weights' 1 at the chosen places, and
      there are also 'targets': int32 [B, L], the tokens as they were, and 'mask': bool
      [B, L], True where there is one.

    Raises:
      FileNotFoundError: if nothing is at `path`, or at `tokenizer`.
      ValueError: for a bad argument, an empty or too short text, a corrupt file.
    """
    sizes: dict[str, Any] = {'length': length, 'batch_size': batch_size}
    batching.check_arguments(split, seed=seed, **sizes)
    _check_fraction(masked_fraction)
    loaded = tokenizers.load(tokenizer)
    shape: dict[str, Any] = {**sizes, 'pad_id': loaded.pad_id}
    if whole:
        return _iterate_whole(_all_tokens(path, tokenizer), split, seed=seed, **shape)
    if not masked_fraction:
        if tokenizer == BYTES:
            return iterate_bytes(
                batching.take_split(corpus.read(path), split), split, seed=seed, **sizes
            )
        assemble = functools.partial(_causal, **shape)
    else:
        stream = (seed if split == 'train' else 0, batching.SPLITS.index(split))
        mask = functools.partial(
            _mask, stream=stream, fraction=masked_fraction, mask_id=loaded.vocab_size
        )
        assemble = functools.partial(_masked, mask_window=mask, **shape)
    tokens = _tokens(path, tokenizer, split)
    return _iterate(tokens, split, assemble, seed=seed, unit='tokens', **sizes)


def iterate_bytes(
    text: np.ndarray, split: str, *, length: int, batch_size: int, seed: int
) -> grain.DatasetIterator:
    """Iterates over windows of the bytes of a split, uint8 [n]; as `build`.

    They become tokens, four times as large, a window at a time.
    """
    encode = tokenizers.Bytes().encode

    def assemble(
        numbers: np.ndarray, windows: list[np.ndarray]
    ) -> dict[str, np.ndarray]:
        rows = [encode(window) for window in windows]
        return _causal(numbers, rows, batch_size=batch_size, length=length, pad_id=0)

    return _iterate(
        text,
        split,
        assemble,
        length=length,
        batch_size=batch_size,
        seed=seed,
        unit='bytes',
    )


def _check_fraction(masked_fraction: float) -> None:
    if isinstance(masked_fraction, bool) or not 0 <= masked_fraction < 1:
        raise ValueError(
            f'masked_fraction={masked_fraction!r}: give a number in [0, 1), such as '
            '0.15; 0 is causal language modelling'
        )


@functools.lru_cache(maxsize=3)
def _tokens(path: str, tokenizer: str, split: str) -> np.ndarray:
    """The tokens of a split, int32 [n], kept: each evaluation asks for them again."""
    text = batching.take_split(corpus.read(path), split).tobytes()
    encode = tokenizers.load(tokenizer).encode
    with concurrent.futures.ThreadPoolExecutor() as threads:
        parts = list(threads.map(encode, tokenizers.pieces(text, _PIECE)))
    return np.concatenate([np.zeros(0, np.int32), *parts])


def _causal(
    _: np.ndarray,
    windows: list[np.ndarray],
    *,
    batch_size: int,
    length: int,
    pad_id: int,
) -> dict[str, np.ndarray]:
    tokens, mask = batching.pad(
        windows, batch_size=batch_size, length=length, value=pad_id
    )
    return {'tokens': tokens, 'weights': mask.astype(np.float32)}


def _masked(
    numbers: np.ndarray,
    windows: list[np.ndarray],
    *,
    mask_window: Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]],
    batch_size: int,
    length: int,
    pad_id: int,
) -> dict[str, np.ndarray]:
    pairs = map(mask_window, windows, numbers)
    corrupted, chosen = zip(*pairs, strict=True)
    shape = {'batch_size': batch_size, 'length': length}
    tokens, mask = batching.pad(corrupted, value=pad_id, **shape)
    targets, _ = batching.pad(windows, value=pad_id, **shape)
    weights = batching.pad(chosen, **shape)[0].astype(np.float32)
    return {'tokens': tokens, 'targets': targets, 'weights': weights, 'mask': mask}


def _mask(
    window: np.ndarray,
    number: int,
    *,
    stream: tuple[int, int],
    fraction: float,
    mask_id: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The corrupted window and where it was chosen, both [n]; pure in its arguments."""
    generator = np.random.default_rng((*stream, number))
    count = max(1, round(fraction * window.size))
    places = generator.permutation(window.size)[:count]
    kind = generator.random(count)
    anything = generator.integers(mask_id, size=count)
    corrupted = window.copy()
    corrupted[places] = np.select(
        [kind < _MASKED, kind < _MASKED + _RANDOM], [mask_id, anything], window[places]
    )
    chosen = np.zeros(window.size, bool)
    chosen[places] = True
    return corrupted, chosen


# --- Windows ----------------------------------------------------------------------


def _iterate(
    text: np.ndarray,
    split: str,
    assemble: Callable[[np.ndarray, list[np.ndarray]], dict[str, np.ndarray]],
    *,
    length: int,
    batch_size: int,
    seed: int,
    unit: str,
) -> grain.DatasetIterator:
    """Iterates over windows of one split of a text.

    Training is endless: each epoch takes windows side by side from a fresh offset in
    [0, L), so that the model sees every alignment, each once in a fresh order; at most
    2 L - 2 tokens at the two ends of the text are left out of an epoch. Validation and
    test are one pass in order, in which every token is in one window.

    Args:
      text: integers [n], the tokens (or bytes) of the split.
      split: 'train', 'validation' or 'test'.
      assemble: pure function from at most B example numbers, int64 [<= B], and their
        windows, views of `text` [<= L], to the batch. Numbers count through all
        epochs; only the last window of an evaluation can be shorter than L.
      length: L, tokens per example.
      batch_size: B, examples per batch.
      seed: of the order and the offsets, in [0, 2**32).
      unit: what the text consists of, 'bytes' or 'tokens', for errors.

    Returns:
      Iterator with get_state/set_state, as of `batching.iterate`.

    Raises:
      ValueError: if the text is shorter than one training window, or empty.
    """
    train = split == 'train'
    needed = length if train else 1
    if text.size < needed:
        whole = -(-length * 100 // 90) if train else 20
        raise ValueError(
            f'the {split} split has {text.size} {unit} and needs at least {needed} '
            f'(length={length}): give a corpus of at least {whole} {unit}, or a '
            'smaller --config.data.length'
        )
    if train:
        starts = _training_starts(text.size, length, seed)
        numbers = grain.MapDataset.range(sys.maxsize)
    else:
        starts = _side_by_side(length)
        numbers = grain.MapDataset.range(-(-text.size // length))

    def batch(numbers: np.ndarray) -> dict[str, np.ndarray]:
        windows = [text[start : start + length] for start in starts(numbers)]
        return assemble(numbers, windows)

    return batching.iterate(numbers, batch, batch_size=batch_size, endless=train)


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


def _side_by_side(length: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda numbers: length * numbers


# --- The whole text as one sequence -----------------------------------------------


def _iterate_whole(
    tokens: np.ndarray,
    split: str,
    *,
    length: int,
    batch_size: int,
    seed: int,
    pad_id: int,
) -> grain.DatasetIterator:
    first, end = _part(tokens, split)
    # Where examples start: before the text if they begin with padding.
    earliest, latest = min(0, end - length), max(0, end - length)
    train = split == 'train'
    starts = batching.endless_order(
        1, lambda generator: generator.integers(earliest, latest + 1, size=1), seed
    )

    def assemble(numbers: np.ndarray) -> dict[str, np.ndarray]:
        rows = starts(numbers) if train else np.full(numbers.size, latest)
        places = rows[:, None] + np.arange(length)
        inside = (places >= 0) & (places < end)
        values = np.where(inside, tokens.take(places, mode='clip'), pad_id)
        shape = {'batch_size': batch_size, 'length': length}
        padded, _ = batching.pad(list(values), value=pad_id, **shape)
        weights, _ = batching.pad(list(inside & (places >= first)), **shape)
        return {'tokens': padded, 'weights': weights.astype(np.float32)}

    numbers = grain.MapDataset.range(sys.maxsize if train else 1)
    return batching.iterate(numbers, assemble, batch_size=batch_size, endless=train)


@functools.lru_cache(maxsize=1)
def _all_tokens(path: str, tokenizer: str) -> np.ndarray:
    """All tokens, int32 [n], kept: each evaluation asks for them again."""
    tokens = tokenizers.load(tokenizer).encode(corpus.read(path).tobytes())
    if tokens.size < _LEAST:
        raise ValueError(
            f'the text at {path!r} has {tokens.size} tokens and needs at least '
            f'{_LEAST}, so that 5 % of it can be held out: give a longer one with '
            '--config.data.path=FILE'
        )
    return tokens


def _part(tokens: np.ndarray, split: str) -> tuple[int, int]:
    """The first token of a split and the one behind its last."""
    sizes = [batching.take_split(tokens, name).size for name in batching.SPLITS]
    ends = np.cumsum([0, *sizes])
    place = batching.SPLITS.index(split)
    return int(ends[place]), int(ends[place + 1])
