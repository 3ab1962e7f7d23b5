"""The pure half of training: losses and predictions of a batch, and one step.

Batches are those of reformer_jax/data. Shape letters: B sequences, L tokens, V
vocabulary, C classes, U what is predicted: [B, L] or [B].
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from reformer_jax import model as model_lib
from reformer_jax import sharding
from reformer_jax.model import config as model_config
from reformer_jax.stack import chunking
from reformer_jax.stack import parts
from reformer_jax.training import optimizer as optimizer_lib
from reformer_jax.training import state as state_lib

Batch = Mapping[str, jax.Array]
Sums = dict[str, jax.Array]
TrainState = state_lib.TrainState

_IMPOSSIBLE = -1e9


class Outcome(NamedTuple):
    """What a model makes of a batch.

    Attributes:
      losses_U: negative log-likelihood in nats, squared error in regression.
      trained_U: what training minimizes: the losses, but for label smoothing.
      correct_U: whether the likeliest prediction is right; NaN in regression.
      weights_U: how much each counts.
      predictions: what Dataset.score takes, [B, ...]; None for language models.
      largest_stream: largest absolute value of the last streams.
    """

    losses_U: jax.Array
    trained_U: jax.Array
    correct_U: jax.Array
    weights_U: jax.Array
    predictions: jax.Array | None
    largest_stream: jax.Array


def train_step(
    state: TrainState,
    batch: Batch,
    key: jax.Array,
    *,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    accumulate: int,
    config: optimizer_lib.OptimizerConfig = optimizer_lib.OptimizerConfig(),  # noqa: B008, it is immutable
) -> tuple[TrainState, Sums]:
    """One optimizer step on the mean loss of the batch; returns its sums as well.

    With config.skips the state stays as it is, but for the number of steps, where they
    are not finite or there is a spike: 'skipped' then is True.
    """
    key = jax.random.fold_in(key, state.step)
    gradients_of = jax.grad(sums, argnums=(0, 1), has_aux=True)
    of_part = functools.partial(gradients_of, state.model, jnp.zeros(()))
    if accumulate == 1:
        (gradient, missed), total = of_part(batch, jax.random.fold_in(key, 0))
    else:
        batches = _parts(batch, accumulate)
        first = jax.tree.map(lambda x: x[0], batches)
        shapes = jax.eval_shape(of_part, first, key)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

        def add_part(so_far, inputs):
            part, index = inputs
            gradients, total = of_part(part, jax.random.fold_in(key, index))
            gradients = jax.tree.map(jnp.add, so_far[0], gradients)
            return (gradients, _together(so_far[1], total)), None

        ((gradient, missed), total), _ = jax.lax.scan(
            add_part, zeros, (batches, jnp.arange(accumulate))
        )
    gradient = jax.tree.map(lambda g: g / jnp.maximum(total['weight'], 1.0), gradient)
    gradient = optimizer_lib.without_frozen(config.frozen, gradient)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.model)
    sides = state.model.config, state.model.config.encoder
    if any(map(_has_exact_inversion, sides)):
        total['missed'] = missed
    total['grad_norm'] = optax.tree.norm(gradient)
    total['learning_rate'] = schedule(state.step)
    model = optax.apply_updates(state.model, updates)
    total['parameter_norm'] = optax.tree.norm(model)
    if config.spike:
        total['spike'] = optimizer_lib.of_mean(total['grad_norm'], state.opt_state)
    if config.skips:
        total['skipped'] = wrong = _is_wrong(config, total)
        model, opt_state = jax.tree.map(
            lambda old, new: jnp.where(wrong, old, new),
            (state.model, state.opt_state),
            (model, opt_state),
        )
    return TrainState(state.step + 1, model, opt_state), total


def _is_wrong(config: optimizer_lib.OptimizerConfig, total: Sums) -> jax.Array:
    names = ('loss', 'grad_norm', 'parameter_norm')
    wrong = ~jnp.isfinite(jnp.stack([total[name] for name in names])).all()
    return wrong | (total['spike'] > config.spike) if config.spike else wrong


def _together(a: Sums, b: Sums) -> Sums:
    largest = jnp.maximum(a['largest_stream'], b['largest_stream'])
    return jax.tree.map(jnp.add, a, b) | {'largest_stream': largest}


def _parts(batch: Batch, count: int) -> Batch:
    """[B, L] -> [count, B / count, L], each part with rows of every device."""
    return {
        name: jnp.swapaxes(x.reshape(-1, count, *x.shape[1:]), 0, 1)
        for name, x in batch.items()
    }


def sums(
    model: model_lib.Reformer, watch: jax.Array, batch: Batch, key: jax.Array
) -> tuple[jax.Array, Sums]:
    """Of a training batch: weighted sum of what is minimized, what means are made of.

    The gradient of `watch` counts where a reversible stack missed its inputs.
    """
    result = outcome(model, batch, key=key, train=True, watch=watch)
    trained = jnp.sum(result.trained_U * result.weights_U)
    total = _sums(result) | {'largest_stream': result.largest_stream}
    total |= _tokens(batch)
    if model.config.label_smoothing:
        total['smoothed_loss'] = trained
    return trained, total


def evaluate(
    model: model_lib.Reformer, batch: Batch, *, accumulate: int = 1
) -> tuple[Sums, jax.Array | None]:
    """Sums and predictions of a batch without dropout, with the same hashes always; in
    as many parts as a training step, lest it need more memory."""
    if accumulate == 1:
        result = outcome(model, batch)
        return _sums(result), result.predictions
    of_part = functools.partial(evaluate, model)
    totals, predictions = jax.lax.map(of_part, _parts(batch, accumulate))
    in_order = jax.tree.map(
        lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), predictions
    )
    return jax.tree.map(lambda x: x.sum(axis=0), totals), in_order


def outcome(
    model: model_lib.Reformer,
    batch: Batch,
    *,
    key: jax.Array | None = None,
    train: bool = False,
    watch: jax.Array | None = None,
) -> Outcome:
    """Runs the model on a batch of its kind; `watch` is that of Reformer.streams."""
    head, tokens_BL, mask_BL = model.config.head, batch['tokens'], batch.get('mask')
    weights_U, targets_BL = batch['weights'], batch.get('targets')
    if head == 'none':
        raise ValueError("model.head='none' has nothing to predict: set a head.")
    if head == 'lm':
        tokens_BL, targets_BL, weights_U = lm_batch(model.config, tokens_BL, weights_U)
        mask_BL = None
    memory, encoder = None, model.config.encoder
    if 'source' in batch:
        memory = model.read_source(
            batch['source'],
            batch.get('source_mask'),
            key=key,
            train=train,
            watch=watch if _has_exact_inversion(encoder) else None,
        )
    streams = model.streams(
        tokens_BL,
        mask_BL,
        key=key,
        train=train,
        watch=watch if _has_exact_inversion(model.config) else None,
        memory=memory,
    )
    largest = jnp.maximum(*(jnp.abs(y).max() for y in jax.lax.stop_gradient(streams)))
    with jax.named_scope('loss'):
        if targets_BL is not None:
            losses_of = functools.partial(_losses, targets_BL.shape[1], train)
            trained_BL, nll_BL, correct_BL = parts.on_parts(
                losses_of,
                sharding.split(targets_BL.shape),
                (model, key),
                (streams, targets_BL),
            )
            others = jax.lax.stop_gradient((nll_BL, largest))
            trained_BL = chunking.known_first(trained_BL, others)
            return Outcome(nll_BL, trained_BL, correct_BL, weights_U, None, largest)
        logits = model.logits(streams, mask_BL, key=key, train=train)
        match head:
            case 'classification':
                found = _classes(logits, batch['labels'])
            case 'token_classification':
                best_BL = logits.argmax(-1).astype(jnp.int32)
                found = *_labels(logits, batch['labels']), best_BL
            case _:
                found = _answers(logits, batch)
        losses_U, correct_U, predictions = found
        return Outcome(losses_U, losses_U, correct_U, weights_U, predictions, largest)


def _losses(length: int, train: bool, whole: Any, split: Any) -> Any:
    """chunking.cross_entropy of a device's part of so many positions."""
    (model, key), (streams, targets_BL) = whole, split
    config = model.config
    return chunking.cross_entropy(
        functools.partial(model.logits, key=key, train=train),
        streams,
        targets_BL,
        chunk_length=chunking.of_part(
            config.loss_chunk_length, length, targets_BL.shape[1]
        ),
        label_smoothing=config.label_smoothing,
    )


