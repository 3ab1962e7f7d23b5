"""Full, local and LSH attention against slow loops, dense autodiff and each other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reformer_jax import attention
from reformer_jax import checks
from reformer_jax import hashing
from reformer_jax import lsh

# Compiling is nearly all of the time of these tests; unoptimised code halves it. Where
# results must be equal bit for bit, the tests jit as a user does.
_jit = functools.partial(
    jax.jit, compiler_options={'xla_backend_optimization_level': 0}
)

STEPS = {'tiny': 1, 'some': 200, 'huge': 2**24}  # logits computed at once


@pytest.fixture
def logits_per_step(monkeypatch):
    def choose(logits):
        monkeypatch.setattr(attention, '_LOGITS_PER_STEP_ON_CPU', logits)

    return choose


def _normal(*shape, seed=0, scale=1.25):
    values = np.random.default_rng(seed).normal(size=shape) * scale
    return values.astype(np.float32)


def _inputs(length, *, count=2, batch=2, heads=2, head_size=6):
    """That many [B, L, H, K] arrays, then a direction for the output."""
    return [_normal(batch, length, heads, head_size, seed=n) for n in range(count + 1)]


def _buckets(length, *, rounds=1, batch=2, heads=2, number=5, seed=7):
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, number, size=(batch, heads, rounds, length))
    return ids.astype(np.int32)


def _mask(length, batch=2):
    """Padding at the end of one sequence and in the middle of the other."""
    mask = np.ones((batch, length), bool)
    mask[0, -(length // 3) :] = False
    mask[1:, [0, length // 2, length // 2 + 1]] = False
    return mask


def _value_and_gradients(function, inputs, direction):
    @_jit
    def both(inputs, direction):
        out, vjp = jax.vjp(function, *inputs)
        return out, vjp(direction)

    return both(tuple(inputs), direction)


def _assert_near(actual, wanted, tolerance=1e-5):
    actual, wanted = np.asarray(actual), np.asarray(wanted)
    error = np.linalg.norm(actual - wanted) / np.linalg.norm(wanted)
    assert error < tolerance, f'relative error {error}'


def _numbers_met(buckets, real, rule, chunk_length, before, after, within_bucket):
    """How often each query meets each key, [L, L], by the rules of lsh_attention."""
    rounds, length = buckets.shape
    met = np.zeros((length, length), int)
    if rule == 'strict':
        for ids in buckets:
            for query in range(length):
                bucket = [k for k in range(query) if real[k] and ids[k] == ids[query]]
                met[query, bucket[-chunk_length:]] = 1
        return met
    chunks = []  # of all rounds, one after the other
    for ids in buckets:
        order = sorted(range(length), key=lambda i: (not real[i], ids[i], i))
        chunks += [order[i : i + chunk_length] for i in range(0, length, chunk_length)]
    per_round = length // chunk_length
    for here, queries in enumerate(chunks):
        ids = buckets[here // per_round]
        for there in range(here - before, here + after + 1):
            if rule == 'reformer' and there // per_round != here // per_round:
                continue
            for key in chunks[there % len(chunks)]:
                for query in queries:
                    met[query, key] += not within_bucket or ids[query] == ids[key]
    return met if rule == 'trax' else np.minimum(met, 1)


def _numbers_seen(
    buckets,
    *,
    chunk_length,
    chunks_before=1,
    chunks_after=0,
    causal=True,
    mask=None,
    rule='reformer',
    within_bucket=False,
):
    """_numbers_met, [B, H, L, L], without itself, the future and padding."""
    batch, heads, _, length = buckets.shape
    mask = np.ones((batch, length), bool) if mask is None else mask
    seen = np.zeros((batch, heads, length, length), int)
    for b, h in np.ndindex(batch, heads):
        seen[b, h] = _numbers_met(
            np.asarray(buckets[b, h]),
            mask[b],
            rule,
            chunk_length,
            chunks_before,
            chunks_after,
            within_bucket,
        )
    seen = seen * ~np.eye(length, dtype=bool) * mask[:, None, None, :]
    return np.tril(seen) if causal else seen


def _slow_shared_qk(qk, v, seen):
    """Shared-QK attention, one query at a time; itself only when it sees nothing."""
    qk, v = np.asarray(qk), np.asarray(v)
    out = np.zeros_like(v)
    for b, h, i in np.ndindex(seen.shape[:3]):
        keys = np.flatnonzero(seen[b, h, i])
        if not keys.size:
            out[b, i, h] = v[b, i, h]
            continue
        unit = qk[b, keys, h]
        mean_square = np.mean(unit**2, axis=-1, keepdims=True)
        unit = unit / np.sqrt(mean_square + 1e-6) / np.sqrt(qk.shape[-1])
        weights = seen[b, h, i, keys] * np.exp(unit @ qk[b, i, h])
        out[b, i, h] = weights @ v[b, keys, h] / weights.sum()
    return out


def _dense_shared_qk(qk, v, seen, dropout=1.0):
    """The same for autodiff: logits + log of how often each key is seen."""
    unit = qk / jnp.linalg.norm(qk, axis=-1, keepdims=True)
    logits = jnp.einsum('bqhk,bshk->bhqs', qk, unit)
    alone = (seen.sum(-1, keepdims=True) == 0) & np.eye(seen.shape[-1], dtype=bool)
    logits = logits + np.where(alone, 0.0, np.log(np.maximum(seen, 1)))
    logits = jnp.where(alone | (seen > 0), logits, -jnp.inf)
    p = jax.nn.softmax(logits, axis=-1) * dropout
    return jnp.einsum('bhqs,bshk->bqhk', p, v)


def _dense(q, k, v, allowed, scale):
    logits = jnp.einsum('bqhk,bshk->bhqs', q, k) * scale
    p = jax.nn.softmax(jnp.where(allowed, logits, -1e30), axis=-1)
    return jnp.einsum('bhqs,bshk->bqhk', p, v)


def _lsh(mask=None, **options):
    mask = None if mask is None else jnp.asarray(mask)
    return functools.partial(attention.lsh_attention, mask=mask, **options)


def _strict_lsh(qk, v, rotations, *, rule='strict', num_buckets=4, mask=None):
    """LSH attention with its own hashing, as a model runs it."""
    buckets = hashing.hash_vectors(qk, rotations, buckets=num_buckets)
    return attention.lsh_attention(
        qk, v, buckets, chunk_length=4, causal=True, rule=rule, mask=mask
    )


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
    logits_per_step(STEPS[steps])
    qk, v, _ = _inputs(length)
    buckets = _buckets(length, rounds=rounds)
    mask = _mask(length) if masked else None
    options = {
        'rule': rule,
        'within_bucket': within_bucket,
        'causal': causal,
        'chunks_before': before,
        'chunks_after': after,
        'chunk_length': 4,
        'mask': mask,
    }
    out = _jit(_lsh(**options))(qk, v, buckets)
    slow = _slow_shared_qk(qk, v, _numbers_seen(buckets, **options))
    real = np.ones((2, length), bool) if mask is None else mask
    np.testing.assert_allclose(out[real], slow[real], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('num_buckets', [5, 2**29])
def test_lsh_sorts_alike_with_any_bound_on_the_ids(num_buckets):
    qk, v, _ = _inputs(28)
    buckets, mask = _buckets(28, rounds=2), _mask(28)
    attend = _lsh(mask, chunk_length=4, causal=True)
    out = _jit(functools.partial(attend, num_buckets=num_buckets))(qk, v, buckets)
    np.testing.assert_array_equal(out, _jit(attend)(qk, v, buckets))


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
    logits_per_step(STEPS[steps])
    qk, v, direction = _inputs(36)
    buckets = _buckets(36, rounds=rounds)
    mask = _mask(36) if masked else None
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
    attend = functools.partial(_lsh(**options), buckets_BHRL=buckets)
    _, (dqk, dv) = _value_and_gradients(attend, (qk, v), direction)
    dense = functools.partial(_dense_shared_qk, seen=_numbers_seen(buckets, **options))
    _, (dqk_dense, dv_dense) = _value_and_gradients(dense, (qk, v), direction)
    _assert_near(dqk, dqk_dense)
    _assert_near(dv, dv_dense)


# ---------------------------------------------------------------- LSH: limits


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
    qk, v, direction = _inputs(24)
    mask = _mask(24)
    direction *= mask[:, :, None, None]
    attend = _lsh(
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
    out, gradients = _value_and_gradients(attend, (qk, v), direction)
    wanted, wanted_gradients = _value_and_gradients(
        lambda qk, v: full(qk, qk, v), (qk, v), direction
    )
    _assert_near(out[mask], wanted[mask])
    for gradient, wanted_gradient in zip(gradients, wanted_gradients, strict=True):
        _assert_near(gradient, wanted_gradient)


@pytest.mark.parametrize(
    ('length', 'implementation'), [(16, None), (12, None), (32, 'dense')]
)
def test_dense_implementation_is_full_attention(length, implementation):
    qk, v, _ = _inputs(length)
    mask = _mask(length)
    attend = _lsh(mask, chunk_length=16, causal=True, implementation=implementation)
    out = _jit(attend)(qk, v, _buckets(length))
    full = functools.partial(
        attention.full_attention, causal=True, mask=jnp.asarray(mask), shared_qk=True
    )
    np.testing.assert_array_equal(out, _jit(full)(qk, qk, v))


@pytest.mark.parametrize('rounds', [1, 4])
@pytest.mark.parametrize('rule', checks.RULES)
def test_a_token_alone_attends_to_itself(rule, rounds):
    qk, v, direction = _inputs(16)
    attend = functools.partial(
        _lsh(chunk_length=4, causal=True, rule=rule),
        buckets_BHRL=_buckets(16, rounds=rounds),
    )
    first = direction * (np.arange(16) == 0)[:, None, None]
    out, (dqk, dv) = _value_and_gradients(attend, (qk, v), first)
    np.testing.assert_allclose(out[:, 0], v[:, 0], rtol=1e-6)
    np.testing.assert_array_equal(dqk, 0.0)
    np.testing.assert_allclose(dv, first, rtol=1e-6)


def test_alone_in_one_round_gives_way_to_company_in_another():
    qk, v, _ = _inputs(4, batch=1, heads=1)
    buckets = np.array([[[[0, 0, 1, 2], [0, 1, 1, 2], [0, 1, 2, 3]]]], np.int32)
    out = _jit(_lsh(chunk_length=2, causal=True, rule='strict'))(qk, v, buckets)
    wanted = v[:, [0, 0, 1, 3]]  # token 3 is alone in all rounds
    np.testing.assert_allclose(out, wanted, rtol=1e-6)


# ---------------------------------------------------------------- padding


@pytest.mark.parametrize('rule', checks.RULES)
def test_lsh_ignores_the_content_of_padding(rule):
    qk, v, direction = _inputs(32)
    mask = _mask(32)
    pads = ~mask[:, :, None, None]
    rotations = _normal(2, 6, 2, 2, seed=9)
    attend = jax.jit(functools.partial(_strict_lsh, rule=rule, mask=jnp.asarray(mask)))
    out = attend(qk, v, rotations)
    other_qk, other_v = np.where(pads, (9 * direction, 99 * direction), (qk, v))
    other = attend(other_qk, other_v, rotations)
    np.testing.assert_array_equal(out[mask], other[mask])


@pytest.mark.parametrize('kind', ['full', 'shared', 'local'])
@pytest.mark.parametrize('causal', [True, False])
def test_full_and_local_ignore_the_content_of_padding(kind, causal):
    q, k, v, direction = _inputs(32, count=3)
    mask = _mask(32)
    pads = ~mask[:, :, None, None]

    @jax.jit
    def attend(q, k, v):
        if kind == 'local':
            return attention.local_attention(
                q, k, v, chunk_length=4, causal=causal, mask=jnp.asarray(mask)
            )
        k = q if kind == 'shared' else k
        return attention.full_attention(
            q, k, v, causal=causal, mask=jnp.asarray(mask), shared_qk=kind == 'shared'
        )

    others = np.where(pads, 9 * direction, (q, k, v))
    out, other = attend(q, k, v), attend(*others)
    np.testing.assert_array_equal(out[mask], other[mask])


@pytest.mark.parametrize(
    ('rule', 'real'), [('reformer', 16), ('strict', 16), ('strict', 13)]
)
def test_a_padded_sequence_is_the_sequence_alone(rule, real):
    qk, v, _ = _inputs(28)
    rotations = _normal(2, 6, 2, 2, seed=9)
    mask = np.broadcast_to(np.arange(28) < real, (2, 28))
    attend = functools.partial(_strict_lsh, rule=rule)
    padded = _jit(functools.partial(attend, mask=jnp.asarray(mask)))(qk, v, rotations)
    if real % 4:  # alone, its length must still be a multiple of the chunk
        buckets = hashing.hash_vectors(qk, rotations, buckets=4)[..., :real]
        seen = _numbers_seen(buckets, chunk_length=4, rule=rule)
        alone = _slow_shared_qk(qk[:, :real], v[:, :real], seen)
    else:
        alone = _jit(attend)(qk[:, :real], v[:, :real], rotations)
    np.testing.assert_allclose(padded[:, :real], alone, rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------- causality


def _causal_attention(kind):
    """Attention of q, k, v [B, 32, H, K] that hashes anew, or with fixed buckets."""
    rotations = _normal(2, 6, 4, 2, seed=9)
    if kind == 'full':
        return functools.partial(attention.full_attention, causal=True)
    if kind == 'shared':
        return lambda q, k, v: attention.full_attention(
            q, q, v, causal=True, shared_qk=True
        )
    if kind == 'local':
        return functools.partial(attention.local_attention, chunk_length=4, causal=True)
    if kind == 'strict':
        return lambda q, k, v: _strict_lsh(q, v, rotations)
    fixed = functools.partial(
        _lsh(chunk_length=4, causal=True, rule=kind),
        buckets_BHRL=_buckets(32, rounds=4),
    )
    return lambda q, k, v: fixed(q, v)


KINDS = ['full', 'shared', 'local', 'strict', 'reformer', 'trax']


@pytest.mark.parametrize('kind', KINDS)
def test_the_future_changes_no_output(kind):
    inputs = _inputs(32, count=3)[:3]
    attend = jax.jit(_causal_attention(kind))
    out = np.asarray(attend(*inputs))
    # In the strict rule the keys stay but move within their window: another order of
    # summation. For the others there is no difference at all.
    tolerance = 1e-6 if kind == 'strict' else 0.0
    for seed in range(8):
        change = 3 * _normal(*inputs[0].shape, seed=100 + seed)
        for start in (31, 17):
            future = (np.arange(32) >= start)[:, None, None]
            other = np.asarray(attend(*(x + change * future for x in inputs)))
            assert not np.allclose(out[:, start:], other[:, start:])
            np.testing.assert_allclose(
                out[:, :start], other[:, :start], rtol=0, atol=tolerance
            )


@pytest.mark.parametrize('kind', KINDS)
def test_the_future_has_no_gradient(kind):
    *inputs, direction = _inputs(32, count=3)
    past = direction * (np.arange(32) < 18)[:, None, None]
    _, gradients = _value_and_gradients(_causal_attention(kind), inputs, past)
    for gradient in gradients[:: 2 if kind not in ('full', 'local') else 1]:
        np.testing.assert_array_equal(gradient[:, 18:], 0.0)
        assert np.abs(gradient[:, :17]).max() > 0.01


def test_strict_depends_on_the_past_alone():
    qk, v, _ = _inputs(32)
    rotations = _normal(2, 6, 2, 2, seed=9)
    attend = _jit(_strict_lsh)
    whole = attend(qk, v, rotations)
    cut = attend(qk[:, :20], v[:, :20], rotations)
    np.testing.assert_allclose(whole[:, :20], cut, rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------- local and full


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
    logits_per_step(STEPS[steps])
    *inputs, direction = _inputs(length, count=3)
    mask = _mask(length) if masked else np.ones((2, length), bool)
    direction *= mask[:, :, None, None]
    chunk = np.arange(length) // 4
    ahead = chunk[None, :] - chunk[:, None]
    allowed = (ahead >= -before) & (ahead <= after)
    allowed = np.tril(allowed) if causal else allowed
    allowed = allowed & mask[:, None, None, :]
    local = functools.partial(
        attention.local_attention,
        chunk_length=4,
        chunks_before=before,
        chunks_after=after,
        causal=causal,
        mask=jnp.asarray(mask) if masked else None,
    )
    dense = functools.partial(_dense, allowed=allowed, scale=6**-0.5)
    out, gradients = _value_and_gradients(local, inputs, direction)
    wanted, wanted_gradients = _value_and_gradients(dense, inputs, direction)
    np.testing.assert_allclose(out[mask], wanted[mask], rtol=1e-5, atol=1e-5)
    for gradient, wanted_gradient in zip(gradients, wanted_gradients, strict=True):
        _assert_near(gradient, wanted_gradient)


@pytest.mark.parametrize(
    'shared causal masked length steps'.split(),
    [
        (False, True, False, 24, 'huge'),
        (False, False, True, 260, 'tiny'),
        (False, True, True, 260, 'tiny'),
        (True, True, True, 24, 'huge'),
        (True, False, True, 260, 'tiny'),
        (True, True, False, 260, 'tiny'),
    ],
)
def test_full_is_dense(logits_per_step, shared, causal, masked, length, steps):
    logits_per_step(STEPS[steps])
    q, k, v, direction = _inputs(length, count=3, batch=2, head_size=6)
    mask = _mask(length) if masked else np.ones((2, length), bool)
    direction *= mask[:, :, None, None]
    allowed = np.ones((length, length), int)
    allowed = np.tril(allowed) if causal else allowed
    allowed = allowed * mask[:, None, None, :]
    full = functools.partial(
        attention.full_attention,
        causal=causal,
        mask=jnp.asarray(mask) if masked else None,
        shared_qk=shared,
    )
    if shared:
        inputs = q, v
        seen = np.broadcast_to(
            allowed * ~np.eye(length, dtype=bool), (2, 2, length, length)
        )
        dense = functools.partial(_dense_shared_qk, seen=seen)
        out, gradients = _value_and_gradients(
            lambda q, v: full(q, q, v), inputs, direction
        )
    else:
        inputs = q, k, v
        dense = functools.partial(_dense, allowed=allowed > 0, scale=6**-0.5)
        out, gradients = _value_and_gradients(full, inputs, direction)
    wanted, wanted_gradients = _value_and_gradients(dense, inputs, direction)
    np.testing.assert_allclose(out[mask], wanted[mask], rtol=1e-5, atol=1e-5)
    for gradient, wanted_gradient in zip(gradients, wanted_gradients, strict=True):
        _assert_near(gradient, wanted_gradient)


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
            np.broadcast_to(_buckets(length, rounds=2)[:1, :1], (2, 2, 2, length)),
            chunk_length=4,
            **options,
        ),
    }


@pytest.mark.parametrize(
    'rule rounds'.split(), [('reformer', 1), ('reformer', 2), ('strict', 2)]
)
def test_lsh_gradients_with_dropout_are_those_of_dense_autodiff(
    logits_per_step, rule, rounds
):
    logits_per_step(STEPS['some'])
    length = 16
    qk, v, direction = _inputs(length, head_size=length)
    buckets = _buckets(length, rounds=rounds, number=3)
    options = {'chunk_length': 4, 'causal': True, 'rule': rule}
    attend = functools.partial(
        _lsh(**options), buckets_BHRL=buckets, key=jax.random.key(3)
    )
    # Values that name their token turn the output into the probabilities.
    names = np.broadcast_to(np.eye(length, dtype=np.float32)[:, None, :], v.shape)
    kept = np.asarray(_jit(attend)(qk, names))
    dropped = _jit(functools.partial(attend, dropout_rate=0.25))(qk, names)
    dropout = np.divide(dropped, kept, where=kept > 0, out=np.ones_like(kept))
    factors = np.unique(dropout[kept > 0].round(3))
    np.testing.assert_allclose(factors, [0, 1.333], atol=1e-6)
    dropout = np.moveaxis(dropout, 2, 1)

    seen = _numbers_seen(buckets, **options)
    dense = functools.partial(_dense_shared_qk, seen=seen, dropout=dropout)
    wanted, wanted_gradients = _value_and_gradients(dense, (qk, v), direction)
    out, gradients = _value_and_gradients(
        functools.partial(attend, dropout_rate=0.25), (qk, v), direction
    )
    _assert_near(out, wanted)
    for gradient, wanted_gradient in zip(gradients, wanted_gradients, strict=True):
        _assert_near(gradient, wanted_gradient)


def test_dropout_keeps_the_mean_and_needs_a_key():
    qk, ones = _inputs(16)[0], np.ones((2, 16, 2, 6), np.float32)

    @_jit
    def sums_of_probabilities(keys):
        attend = functools.partial(_three_attentions, qk, ones, rate=0.25)
        return jax.lax.map(attend, keys)

    sums = sums_of_probabilities(jax.random.split(jax.random.key(0), 300))
    for kind, out in sums.items():
        assert abs(float(jnp.mean(out)) - 1) < 0.015, kind
        assert float(jnp.std(out)) > 0.1, kind
    keyless = functools.partial(_three_attentions, key=None, rate=0.25)
    for kind, out in _jit(keyless)(qk, ones).items():
        np.testing.assert_allclose(out, 1.0, rtol=1e-5, err_msg=kind)


def test_dropout_is_shared_over_batch_and_heads():
    qk, v, _ = _inputs(16)
    qk, v = (np.broadcast_to(x[:1, :, :1], x.shape) for x in (qk, v))
    attend = functools.partial(_three_attentions, rate=0.25)
    for kind, out in _jit(attend)(qk, v, jax.random.key(0)).items():
        wanted = np.broadcast_to(out[:1, :, :1], out.shape)
        np.testing.assert_array_equal(out, wanted, err_msg=kind)


# ---------------------------------------------------------------- dtypes, transforms


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
    q, k, v, direction = (x.astype(jnp.bfloat16) for x in _inputs(32, count=3))
    low = q, k, v.astype(v_dtype)
    high = [x.astype(np.float32) for x in low]
    direction = direction.astype(v_dtype)
    attend = _causal_attention(kind)
    out, gradients = _value_and_gradients(attend, low, direction)
    wanted, wanted_gradients = _value_and_gradients(
        attend, high, direction.astype(np.float32)
    )
    assert out.dtype == v_dtype
    _assert_near(out.astype(np.float32), wanted, 0.01)
    for gradient, wanted_gradient, x in zip(
        gradients, wanted_gradients, low, strict=True
    ):
        assert gradient.dtype == x.dtype
        if np.any(wanted_gradient):
            _assert_near(gradient.astype(np.float32), wanted_gradient, 0.02)


@pytest.mark.parametrize('kind', ['full', 'local', 'strict'])
def test_checkpoint_changes_no_gradient(kind):
    *inputs, direction = _inputs(32, count=3)
    attend = _causal_attention(kind)
    plain = _value_and_gradients(attend, inputs, direction)
    saved = _value_and_gradients(jax.checkpoint(attend), inputs, direction)
    jax.tree.map(np.testing.assert_array_equal, plain, saved)


def test_keys_have_unit_length_and_zero_is_safe():
    qk = _normal(5, 6) * (np.arange(5) != 2)[:, None]
    keys = _jit(lsh.unit_keys)(qk.astype(jnp.bfloat16))
    assert keys.dtype == jnp.float32
    np.testing.assert_allclose(
        np.linalg.norm(keys, axis=-1), [1, 1, 0, 1, 1], rtol=1e-5
    )
    gradient = _jit(jax.grad(lambda qk: lsh.unit_keys(qk).sum()))(qk)
    assert np.isfinite(gradient).all()


# ---------------------------------------------------------------- errors


def _call(function, **options):
    defaults = {'chunk_length': 4, 'causal': True}
    qk, v, _ = _inputs(10 if options.pop('ragged', False) else 16)
    if function == 'lsh':
        buckets = _buckets(qk.shape[1])
        return attention.lsh_attention(qk, v, buckets, **defaults | options)
    return attention.local_attention(qk, qk, v, **defaults | options)


@pytest.mark.parametrize('function', ['lsh', 'local'])
@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'ragged': True}, r'length 10 .* chunk_length=4: use length 8 or 12, or ano'),
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
def test_bad_chunks_are_rejected(function, options, message):
    with pytest.raises(ValueError, match=message):
        _call(function, **options)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (
            {'rule': 'loose'},
            r"rule='loose' is none of \('reformer', 'trax', 'strict'\)",
        ),
        (
            {'rule': 'trax', 'within_bucket': True},
            r"within_bucket=True belongs to the reformer rule, not to rule='trax'",
        ),
        (
            {'rule': 'strict', 'within_bucket': True},
            r"within_bucket=True belongs to the reformer rule, not to rule='strict'",
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
            {'implementation': 'fast'},
            r"implementation='fast' is none of \('xla', 'dense'\)",
        ),
    ],
)
def test_bad_rules_are_rejected(options, message):
    with pytest.raises(ValueError, match=message):
        _call('lsh', **options)
