"""Attention of all kinds: padding, causality, local, dtypes, errors."""

import functools

import attention_oracles as oracles
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reformer_jax import attention
from reformer_jax.attention import hashing
from reformer_jax.attention import kinds
from reformer_jax.attention import numerics

# ---------------------------------------------------------------- padding


@pytest.mark.parametrize('rule', kinds.RULES)
def test_lsh_ignores_the_content_of_padding(rule):
    qk, v, direction = oracles.inputs(32)
    mask = oracles.mask(32)
    pads = ~mask[:, :, None, None]
    rotations = oracles.normal(2, 6, 2, 2, seed=9)
    attend = jax.jit(
        functools.partial(oracles.hashed_lsh, rule=rule, mask=jnp.asarray(mask))
    )
    out = attend(qk, v, rotations)
    other_qk, other_v = np.where(pads, (9 * direction, 99 * direction), (qk, v))
    other = attend(other_qk, other_v, rotations)
    np.testing.assert_array_equal(out[mask], other[mask])


@pytest.mark.parametrize('kind', ['full', 'shared', 'local'])
@pytest.mark.parametrize('causal', [True, False])
def test_full_and_local_ignore_the_content_of_padding(kind, causal):
    q, k, v, direction = oracles.inputs(32, count=3)
    mask = oracles.mask(32)
    pads = ~mask[:, :, None, None]

    if kind == 'local':
        attend = oracles.local(attention.Local(causal, chunk_length=4), mask)
    else:
        attend = oracles.full(attention.Full(causal, kind == 'shared'), mask)
        k = q if kind == 'shared' else k
    attend = jax.jit(attend)
    others = np.where(pads, 9 * direction, (q, k, v))
    out, other = attend(q, k, v), attend(*others)
    np.testing.assert_array_equal(out[mask], other[mask])


