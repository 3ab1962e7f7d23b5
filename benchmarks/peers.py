"""The training step of the small LM against its peers', on the CPU; JSON lines.

  python benchmarks/peers.py 4096 16384 65536 --runs 3   seconds, all in one process
  python benchmarks/peers.py --memory 16384              peak memory, a process each
  python benchmarks/peers.py 4096 --only ours_exact,torch_exact

Ours is `ours` (reversible), `ours_residual` (all activations saved) and `ours_exact`
(exact causal attention, all saved); the peers are `hugging_face` (transformers),
`lucidrains` (reformer-pytorch) and `torch_exact` (as ours_exact). Seconds are the
minimum of the runs, which take turns; `times_first` is how many of the first one's. The
peers need pip install -e '.[peers]'.
"""

import importlib.util
import multiprocessing
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks import small_lm
from benchmarks import timing
from reformer_jax.training import command_line

# JAX and PyTorch are imported where they are used: the process of a peer, whose memory
# is measured, must not have JAX in it, nor ours PyTorch.

# What our model's config changes.
_OURS: dict[str, dict[str, Any]] = {
    'ours': {'stack': 'reversible'},
    'ours_residual': {'stack': 'residual'},
    'ours_exact': {'stack': 'residual', 'pattern': ('full',)},
}
PEERS = ('hugging_face', 'lucidrains', 'torch_exact')
IMPLEMENTATIONS = (*_OURS, *PEERS)
_PACKAGES = {
    'torch': 'torch',
    'transformers': 'transformers',
    'reformer_pytorch': 'reformer-pytorch',
}
_MEMORY_STEPS = 2


def check_installed() -> None:
    """Exits with the missing packages and what installs them."""
    missing = [
        package
        for module, package in _PACKAGES.items()
        if importlib.util.find_spec(module) is None
    ]
    if missing:
        raise SystemExit(
            f'{", ".join(missing)} not installed: the comparison with the peers needs '
            "pip install -e '.[peers]'"
        )


def buckets(length: int) -> int | tuple[int, ...]:
    """The hash buckets that our model chooses for this length."""
    from reformer_jax.attention import hashing

    return hashing.default_buckets(length, small_lm.CHUNK_LENGTH)


def build_step(
    name: str, length: int, buckets: int | tuple[int, ...]
) -> Callable[[], float]:
    """One of IMPLEMENTATIONS as a function that runs a step and returns its loss."""
    if name in _OURS:
        from benchmarks import training_step

        return training_step.step(training_step.config(length, **_OURS[name]))[0]
    from benchmarks import torch_models

    model, loss = build_peer(name, length, buckets)
    return torch_models.training_step(model, loss, length)


def build_peer(name: str, length: int, buckets: int | tuple[int, ...]) -> Any:
    """One of PEERS as a torch module and its loss, see torch_models.py."""
    from benchmarks import torch_models

    if name == 'hugging_face':
        return torch_models.hugging_face(length, buckets)
    if name == 'lucidrains':
        return torch_models.lucidrains(length)
    return torch_models.exact(length)


def time_steps(
    names: Sequence[str], lengths: Sequence[int], runs: int, warm_up: bool
) -> None:
    """Seconds of a step of each implementation, and how many of the first's."""
    for length in lengths:
        steps = {name: build_step(name, length, buckets(length)) for name in names}
        seconds = timing.interleaved(steps, runs, warm_up=warm_up)
        for name in names:
            least = min(seconds[name])
            timing.print_point(
                {
                    'implementation': name,
                    'length': length,
                    'seconds': least,
                    'times_first': least / min(seconds[names[0]]),
                    'tokens_per_second': length / least,
                    'runs': seconds[name],
                }
            )


def measure_memory(names: Sequence[str], length: int) -> None:
    """Peak resident memory of a few steps of each, alone in a fresh process."""
    spawn = multiprocessing.get_context('spawn')
    for name in names:
        # A new process inherits the peak of the one that starts it; this one has only
        # imported JAX by then, which is less than any of them needs.
        with futures.ProcessPoolExecutor(1, spawn) as process:
            point = process.submit(_memory, name, length, buckets(length)).result()
        print(point, flush=True)


def _memory(name: str, length: int, buckets: int | tuple[int, ...]) -> str:
    if name in _OURS:
        # tensorboardX imports PyTorch wherever it is installed: 460 MiB not of ours.
        sys.modules['torch'] = None  # type: ignore[assignment]
    run_step = build_step(name, length, buckets)
    before = timing.resident_memory_mib()
    peak_before = timing.peak_memory_mib()
    for _ in range(_MEMORY_STEPS):
        run_step()
    point: dict[str, Any] = {
        'implementation': name,
        'length': length,
        'resident_before_step_mib': before,
        'peak_before_step_mib': peak_before,
        'peak_mib': timing.peak_memory_mib(),
    }
    return timing.line(point)


def main(arguments: list[str]) -> None:
    parser = command_line.ArgumentParser(description='Our training step and the peers.')
    parser.add_argument('lengths', nargs='*', type=int, help='powers of two, in tokens')
    parser.add_argument('--memory', type=int, metavar='LENGTH', help='memory instead')
    parser.add_argument('--runs', type=int, default=3, help='of which the minimum')
    parser.add_argument(
        '--no-warm-up', action='store_true', help='at 65,536 tokens it takes minutes'
    )
    parser.add_argument(
        '--only', default=','.join(IMPLEMENTATIONS), help='names with commas between'
    )
    options = parser.parse_args(arguments)
    names = options.only.split(',')
    if unknown := set(names) - set(IMPLEMENTATIONS):
        parser.error(
            f'--only: {sorted(unknown)} unknown: take {", ".join(IMPLEMENTATIONS)}'
        )
    if bool(options.lengths) == bool(options.memory):
        parser.error('give lengths to time, or --memory with one length')
    if set(names) & set(PEERS):
        check_installed()
    os.environ['JAX_PLATFORMS'] = 'cpu'
    if options.memory:
        measure_memory(names, options.memory)
    else:
        time_steps(names, options.lengths, options.runs, not options.no_warm_up)


if __name__ == '__main__':
    command_line.script(main, sys.argv[1:])