def _has_exact_inversion(config: model_config.ModelConfig | None) -> bool:
    return config is not None and config.stack == 'reversible' and config.grid_bits > 0


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


def _sums(result: Outcome) -> Sums:
    return {
        'loss': jnp.sum(result.losses_U * result.weights_U),
        'accuracy': jnp.sum(result.correct_U * result.weights_U),
        'weight': jnp.sum(result.weights_U),
    }


def _tokens(batch: Batch) -> Sums:
    """Tokens of a batch; where it has sources too, without padding, and theirs."""
    if 'source' not in batch:
        return {'tokens': jnp.int32(batch['tokens'].size)}
    sources = jnp.count_nonzero(
        batch.get('source_mask', jnp.ones_like(batch['source']))
    )
    return {'tokens': jnp.count_nonzero(batch['weights']), 'source_tokens': sources}


def _labels(logits: jax.Array, labels_U: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Negative log-likelihood of labels [U] under logits [U, C]; likeliest or not."""
    logp = jax.nn.log_softmax(logits)
    nll_U = -chunking.at_classes(logp, labels_U)
    return nll_U, logits.argmax(-1) == labels_U


def _classes(logits_BC: jax.Array, labels: jax.Array) -> tuple[jax.Array, ...]:
    """One class (int labels [B]), several (float [B, C]) or a number (float [B])."""
    if jnp.issubdtype(labels.dtype, jnp.integer):
        losses_B, correct_B = _labels(logits_BC, labels)
    elif labels.ndim == 2:
        signs_BC = 2 * labels - 1
        losses_B = jax.nn.softplus(-signs_BC * logits_BC).mean(-1)
        correct_B = jnp.all(signs_BC * logits_BC > 0, axis=-1)
    else:
        losses_B = jnp.square(logits_BC[:, 0] - labels)
        correct_B = jnp.full_like(losses_B, jnp.nan)
    return losses_B, correct_B, logits_BC


def _answers(logits_BL2: jax.Array, batch: Batch) -> tuple[jax.Array, ...]:
    """The ends of an answer, each among the candidates; mean of both losses."""
    ends_B2L = jnp.swapaxes(logits_BL2, 1, 2)
    ends_B2L = jnp.where(batch['candidates'][:, None], ends_B2L, _IMPOSSIBLE)
    losses_B2, _ = _labels(ends_B2L, batch['labels'])
    best_B2 = _best_answer(ends_B2L[:, 0], ends_B2L[:, 1])
    correct_B = jnp.all(best_B2 == batch['labels'], axis=-1)
    return losses_B2.mean(-1), correct_B, best_B2


def _best_answer(starts_BL: jax.Array, ends_BL: jax.Array) -> jax.Array:
    """First and last token of highest total that are in order, int32 [B, 2]."""
    best_end_BL = jax.lax.cummax(ends_BL, axis=1, reverse=True)
    first_B1 = jnp.argmax(starts_BL + best_end_BL, axis=1, keepdims=True)
    behind_BL = jnp.arange(ends_BL.shape[1]) >= first_B1
    last_B = jnp.argmax(jnp.where(behind_BL, ends_BL, -jnp.inf), axis=1)
    return jnp.stack([first_B1[:, 0], last_B], axis=-1).astype(jnp.int32)
