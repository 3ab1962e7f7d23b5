"""Losses, accuracies and predictions of each head, against their definitions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_models as models

from reformer_jax import model as model_lib
from reformer_jax.stack import compilation
from reformer_jax.training import step as step_lib

_LENGTH = 12


def _tokens(seed=0):
    return np.random.default_rng(seed).integers(0, 11, (3, _LENGTH))


def _batch(**arrays):
    mask = np.ones((3, _LENGTH), bool)
    mask[1, 5:] = False
    weights = np.float32([1, 2, 0])
    return {'tokens': _tokens(), 'mask': mask, 'weights': weights, **arrays}


def _model(head, **changes):
    return models.build(causal=False, head=head, **changes)


def _log_softmax(x):
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def _sums(model, batch):
    total, predictions = jax.jit(step_lib.evaluate)(model, batch)
    return {name: float(value) for name, value in total.items()}, predictions


def _logits(model, batch):
    call = jax.jit(lambda model, tokens, mask: model(tokens, mask))
    return np.asarray(call(model, batch['tokens'], batch['mask']), np.float64)


def test_masked_tokens():
    """Read as they are, not shifted; only the chosen places count."""
    model = _model('masked_lm', loss_chunk_length=5)
    chosen = (np.random.default_rng(1).random((3, _LENGTH)) < 0.3).astype(np.float32)
    batch = _batch(targets=_tokens(1), weights=chosen)
    total, predictions = _sums(model, batch)
    logp = _log_softmax(_logits(model, batch))
    nll = -np.take_along_axis(logp, batch['targets'][..., None], -1)[..., 0]
    assert total['loss'] == pytest.approx((nll * chosen).sum(), rel=1e-5)
    assert total['weight'] == chosen.sum()
    correct = logp.argmax(-1) == batch['targets']
    assert total['accuracy'] == (correct * chosen).sum()
    assert predictions is None


@pytest.mark.slow
def test_targets_of_a_source():
    model = models.build(pattern=('full',), encoder={'layers': 1})
    batch = {'source': _tokens(1), 'source_mask': _batch()['mask'], 'tokens': _tokens()}
    batch['weights'] = np.random.default_rng(2).random((3, _LENGTH), np.float32)
    total, _ = _sums(model, batch)

    @jax.jit
    def logits_of(model, batch):
        memory = model.read_source(batch['source'], batch['source_mask'])
        return model(
            model_lib.shift_right(model.config, batch['tokens']), memory=memory
        )

    logp = _log_softmax(np.asarray(logits_of(model, batch), np.float64))
    nll = -np.take_along_axis(logp, batch['tokens'][..., None], -1)[..., 0]
    assert total['loss'] == pytest.approx((nll * batch['weights']).sum(), rel=1e-5)


def test_next_tokens_with_and_without_a_start_token():
    tokens = _tokens()
    weights = np.ones((3, _LENGTH), np.float32)
    weights[2, 4:] = 0
    for start in (0, 7, -1):
        model = models.build(start_token=start, pattern=('local',))
        total, _ = _sums(model, {'tokens': tokens, 'weights': weights})
        read = tokens
        if start >= 0:
            read = np.concatenate([np.full((3, 1), start), tokens], axis=1)
        logp = _log_softmax(
            np.asarray(jax.jit(model_lib.Reformer.__call__)(model, read))
        )
        targets, counted = (
            (tokens, weights)
            if start >= 0
            else (
                tokens[:, 1:],
                weights[:, 1:],
            )
        )
        picked = np.take_along_axis(logp[:, : targets.shape[1]], targets[..., None], -1)
        wanted = -(picked[..., 0] * counted).sum()
        assert total['loss'] == pytest.approx(wanted, rel=1e-4)
        assert total['weight'] == counted.sum()


def test_in_parts_as_at_once():
    """Rows in the caller's order: a part has some of every device's."""
    model = _model('classification', classes=4)
    rows = {name: np.concatenate([x, x[::-1]]) for name, x in _batch().items()}
    batch = rows | {'tokens': np.concatenate([_tokens(), _tokens(1)])}
    batch |= {'labels': np.int32([3, 0, 1, 2, 2, 0])}
    total, predictions = _sums(model, batch)
    in_parts = jax.jit(functools.partial(step_lib.evaluate, accumulate=3))
    other, same = in_parts(model, batch)
    np.testing.assert_allclose(same, predictions, rtol=1e-5)
    assert other == pytest.approx(total, rel=1e-5)
    spread = np.ptp(np.asarray(predictions), axis=0)
    assert spread.max() > 1e-3


def test_one_class():
    model = _model('classification', classes=4)
    labels = np.int32([3, 0, 1])
    batch = _batch(labels=labels)
    total, predictions = _sums(model, batch)
    logits = _logits(model, batch)
    nll = -_log_softmax(logits)[np.arange(3), labels]
    assert total['loss'] == pytest.approx(nll @ batch['weights'], rel=1e-5)
    correct = logits.argmax(-1) == labels
    assert total['accuracy'] == correct @ batch['weights']
    np.testing.assert_allclose(predictions, logits, atol=1e-5)


def test_several_classes():
    model = _model('classification', classes=4)
    labels = np.float32([[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
    batch = _batch(labels=labels)
    logits = _logits(model, batch)
    p = 1 / (1 + np.exp(-logits))
    nll = -(labels * np.log(p) + (1 - labels) * np.log(1 - p)).mean(-1)
    total, _ = _sums(model, batch)
    assert total['loss'] == pytest.approx(nll @ batch['weights'], rel=1e-5)
    fitting = _batch(labels=np.float32(logits > 0))
    assert _sums(model, fitting)[0]['accuracy'] == 3
    wrong = fitting['labels'].copy()
    wrong[1, 2] = 1 - wrong[1, 2]
    assert _sums(model, _batch(labels=wrong))[0]['accuracy'] == 1


def test_regression():
    model = _model('classification', classes=1)
    labels = np.float32([0.5, -2, 9])
    total, _ = _sums(model, _batch(labels=labels))
    error = np.square(_logits(model, _batch())[:, 0] - labels)
    assert total['loss'] == pytest.approx(error @ _batch()['weights'], rel=1e-5)
    assert np.isnan(total['accuracy'])


def test_labels_of_tokens():
    model = _model('token_classification', classes=3)
    labels = np.random.default_rng(1).integers(0, 3, (3, _LENGTH)).astype(np.int32)
    weights = np.float32(np.random.default_rng(2).integers(0, 2, (3, _LENGTH)))
    batch = _batch(labels=labels, weights=weights)
    total, predictions = _sums(model, batch)
    logits = _logits(model, batch)
    nll = -np.take_along_axis(_log_softmax(logits), labels[..., None], -1)[..., 0]
    assert total['loss'] == pytest.approx((nll * weights).sum(), rel=1e-5)
    np.testing.assert_array_equal(predictions, logits.argmax(-1))
    assert total['accuracy'] == ((logits.argmax(-1) == labels) * weights).sum()


def test_answers():
    """Each end among the candidates; the best pair in order."""
    model = _model('question_answering')
    candidates = np.random.default_rng(3).random((3, _LENGTH)) < 0.6
    labels = np.int32(
        [[np.flatnonzero(row)[0], np.flatnonzero(row)[-1]] for row in candidates]
    )
    batch = _batch(labels=labels, candidates=candidates)
    total, predictions = _sums(model, batch)
    ends = np.where(candidates[..., None], _logits(model, batch), -np.inf)
    nll = 0
    for end in range(2):
        logp = _log_softmax(ends[..., end])
        nll = nll - logp[np.arange(3), labels[:, end]] / 2
    assert total['loss'] == pytest.approx(nll @ batch['weights'], rel=1e-5)
    for row in range(3):
        sums = ends[row, :, None, 0] + ends[row, None, :, 1]
        sums[np.tril_indices(_LENGTH, -1)] = -np.inf
        best = np.unravel_index(np.argmax(sums), sums.shape)
        np.testing.assert_array_equal(predictions[row], best)


def test_a_model_without_a_head_says_so():
    model = models.build(head='none')
    assert jax.eval_shape(model.encode, jnp.asarray(_tokens())).shape == (3, 12, 16)
    for call in (lambda: model(_tokens()), lambda: step_lib.outcome(model, _batch())):
        with pytest.raises(ValueError, match="model.head='none'"):
            call()


@pytest.mark.parametrize('pattern', ['local', 'lsh', 'full'])
def test_large_products_are_inverted_exactly(pattern):
    """From 4,096 rows on XLA would compute a norm otherwise where its sums are needed
    again, as in the backward pass."""
    model = models.build(
        length=4096,
        d_model=16,
        pattern=(pattern,),
        layers=1,
        positions='none',
        lsh_chunk_length=64,
        local_chunk_length=64,
        heads_at_once=1,
    )
    tokens = np.random.default_rng(0).integers(0, 11, (1, 4096))
    batch = {'tokens': tokens, 'weights': np.ones((1, 4096), np.float32)}
    gradients = jax.jit(
        jax.grad(step_lib.sums, argnums=(0, 1), has_aux=True),
        compiler_options=compilation.options(),
    )
    (_, missed), _ = gradients(model, jnp.zeros(()), batch, jax.random.key(0))
    assert missed == 0
