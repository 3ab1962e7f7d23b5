"""Prompts and their sources: checked, brought to one length, filled up; numpy.

Shape letters: B prompts, P tokens of the longest, S of the longest source, padding
included.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from reformer_jax.attention import arguments
from reformer_jax.data import batching
from reformer_jax.model import config as model_config


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=['tokens_BP', 'lengths_B', 'source'],
    meta_fields=['capacity'],
)
@dataclasses.dataclass(frozen=True)
class Prompts:
    """Prompts with their start token, filled up to a length of whole chunks.

    Attributes:
      tokens_BP: ids, row b counts up to lengths_B[b].
      lengths_B: real tokens.
      capacity: tokens of the longest sequence that is to be read, at least P.
      source: token ids and mask, [B, S] each; None for a model without an encoder.
    """

    tokens_BP: Any  # arrays of numpy, tracers within a compiled function
    lengths_B: Any
    capacity: int
    source: tuple[Any, Any] | None = None


def pad(prompts: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Prompts of different lengths as tokens and mask, [B, P], padded at the end."""
    read = [np.asarray(prompt) for prompt in prompts]
    for row in read:
        if row.ndim != 1 or row.size and not np.issubdtype(row.dtype, np.integer):
            raise ValueError(
                f'a prompt of shape {row.shape} and {row.dtype}: each must be a list '
                'of token ids.'
            )
    width = max((row.size for row in read), default=0)
    return batching.pad(read, (len(read), width))


def prompts(
    config: model_config.ModelConfig,
    prompt: Any,
    mask: Any,
    steps: Any,
    source: Any = None,
) -> Prompts:
    """Checks prompts that `steps` tokens are to be added to, and fills them up.

    With a source the prompt may be None, for the start token alone.

    Raises:
      ValueError: as `sources`, `rows` and `limits`; or they do not fit the model.
    """
    read_from = sources(config, source)
    if prompt is None:
        if read_from is None:
            raise ValueError('no prompt and no source: pass prompt, token ids [B, P].')
        prompt = np.zeros((len(read_from[0]), 0), np.int32)
    read, _ = rows(config, prompt, mask)
    limits_B = limits(steps, len(read), config.length)
    lengths_B = np.array([row.size for row in read])
    worst = int((lengths_B + limits_B).argmax())
    longest, steps = int(lengths_B[worst]), int(limits_B[worst])
    most = config.length - longest + 1  # the last token is not read
    if steps > most:
        front = ' with its start token' if config.start_token >= 0 else ''
        fewer = f'at most {most} steps or ' if most > 0 else ''
        raise ValueError(
            f'a prompt of {longest} tokens{front} and steps={steps} do not fit the '
            f'model, which has model.length={config.length}: take {fewer}a shorter '
            'prompt.'
        )
    made = filled_up(config, read, read_from)
    capacity = max(made.capacity, rounded_up(config, longest + steps - 1))
    return dataclasses.replace(made, capacity=capacity)


def filled_up(
    config: model_config.ModelConfig,
    rows: list[np.ndarray],
    source: tuple[np.ndarray, np.ndarray] | None = None,
) -> Prompts:
    """Rows filled up to a length P that the model can cut into chunks; capacity P.

    A ValueError if they are too long, or there are more or fewer than sources.
    """
    if source is not None and len(source[0]) != len(rows):
        raise ValueError(
            f'{len(source[0])} sources and {len(rows)} prompts: give a source for each '
            'prompt.'
        )
    lengths_B = np.array([row.size for row in rows], np.int32)
    width = max(1, int(lengths_B.max()))
    model_config.check_length(config, width)
    width = model_config.padded_length(config, rounded_up(config, width))
    tokens_BP, _ = batching.pad(rows, (len(rows), width))
    return Prompts(tokens_BP, lengths_B, width, source)


def limits(steps: Any, rows: int, places: int) -> np.ndarray:
    """Most tokens to add to each row, int32 [B], of one number or one for each.

    A ValueError if it is neither, or a number is not in [1, places].
    """
    steps_B = np.asarray(steps)
    if steps_B.shape not in ((), (rows,)) or steps_B.dtype.kind not in 'iu':
        raise ValueError(
            f'steps={steps} for {rows} prompts: give a whole number, or one for each '
            'prompt.'
        )
    if (steps_B < 1).any() or (steps_B > places).any():
        raise ValueError(
            f'steps={steps} must be at least 1 and at most model.length={places}.'
        )
    return np.broadcast_to(steps_B, rows).astype(np.int32)


