"""What a model is trained for: losses and predictions of a batch, for each head.

Batches are those of reformer_jax/data. Shape letters: B sequences, L tokens, V
vocabulary, C classes, U what is predicted: [B, L] or [B].
"""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from reformer_jax import model as model_lib
from reformer_jax.model import config as model_config
from reformer_jax.stack import chunking

Batch = Mapping[str, jax.Array]
Sums = dict[str, jax.Array]

_IMPOSSIBLE = -1e9


class Outcome(NamedTuple):
    """What a model makes of a batch.

    Attributes:
      losses_U: negative log-likelihood in nats, squared error in regression.
      correct_U: whether the likeliest prediction is right; NaN in regression.
      weights_U: how much each counts.
      predictions: what Dataset.score takes, [B, ...]; None for language models.
    """

    losses_U: jax.Array
    correct_U: jax.Array
    weights_U: jax.Array
    predictions: jax.Array | None


def outcome(
    model: model_lib.Reformer,
    batch: Batch,
    *,
    key: jax.Array | None = None,
    train: bool = False,
) -> Outcome:
    """Runs the model on a batch of its kind."""
    match model.config.head:
        case 'lm':
            return _next_tokens(model, batch, key, train)
        case 'masked_lm':
            streams = model.streams(
                batch['tokens'], batch['mask'], key=key, train=train
            )
            nll_BL, correct_BL = _cross_entropy(
                model, streams, batch['targets'], key, train
            )
            return Outcome(nll_BL, correct_BL, batch['weights'], None)
        case 'none':
            raise ValueError("model.head='none' has nothing to predict: set a head.")
    logits = model(batch['tokens'], batch['mask'], key=key, train=train)
    match model.config.head:
        case 'classification':
            return _classes(logits, batch)
        case 'token_classification':
            nll_BL, correct_BL = _labels(logits, batch['labels'])
            best_BL = logits.argmax(-1).astype(jnp.int32)
            return Outcome(nll_BL, correct_BL, batch['weights'], best_BL)
    return _answers(logits, batch)


def sums(
    model: model_lib.Reformer, batch: Batch, key: jax.Array | None, train: bool
) -> tuple[jax.Array, Sums]:
    """Weighted sum of the losses, and what means are made of."""
    return _sums(outcome(model, batch, key=key, train=train))


def evaluate(model: model_lib.Reformer, batch: Batch) -> tuple[Sums, jax.Array | None]:
    """Sums and predictions of a batch without dropout, with the same hashes always."""
    result = outcome(model, batch)
    return _sums(result)[1], result.predictions


def lm_batch(
    config: model_config.ModelConfig, tokens_BL: jax.Array, weights_BL: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What a causal model reads, what it predicts there, and the weights, [B, L].

    Without a start token nothing predicts the first token and the last predicts
    nothing.
    """
    if config.start_token >= 0:
        return model_lib.shift_right(config, tokens_BL), tokens_BL, weights_BL
    weights_BL = jnp.roll(weights_BL, -1, axis=1).at[:, -1].set(0)
    return tokens_BL, jnp.roll(tokens_BL, -1, axis=1), weights_BL


def _sums(result: Outcome) -> tuple[jax.Array, Sums]:
    loss_sum = jnp.sum(result.losses_U * result.weights_U)
    return loss_sum, {
        'loss': loss_sum,
        'accuracy': jnp.sum(result.correct_U * result.weights_U),
        'weight': jnp.sum(result.weights_U),
    }


def _next_tokens(model, batch, key, train) -> Outcome:
    read_BL, targets_BL, weights_BL = lm_batch(
        model.config, batch['tokens'], batch['weights']
    )
    streams = model.streams(read_BL, key=key, train=train)
    nll_BL, correct_BL = _cross_entropy(model, streams, targets_BL, key, train)
    return Outcome(nll_BL, correct_BL, weights_BL, None)


def _cross_entropy(model, streams, targets_BL, key, train):
    return chunking.cross_entropy(
        functools.partial(model.logits, key=key, train=train),
        streams,
        targets_BL,
        chunk_length=model.config.loss_chunk_length,
    )


def _labels(logits: jax.Array, labels_U: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Negative log-likelihood of labels [U] under logits [U, C]; likeliest or not."""
    logp = jax.nn.log_softmax(logits)
    nll_U = -jnp.take_along_axis(logp, labels_U[..., None], axis=-1)[..., 0]
    return nll_U, logits.argmax(-1) == labels_U


def _classes(logits_BC: jax.Array, batch: Batch) -> Outcome:
    """One class (int labels [B]), several (float [B, C]) or a number (float [B])."""
    labels = batch['labels']
    if jnp.issubdtype(labels.dtype, jnp.integer):
        losses_B, correct_B = _labels(logits_BC, labels)
    elif labels.ndim == 2:
        signs_BC = 2 * labels - 1
        losses_B = jax.nn.softplus(-signs_BC * logits_BC).mean(-1)
        correct_B = jnp.all(signs_BC * logits_BC > 0, axis=-1)
    else:
        losses_B = jnp.square(logits_BC[:, 0] - labels)
        correct_B = jnp.full_like(losses_B, jnp.nan)
    return Outcome(losses_B, correct_B, batch['weights'], logits_BC)


def _answers(logits_BL2: jax.Array, batch: Batch) -> Outcome:
    """The ends of an answer, each among the candidates; mean of both losses."""
    ends_B2L = jnp.swapaxes(logits_BL2, 1, 2)
    ends_B2L = jnp.where(batch['candidates'][:, None], ends_B2L, _IMPOSSIBLE)
    losses_B2, _ = _labels(ends_B2L, batch['labels'])
    best_B2 = _best_answer(ends_B2L[:, 0], ends_B2L[:, 1])
    correct_B = jnp.all(best_B2 == batch['labels'], axis=-1)
    return Outcome(losses_B2.mean(-1), correct_B, batch['weights'], best_B2)


def _best_answer(starts_BL: jax.Array, ends_BL: jax.Array) -> jax.Array:
    """First and last token of highest total that are in order, int32 [B, 2]."""
    best_end_BL = jax.lax.cummax(ends_BL, axis=1, reverse=True)
    first_B1 = jnp.argmax(starts_BL + best_end_BL, axis=1, keepdims=True)
    behind_BL = jnp.arange(ends_BL.shape[1]) >= first_B1
    last_B = jnp.argmax(jnp.where(behind_BL, ends_BL, -jnp.inf), axis=1)
    return jnp.stack([first_B1[:, 0], last_B], axis=-1).astype(jnp.int32)
