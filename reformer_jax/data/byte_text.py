"""Text as bytes: any local corpus, or Python's own source text when `path` is empty.

Token = byte + 2, so that 0 is padding and 1 stays free, as in tensor2tensor and in
the Hugging Face checkpoint google/reformer-enwik8.
"""

import functools
import sys
from typing import Any

import grain
import numpy as np

from reformer_jax.data import batching
from reformer_jax.data import corpus

FIRST_BYTE_ID = 2


def vocab_size(**_: Any) -> int:
    """Number of token ids: padding, one unused id and the 256 bytes."""
    return FIRST_BYTE_ID + 256


def example_length(*, length: int, **_: Any) -> int:
    """Tokens per example."""
    return length


def encode(text: bytes, **_: Any) -> np.ndarray:
    """Token ids [n] of a text."""
    return np.frombuffer(text, np.uint8).astype(np.int32) + FIRST_BYTE_ID


def decode(tokens: np.ndarray, **_: Any) -> bytes:
    """The bytes of token ids [n]; ids that stand for no byte have none."""
    values = tokens - FIRST_BYTE_ID
    return values[(values >= 0) & (values < 256)].astype(np.uint8).tobytes()


def build(
    split: str, *, path: str, length: int, batch_size: int, seed: int
) -> grain.DatasetIterator:
    """Iterates over windows of a local text, split 90 / 5 / 5 % by position.

    Args:
      split: 'train', 'validation' or 'test'.
      path: a file (plain, .gz, .xz, .zip), folder or glob, see `corpus.read`; empty
        means the source text of Python's standard library.
      length: tokens per example, L.
      batch_size: examples per batch, B.
      seed: of the shuffled order and the window offsets, in [0, 2**32).

    Returns:
      Iterator over {'tokens': int32 [B, L], 'weights': float32 [B, L]}; see `iterate`.

    Raises:
      FileNotFoundError: if nothing is at `path`.
      ValueError: for a bad argument, an empty or too short text, a corrupt archive.
    """
    batching.check_arguments(split, seed=seed, length=length, batch_size=batch_size)
    text = take_split(corpus.read(path), split)
    return iterate(text, split, length=length, batch_size=batch_size, seed=seed)


def take_split(text: np.ndarray, split: str) -> np.ndarray:
    """Returns the first 90 %, next 5 % or last 5 % of `text` [n], as a view."""
    train_end, validation_end = text.size * 90 // 100, text.size * 95 // 100
    return {
        'train': text[:train_end],
        'validation': text[train_end:validation_end],
        'test': text[validation_end:],
    }[split]


def iterate(
    text: np.ndarray, split: str, *, length: int, batch_size: int, seed: int
) -> grain.DatasetIterator:
    """Iterates over windows of one split's bytes.

    Training is endless: each epoch takes windows side by side from a fresh offset in
    [0, L), so that the model sees every alignment, each once in a fresh order; at most
    2 L - 2 bytes at the two ends of the text are left out of an epoch. Validation and
    test are one pass in order, in which every byte has weight 1 exactly once; padding
    has token and weight 0.

    Args:
      text: uint8 [n], the bytes of the split.
      split: 'train', 'validation' or 'test'.
      length: L, tokens per example.
      batch_size: B, examples per batch.
      seed: of the order and the offsets, in [0, 2**32).

    Returns:
      Iterator over {'tokens': int32 [B, L], 'weights': float32 [B, L]}.

    Raises:
      ValueError: if the text is shorter than one training window, or empty.
    """
    train = split == 'train'
    needed = length if train else 1
    if text.size < needed:
        whole = -(-length * 100 // 90) if train else 20
        raise ValueError(
            f'the {split} split has {text.size} bytes and needs at least {needed} '
            f'(length={length}): give a corpus of at least {whole} bytes, or a '
            'smaller --config.data.length'
        )
    if train:
        starts = _training_starts(text.size, length, seed)
    else:
        starts = grain.MapDataset.range(0, text.size, length)
    assemble = functools.partial(
        _assemble, text=text, length=length, batch_size=batch_size
    )
    return batching.iterate(starts, assemble, batch_size=batch_size, endless=train)


def _training_starts(size: int, length: int, seed: int) -> grain.MapDataset:
    """Endless dataset of window starts; a pure function of (seed, index)."""
    # The largest number of windows that fits behind every offset, and at least one.
    windows = max(1, (size - length + 1) // length)
    offsets = min(length, size - windows * length + 1)

    @functools.lru_cache(maxsize=2)  # a batch may begin in one epoch, end in the next
    def epoch_starts(epoch: int) -> np.ndarray:
        generator = np.random.default_rng((seed, epoch))
        return generator.integers(offsets) + length * generator.permutation(windows)

    # Not grain's shuffle: it took 2.5 ms an example for a text of 13 windows.
    def start(index: int) -> int:
        return int(epoch_starts(index // windows)[index % windows])

    return grain.MapDataset.range(sys.maxsize).map(start)


def _assemble(
    starts: np.ndarray, *, text: np.ndarray, length: int, batch_size: int
) -> dict[str, np.ndarray]:
    tokens = np.zeros((batch_size, length), np.int32)
    weights = np.zeros((batch_size, length), np.float32)
    for row, start in enumerate(starts):
        window = text[start : start + length]
        np.add(window, FIRST_BYTE_ID, out=tokens[row, : window.size], dtype=np.int32)
        weights[row, : window.size] = 1
    return {'tokens': tokens, 'weights': weights}
