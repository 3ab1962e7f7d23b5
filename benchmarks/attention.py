"""LSH attention alone (hash, sort, attend) against exact attention; JSON lines.

  python benchmarks/attention.py
  python benchmarks/attention.py 1024 2048 4096 --dtype bfloat16 --runs 5

One sequence, 4 heads of 64, chunks of 64, causal, 1 to 8 hash rounds, against our own
exact attention with shared queries and keys. Seconds are the minimum of the runs, which
take turns. The last lines are the crossovers: for each number of rounds the greatest of
the lengths at which exact attention, forward and backward, is not slower.
"""

import argparse
import functools
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks import small_lm
from benchmarks import timing
from reformer_jax import attention
from reformer_jax.attention import hashing
from reformer_jax.model import config as model_config
from reformer_jax.stack import compilation

_LENGTHS = tuple(2**exponent for exponent in range(10, 17))
_ROUNDS = (1, 2, 4, 8)
_PASSES = ('forward', 'forward_backward')


def lsh(qk_BLHK: jax.Array, v_BLHK: jax.Array, rotations_HKRS: jax.Array) -> jax.Array:
    """Causal LSH attention [B, L, H, K] with the rounds of the rotations."""
    buckets = _buckets(qk_BLHK.shape[1])
    kind = attention.LSH(
        chunk_length=small_lm.CHUNK_LENGTH, buckets=buckets, implementation='xla'
    )
    buckets_BHRL = hashing.hash_vectors(qk_BLHK, rotations_HKRS, buckets=buckets)
    return attention.lsh_attention(kind, qk_BLHK, v_BLHK, buckets_BHRL)


def full(qk_BLHK: jax.Array, v_BLHK: jax.Array) -> jax.Array:
    """The exact attention that `lsh` approximates."""
    kind = attention.Full(shared_qk=True)
    return attention.full_attention(kind, qk_BLHK, qk_BLHK, v_BLHK)


def steps(length: int, rounds: Sequence[int], dtype: str) -> dict[str, Callable]:
    """Compiled passes by name, 'full forward' to 'lsh-8 forward_backward'."""
    shape = (1, length, small_lm.HEADS, small_lm.HEAD_SIZE)
    keys = jax.random.split(jax.random.key(0), 4)
    qk, v, dout = (jax.random.normal(key, shape).astype(dtype) for key in keys[:3])
    functions: dict[str, Callable] = {'full': full}
    for count in rounds:
        rotations = hashing.random_rotations(
            keys[3],
            heads=small_lm.HEADS,
            head_size=small_lm.HEAD_SIZE,
            rounds=count,
            buckets=_buckets(length),
        )
        functions[f'lsh-{count}'] = functools.partial(lsh, rotations_HKRS=rotations)
    passes = {}
    for name, function in functions.items():
        passes[f'{name} forward'] = _compiled(function, qk, v)
        passes[f'{name} forward_backward'] = _compiled(
            with_gradients(function), (qk, v), dout
        )
    return passes


def with_gradients(function: Callable) -> Callable:
    """A function of inputs and dout: the output, and the gradients of the inputs."""

    def both(inputs, dout_BLHK):
        # The output is returned too: unused, its computation would be removed.
        out_BLHK, pullback = jax.vjp(function, *inputs)
        return out_BLHK, pullback(dout_BLHK)

    return both


def _compiled(function: Callable, *arguments: Any) -> Callable[[], Any]:
    options = compilation.options()
    compiled = jax.jit(function).lower(*arguments).compile(options)
    return lambda: jax.block_until_ready(compiled(*arguments))


def _buckets(length: int) -> int | tuple[int, ...]:
    return hashing.default_buckets(length, small_lm.CHUNK_LENGTH)


def crossover(ratios: Mapping[int, float]) -> int | None:
    """The greatest length at which exact attention is not slower, if there is one.

    Args:
      ratios: seconds of exact attention over those of LSH attention, by length.
    """
    return max((length for length, ratio in ratios.items() if ratio <= 1), default=None)


def time_attention(lengths: Sequence[int], dtype: str, runs: int) -> None:
    """Prints a point per length, number of rounds and pass; then the crossovers."""
    ratios: dict[int, dict[int, float]] = {rounds: {} for rounds in _ROUNDS}
    for length in lengths:
        runs_of = timing.interleaved(steps(length, _ROUNDS, dtype), runs)
        least = {name: min(seconds) for name, seconds in runs_of.items()}
        nanoseconds = 1e9 / (length * small_lm.HEADS)
        for which in _PASSES:
            exact = least[f'full {which}']
            point = {'length': length, 'dtype': dtype, 'pass': which}
            timing.print_point(
                point
                | {
                    'attention': 'full',
                    'seconds': exact,
                    'ns_per_token_head': exact * nanoseconds,
                }
            )
            for rounds in _ROUNDS:
                seconds = least[f'lsh-{rounds} {which}']
                timing.print_point(
                    point
                    | {
                        'attention': 'lsh',
                        'rounds': rounds,
                        'seconds': seconds,
                        'ns_per_token_head_round': seconds * nanoseconds / rounds,
                        'full_over_lsh': exact / seconds,
                    }
                )
                if which == 'forward_backward':
                    ratios[rounds][length] = exact / seconds
    for rounds in _ROUNDS:
        timing.print_point(
            {'rounds': rounds, 'dtype': dtype, 'crossover': crossover(ratios[rounds])}
        )


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description='Times LSH and exact attention.')
    parser.add_argument('lengths', nargs='*', type=int, help='multiples of 64, tokens')
    parser.add_argument('--dtype', choices=model_config.DTYPES, default='float32')
    parser.add_argument('--runs', type=int, default=3, help='of which the minimum')
    options = parser.parse_args(arguments)
    time_attention(options.lengths or _LENGTHS, options.dtype, options.runs)


if __name__ == '__main__':
    main(sys.argv[1:])
