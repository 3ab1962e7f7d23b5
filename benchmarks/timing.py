"""What the benchmarks share: runs in turn, peak memory, one JSON line per point."""

import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any


def interleaved(
    steps: Mapping[Any, Callable[[], Any]], runs: int, *, warm_up: bool = True
) -> dict[Any, list[float]]:
    """Seconds of every run of every step, the steps taking turns.

    In turns, because a shared machine that is slow for a while is then slow for all
    of them; compare the minima.

    Args:
      steps: functions without arguments that return when their work is done.
      runs: timed runs of each.
      warm_up: run each once before, untimed.
    """
    if warm_up:
        for step in steps.values():
            step()
    seconds: dict[Any, list[float]] = {name: [] for name in steps}
    for _ in range(runs):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def check_gpu() -> None:
    """Exits unless JAX has a GPU, whose figures are to be measured."""
    jax = sys.modules['jax']
    if jax.default_backend() != 'gpu':
        raise SystemExit(
            f'JAX runs on {jax.devices()[0].device_kind!r} here: these figures are of '
            "a GPU. Run it on one, after pip install 'jax[cuda13]'."
        )


def peak_memory_mib() -> float:
    """Highest resident memory of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # In KiB on Linux, in bytes on macOS.
    return peak / (2**20 if sys.platform == 'darwin' else 2**10)


def resident_memory_mib() -> float:
    """Resident memory of this process now, in MiB; from Linux's /proc."""
    with open('/proc/self/statm', encoding='ascii') as file:
        pages = int(file.read().split()[1])
    return pages * os.sysconf('SC_PAGE_SIZE') / 2**20


def line(point: Mapping[str, Any]) -> str:
    """A point and its environment as one line of JSON, floats to four digits."""
    return json.dumps(_rounded({**point, **_environment()}))


def print_point(point: Mapping[str, Any]) -> None:
    """Prints `line`, at once even into a pipe."""
    print(line(point), flush=True)


def _environment() -> dict[str, Any]:
    """What a time depends on; of the libraries only those that are in use."""
    values: dict[str, Any] = {
        'cpu_cores': os.cpu_count(),
        'python': platform.python_version(),
    }
    if jax := sys.modules.get('jax'):
        values['device'] = jax.devices()[0].device_kind
        values['jax'] = jax.__version__
    if torch := sys.modules.get('torch'):
        values['torch'] = torch.__version__
    # Huge pages make fresh large arrays several times as fast on some machines.
    if tunables := os.environ.get('GLIBC_TUNABLES'):
        values['GLIBC_TUNABLES'] = tunables
    return values


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f'{value:.4g}')
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(part) for part in value]
    return value
