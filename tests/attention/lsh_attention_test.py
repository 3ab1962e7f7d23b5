"""LSH attention against slow loops and dense autodiff: rules, limits, dropout."""

import functools

import attention_oracles as oracles
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reformer_jax import attention
from reformer_jax.attention import hashing
from reformer_jax.attention import kinds
from reformer_jax.attention import rows
from reformer_jax.attention import windows

# ---------------------------------------------------------------- LSH: the rules

RULE_CASES = [
    # rule, causal, before, after, rounds, length, masked, steps
    ('reformer', True, 1, 0, 1, 28, False, 'huge'),
    ('reformer', True, 1, 0, 4, 28, True, 'some'),
    ('reformer', True, 2, 0, 2, 36, False, 'some'),
    ('reformer', True, 0, 0, 2, 28, True, 'huge'),
    ('reformer', False, 1, 1, 2, 36, True, 'some'),
    ('reformer', False, 0, 2, 4, 28, False, 'tiny'),
    ('reformer', True, 1, 0, 16, 16, False, 'huge'),
    ('bucket', True, 1, 0, 1, 28, False, 'some'),
    ('bucket', True, 2, 0, 4, 36, True, 'huge'),
    ('bucket', False, 1, 2, 2, 28, True, 'some'),
    ('bucket', False, 0, 0, 4, 36, False, 'tiny'),
    ('strict', True, 1, 0, 1, 28, False, 'some'),
    ('strict', True, 1, 0, 2, 36, True, 'huge'),
    ('strict', True, 1, 0, 4, 36, False, 'some'),
    ('trax', True, 1, 0, 1, 28, False, 'some'),
    ('trax', True, 1, 0, 2, 36, True, 'huge'),
    ('trax', True, 2, 0, 4, 28, False, 'tiny'),
    ('trax', True, 0, 0, 4, 36, True, 'some'),
    ('trax', False, 1, 1, 2, 28, True, 'some'),
    ('trax', False, 0, 2, 1, 36, False, 'some'),
    ('trax', False, 2, 2, 1, 8, False, 'huge'),  # rings meet a chunk often
]


