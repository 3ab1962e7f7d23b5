"""Prompts: checked, brought to one length, filled up to whole chunks; numpy.

Shape letters: B prompts, P tokens of the longest, padding included.
"""

import dataclasses
import functools
import operator
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from reformer_jax.data import batching
from reformer_jax.model import config as model_config


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=['tokens_BP', 'lengths_B'],
    meta_fields=['capacity'],
)
@dataclasses.dataclass(frozen=True)
class Prompts:
    """Prompts with their start token, filled up to a length of whole chunks.

    Attributes:
      tokens_BP: ids, row b counts up to lengths_B[b].
      lengths_B: real tokens.
      capacity: tokens of the longest sequence that is to be read, at least P.
    """

    tokens_BP: Any  # arrays of numpy, tracers within a compiled function
    lengths_B: Any
    capacity: int


def pad(prompts: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Prompts of different lengths as tokens and mask, [B, P], padded at the end."""
    width = max((len(prompt) for prompt in prompts), default=0)
    return batching.pad(prompts, (len(prompts), width))


def prompts(
    config: model_config.ModelConfig, prompt: Any, mask: Any, steps: int
) -> Prompts:
    """Checks prompts that `steps` tokens are to be added to, and fills them up.

    Raises:
      ValueError: as `rows`; or they do not fit the model.
    """
    steps = operator.index(steps)
    read, _ = rows(config, prompt, mask)
    longest = max(row.size for row in read)
    most = config.length - longest + 1  # the last token is not read
    if steps > most:
        front = ' with its start token' if config.start_token >= 0 else ''
        fewer = f'at most {most} steps or ' if most > 0 else ''
        raise ValueError(
            f'a prompt of {longest} tokens{front} and steps={steps} do not fit the '
            f'model, which has model.length={config.length}: take {fewer}a shorter '
            'prompt.'
        )
    made = filled_up(config, read)
    capacity = max(made.capacity, _rounded_up(config, longest + steps - 1))
    return dataclasses.replace(made, capacity=capacity)


def filled_up(config: model_config.ModelConfig, rows: list[np.ndarray]) -> Prompts:
    """Rows filled up to a length P that the model can cut into chunks; capacity P."""
    lengths_B = np.array([row.size for row in rows], np.int32)
    width = max(1, int(lengths_B.max()))
    model_config.check_length(config, width)
    width = model_config.padded_length(config, _rounded_up(config, width))
    tokens_BP, _ = batching.pad(rows, (len(rows), width))
    return Prompts(tokens_BP, lengths_B, width)


def check_has_no_encoder(config: model_config.ModelConfig) -> None:
    """Raises a ValueError for a model that reads a source: none can be given yet."""
    if config.encoder is not None:
        raise ValueError(
            'the model has an encoder (model.encoder), and generation takes no source '
            'yet: compute logits with model(tokens, memory=model.read_source(source)).'
        )


def rows(
    config: model_config.ModelConfig, tokens: Any, mask: Any
) -> tuple[list[np.ndarray], np.ndarray]:
    """Start token, if the model has one, and real tokens of each row; the mask [B, P].

    Raises:
      ValueError: the model is not causal; a row is empty; tokens or mask are no [B, P]
        of the right type, or a token is outside the vocabulary.
    """
    if not config.causal:
        raise ValueError(
            'the model is bidirectional (model.causal=False) and gives no probability '
            'of a next token: use a causal one.'
        )
    if config.head != 'lm':
        raise ValueError(f"model.head={config.head!r} predicts no tokens: take 'lm'.")
    check_has_no_encoder(config)
    try:
        tokens = np.asarray(tokens)
    except ValueError as error:  # rows of different lengths
        raise ValueError(
            'the prompts are no rectangle [B, P]: for prompts of different lengths, '
            'prompts.pad makes tokens and mask.'
        ) from error
    if tokens.size and not np.issubdtype(tokens.dtype, np.integer) or tokens.ndim != 2:
        raise ValueError(
            f'tokens of shape {tokens.shape} and type {tokens.dtype} are no integers '
            '[B, P]: for prompts of different lengths, prompts.pad makes tokens and '
            'mask.'
        )
    mask = np.ones(tokens.shape, bool) if mask is None else np.asarray(mask, bool)
    if mask.shape != tokens.shape:
        raise ValueError(
            f'a mask of shape {mask.shape} does not fit tokens of {tokens.shape}: it '
            'has True for each real token.'
        )
    real = [row[keep] for row, keep in zip(tokens, mask, strict=True)]
    if not real or (config.start_token < 0 and not all(row.size for row in real)):
        raise ValueError(
            f'an empty prompt: each of the {len(real)} rows needs a token, since the '
            'model has no start token (model.start_token=-1).'
        )
    model_config.check_tokens(config, np.concatenate(real))
    if config.start_token >= 0:
        real = [np.append(config.start_token, row) for row in real]
    return real, mask


def _rounded_up(config: model_config.ModelConfig, length: int) -> int:
    """At most a quarter more, so that many lengths share one compiled function."""
    step = 2 ** max(0, length.bit_length() - 3)
    return max(length, min(-(-length // step) * step, config.length))
