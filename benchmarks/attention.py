"""Attention alone: exact, local, LSH (hash, sort, attend), and torch's; JSON lines.

  python benchmarks/attention.py
  python benchmarks/attention.py 2048 4096 --dtype bfloat16 --runs 5
  python benchmarks/attention.py 2048 4096 8192 --peers    torch's exact attention too
  python benchmarks/attention.py --memory 65536            of exact attention, not run

One sequence, 4 heads of 64, chunks of 64, causal: `full` (queries, keys and values),
`full_shared` (queries are the keys: what LSH attention approximates), `local`, `lsh-1`
to `lsh-8` by hash rounds, and `torch`, its scaled_dot_product_attention. Seconds are
the minimum of the runs, which take turns; ratios are of seconds. The last lines are the
crossovers: for each number of rounds the greatest of the lengths at which exact
attention, forward and backward, is not slower. --peers needs pip install -e '.[peers]'.
"""

import functools
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks import peers
from benchmarks import small_lm
from benchmarks import timing
from reformer_jax import attention
from reformer_jax.attention import hashing
from reformer_jax.model import config as model_config
from reformer_jax.stack import compilation
from reformer_jax.training import command_line

_LENGTHS = tuple(2**exponent for exponent in range(10, 15))
_ROUNDS = (1, 2, 4, 8)
_RATIOS = (
    ('full', 'torch'),
    ('full_shared', 'torch'),
    ('local', 'lsh-2'),
    *(('full_shared', f'lsh-{rounds}') for rounds in _ROUNDS),
)


def lsh(qk_BLHK: jax.Array, v_BLHK: jax.Array, rotations_HKRS: jax.Array) -> jax.Array:
    """Causal LSH attention [B, L, H, K] with the rounds of the rotations."""
    buckets = _buckets(qk_BLHK.shape[1])
    kind = attention.LSH(
        chunk_length=small_lm.CHUNK_LENGTH, buckets=buckets, implementation='xla'
    )
    buckets_BHRL = hashing.hash_vectors(qk_BLHK, rotations_HKRS, buckets=buckets)
    return attention.lsh_attention(kind, qk_BLHK, v_BLHK, buckets_BHRL)


def full_shared(qk_BLHK: jax.Array, v_BLHK: jax.Array) -> jax.Array:
    """The exact attention that `lsh` approximates."""
    kind = attention.Full(shared_qk=True)
    return attention.full_attention(kind, qk_BLHK, qk_BLHK, v_BLHK)


def attentions(length: int, rounds: Sequence[int], dtype: str) -> dict[str, tuple]:
    """By name a function, its inputs and the gradient of its output [1, L, H, K]."""
    keys = jax.random.split(jax.random.key(0), 5)
    shape = (1, length, small_lm.HEADS, small_lm.HEAD_SIZE)
    q, k, v, dout = (jax.random.normal(key, shape).astype(dtype) for key in keys[:4])
    full = functools.partial(attention.full_attention, attention.Full())
    local = functools.partial(
        attention.local_attention,
        attention.Local(chunk_length=small_lm.CHUNK_LENGTH),
    )
    cases: dict[str, tuple] = {
        'full': (full, (q, k, v), dout),
        'full_shared': (full_shared, (q, v), dout),
        'local': (local, (q, k, v), dout),
    }
    for count in rounds:
        rotations = hashing.random_rotations(
            keys[4],
            heads=small_lm.HEADS,
            head_size=small_lm.HEAD_SIZE,
            rounds=count,
            buckets=_buckets(length),
        )
        function = functools.partial(lsh, rotations_HKRS=rotations)
        cases[f'lsh-{count}'] = function, (q, v), dout
    return cases


def steps(
    length: int, rounds: Sequence[int], dtype: str
) -> dict[tuple[str, str], Callable]:
    """Compiled passes by (attention, 'forward' or 'forward_backward')."""
    passes: dict[tuple[str, str], Callable] = {}
    for name, (function, inputs, dout) in attentions(length, rounds, dtype).items():
        passes[name, 'forward'] = compiled(function, *inputs)
        both = compiled(with_gradients(function), inputs, dout)
        passes[name, 'forward_backward'] = both
    return passes


def torch_steps(length: int, dtype: str) -> dict[tuple[str, str], Callable]:
    """The passes of torch's exact attention, on [1, H, L, K] as it likes them."""
    import torch
    from torch.nn import functional

    shape = (1, small_lm.HEADS, length, small_lm.HEAD_SIZE)
    q, k, v, dout = (torch.randn(shape, dtype=getattr(torch, dtype)) for _ in range(4))
    inputs = [x.requires_grad_() for x in (q, k, v)]
    attend = functools.partial(functional.scaled_dot_product_attention, is_causal=True)

    def forward():
        with torch.no_grad():
            return attend(*inputs)

    def forward_backward():
        out = attend(*inputs)
        return out, torch.autograd.grad(out, inputs, dout)

    return {('torch', f.__name__): f for f in (forward, forward_backward)}