@pytest.mark.slow
@pytest.mark.parametrize(
    'rule causal before after rounds length masked steps'.split(),
    RULE_CASES,
)
def test_lsh_is_the_slow_loop(
    logits_per_step, rule, causal, before, after, rounds, length, masked, steps
):
    logits_per_step(oracles.STEPS[steps])
    qk, v, _ = oracles.inputs(length)
    buckets = oracles.buckets(length, rounds=rounds)
    mask = oracles.mask(length) if masked else None
    kind = attention.LSH(causal, 4, before, after, rule=rule)
    out = oracles.jit(oracles.lsh(kind, mask))(qk, v, buckets)
    slow = oracles.slow_shared_qk(qk, v, *oracles.numbers_seen(kind, buckets, mask))
    real = np.ones((2, length), bool) if mask is None else mask
    np.testing.assert_allclose(out[real], slow[real], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('number', [6, 2**29])
def test_lsh_sorts_alike_with_any_bound_on_the_ids(number):
    qk, v, _ = oracles.inputs(28)
    buckets, mask = oracles.buckets(28, rounds=2), oracles.mask(28)
    out, wanted = (
        oracles.jit(oracles.lsh(kind, mask))(qk, v, buckets)
        for kind in (
            attention.LSH(chunk_length=4, buckets=number),
            attention.LSH(chunk_length=4),
        )
    )
    np.testing.assert_array_equal(out, wanted)


@pytest.mark.slow
@pytest.mark.parametrize(
    'rule causal after rounds masked steps'.split(),
    [
        ('reformer', True, 0, 1, False, 'some'),
        ('reformer', True, 0, 4, True, 'huge'),
        ('reformer', False, 1, 2, True, 'some'),
        ('bucket', True, 0, 2, False, 'tiny'),
        ('bucket', False, 1, 2, True, 'huge'),
        ('strict', True, 0, 4, True, 'some'),
        ('trax', True, 0, 2, False, 'huge'),
        ('trax', False, 1, 2, True, 'some'),
    ],
)
def test_lsh_gradients_are_those_of_dense_autodiff(
    logits_per_step, rule, causal, after, rounds, masked, steps
):
    logits_per_step(oracles.STEPS[steps])
    qk, v, direction = oracles.inputs(36)
    buckets = oracles.buckets(36, rounds=rounds)
    mask = oracles.mask(36) if masked else None
    if masked:  # what a pad's query does is of no interest
        direction *= mask[:, :, None, None]
    kind = attention.LSH(causal, 4, chunks_after=after, rule=rule)
    attend = oracles.lsh(kind, mask, buckets_BHRL=buckets)
    _, (dqk, dv) = oracles.value_and_gradients(attend, (qk, v), direction)
    seen, itself = oracles.numbers_seen(kind, buckets, mask)
    dense = functools.partial(oracles.dense_shared_qk, seen=seen, itself=itself)
    _, (dqk_dense, dv_dense) = oracles.value_and_gradients(dense, (qk, v), direction)
    oracles.assert_near(dqk, dqk_dense)
    oracles.assert_near(dv, dv_dense)


# ---------------------------------------------------------------- LSH: limits


@pytest.mark.slow
@pytest.mark.parametrize(
    'rule causal before rounds'.split(),
    [
        ('reformer', True, 0, 1),
        ('reformer', False, 1, 2),
        ('bucket', True, 1, 2),
        ('strict', True, 1, 2),
        ('trax', True, 1, 2),
        ('trax', False, 0, 4),
    ],
)
def test_one_bucket_and_one_chunk_is_full_attention(
    monkeypatch, rule, causal, before, rounds
):
    monkeypatch.setattr(attention.LSH, 'is_exact', lambda kind, length: False)
    qk, v, direction = oracles.inputs(24)
    mask = oracles.mask(24)
    # With the trax rule the first real token, alone, is rounded: see below.
    compared = mask & ((np.cumsum(mask, axis=1) > 1) | (rule != 'trax'))
    direction *= compared[:, :, None, None]
    kind = attention.LSH(causal, 24, chunks_before=before, rule=rule)
    buckets = np.zeros((2, 2, rounds, 24), np.int32)
    attend = oracles.lsh(kind, mask, buckets_BHRL=buckets)
    full = oracles.shared(attention.Full(causal, shared_qk=True), mask)
    out, gradients = oracles.value_and_gradients(attend, (qk, v), direction)
    wanted, wanted_gradients = oracles.value_and_gradients(full, (qk, v), direction)
    oracles.assert_near(out[compared], wanted[compared])
    for gradient, wanted_gradient in zip(gradients, wanted_gradients, strict=True):
        oracles.assert_near(gradient, wanted_gradient)


@pytest.mark.parametrize(('length', 'exact'), [(16, False), (12, False), (32, True)])
def test_exact_lsh_is_full_attention(length, exact):
    qk, v, _ = oracles.inputs(length)
    mask = oracles.mask(length)
    kind = attention.LSH(chunk_length=16, exact=exact)
    out = oracles.jit(oracles.lsh(kind, mask))(qk, v, oracles.buckets(length))
    full = oracles.shared(attention.Full(shared_qk=True), mask)
    np.testing.assert_array_equal(out, oracles.jit(full)(qk, v))


@pytest.mark.slow
@pytest.mark.parametrize('rounds', [1, 4])
@pytest.mark.parametrize('rule', kinds.RULES)
def test_a_token_alone_attends_to_itself(rule, rounds):
    """Wholly; with the trax rule as far as float32 tells -1e5 + log(n) from -1e5."""
    qk, v, direction = oracles.inputs(16)
    buckets = oracles.buckets(16, rounds=rounds)
    kind = attention.LSH(chunk_length=4, rule=rule)
    attend = oracles.lsh(kind, buckets_BHRL=buckets)
    first = direction * (np.arange(16) == 0)[:, None, None]
    out, (dqk, dv) = oracles.value_and_gradients(attend, (qk, v), first)
    _, itself = oracles.numbers_seen(kind, buckets)
    share = itself[:, :, 0, None]
    assert np.all(share == 1) or rule == 'trax'
    np.testing.assert_allclose(out[:, 0], v[:, 0] * share, rtol=1e-6)
    np.testing.assert_array_equal(dqk, 0.0)
    np.testing.assert_allclose(dv[:, 0], first[:, 0] * share, rtol=1e-6)
    np.testing.assert_array_equal(dv[:, 1:], 0.0)


def test_rounding_of_a_token_that_meets_itself_twice():
    """First in a round, last in the one before: there the roundings add up."""
    order = np.array([[0, 1, 2, 3], [1, 2, 3, 0], [0, 1, 2, 3], [1, 2, 3, 0]])
    plan = windows.Plan(
        chunk_length=2,
        chunks_before=1,
        chunks_after=0,
        causal=True,
        circular=True,
        band=None,
        band_in_round=False,
        chunks_per_step=1,
        rows=rows.Rows(1, 1),
        order_free=False,
    )
    ranks = jnp.asarray(np.argsort(order, axis=1), jnp.int32)
    total = windows.probability_of_itself(plan, ranks)
    wanted = oracles.probability_of_itself(np.array([2, 1, 2, 1]))
    np.testing.assert_allclose(total[0], wanted, rtol=1e-6)


def test_alone_in_one_round_gives_way_to_company_in_another():
    qk, v, _ = oracles.inputs(4, batch=1, heads=1)
    buckets = np.array([[[[0, 0, 1, 2], [0, 1, 1, 2], [0, 1, 2, 3]]]], np.int32)
    kind = attention.LSH(chunk_length=2, rule='strict')
    out = oracles.jit(oracles.lsh(kind))(qk, v, buckets)
    wanted = v[:, [0, 0, 1, 3]]  # token 3 is alone in all rounds
    np.testing.assert_allclose(out, wanted, rtol=1e-6)


# ---------------------------------------------------------------- dropout


def _three_attentions(qk, v, key, *, rate):
    """Full, local and LSH attention with dropout."""
    length = qk.shape[1]
    buckets = oracles.buckets(length, rounds=2)[:1, :1]
    buckets = np.broadcast_to(buckets, (2, 2, 2, length))
    full = attention.Full(dropout=rate)
    local = attention.Local(chunk_length=4, dropout=rate)
    lsh = attention.LSH(chunk_length=4, dropout=rate)
    return {
        'full': attention.full_attention(full, qk, qk, v, key=key),
        'local': attention.local_attention(local, qk, qk, v, key=key),
        'lsh': attention.lsh_attention(lsh, qk, v, buckets, key=key),
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    'rule rounds'.split(), [('reformer', 1), ('reformer', 2), ('strict', 2)]
)
def test_lsh_gradients_with_dropout_are_those_of_dense_autodiff(
    logits_per_step, rule, rounds
):
    logits_per_step(oracles.STEPS['some'])
    length = 16
    qk, v, direction = oracles.inputs(length, head_size=length)
    buckets = oracles.buckets(length, rounds=rounds, number=3)
    whole, dropping = (
        attention.LSH(chunk_length=4, rule=rule, dropout=rate) for rate in (0, 0.25)
    )
    given = {'buckets_BHRL': buckets, 'key': jax.random.key(3)}
    attend = oracles.lsh(dropping, **given)
    # Values that name their token turn the output into the probabilities.
    names = np.broadcast_to(np.eye(length, dtype=np.float32)[:, None, :], v.shape)
    kept = np.asarray(oracles.jit(oracles.lsh(whole, **given))(qk, names))
    dropped = oracles.jit(attend)(qk, names)
    dropout = np.divide(dropped, kept, where=kept > 0, out=np.ones_like(kept))
    factors = np.unique(dropout[kept > 0].round(3))
    np.testing.assert_allclose(factors, [0, 1.333], atol=1e-6)
    dropout = np.moveaxis(dropout, 2, 1)

    seen, itself = oracles.numbers_seen(whole, buckets)
    dense = functools.partial(
        oracles.dense_shared_qk, seen=seen, itself=itself, dropout=dropout
    )
    wanted, wanted_gradients = oracles.value_and_gradients(dense, (qk, v), direction)
    out, gradients = oracles.value_and_gradients(attend, (qk, v), direction)
    oracles.assert_near(out, wanted)
    for gradient, wanted_gradient in zip(gradients, wanted_gradients, strict=True):
        oracles.assert_near(gradient, wanted_gradient)


def test_dropout_keeps_the_mean_and_needs_a_key():
    qk, ones = oracles.inputs(16)[0], np.ones((2, 16, 2, 6), np.float32)

    @oracles.jit
    def sums_of_probabilities(keys):
        attend = functools.partial(_three_attentions, qk, ones, rate=0.25)
        return jax.lax.map(attend, keys)

    sums = sums_of_probabilities(jax.random.split(jax.random.key(0), 300))
    for kind, out in sums.items():
        assert abs(float(jnp.mean(out)) - 1) < 0.015, kind
        assert float(jnp.std(out)) > 0.1, kind
    keyless = functools.partial(_three_attentions, key=None, rate=0.25)
    for kind, out in oracles.jit(keyless)(qk, ones).items():
        np.testing.assert_allclose(out, 1.0, rtol=1e-5, err_msg=kind)


def test_dropout_is_shared_over_batch_and_heads():
    qk, v, _ = oracles.inputs(16)
    qk, v = (np.broadcast_to(x[:1, :, :1], x.shape) for x in (qk, v))
    attend = functools.partial(_three_attentions, rate=0.25)
    for kind, out in oracles.jit(attend)(qk, v, jax.random.key(0)).items():
        wanted = np.broadcast_to(out[:1, :, :1], out.shape)
        np.testing.assert_array_equal(out, wanted, err_msg=kind)


@pytest.mark.slow
@pytest.mark.parametrize(
    'chunk_length, head_size',
    [(4, 4), (16, 8), (64, 33), (64, 48), (64, 64), (128, 16), (256, 64)],
)
def test_strict_outputs_have_no_trace_of_later_tokens(chunk_length, head_size):
    """Bit for bit, though later tokens move a key's place in the sorted chunks."""
    length, rng = 8 * chunk_length, np.random.default_rng(0)
    rotations = hashing.random_rotations(
        jax.random.key(0), heads=2, head_size=head_size, rounds=2, buckets=4
    )
    kind = attention.LSH(chunk_length=chunk_length, buckets=4, rule='strict')

    @jax.jit
    def attend(qk, v):
        buckets = hashing.hash_vectors(qk, rotations, buckets=4)
        return attention.lsh_attention(kind, qk, v, buckets)

    shape = 1, length, 2, head_size
    before = [rng.normal(size=shape).astype(np.float32) for _ in range(2)]
    for first in rng.integers(length // 2, length, 4):
        after = [x.copy() for x in before]
        for x in after:
            x[:, first:] = rng.normal(size=x[:, first:].shape)
        outputs = attend(*before), attend(*after)
        np.testing.assert_array_equal(*(out[:, :first] for out in outputs))
