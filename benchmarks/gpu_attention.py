"""LSH attention against cuDNN's exact attention, on one GPU; JSON lines.

  python benchmarks/gpu_attention.py
  python benchmarks/gpu_attention.py 8192 131072 --chunks 128 --rounds 4

One sequence, 8 heads of 64, bfloat16, causal, forward and backward. LSH attention is
all of it: hashing, sorting and attending, in chunks of 64 and 128 with 4 rounds and 1,
by the Triton kernel; by XLA's path the first of these, up to 32,768 tokens. The
opponents are cuDNN's exact attention and,
linear as LSH is, cuDNN's attention to the last 128 tokens. Seconds are the minimum of
the runs, which take turns; each run calls a function as often as takes a while.
"""

import functools
import itertools
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks import attention as attention_benchmark
from benchmarks import timing
from reformer_jax import attention
from reformer_jax.attention import hashing
from reformer_jax.attention.kernels import cudnn
from reformer_jax.training import command_line

HEADS = 8
HEAD_SIZE = 64
_LENGTHS = (8192, 16_384, 32_768, 65_536, 131_072)
_CHUNKS = (64, 128)
_ROUNDS = (4, 1)
_LOCAL_WINDOW = 128

# XLA's path takes long to compile and is no candidate for long sequences.
_LONGEST_OF_XLA = 32_768

# A run lasts about so long, which hides what a call costs the host.
_SECONDS_OF_RUN = 0.02


def lsh_kind(implementation: str, chunk_length: int, length: int) -> attention.LSH:
    """Causal LSH attention with the usual buckets for a length."""
    buckets = hashing.default_buckets(length, chunk_length)
    return attention.LSH(
        chunk_length=chunk_length, buckets=buckets, implementation=implementation
    )


def lsh(
    kind: attention.LSH,
    qk_BLHK: jax.Array,
    v_BLHK: jax.Array,
    rotations_HKRS: jax.Array,
) -> jax.Array:
    """LSH attention from hashing on, [B, L, H, K]."""
    buckets_BHRL = hashing.hash_vectors(qk_BLHK, rotations_HKRS, buckets=kind.buckets)
    return attention.lsh_attention(kind, qk_BLHK, v_BLHK, buckets_BHRL)


def opponents(implementation: str) -> dict[str, Callable]:
    """Exact and local attention as functions of q, k and v."""
    exact = functools.partial(
        cudnn.attend, attention.Full(), implementation=implementation
    )
    local = functools.partial(
        jax.nn.dot_product_attention,
        is_causal=True,
        local_window_size=(_LOCAL_WINDOW - 1, 0),
        implementation=implementation,
    )
    return {'exact': exact, 'local': local}


def passes(
    length: int, cases: Sequence[tuple[str, int, int]], opponent: str
) -> dict[tuple, Callable]:
    """Compiled forward and backward passes by (attention, chunk length, rounds)."""
    keys = jax.random.split(jax.random.key(0), 5)
    shape = (1, length, HEADS, HEAD_SIZE)
    qk, k, v, dout = (jax.random.normal(key, shape, 'bfloat16') for key in keys[:4])
    compiled: dict[tuple, Callable] = {
        (name, None, None): _compiled(function, (qk, k, v), dout)
        for name, function in opponents(opponent).items()
    }
    for implementation, chunk_length, rounds in cases:
        kind = lsh_kind(implementation, chunk_length, length)
        rotations = hashing.random_rotations(
            keys[4],
            heads=HEADS,
            head_size=HEAD_SIZE,
            rounds=rounds,
            buckets=kind.buckets,
        )
        function = functools.partial(lsh, kind, rotations_HKRS=rotations)
        case = implementation, chunk_length, rounds
        compiled[case] = _compiled(function, (qk, v), dout)
    return compiled


def _compiled(function, inputs, dout_BLHK) -> Callable[[], Any]:
    both = jax.jit(attention_benchmark.with_gradients(function))
    compiled = both.lower(inputs, dout_BLHK).compile()
    return functools.partial(compiled, inputs, dout_BLHK)


def _call(step: Callable[[], Any], calls: int) -> None:
    """Calls a step so often in a row and waits for the last."""
    for _ in range(calls):
        result = step()
    jax.block_until_ready(result)


def _calls(step: Callable[[], Any]) -> int:
    """How many calls take _SECONDS_OF_RUN."""
    _call(step, 1)
    [seconds] = timing.interleaved({'step': lambda: _call(step, 3)}, 1)['step']
    return max(1, round(3 * _SECONDS_OF_RUN / seconds))


def time_attention(
    length: int,
    cases: Sequence[tuple[str, int, int]],
    *,
    runs: int,
    opponent: str = 'cudnn',
) -> None:
    """Prints a point for each function, with how many times as long exact takes."""
    compiled = passes(length, cases, opponent)
    calls = {case: _calls(step) for case, step in compiled.items()}
    steps = {
        case: functools.partial(_call, step, calls[case])
        for case, step in compiled.items()
    }
    seconds = timing.interleaved(steps, runs)
    least = {case: min(seconds[case]) / calls[case] for case in compiled}
    for case, value in least.items():
        name, chunk_length, rounds = case
        timing.print_point(
            {
                'attention': name,
                'length': length,
                'chunk_length': chunk_length,
                'rounds': rounds,
                'seconds': value,
                'ns_per_token_head': 1e9 * value / (length * HEADS),
                'exact_over_this': least['exact', None, None] / value,
                'calls': calls[case],
                'runs': runs,
            }
        )


def main(arguments: list[str]) -> None:
    parser = command_line.ArgumentParser(description='LSH attention against cuDNN.')
    parser.add_argument('lengths', nargs='*', type=int, help='powers of two, tokens')
    parser.add_argument('--chunks', type=int, nargs='+', default=_CHUNKS)
    parser.add_argument('--rounds', type=int, nargs='+', default=_ROUNDS)
    parser.add_argument('--runs', type=int, default=5, help='of which the minimum')
    options = parser.parse_args(arguments)
    timing.check_gpu()
    triton = list(itertools.product(('triton',), options.chunks, options.rounds))
    for length in options.lengths or _LENGTHS:
        xla = [('xla', *triton[0][1:])] if length <= _LONGEST_OF_XLA else []
        time_attention(length, triton + xla, runs=options.runs)


if __name__ == '__main__':
    command_line.script(main, sys.argv[1:])
