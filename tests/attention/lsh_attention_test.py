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
from reformer_jax.attention import windows

# ---------------------------------------------------------------- LSH: the rules

RULE_CASES = [
    # rule, within_bucket, causal, before, after, rounds, length, masked, steps
    ('reformer', False, True, 1, 0, 1, 28, False, 'huge'),
    ('reformer', False, True, 1, 0, 4, 28, True, 'some'),
    ('reformer', False, True, 2, 0, 2, 36, False, 'some'),
    ('reformer', False, True, 0, 0, 2, 28, True, 'huge'),
    ('reformer', False, False, 1, 1, 2, 36, True, 'some'),
    ('reformer', False, False, 0, 2, 4, 28, False, 'tiny'),
    ('reformer', False, True, 1, 0, 16, 16, False, 'huge'),
    ('reformer', True, True, 1, 0, 1, 28, False, 'some'),
    ('reformer', True, True, 2, 0, 4, 36, True, 'huge'),
    ('reformer', True, False, 1, 2, 2, 28, True, 'some'),
    ('reformer', True, False, 0, 0, 4, 36, False, 'tiny'),
    ('strict', False, True, 1, 0, 1, 28, False, 'some'),
    ('strict', False, True, 1, 0, 2, 36, True, 'huge'),
    ('strict', False, True, 1, 0, 4, 36, False, 'some'),
    ('trax', False, True, 1, 0, 1, 28, False, 'some'),
    ('trax', False, True, 1, 0, 2, 36, True, 'huge'),
    ('trax', False, True, 2, 0, 4, 28, False, 'tiny'),
    ('trax', False, True, 0, 0, 4, 36, True, 'some'),
    ('trax', False, False, 1, 1, 2, 28, True, 'some'),
    ('trax', False, False, 0, 2, 1, 36, False, 'some'),
    ('trax', False, False, 2, 2, 1, 8, False, 'huge'),  # rings meet a chunk often
]


@pytest.mark.slow
@pytest.mark.parametrize(
    'rule within_bucket causal before after rounds length masked steps'.split(),
    RULE_CASES,
)
def test_lsh_is_the_slow_loop(
    logits_per_step,
    rule,
    within_bucket,
    causal,
    before,
    after,
    rounds,
    length,
    masked,
    steps,
):
    logits_per_step(oracles.STEPS[steps])
    qk, v, _ = oracles.inputs(length)
    buckets = oracles.buckets(length, rounds=rounds)
    mask = oracles.mask(length) if masked else None
    options = {
        'rule': rule,
        'within_bucket': within_bucket,
        'causal': causal,
        'chunks_before': before,
        'chunks_after': after,
        'chunk_length': 4,
        'mask': mask,
    }
    out = oracles.jit(oracles.lsh(**options))(qk, v, buckets)
    slow = oracles.slow_shared_qk(qk, v, *oracles.numbers_seen(buckets, **options))
    real = np.ones((2, length), bool) if mask is None else mask
    np.testing.assert_allclose(out[real], slow[real], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('num_buckets', [5, 2**29])
def test_lsh_sorts_alike_with_any_bound_on_the_ids(num_buckets):
    qk, v, _ = oracles.inputs(28)
    buckets, mask = oracles.buckets(28, rounds=2), oracles.mask(28)
    attend = oracles.lsh(mask, chunk_length=4, causal=True)
    out = oracles.jit(functools.partial(attend, num_buckets=num_buckets))(
        qk, v, buckets
    )
    np.testing.assert_array_equal(out, oracles.jit(attend)(qk, v, buckets))


@pytest.mark.slow
@pytest.mark.parametrize(
    'rule within_bucket causal after rounds masked steps'.split(),
    [
        ('reformer', False, True, 0, 1, False, 'some'),
        ('reformer', False, True, 0, 4, True, 'huge'),
        ('reformer', False, False, 1, 2, True, 'some'),
        ('reformer', True, True, 0, 2, False, 'tiny'),
        ('reformer', True, False, 1, 2, True, 'huge'),
        ('strict', False, True, 0, 4, True, 'some'),
        ('trax', False, True, 0, 2, False, 'huge'),
        ('trax', False, False, 1, 2, True, 'some'),
    ],
)
def test_lsh_gradients_are_those_of_dense_autodiff(
    logits_per_step, rule, within_bucket, causal, after, rounds, masked, steps
):
    logits_per_step(oracles.STEPS[steps])
    qk, v, direction = oracles.inputs(36)
    buckets = oracles.buckets(36, rounds=rounds)
    mask = oracles.mask(36) if masked else None
    if masked:  # what a pad's query does is of no interest
        direction *= mask[:, :, None, None]
    options = {
        'rule': rule,
        'within_bucket': within_bucket,
        'causal': causal,
        'chunks_after': after,
        'chunk_length': 4,
        'mask': mask,
    }
    attend = functools.partial(oracles.lsh(**options), buckets_BHRL=buckets)
    _, (dqk, dv) = oracles.value_and_gradients(attend, (qk, v), direction)
    seen, itself = oracles.numbers_seen(buckets, **options)
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
        ('strict', True, 1, 2),
        ('trax', True, 1, 2),
        ('trax', False, 0, 4),
    ],
)
def test_one_bucket_and_one_chunk_is_full_attention(rule, causal, before, rounds):
    qk, v, direction = oracles.inputs(24)
    mask = oracles.mask(24)
    # With the trax rule the first real token, alone, is rounded: see below.
    compared = mask & ((np.cumsum(mask, axis=1) > 1) | (rule != 'trax'))
    direction *= compared[:, :, None, None]
    attend = oracles.lsh(
        mask,
        buckets_BHRL=np.zeros((2, 2, rounds, 24), np.int32),
        chunk_length=24,
        chunks_before=before,
        causal=causal,
        rule=rule,
        implementation='xla',
    )
    full = functools.partial(
        attention.full_attention, causal=causal, mask=jnp.asarray(mask), shared_qk=True
    )
    out, gradients = oracles.value_and_gradients(attend, (qk, v), direction)
    wanted, wanted_gradients = oracles.value_and_gradients(
        lambda qk, v: full(qk, qk, v), (qk, v), direction
    )
    oracles.assert_near(out[compared], wanted[compared])
    for gradient, wanted_gradient in zip(gradients, wanted_gradients, strict=True):
        oracles.assert_near(gradient, wanted_gradient)


