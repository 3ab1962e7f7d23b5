"""The duplication task of the paper (section 5): repeat a random word, 0 w 0 w."""

import functools
import sys
from typing import Any

import grain
import numpy as np

from reformer_jax.data import batching


def vocab_size(*, symbols: int, **_: Any) -> int:
    """Number of token ids: the marker 0 and the symbols."""
    return symbols + 1


def batch_spec(*, batch_size: int, half_length: int, **_: Any) -> batching.Spec:
    """Shapes and dtypes of a batch."""
    return batching.language_model_spec(batch_size, 2 * (half_length + 1))


def encode(text: bytes, *, symbols: int, **_: Any) -> np.ndarray:
    """Token ids [n] of a text that lists them, separated by white space.

    Raises:
      ValueError: for anything but numbers from 0 to `symbols`.
    """
    words = text.decode('utf-8', 'replace').split()
    for word in words:
        if not (word.isascii() and word.isdigit() and int(word) <= symbols):
            raise ValueError(
                f'{word!r} is no token of the duplication task: list numbers from 0, '
                f'the marker, to {symbols}, separated by white space.'
            )
    return np.array([int(word) for word in words], np.int32)


def decode(tokens: np.ndarray, **_: Any) -> bytes:
    """Token ids [n] as a text, each with a space after it."""
    return b''.join(b'%d ' % token for token in tokens)


def build(
    split: str,
    *,
    half_length: int,
    symbols: int,
    batch_size: int,
    seed: int,
    eval_examples: int,
) -> grain.DatasetIterator:
    """Iterates over sequences 0 w 0 w with w uniform over 1..symbols.

    Only the second w counts in the loss: the first cannot be predicted. Training
    examples never end and never repeat; example i depends on (seed, i) alone.
    Validation and test are fixed, whatever the seed, so that runs can be compared.

    Args:
      split: 'train', 'validation' or 'test'.
      half_length: length of w. An example has L = 2 * (half_length + 1) tokens, so the
        paper's 1024 tokens are half_length=511.
      symbols: number of different symbols; the paper has 127.
      batch_size: B, examples per batch.
      seed: of the training examples, in [0, 2**32).
      eval_examples: number of examples in validation, and in test.

    Returns:
      Iterator over {'tokens': int32 [B, L], 'weights': float32 [B, L]}.

    Raises:
      ValueError: for a bad argument.
    """
    batching.check_arguments(
        split,
        seed=seed,
        half_length=half_length,
        symbols=symbols,
        batch_size=batch_size,
        eval_examples=eval_examples,
    )
    if symbols >= 2**31:
        raise ValueError(f'symbols={symbols!r}: tokens are int32, give less than 2**31')
    train = split == 'train'
    # Each split has its own spawn key, so that no seed meets an evaluation stream.
    stream = np.random.SeedSequence(
        seed if train else 0, spawn_key=(batching.SPLITS.index(split),)
    )
    assemble = functools.partial(
        _assemble,
        key=stream.generate_state(2, np.uint64),
        half_length=half_length,
        symbols=symbols,
        batch_size=batch_size,
    )
    numbers = grain.MapDataset.range(sys.maxsize if train else eval_examples)
    return batching.iterate(numbers, assemble, batch_size=batch_size, endless=train)


def _assemble(
    numbers: np.ndarray,
    *,
    key: np.ndarray,
    half_length: int,
    symbols: int,
    batch_size: int,
) -> dict[str, np.ndarray]:
    # Numbers of a batch follow each other and Philox counts in blocks of four 64-bit
    # draws, so one generator gives every example its own blocks: 6 times faster
    # than one generator each.
    blocks = -(-half_length // 4)
    philox = np.random.Philox(key=key, counter=int(numbers[0]) * blocks)
    draws = philox.random_raw((len(numbers), 4 * blocks))[:, :half_length]
    # Scaled, not rejected, so that an example takes as many draws as any other: the
    # chances of two symbols differ by less than symbols / 2**32 of their value.
    words = 1 + ((draws >> np.uint64(32)) * np.uint64(symbols) >> np.uint64(32))

    tokens = np.zeros((batch_size, 2, 1 + half_length), np.int32)
    weights = np.zeros((batch_size, 2, 1 + half_length), np.float32)
    tokens[: len(numbers), :, 1:] = words[:, None]
    weights[: len(numbers), 1, 1:] = 1
    shape = (batch_size, 2 * (1 + half_length))
    return {'tokens': tokens.reshape(shape), 'weights': weights.reshape(shape)}
