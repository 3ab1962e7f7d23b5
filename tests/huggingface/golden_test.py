"""Parity with Hugging Face transformers: logits, loss, gradients, buckets of its files.

golden/<case>/ holds a random-weight Reformer as transformers 5.23.0 wrote it
(config.json, model.safetensors) and io.npz: input_ids, attention_mask, labels, logits,
loss, the rotations and bucket ids of each LSH layer, and the gradient of the loss by
each parameter. initializer_range is 0.25, so that logits are about 2 in size.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reformer_jax import huggingface
from reformer_jax.attention import hashing
from reformer_jax.huggingface import tensors
from reformer_jax.training import step as step_lib

pytestmark = pytest.mark.optimized

_GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
_CASES = sorted(folder.name for folder in _GOLDEN.iterdir())
_TOLERANCE = 1e-4


def test_cases():
    assert len(_CASES) == 6


@pytest.mark.slow
@pytest.mark.parametrize('case', _CASES)
def test_logits_loss_gradients_and_buckets(case, monkeypatch):
    config, model = huggingface.load(_GOLDEN / case)
    io = np.load(_GOLDEN / case / 'io.npz')
    mask = io['attention_mask'] > 0
    ids = _record_buckets(monkeypatch)

    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss_and_logits(model):
        rotations = _rotations(config, io)
        logits = model(io['input_ids'], mask, hash_rotations=rotations)
        return _loss(config, logits, io), logits

    (loss, logits), gradient = jax.jit(loss_and_logits)(model)
    jax.effects_barrier()
    _check_buckets(config, ids, io, mask)
    for ours, theirs in _logits(logits, io):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=_TOLERANCE)
    np.testing.assert_allclose(loss, io['loss'], rtol=1e-6)
    leaves = jax.tree.leaves(gradient)
    for tensor in tensors.tensors(config):
        theirs = io[f'grad.{tensor.name}']
        np.testing.assert_allclose(
            tensors.to_file(tensor, leaves[tensor.leaf]),
            theirs,
            rtol=0,
            # What should be zero (biases before a softmax) is 1e-8 on both sides.
            atol=_TOLERANCE * max(np.abs(theirs).max(), 1e-3),
            err_msg=tensor.name,
        )


def _record_buckets(monkeypatch):
    ids, hash_vectors = [], hashing.hash_vectors

    def recorded(*args, **options):
        buckets = hash_vectors(*args, **options)
        jax.debug.callback(lambda x: ids.append(np.asarray(x)), buckets, ordered=True)
        return buckets

    monkeypatch.setattr(hashing, 'hash_vectors', recorded)
    return ids


def _check_buckets(config, ids, io, mask):
    theirs = [io[name] for name in _of_layers(config, 'buckets') if name in io]
    count = int(np.prod(config.buckets)) + (not mask.all())
    offsets = count * np.arange(config.rounds)[:, None]
    for ours, of_layer in zip(ids, theirs, strict=True):
        # Theirs are [B, H, R * L], counted on from round to round, and those of
        # padding are one of their own.
        of_layer = of_layer.reshape(ours.shape) - offsets
        real = np.broadcast_to(mask[:, None, None], ours.shape)
        np.testing.assert_array_equal(ours[real], of_layer[real])
        np.testing.assert_array_equal(of_layer[~real], count - 1)


def _loss(config, logits, io):
    def cross_entropy(logits, labels, counted):
        log_p = jax.nn.log_softmax(logits)
        picked = jnp.take_along_axis(log_p, labels[..., None], -1)[..., 0]
        return -jnp.sum(picked * counted) / counted.sum()

    ones = np.ones_like(io['input_ids'], np.float32)
    match config.head:
        case 'lm':
            _, targets, weights = step_lib.lm_batch(config, io['input_ids'], ones)
            return cross_entropy(logits, targets, weights)
        case 'masked_lm':
            counted = io['labels'] != -100
            return cross_entropy(logits, np.where(counted, io['labels'], 0), counted)
        case 'classification':
            return cross_entropy(logits, io['labels'], ones[:, 0])
    ends = np.stack([io['start_positions'], io['end_positions']], axis=1)
    return cross_entropy(jnp.swapaxes(logits, 1, 2), ends, ones[:, :2])


def _logits(logits, io):
    """Pairs of ours and theirs, with the batch and length first."""
    if 'logits' in io:
        theirs = io['logits']
        if theirs.ndim == 3:
            return [(np.asarray(logits), theirs)]
        length = io['input_ids'].shape[1]
        ours = np.asarray(logits)
        return [tuple(np.repeat(x[:, None], length, axis=1) for x in (ours, theirs))]
    ends = np.moveaxis(np.asarray(logits), 2, 0)
    return list(zip(ends, (io['start_logits'], io['end_logits']), strict=True))


def _of_layers(config, what):
    return [f'{what}.{layer}' for layer in range(config.layers)]


def _rotations(config, io):
    """The rotations of each layer, None for those that do not hash."""
    if not any(name.startswith('rotations') for name in io):
        return None
    return [
        jnp.asarray(io[name]) if name in io else None
        for name in _of_layers(config, 'rotations')
    ]
