"""Errors of attention with bfloat16 operands against float64, on one GPU; JSON lines.

  python benchmarks/gpu_error.py

Causal attention of 2,048 tokens, 4 heads of 64: LSH attention by the GPU's kernel (4
rounds, chunks of 64) and cuDNN's exact attention, from the same bfloat16 queries and
values, each against the same function in float64. The error is the relative Euclidean
one of the output and of each gradient; `times_exact` is how many times cuDNN's it is.
"""

import functools
import pathlib
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks import attention as attention_benchmark
from benchmarks import timing
from reformer_jax import attention
from reformer_jax.attention import hashing
from reformer_jax.attention.kernels import cudnn
from reformer_jax.training import command_line

_LENGTH, _HEADS, _HEAD_SIZE = 2048, 4, 64
_CHUNK_LENGTH, _ROUNDS, _BUCKETS = 64, 4, 64


def keys_met(buckets_BHRL: np.ndarray, chunk_length: int) -> np.ndarray:
    """Which keys the reformer rule shows a query, [B, H, L, L]; causal, without itself.

    By its definition: in some round in the query's chunk or the one before it.
    """
    order = np.argsort(buckets_BHRL, axis=-1, kind='stable')
    chunks = np.argsort(order, axis=-1) // chunk_length
    steps = chunks[..., :, None] - chunks[..., None, :]
    met = ((steps == 0) | (steps == 1)).any(axis=2)
    return np.tril(met, k=-1)


def shared_qk(qk: jax.Array, v: jax.Array, met_BHLL: np.ndarray) -> jax.Array:
    """Attention to the keys met; a query that meets none gets its own value."""
    unit = qk * jax.lax.rsqrt(jnp.mean(qk**2, axis=-1, keepdims=True) + 1e-6)
    logits = jnp.einsum('bqhk,bshk->bhqs', qk, unit / qk.shape[-1] ** 0.5)
    alone = ~met_BHLL.any(axis=-1, keepdims=True) & np.eye(qk.shape[1], dtype=bool)
    logits = jnp.where(met_BHLL, logits, jnp.where(alone, 0.0, -jnp.inf))
    return jnp.einsum('bhqs,bshk->bqhk', jax.nn.softmax(logits, axis=-1), v)


def exact(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Causal attention, [B, L, H, K]."""
    logits = jnp.einsum('bqhk,bshk->bhqs', q, k) / q.shape[-1] ** 0.5
    seen = np.tril(np.ones((q.shape[1],) * 2, bool))
    p = jax.nn.softmax(jnp.where(seen, logits, -jnp.inf), axis=-1)
    return jnp.einsum('bhqs,bshk->bqhk', p, v)


def errors(function: Callable, reference: Callable, inputs, dout) -> list[float]:
    """Relative errors of the output and of the gradient of each input."""
    out, gradients = jax.jit(attention_benchmark.with_gradients(function))(inputs, dout)
    ours = [np.asarray(x, np.float64) for x in (out, *gradients)]
    with jax.enable_x64(True):
        wide_inputs = [jnp.asarray(np.asarray(x, np.float64)) for x in inputs]
        wide_dout = jnp.asarray(np.asarray(dout, np.float64))
        both = jax.jit(attention_benchmark.with_gradients(reference))
        out, gradients = both(wide_inputs, wide_dout)
        wanted = [np.asarray(x) for x in (out, *gradients)]
    assert wanted[0].dtype == np.float64
    return [
        float(np.linalg.norm(x - y) / np.linalg.norm(y))
        for x, y in zip(ours, wanted, strict=True)
    ]


def measure(length: int, implementation: str, opponent: str) -> None:
    """Prints the errors of LSH attention and of exact attention."""
    rng = np.random.default_rng(0)
    shape = (1, length, _HEADS, _HEAD_SIZE)
    qk, k, v, dout = (jnp.asarray(rng.normal(size=shape), 'bfloat16') for _ in range(4))
    rotations = hashing.random_rotations(
        jax.random.key(0),
        heads=_HEADS,
        head_size=_HEAD_SIZE,
        rounds=_ROUNDS,
        buckets=_BUCKETS,
    )
    buckets = hashing.hash_vectors(qk, rotations, buckets=_BUCKETS)
    kind = attention.LSH(
        chunk_length=_CHUNK_LENGTH, buckets=_BUCKETS, implementation=implementation
    )
    lsh = functools.partial(attention.lsh_attention, kind, buckets_BHRL=buckets)
    met = keys_met(np.asarray(buckets), _CHUNK_LENGTH)
    reference = functools.partial(shared_qk, met_BHLL=met)
    of_lsh = errors(lsh, reference, (qk, v), dout)
    attend = functools.partial(cudnn.attend, attention.Full(), implementation=opponent)
    of_exact = errors(attend, exact, (qk, k, v), dout)
    of_exact_alike = of_exact[0], max(of_exact[1:3]), of_exact[3]
    for name, error, other in zip(
        ('output', 'dqk', 'dv'), of_lsh, of_exact_alike, strict=True
    ):
        timing.print_point(
            {
                'of': name,
                'attention': implementation,
                'error': error,
                'exact': opponent,
                'error_of_exact': other,
                'times_exact': error / other,
            }
        )


def main() -> None:
    timing.check_gpu()
    measure(_LENGTH, 'triton', 'cudnn')


if __name__ == '__main__':
    command_line.script(main)