@pytest.mark.parametrize(
    ('length', 'implementation'), [(16, None), (12, None), (32, 'dense')]
)
def test_dense_implementation_is_full_attention(length, implementation):
    qk, v, _ = oracles.inputs(length)
    mask = oracles.mask(length)
    attend = oracles.lsh(
        mask, chunk_length=16, causal=True, implementation=implementation
    )
    out = oracles.jit(attend)(qk, v, oracles.buckets(length))
    full = functools.partial(
        attention.full_attention, causal=True, mask=jnp.asarray(mask), shared_qk=True
    )
    np.testing.assert_array_equal(out, oracles.jit(full)(qk, qk, v))


@pytest.mark.slow
@pytest.mark.parametrize('rounds', [1, 4])
@pytest.mark.parametrize('rule', kinds.RULES)
def test_a_token_alone_attends_to_itself(rule, rounds):
    """Wholly; with the trax rule as far as float32 tells -1e5 + log(n) from -1e5."""
    qk, v, direction = oracles.inputs(16)
    buckets = oracles.buckets(16, rounds=rounds)
    options = {'chunk_length': 4, 'causal': True, 'rule': rule}
    attend = functools.partial(oracles.lsh(**options), buckets_BHRL=buckets)
    first = direction * (np.arange(16) == 0)[:, None, None]
    out, (dqk, dv) = oracles.value_and_gradients(attend, (qk, v), first)
    _, itself = oracles.numbers_seen(buckets, **options)
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
        rows_per_step=(1, 1),
        order_free=False,
    )
    ranks = jnp.asarray(np.argsort(order, axis=1), jnp.int32)
    total = windows.probability_of_itself(plan, ranks)
    wanted = oracles.probability_of_itself(np.array([2, 1, 2, 1]))
    np.testing.assert_allclose(total[0], wanted, rtol=1e-6)


def test_alone_in_one_round_gives_way_to_company_in_another():
    qk, v, _ = oracles.inputs(4, batch=1, heads=1)
    buckets = np.array([[[[0, 0, 1, 2], [0, 1, 1, 2], [0, 1, 2, 3]]]], np.int32)
    out = oracles.jit(oracles.lsh(chunk_length=2, causal=True, rule='strict'))(
        qk, v, buckets
    )
    wanted = v[:, [0, 0, 1, 3]]  # token 3 is alone in all rounds
    np.testing.assert_allclose(out, wanted, rtol=1e-6)


# ---------------------------------------------------------------- dropout


def _three_attentions(qk, v, key, *, rate):
    """Full, local and LSH attention with dropout."""
    length = qk.shape[1]
    options = {'causal': True, 'dropout_rate': rate, 'key': key}
    return {
        'full': attention.full_attention(qk, qk, v, **options),
        'local': attention.local_attention(qk, qk, v, chunk_length=4, **options),
        'lsh': attention.lsh_attention(
            qk,
            v,
            np.broadcast_to(
                oracles.buckets(length, rounds=2)[:1, :1], (2, 2, 2, length)
            ),
            chunk_length=4,
            **options,
        ),
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
    options = {'chunk_length': 4, 'causal': True, 'rule': rule}
    attend = functools.partial(
        oracles.lsh(**options), buckets_BHRL=buckets, key=jax.random.key(3)
    )
    # Values that name their token turn the output into the probabilities.
    names = np.broadcast_to(np.eye(length, dtype=np.float32)[:, None, :], v.shape)
    kept = np.asarray(oracles.jit(attend)(qk, names))
    dropped = oracles.jit(functools.partial(attend, dropout_rate=0.25))(qk, names)
    dropout = np.divide(dropped, kept, where=kept > 0, out=np.ones_like(kept))
    factors = np.unique(dropout[kept > 0].round(3))
    np.testing.assert_allclose(factors, [0, 1.333], atol=1e-6)
    dropout = np.moveaxis(dropout, 2, 1)

    seen, itself = oracles.numbers_seen(buckets, **options)
    dense = functools.partial(
        oracles.dense_shared_qk, seen=seen, itself=itself, dropout=dropout
    )
    wanted, wanted_gradients = oracles.value_and_gradients(dense, (qk, v), direction)
    out, gradients = oracles.value_and_gradients(
        functools.partial(attend, dropout_rate=0.25), (qk, v), direction
    )
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

    @jax.jit
    def attend(qk, v):
        return attention.lsh_attention(
            qk,
            v,
            hashing.hash_vectors(qk, rotations, buckets=4),
            chunk_length=chunk_length,
            causal=True,
            rule='strict',
            num_buckets=4,
        )

    shape = 1, length, 2, head_size
    before = [rng.normal(size=shape).astype(np.float32) for _ in range(2)]
    for first in rng.integers(length // 2, length, 4):
        after = [x.copy() for x in before]
        for x in after:
            x[:, first:] = rng.normal(size=x[:, first:].shape)
        outputs = attend(*before), attend(*after)
        np.testing.assert_array_equal(*(out[:, :first] for out in outputs))
