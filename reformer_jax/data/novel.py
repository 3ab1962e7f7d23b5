"""A whole novel as one sequence: any text, for as many tokens as it has.

The text-generation notebook of the original Reformer trains on "Crime and Punishment"
so: one example of 2^19 tokens, its padding cut at random into a part before the text
and one behind it, lest the model learn the words by heart through the position
embeddings. The parts held out for validation and test are ours.
"""

import functools
import sys
from typing import Any

import grain
import numpy as np

from reformer_jax.data import batching
from reformer_jax.data import byte_text
from reformer_jax.data import corpus
from reformer_jax.data import text
from reformer_jax.data import tokenizers

_LEAST = 20  # tokens of which 5 % are one


def vocab_size(*, tokenizer: str = 'bytes', **_: Any) -> int:
    """Number of token ids: the tokenizer's."""
    return text.vocab_size(tokenizer=tokenizer)


def batch_spec(*, batch_size: int, length: int, **_: Any) -> batching.Spec:
    """Shapes and dtypes of a batch."""
    return batching.language_model_spec(batch_size, length)


def encode(content: bytes, *, tokenizer: str = 'bytes', **_: Any) -> np.ndarray:
    """Token ids [n] of a text."""
    return text.encode(content, tokenizer=tokenizer)


def decode(tokens: np.ndarray, *, tokenizer: str = 'bytes', **_: Any) -> bytes:
    """The text of token ids [n]."""
    return text.decode(tokens, tokenizer=tokenizer)


def build(
    split: str,
    *,
    path: str,
    length: int,
    batch_size: int,
    seed: int,
    tokenizer: str = 'bytes',
) -> grain.DatasetIterator:
    """Iterates over a text as one sequence, split 90 / 5 / 5 % of its tokens.

    Every training example is the whole training part: between padding if it is shorter
    than L, at a random place, so that all positions are trained; else a window of it
    from a random place on. It is a function of (seed, number of the example) alone.

    Validation and test are one example each: the last L tokens of the text up to the
    end of their part, or all with padding behind. Only the tokens of the part have
    weight 1, so that their loss is with all of the novel before them in sight. Of a
    part longer than L only the last L tokens are measured.

    Args:
      split: 'train', 'validation' or 'test'.
      path: a file (plain, .gz, .xz, .zip), folder or glob, see `corpus.read`; empty
        means the source text of Python's standard library.
      length: tokens per example, L.
      batch_size: examples per batch, B.
      seed: of the random places, in [0, 2**32).
      tokenizer: 'bytes', or the path of a SentencePiece model.

    Returns:
      Iterator over {'tokens': int32 [B, L], 'weights': float32 [B, L]}.

    Raises:
      FileNotFoundError: if nothing is at `path`, or at `tokenizer`.
      ValueError: for a bad argument, an empty or too short text, a corrupt file.
    """
    batching.check_arguments(split, seed=seed, length=length, batch_size=batch_size)
    pad_id = tokenizers.load(tokenizer).pad_id
    tokens = _tokens(path, tokenizer)
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
def _tokens(path: str, tokenizer: str) -> np.ndarray:
    """All tokens, int32 [n], kept: each evaluation asks for them again."""
    tokens = encode(corpus.read(path).tobytes(), tokenizer=tokenizer)
    if tokens.size < _LEAST:
        raise ValueError(
            f'the text at {path!r} has {tokens.size} tokens and needs at least '
            f'{_LEAST}, so that 5 % of it can be held out: give a longer one with '
            '--config.data.path=FILE'
        )
    return tokens


def _part(tokens: np.ndarray, split: str) -> tuple[int, int]:
    """The first token of a split and the one behind its last."""
    sizes = [byte_text.take_split(tokens, name).size for name in batching.SPLITS]
    ends = np.cumsum([0, *sizes])
    place = batching.SPLITS.index(split)
    return int(ends[place]), int(ends[place + 1])