@pytest.mark.parametrize(
    ('rule', 'real'), [('reformer', 16), ('strict', 16), ('strict', 13)]
)
def test_a_padded_sequence_is_the_sequence_alone(rule, real):
    qk, v, _ = oracles.inputs(28)
    rotations = oracles.normal(2, 6, 2, 2, seed=9)
    mask = np.broadcast_to(np.arange(28) < real, (2, 28))
    attend = functools.partial(oracles.hashed_lsh, rule=rule)
    padded = oracles.jit(functools.partial(attend, mask=jnp.asarray(mask)))(
        qk, v, rotations
    )
    if real % 4:  # alone, its length must still be a multiple of the chunk
        buckets = hashing.hash_vectors(qk, rotations, buckets=4)[..., :real]
        kind = attention.LSH(chunk_length=4, rule=rule)
        seen = oracles.numbers_seen(kind, buckets)
        alone = oracles.slow_shared_qk(qk[:, :real], v[:, :real], *seen)
    else:
        alone = oracles.jit(attend)(qk[:, :real], v[:, :real], rotations)
    np.testing.assert_allclose(padded[:, :real], alone, rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------- causality


def _causal_attention(kind):
    """Attention of q, k, v [B, 32, H, K] that hashes anew, or with fixed buckets."""
    if kind == 'full':
        return oracles.full(attention.Full())
    if kind == 'local':
        return oracles.local(attention.Local(chunk_length=4))
    if kind == 'shared':
        attend = oracles.shared(attention.Full(shared_qk=True))
    elif kind == 'strict':
        rotations = oracles.normal(2, 6, 4, 2, seed=9)
        attend = functools.partial(oracles.hashed_lsh, rotations=rotations)
    else:
        buckets = oracles.buckets(32, rounds=4)
        lsh = attention.LSH(chunk_length=4, rule=kind)
        attend = oracles.lsh(lsh, buckets_BHRL=buckets)
    return lambda q, k, v: attend(q, v)


KINDS = ['full', 'shared', 'local', 'strict', 'reformer', 'bucket', 'trax']


@pytest.mark.parametrize('kind', KINDS)
def test_the_future_changes_no_output(kind):
    inputs = oracles.inputs(32, count=3)[:3]
    attend = jax.jit(_causal_attention(kind))
    out = np.asarray(attend(*inputs))
    # In the strict rule the keys stay but move within their window: another order of
    # summation. For the others there is no difference at all.
    tolerance = 1e-6 if kind == 'strict' else 0.0
    for seed in range(8):
        change = 3 * oracles.normal(*inputs[0].shape, seed=100 + seed)
        for start in (31, 17):
            future = (np.arange(32) >= start)[:, None, None]
            other = np.asarray(attend(*(x + change * future for x in inputs)))
            assert not np.allclose(out[:, start:], other[:, start:])
            np.testing.assert_allclose(
                out[:, :start], other[:, :start], rtol=0, atol=tolerance
            )


@pytest.mark.parametrize('kind', KINDS)
def test_the_future_has_no_gradient(kind):
    *inputs, direction = oracles.inputs(32, count=3)
    past = direction * (np.arange(32) < 18)[:, None, None]
    _, gradients = oracles.value_and_gradients(_causal_attention(kind), inputs, past)
    for gradient in gradients[:: 2 if kind not in ('full', 'local') else 1]:
        np.testing.assert_array_equal(gradient[:, 18:], 0.0)
        assert np.abs(gradient[:, :17]).max() > 0.01


def test_strict_depends_on_the_past_alone():
    qk, v, _ = oracles.inputs(32)
    rotations = oracles.normal(2, 6, 2, 2, seed=9)
    attend = oracles.jit(oracles.hashed_lsh)
    whole = attend(qk, v, rotations)
    cut = attend(qk[:, :20], v[:, :20], rotations)
    np.testing.assert_allclose(whole[:, :20], cut, rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------- local


@pytest.mark.slow
@pytest.mark.parametrize(
    'causal before after length masked steps'.split(),
    [
        (True, 1, 0, 36, False, 'some'),  # steps of three chunks of nine
        (True, 2, 0, 28, True, 'some'),  # a prime number of chunks
        (True, 0, 0, 36, False, 'huge'),
        (False, 1, 1, 36, True, 'some'),
        (False, 0, 2, 28, True, 'tiny'),
        (False, 1, 0, 36, True, 'huge'),
        (True, 1, 0, 4, True, 'some'),  # one chunk: full attention
        (True, 1, 0, 3, False, 'some'),
    ],
)
def test_local_is_dense_within_a_band(
    logits_per_step, causal, before, after, length, masked, steps
):
    logits_per_step(oracles.STEPS[steps])
    *inputs, direction = oracles.inputs(length, count=3)
    mask = oracles.mask(length) if masked else np.ones((2, length), bool)
    direction *= mask[:, :, None, None]
    chunk = np.arange(length) // 4
    ahead = chunk[None, :] - chunk[:, None]
    allowed = (ahead >= -before) & (ahead <= after)
    allowed = np.tril(allowed) if causal else allowed
    allowed = allowed & mask[:, None, None, :]
    kind = attention.Local(causal, 4, chunks_before=before, chunks_after=after)
    local = oracles.local(kind, mask if masked else None)
    dense = functools.partial(oracles.dense, allowed=allowed, scale=6**-0.5)
    out, gradients = oracles.value_and_gradients(local, inputs, direction)
    wanted, wanted_gradients = oracles.value_and_gradients(dense, inputs, direction)
    np.testing.assert_allclose(out[mask], wanted[mask], rtol=1e-5, atol=1e-5)
    for gradient, wanted_gradient in zip(gradients, wanted_gradients, strict=True):
        oracles.assert_near(gradient, wanted_gradient)


# ---------------------------------------------------------------- dtypes, transforms


@pytest.mark.slow
@pytest.mark.parametrize(
    ('kind', 'v_dtype'),
    [
        ('full', jnp.bfloat16),
        ('shared', jnp.float32),
        ('local', jnp.bfloat16),
        ('strict', jnp.bfloat16),
        ('strict', jnp.float32),
    ],
)
def test_bfloat16_is_close_and_outputs_have_the_dtype_of_v(kind, v_dtype):
    q, k, v, direction = (x.astype(jnp.bfloat16) for x in oracles.inputs(32, count=3))
    low = q, k, v.astype(v_dtype)
    high = [x.astype(np.float32) for x in low]
    direction = direction.astype(v_dtype)
    attend = _causal_attention(kind)
    out, gradients = oracles.value_and_gradients(attend, low, direction)
    wanted, wanted_gradients = oracles.value_and_gradients(
        attend, high, direction.astype(np.float32)
    )
    assert out.dtype == v_dtype
    oracles.assert_near(out.astype(np.float32), wanted, 0.01)
    for gradient, wanted_gradient, x in zip(
        gradients, wanted_gradients, low, strict=True
    ):
        assert gradient.dtype == x.dtype
        if np.any(wanted_gradient):
            oracles.assert_near(gradient.astype(np.float32), wanted_gradient, 0.02)


@pytest.mark.parametrize('kind', ['full', 'local', 'strict'])
def test_checkpoint_changes_no_gradient(kind):
    *inputs, direction = oracles.inputs(32, count=3)
    attend = _causal_attention(kind)
    plain = oracles.value_and_gradients(attend, inputs, direction)
    saved = oracles.value_and_gradients(jax.checkpoint(attend), inputs, direction)
    jax.tree.map(np.testing.assert_array_equal, plain, saved)


def test_keys_have_unit_length_and_zero_is_safe():
    qk = oracles.normal(5, 6) * (np.arange(5) != 2)[:, None]
    keys = oracles.jit(numerics.unit_keys)(qk.astype(jnp.bfloat16))
    assert keys.dtype == jnp.float32
    np.testing.assert_allclose(
        np.linalg.norm(keys, axis=-1), [1, 1, 0, 1, 1], rtol=1e-5
    )
    gradient = oracles.jit(jax.grad(lambda qk: numerics.unit_keys(qk).sum()))(qk)
    assert np.isfinite(gradient).all()


# ---------------------------------------------------------------- errors


CHUNKED = [attention.LSH, attention.Local]


@pytest.mark.parametrize('make', CHUNKED)
def test_length_that_chunks_do_not_divide_is_rejected(make):
    x, ids = jax.ShapeDtypeStruct((2, 10, 2, 6), 'float32'), oracles.buckets(10)
    with pytest.raises(
        ValueError, match=r'length 10 .* chunk_length=4: use length 8 or 12, or ano'
    ):
        if make is attention.LSH:
            jax.eval_shape(oracles.lsh(make(chunk_length=4)), x, x, ids)
        else:
            jax.eval_shape(oracles.local(make(chunk_length=4)), x, x, x)


@pytest.mark.parametrize('make', CHUNKED)
@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'chunk_length': 0}, r'chunk_length=0 must be at least 1'),
        (
            {'chunks_before': -1},
            r'chunks_before=-1, chunks_after=0: neither may be neg',
        ),
        (
            {'chunks_after': -2, 'causal': False},
            r'chunks_before=1, chunks_after=-2: neither may be negative',
        ),
        ({'chunks_after': 2}, r'chunks_after=2 .* set it to 0, or causal=False'),
    ],
)
def test_impossible_chunks_are_refused_where_a_kind_is_made(make, settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)


