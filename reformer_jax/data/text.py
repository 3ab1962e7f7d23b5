"""Any text with any tokenizer, for causal or masked language modelling."""

import concurrent.futures
import functools
from collections.abc import Callable
from typing import Any

import grain
import numpy as np

from reformer_jax.data import batching
from reformer_jax.data import byte_text
from reformer_jax.data import corpus
from reformer_jax.data import text_windows
from reformer_jax.data import tokenizers

# Bytes given to the tokenizer at once: long enough that the space which SentencePiece
# puts in front of each piece does not count.
_PIECE = 100_000
# Of the chosen places (Devlin et al. 2018, section 3.1): 80 % masked, 10 % random.
_MASKED, _RANDOM = 0.8, 0.1


def vocab_size(*, tokenizer: str, masked_fraction: float = 0.0, **_: Any) -> int:
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


def encode(text: bytes, *, tokenizer: str, **_: Any) -> np.ndarray:
    """Token ids [n] of a text."""
    return tokenizers.load(tokenizer).encode(text)


def decode(tokens: np.ndarray, *, tokenizer: str, **_: Any) -> bytes:
    """The text of token ids [n]; the mask has none."""
    return tokenizers.load(tokenizer).decode(tokens)


def build(
    split: str,
    *,
    path: str,
    tokenizer: str,
    length: int,
    batch_size: int,
    seed: int,
    masked_fraction: float = 0.0,
) -> grain.DatasetIterator:
    """Iterates over windows of a local text, split 90 / 5 / 5 % of its bytes.

    For masked modelling, places are chosen in each window: 80 % of them get the mask
    token, 10 % any token and 10 % stay as they are. Training chooses anew in every
    epoch, as a function of the seed and the example's number; in validation and test
    the choice is fixed, whatever the seed.

    Args:
      split: 'train', 'validation' or 'test'.
      path: a file (plain, .gz, .xz, .zip), folder or glob, see `corpus.read`; empty
        means the source text of Python's standard library.
      tokenizer: 'bytes', or the path of a SentencePiece model.
      length: tokens per example, L.
      batch_size: examples per batch, B.
      seed: of the order, the window offsets and the masking, in [0, 2**32).
      masked_fraction: share of the tokens of a window that are chosen, at least one of
        them, in [0, 1); 0 is causal language modelling.

    Returns:
      Iterator over {'tokens': int32 [B, L], 'weights': float32 [B, L]}; in masked
      modelling 'tokens' are the corrupted ones, 'weights' 1 at the chosen places, and
      there are also 'targets': int32 [B, L], the tokens as they were, and 'mask': bool
      [B, L], True where there is one.

    Raises:
      FileNotFoundError: if nothing is at `path`, or at `tokenizer`.
      ValueError: for a bad argument, an empty or too short text, a corrupt file.
    """
    batching.check_arguments(split, seed=seed, length=length, batch_size=batch_size)
    _check_fraction(masked_fraction)
    loaded = tokenizers.load(tokenizer)
    shape: dict[str, Any] = {'batch_size': batch_size, 'length': length}
    shape['pad_id'] = loaded.pad_id
    assemble = functools.partial(_causal, **shape)
    if masked_fraction:
        stream = (seed if split == 'train' else 0, batching.SPLITS.index(split))
        mask = functools.partial(
            _mask, stream=stream, fraction=masked_fraction, mask_id=loaded.vocab_size
        )
        assemble = functools.partial(_masked, mask_window=mask, **shape)
    return text_windows.iterate(
        _tokens(path, tokenizer, split),
        split,
        assemble,
        length=length,
        batch_size=batch_size,
        seed=seed,
        unit='tokens',
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
    text = byte_text.take_split(corpus.read(path), split).tobytes()
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
