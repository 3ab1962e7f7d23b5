"""Padding leaves no trace: a sequence alone, or anywhere in a row of a batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_models as models

from reformer_jax.model import padding

_ROWS, _WIDTH = 10, 40
_PATTERNS = (('lsh',), ('local',), ('local', 'lsh'), ('full', 'lsh'))


def _random_config(rng):
    """Rules, patterns, chunks and positions of all kinds; 40 tokens at most."""
    causal = bool(rng.integers(2))
    rule = 'strict' if causal and rng.integers(2) else 'reformer'
    after = 0 if causal else int(rng.integers(2))
    changes = {
        'causal': causal,
        'rule': str(rng.choice([rule, 'bucket'])) if rule == 'reformer' else rule,
        'length': _WIDTH,
        'pattern': _PATTERNS[rng.integers(len(_PATTERNS))],
        'local_chunk_length': int(rng.choice([3, 4, 8])),
        'local_chunks_before': int(rng.integers(3)),
        'local_chunks_after': after,
        'lsh_chunk_length': int(rng.choice([4, 6])),
        'lsh_chunks_before': 1 if rule == 'strict' else int(rng.integers(1, 3)),
        'lsh_chunks_after': after,
        'rounds': int(rng.integers(1, 4)),
        'buckets': () if rng.integers(2) else (4,),
        'dense_length': -1 if rng.integers(2) else 0,
        'positions': str(rng.choice(['learned', 'sinusoidal', 'axial'])),
        'axial_shape': (5, 8),
    }
    return {**changes, 'layers': len(changes['pattern'])}


def _placed(rng, length):
    """Which places of a row are real: at the front, at the end, or anywhere."""
    real = np.zeros(_WIDTH, bool)
    match rng.integers(3):
        case 0:
            real[:length] = True
        case 1:
            real[-length:] = True
        case _:
            real[rng.choice(_WIDTH, length, replace=False)] = True
    return real


def _encode(model, tokens, mask=None):
    return np.asarray(jax.jit(type(model).encode)(model, tokens, mask))


@pytest.mark.slow
@pytest.mark.parametrize('case', range(10))
def test_padding_leaves_no_trace(case):
    """10 models, 10 sequences each, of 3 lengths: little is compiled."""
    rng = np.random.default_rng(case)
    changes = _random_config(rng)
    model = models.build(**changes)
    lengths = rng.choice(rng.integers(1, _WIDTH + 1, 3), _ROWS)
    mask = np.stack([_placed(rng, length) for length in lengths])
    tokens = rng.integers(0, 11, (_ROWS, _WIDTH))
    together = _encode(model, jnp.asarray(tokens), jnp.asarray(mask))
    for length in set(lengths):
        rows = np.flatnonzero(lengths == length)
        alone = _encode(model, jnp.stack([tokens[row][mask[row]] for row in rows]))
        for row, hidden in zip(rows, alone, strict=True):
            message = f'{changes}, row of {length} tokens'
            np.testing.assert_allclose(
                together[row][mask[row]], hidden, atol=1e-5, err_msg=message
            )


def test_a_sequence_of_one_chunk_keeps_to_its_buckets():
    """Exact attention would be another function there, unlike without buckets."""
    model = models.build(
        causal=False, pattern=('lsh',), rule='bucket', lsh_chunk_length=8
    )
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 11, (4, 24)))
    mask = jnp.broadcast_to(jnp.arange(24) < 7, tokens.shape)
    together, alone = _encode(model, tokens, mask), _encode(model, tokens[:, :7])
    np.testing.assert_allclose(together[:, :7], alone, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('head', ['masked_lm', 'question_answering', 'classification'])
@pytest.mark.parametrize('pooling', ['first', 'mean', 'last'])
def test_gradients_and_heads(head, pooling):
    """What stands at padding has no part in the outputs of a head or in a gradient."""
    if head != 'classification' and pooling != 'first':
        return
    fields = {'causal': False, 'head': head, 'pooling': pooling, 'classes': 3}
    model = models.build(**fields, local_chunks_after=1, lsh_chunks_after=1)
    rng = np.random.default_rng(0)
    row = rng.integers(0, 11, (1, 13))
    mask = np.zeros((1, 30), bool)
    mask[:, 9:22] = True
    padded = rng.integers(0, 11, (1, 30))
    padded[mask] = row[0]

    def loss(model, tokens, mask):
        out = model(tokens, mask, key=jax.random.key(3), train=True)
        if head != 'classification' and mask is not None:
            out = out[:, 9:22]
        return jnp.sum(jnp.sin(out)), out

    loss = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, wanted), gradient = loss(model, row, None)
    (_, logits), padded_gradient = loss(model, padded, mask)
    np.testing.assert_allclose(logits, wanted, atol=1e-5)
    for a, b in zip(*map(jax.tree.leaves, (padded_gradient, gradient)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * max(1, np.abs(b).max()))


@pytest.mark.slow
@pytest.mark.parametrize('pooling', ['first', 'mean', 'last'])
def test_pooling_is_of_the_real_tokens(pooling):
    model = models.build(
        causal=False, head='classification', pooling=pooling, classes=3
    )
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 11, (2, 16)))
    mask = np.zeros((2, 16), bool)
    mask[0, 3:9] = mask[1, :16] = True

    def compare(model):
        hidden = model.encode(tokens, mask)
        pooled = {
            'first': [hidden[0, 3], hidden[1, 0]],
            'mean': [hidden[0, 3:9].mean(0), hidden[1].mean(0)],
            'last': [hidden[0, 8], hidden[1, 15]],
        }[pooling]
        wanted = model.head(jnp.stack(pooled), jax.random.key(0))
        return model(tokens, mask), wanted

    ours, wanted = jax.jit(compare)(model)
    np.testing.assert_allclose(ours, wanted, atol=1e-5)


@pytest.mark.slow
def test_any_length_trains():
    """Gradients are those of autodiff through the residual stack, at odd lengths."""
    tokens = np.random.default_rng(0).integers(0, 11, (2, 27))

    def gradient(stack):
        model = models.build(stack=stack)

        def loss(model):
            return jnp.sum(jnp.sin(model(tokens, key=jax.random.key(0), train=True)))

        return jax.tree.leaves(jax.jit(jax.grad(loss))(model))

    for ours, wanted in zip(gradient('reversible'), gradient('residual'), strict=True):
        np.testing.assert_allclose(ours, wanted, atol=1e-4 * max(1, abs(wanted).max()))


def test_take_and_its_gradient():
    mask = jnp.asarray([[0, 1, 1, 0, 1], [1, 0, 0, 0, 1]], bool)
    order = padding.real_first(mask)
    np.testing.assert_array_equal(order.order_BL, [[1, 2, 4, 0, 3], [0, 4, 1, 2, 3]])
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 3)))
    moved = padding.take(x, order)
    np.testing.assert_array_equal(moved[0, 2], x[0, 4])
    np.testing.assert_array_equal(padding.take(moved, order.inverse), x)
    weights = jnp.arange(30.0).reshape(2, 5, 3)
    gradient = jax.grad(lambda x: jnp.sum(padding.take(x, order) * weights))(x)
    wanted = jax.grad(
        lambda x: jnp.sum(
            jnp.take_along_axis(x, order.order_BL[..., None], 1) * weights
        )
    )(x)
    np.testing.assert_array_equal(gradient, wanted)