@pytest.mark.parametrize('make', [attention.Full, *CHUNKED])
@pytest.mark.parametrize('rate', [-0.1, 1.0])
def test_impossible_dropout_is_refused_where_a_kind_is_made(make, rate):
    with pytest.raises(ValueError, match=rf'dropout={rate} is no rate in \[0, 1\)'):
        make(dropout=rate)


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'rounds': 0}, r'rounds=0 must be at least 1'),
        ({'buckets': 5}, r'buckets=5: 5 is not an even number .*; use 6'),
        ({'buckets': (4, 3)}, r'buckets=\(4, 3\): 3 is not an even number .*; use 4'),
        (
            {'rule': 'loose'},
            r"rule='loose' is none of \('reformer', 'bucket', 'trax', 'strict'\)",
        ),
        (
            {'rule': 'strict', 'causal': False},
            r'chunks_before=1 and chunks_after=0, not causal=False, .*: change them or',
        ),
        (
            {'rule': 'strict', 'chunks_before': 2},
            r'chunks_before=1 and chunks_after=0, not .* chunks_before=2, .*: change',
        ),
        (
            {'rule': 'strict', 'exact': True},
            r"exact=True does not go with the strict rule.*: use rule='reformer'",
        ),
        (
            {'implementation': 'fast'},
            r"implementation='fast' is none of \('', 'xla', .*'mosaic_tpu'\)",
        ),
    ],
)
def test_impossible_lsh_is_refused_where_it_is_made(settings, message):
    with pytest.raises(ValueError, match=message):
        attention.LSH(**settings)
