"""What the tests of attention compare with: slow loops, dense attention, inputs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from reformer_jax import attention
from reformer_jax.attention import hashing

# Compiling is nearly all of the time of these tests; unoptimised code halves it. Where
# results must be equal bit for bit, the tests jit as a user does.
jit = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})

STEPS = {'tiny': 1, 'some': 200, 'huge': 2**24}  # logits computed at once


def normal(*shape, seed=0, scale=1.25):
    values = np.random.default_rng(seed).normal(size=shape) * scale
    return values.astype(np.float32)


def inputs(length, *, count=2, batch=2, heads=2, head_size=6):
    """That many [B, L, H, K] arrays, then a direction for the output."""
    return [normal(batch, length, heads, head_size, seed=n) for n in range(count + 1)]


def buckets(length, *, rounds=1, batch=2, heads=2, number=5, seed=7):
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, number, size=(batch, heads, rounds, length))
    return ids.astype(np.int32)


def mask(length, batch=2):
    """Padding at the end of one sequence and in the middle of the other."""
    mask = np.ones((batch, length), bool)
    mask[0, -(length // 3) :] = False
    mask[1:, [0, length // 2, length // 2 + 1]] = False
    return mask


def with_gradients(function):
    """Compiled: the output for inputs, and their gradients in a direction of it."""

    @jit
    def both(inputs, direction):
        out, vjp = jax.vjp(function, *inputs)
        return out, vjp(direction)

    return both


def value_and_gradients(function, inputs, direction):
    return with_gradients(function)(tuple(inputs), direction)


def assert_near(actual, wanted, tolerance=1e-5):
    actual, wanted = np.asarray(actual), np.asarray(wanted)
    error = np.linalg.norm(actual - wanted) / np.linalg.norm(wanted)
    assert error < tolerance, f'relative error {error}'


def _numbers_met(kind, buckets, real):
    """How often a query meets a key, [R, L, L], by the rules of lsh_attention."""
    rounds, length = buckets.shape
    chunk_length, rule = kind.chunk_length, kind.rule
    met = np.zeros((rounds, length, length), int)
    if rule == 'strict':
        for met_in_round, ids in zip(met, buckets, strict=True):
            for query in range(length):
                bucket = [k for k in range(query) if real[k] and ids[k] == ids[query]]
                met_in_round[query, bucket[-chunk_length:]] = 1
        return met
    chunks = []  # of all rounds, one after the other
    for ids in buckets:
        order = sorted(range(length), key=lambda i: (not real[i], ids[i], i))
        chunks += [order[i : i + chunk_length] for i in range(0, length, chunk_length)]
    per_round = length // chunk_length
    for here, queries in enumerate(chunks):
        ids, met_in_round = buckets[here // per_round], met[here // per_round]
        for there in range(here - kind.chunks_before, here + kind.chunks_after + 1):
            if rule != 'trax' and there // per_round != here // per_round:
                continue
            for key in chunks[there % len(chunks)]:
                for query in queries:
                    same = ids[query] == ids[key]
                    met_in_round[query, key] += rule != 'bucket' or same
    return met


def numbers_seen(kind, buckets, mask=None):
    """What queries see but for the future and padding, and what themselves weigh.

    _numbers_met over the rounds, [B, H, L, L], without themselves; and the weight of a
    query's own value if it sees nothing, [B, H, L].
    """
    batch, heads, _, length = buckets.shape
    mask = np.ones((batch, length), bool) if mask is None else mask
    seen = np.zeros((batch, heads, length, length), int)
    itself = np.ones((batch, heads, length), np.float32)
    for b, h in np.ndindex(batch, heads):
        met = _numbers_met(kind, np.asarray(buckets[b, h]), mask[b])
        trax = kind.rule == 'trax'
        seen[b, h] = met.sum(0) if trax else np.minimum(met.sum(0), 1)
        if trax:
            itself[b, h] = [probability_of_itself(met[:, n, n]) for n in range(length)]
    seen = seen * ~np.eye(length, dtype=bool) * mask[:, None, None, :]
    return (np.tril(seen) if kind.causal else seen), itself


def probability_of_itself(times):
    """What transformers' probabilities of a query's own key add up to, in float32.

    The key's logit is -1e5, and it is met `times` [R] in each round's window.
    """
    logit, times = np.float32(-1e5), np.float32(times)
    in_round = logit + np.log(times)
    p = np.exp(logit - in_round) * times
    if times.size == 1:
        return p[0]
    highest = in_round.max()
    total = highest + np.log(np.exp(in_round - highest).sum())
    return (p * np.exp(in_round - total)).sum()


def slow_shared_qk(qk, v, seen, itself):
    """Shared-QK attention, one query at a time; itself only when it sees nothing."""
    qk, v = np.asarray(qk), np.asarray(v)
    out = np.zeros_like(v)
    for b, h, i in np.ndindex(seen.shape[:3]):
        keys = np.flatnonzero(seen[b, h, i])
        if not keys.size:
            out[b, i, h] = v[b, i, h] * itself[b, h, i]
            continue
        unit = qk[b, keys, h]
        mean_square = np.mean(unit**2, axis=-1, keepdims=True)
        unit = unit / np.sqrt(mean_square + 1e-6) / np.sqrt(qk.shape[-1])
        weights = seen[b, h, i, keys] * np.exp(unit @ qk[b, i, h])
        out[b, i, h] = weights @ v[b, keys, h] / weights.sum()
    return out


def dense_shared_qk(qk, v, seen, itself, dropout=1.0):
    """The same for autodiff: logits + log of how often each key is seen."""
    unit = qk / jnp.linalg.norm(qk, axis=-1, keepdims=True)
    logits = jnp.einsum('bqhk,bshk->bhqs', qk, unit)
    alone = (seen.sum(-1, keepdims=True) == 0) & np.eye(seen.shape[-1], dtype=bool)
    logits = logits + np.where(alone, 0.0, np.log(np.maximum(seen, 1)))
    logits = jnp.where(alone | (seen > 0), logits, -jnp.inf)
    p = jax.nn.softmax(logits, axis=-1) * dropout
    p = p * jnp.where(alone.any(-1), itself, 1.0)[..., None]
    return jnp.einsum('bhqs,bshk->bqhk', p, v)


def dense(q, k, v, allowed, scale, dropout=1.0):
    logits = jnp.einsum('bqhk,bshk->bhqs', q, k) * scale
    p = jax.nn.softmax(jnp.where(allowed, logits, -1e30), axis=-1) * dropout
    return jnp.einsum('bhqs,bshk->bqhk', p, v)


def full(kind, mask=None):
    return _of_kind(attention.full_attention, kind, mask)


def shared(kind, mask=None):
    """Exact attention of qk and v."""
    return lambda qk, v: full(kind, mask)(qk, qk, v)


def local(kind, mask=None):
    return _of_kind(attention.local_attention, kind, mask)


def lsh(kind, mask=None, **options):
    return _of_kind(attention.lsh_attention, kind, mask, **options)


def _of_kind(function, kind, mask, **options):
    mask = None if mask is None else jnp.asarray(mask)
    return functools.partial(function, kind, mask=mask, **options)


def hashed_lsh(qk, v, rotations, *, rule='strict', mask=None):
    """LSH attention with its own hashing to 4 buckets, as a model runs it."""
    kind = attention.LSH(chunk_length=4, buckets=4, rule=rule)
    buckets = hashing.hash_vectors(qk, rotations, buckets=kind.buckets)
    return attention.lsh_attention(kind, qk, v, buckets, mask=mask)
