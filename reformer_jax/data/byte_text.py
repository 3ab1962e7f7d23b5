"""Text as bytes: any local corpus, or Python's own source text when `path` is empty.

Token = byte + 2, so that 0 is padding and 1 stays free, as in tensor2tensor and in
the Hugging Face checkpoint google/reformer-enwik8.
"""

from typing import Any

import grain
import numpy as np

from reformer_jax.data import batching
from reformer_jax.data import corpus
from reformer_jax.data import text_windows

FIRST_BYTE_ID = 2


def vocab_size(**_: Any) -> int:
    """Number of token ids: padding, one unused id and the 256 bytes."""
    return FIRST_BYTE_ID + 256


def batch_spec(*, batch_size: int, length: int, **_: Any) -> batching.Spec:
    """Shapes and dtypes of a batch."""
    return batching.language_model_spec(batch_size, length)


def encode(text: bytes | np.ndarray, **_: Any) -> np.ndarray:
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
    """Iterates over windows of one split's bytes; see `text_windows.iterate`.

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

    def assemble(_: np.ndarray, windows: list[np.ndarray]) -> dict[str, np.ndarray]:
        rows = [encode(window) for window in windows]
        tokens, mask = batching.pad(rows, batch_size=batch_size, length=length)
        return {'tokens': tokens, 'weights': mask.astype(np.float32)}

    return text_windows.iterate(
        text,
        split,
        assemble,
        length=length,
        batch_size=batch_size,
        seed=seed,
        unit='bytes',
    )