def check_goes_with(config: model_config.ModelConfig, source: Any) -> None:
    """Raises a ValueError unless just a model with an encoder gets a source."""
    if config.encoder is None and source is not None:
        raise ValueError(
            'the model has no encoder (model.encoder) that could read a source: leave '
            'source out, or use a model with one.'
        )
    if config.encoder is not None and source is None:
        raise ValueError(
            'the model has an encoder (model.encoder) and gets no source: pass source, '
            'token ids [B, S], or tokens and mask as generation.pad makes them.'
        )


def sources(
    config: model_config.ModelConfig, source: Any
) -> tuple[np.ndarray, np.ndarray] | None:
    """Tokens and mask [B, S] of the sources, real tokens first; None without any.

    Args:
      config: of the model.
      source: token ids [B, S], or a tuple of them and their mask; None for none.

    Raises:
      ValueError: there is no source and an encoder, or the reverse; a source is too
        long, or has no token without a mask that says so; tokens or mask are no [B, S]
        of the right type, or a token is outside the vocabulary.
    """
    check_goes_with(config, source)
    if source is None:
        return None
    tokens, mask = source if isinstance(source, tuple) else (source, None)
    real, mask_BS = _real('sources', tokens, mask)
    if not real or (mask is None and not mask_BS.size):
        raise ValueError(
            f'an empty source: each of the {len(real)} rows needs a token, or a mask '
            'that is False for all of its tokens.'
        )
    longest = max(row.size for row in real)
    model_config.check_length(config.encoder, longest, 'model.encoder')
    # Padding is kept as far as it goes: who pads to few widths compiles few functions.
    width = min(mask_BS.shape[1], config.encoder.length)
    remedy = "'s encoder: the source needs the tokens that it was trained with"
    model_config.check_tokens(config.encoder, np.concatenate(real), remedy)
    # Rounded up and masked: the encoder itself cuts it into chunks.
    width = rounded_up(config.encoder, max(1, width))
    return batching.pad(real, (len(real), width))


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
    real, mask = _real('prompts', tokens, mask)
    if not real or (config.start_token < 0 and not all(row.size for row in real)):
        raise ValueError(
            f'an empty prompt: each of the {len(real)} rows needs a token, since the '
            'model has no start token (model.start_token=-1).'
        )
    model_config.check_tokens(config, np.concatenate(real))
    if config.start_token >= 0:
        real = [np.append(config.start_token, row) for row in real]
    return real, mask


def _real(name: str, tokens: Any, mask: Any) -> tuple[list[np.ndarray], np.ndarray]:
    """The real tokens of each row, and the mask [B, P]; `name` is what they are."""
    remedy = f'for {name} of different lengths, prompts.pad makes tokens and mask.'
    try:
        tokens = np.asarray(tokens)
    except ValueError as error:  # rows of different lengths
        raise ValueError(
            f'the {name} are no rectangle [rows, tokens]: {remedy}'
        ) from error
    if tokens.size and not np.issubdtype(tokens.dtype, np.integer) or tokens.ndim != 2:
        raise ValueError(
            f'{name} of shape {tokens.shape} and type {tokens.dtype} are no integers '
            f'[rows, tokens]: {remedy}'
        )
    mask = np.ones(tokens.shape, bool) if mask is None else np.asarray(mask)
    if mask.dtype.kind in 'iu' and np.isin(mask, (0, 1)).all():
        mask = mask.astype(bool)  # as tokenizers of Hugging Face make them
    arguments.check_mask(mask, tokens.shape)
    return [row[keep] for row, keep in zip(tokens, mask, strict=True)], mask


def rounded_up(config: model_config.ModelConfig, length: int) -> int:
    """At most a quarter more, so that many lengths share one compiled function."""
    step = 2 ** max(0, length.bit_length() - 3)
    return max(length, min(-(-length // step) * step, config.length))