def with_gradients(function: Callable) -> Callable:
    """A function of inputs and dout: the output, and the gradients of the inputs."""

    def both(inputs, dout_BLHK):
        # The output is returned too: unused, its computation would be removed.
        out_BLHK, pullback = jax.vjp(function, *inputs)
        return out_BLHK, pullback(dout_BLHK)

    return both


def compiled(function: Callable, *arguments: Any) -> Callable[[], Any]:
    """Computes function(*arguments), compiled as our programs are, and waits for it."""
    run = _compile(function, *arguments)
    return lambda: jax.block_until_ready(run(*arguments))


def _compile(function: Callable, *arguments: Any) -> Any:
    return jax.jit(function).lower(*arguments).compile(compilation.options())


def _buckets(length: int) -> int | tuple[int, ...]:
    return hashing.default_buckets(length, small_lm.CHUNK_LENGTH)


def crossover(ratios: Mapping[int, float]) -> int | None:
    """The greatest length at which exact attention is not slower, if there is one.

    Args:
      ratios: seconds of exact attention over those of LSH attention, by length.
    """
    return max((length for length, ratio in ratios.items() if ratio <= 1), default=None)


def time_attention(
    lengths: Sequence[int], dtype: str, runs: int, with_torch: bool
) -> None:
    """Prints for each length and pass a point each and their ratios; the crossovers."""
    ratios: dict[int, dict[str, float]] = {}
    for length in lengths:
        passes = steps(length, _ROUNDS, dtype)
        if with_torch:
            passes |= torch_steps(length, dtype)
        runs_of = timing.interleaved(passes, runs)
        for which in ('forward', 'forward_backward'):
            least = {n: min(runs_of[n, p]) for n, p in passes if p == which}
            point = {'length': length, 'dtype': dtype, 'pass': which}
            for name, seconds in least.items():
                nanoseconds = 1e9 * seconds / (length * small_lm.HEADS)
                timing.print_point(
                    point
                    | {
                        'attention': name,
                        'seconds': seconds,
                        'ns_per_token_head': nanoseconds,
                    }
                )
            ratios[length] = {
                f'{a}_over_{b}': least[a] / least[b] for a, b in _RATIOS if b in least
            }
            timing.print_point(point | ratios[length])
    for rounds in _ROUNDS:
        # Of the last pass, forward and backward.
        ratio = {n: ratios[n][f'full_shared_over_lsh-{rounds}'] for n in lengths}
        timing.print_point(
            {'rounds': rounds, 'dtype': dtype, 'crossover': crossover(ratio)}
        )


def measure_memory(length: int, dtype: str) -> None:
    """XLA's accounting of exact attention, forward and backward, compiled only.

    `of_arrays` is all its memory over that of the inputs, the output and their
    gradients, which are the arguments and outputs of what is compiled.
    """
    for name, (function, *arguments) in attentions(length, (), dtype).items():
        if name == 'local':
            continue
        memory = _compile(with_gradients(function), *arguments).memory_analysis()
        arrays = memory.argument_size_in_bytes + memory.output_size_in_bytes
        timing.print_point(
            {
                'attention': name,
                'length': length,
                'dtype': dtype,
                'arguments_mib': memory.argument_size_in_bytes / 2**20,
                'outputs_mib': memory.output_size_in_bytes / 2**20,
                'temporaries_mib': memory.temp_size_in_bytes / 2**20,
                'of_arrays': 1 + memory.temp_size_in_bytes / arrays,
            }
        )


def main(arguments: list[str]) -> None:
    parser = command_line.ArgumentParser(description='Times of attention.')
    parser.add_argument('lengths', nargs='*', type=int, help='multiples of 64, tokens')
    parser.add_argument('--dtype', choices=model_config.DTYPES, default='float32')
    parser.add_argument('--runs', type=int, default=3, help='of which the minimum')
    parser.add_argument('--peers', action='store_true', help="torch's attention too")
    parser.add_argument('--memory', type=int, metavar='LENGTH', help='memory instead')
    options = parser.parse_args(arguments)
    if options.memory:
        measure_memory(options.memory, options.dtype)
        return
    if options.peers:
        peers.check_installed()
    lengths = options.lengths or _LENGTHS
    time_attention(lengths, options.dtype, options.runs, options.peers)


if __name__ == '__main__':
    command_line.script(main, sys.argv[1:])
