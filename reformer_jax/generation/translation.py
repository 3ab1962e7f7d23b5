"""Texts made of source texts by beam search, with a model trained on pairs."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from reformer_jax import data
from reformer_jax import model as model_lib
from reformer_jax import progress
from reformer_jax.generation import decoding

# Tokens of the sources that are translated at a time.
_TOKENS = 2048


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How a translation is searched for (paper section 5: as Vaswani et al. 2017).

    Attributes:
      beams: continuations followed; 1 takes the likeliest token each time.
      length_penalty: see decoding.beam_search.
      more_tokens: than its source a translation may have.
    """

    beams: int = 4
    length_penalty: float = 0.6
    more_tokens: int = 50

    def __post_init__(self):
        decoding.check_beams(self.beams, self.length_penalty)
        data.batching.check_sizes(more_tokens=self.more_tokens)


def translate(
    model: model_lib.Reformer,
    dataset: data.pairs.Pairs,
    texts: Sequence[str],
    how: Decoding = Decoding(),  # noqa: B008, it is immutable
    stopped: Callable[[], bool] = lambda: False,
) -> list[str]:
    """The likeliest target found for each text, in their order; '' for an empty one.

    Texts of about the same length are translated together, in as few shapes of batches
    as the data has buckets; a translation does not depend on the others.

    Args:
      model: with an encoder.
      dataset: whose tokenizer and buckets these are.
      texts: any number; what is no line in them (a line break) counts as white space.
      how: beams and limits.
      stopped: asked before each batch; once it says yes there are no translations, [].

    Raises:
      ValueError: a text is longer than the encoder.
    """
    rows = check(model.config, dataset, texts)
    longest = model.config.encoder.length
    found = [''] * len(texts)
    first = jax.process_index() == 0
    with progress.bar('translating', len(rows), 'texts', shown=first) as advance:
        for width, numbers in _batches(dataset, longest, rows):
            if stopped():
                return []
            real = [n for n in numbers if n is not None]
            # The first once more where there are none left, in a batch of equal shape.
            sources = [rows[real[0] if n is None else n] for n in numbers]
            best = _search(model, dataset, sources, width, how)
            for number, tokens_S in zip(real, best, strict=False):
                found[number] = _as_line(dataset, tokens_S)
            advance(len(real))
    return found


def check(
    config: model_lib.ModelConfig,
    dataset: data.pairs.Pairs,
    texts: Sequence[str],
    where: str = 'the input',
) -> dict[int, np.ndarray]:
    """The tokens of each text that is not empty, with the end.

    Raises:
      ValueError: a text is longer than the encoder, or there is none.
    """
    rows = {
        number: dataset.tokens(text)
        for number, text in enumerate(texts)
        if text.strip()
    }
    encoder = config.encoder
    if encoder is None:
        raise ValueError('the model has no encoder: it was not trained on pairs.')
    for number, row in rows.items():
        if row.size > encoder.length:
            raise ValueError(
                f'line {number + 1} of {where} has {row.size} tokens, and the encoder '
                f'reads model.encoder.length={encoder.length}: divide the line, or '
                'train with a higher one.'
            )
    return rows


def _batches(
    dataset: data.pairs.Pairs, longest: int, rows: dict[int, np.ndarray]
) -> Iterator[tuple[int, list[int | None]]]:
    """Widths of batches, and the texts of each, the shortest first."""
    widths = [source for source, _ in dataset.lengths if source < longest]
    while widths[-1:] != [longest]:  # beyond what the data have
        widths.append(min(2 * widths[-1] if widths else longest, longest))
    order = sorted(rows, key=lambda number: rows[number].size)
    least = 0
    for width in dict.fromkeys(widths):
        inside = [n for n in order if least < rows[n].size <= width]
        few = 1 << max(0, len(inside) - 1).bit_length()
        size = min(few, max(1, _TOKENS // width))
        for start in range(0, len(inside), size):
            batch = inside[start : start + size]
            yield width, [*batch, *[None] * (size - len(batch))]
        least = width


def _search(
    model: model_lib.Reformer,
    dataset: data.pairs.Pairs,
    sources: list[np.ndarray],
    width: int,
    how: Decoding,
) -> np.ndarray:
    """The best tokens of each source, [B, S]."""
    most = model.config.length
    limits_B = np.array([min(row.size + how.more_tokens, most) for row in sources])
    settings: dict[str, Any] = {
        'source': data.batching.pad(sources, (len(sources), width)),
        'stop_token': dataset.end_id,
    }
    if how.beams == 1:
        key, steps = jax.random.key(0), int(limits_B.max())
        tokens_BS = decoding.generate(
            model, key=key, steps=steps, temperature=0.0, **settings
        )
        return np.where(np.arange(steps) < limits_B[:, None], tokens_BS, dataset.end_id)
    tokens_BES, _ = decoding.beam_search(
        model,
        steps=limits_B,
        beams=how.beams,
        length_penalty=how.length_penalty,
        **settings,
    )
    return tokens_BES[:, 0]


def _as_line(dataset: data.pairs.Pairs, tokens_S: np.ndarray) -> str:
    ends = np.flatnonzero(tokens_S == dataset.end_id)
    tokens_S = tokens_S[: ends[0]] if ends.size else tokens_S
    text = dataset.decode(tokens_S).decode('utf-8', 'replace')
    return ' '.join(text.splitlines()).strip()
