"""A test module as a child process with several (virtual) devices, of a CPU."""

import os
import pathlib
import subprocess
import sys

_ROOT = pathlib.Path(__file__).parents[1]


def run(module: str, devices: int) -> str:
    """What a file prints, run as a script with so many devices and our search path.

    Of virtual devices one may wait long for another where there is much else to do; XLA
    would end them after 40 s.
    """
    patient = '--xla_cpu_collective_call_terminate_timeout_seconds=300'
    child = subprocess.run(
        [sys.executable, module],
        cwd=_ROOT,
        env=os.environ
        | {
            'JAX_PLATFORMS': 'cpu',
            'JAX_NUM_CPU_DEVICES': str(devices),
            'XLA_FLAGS': f'{os.environ.get("XLA_FLAGS", "")} {patient}',
            'PYTHONPATH': os.pathsep.join(filter(None, sys.path)),
        },
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert child.returncode == 0, child.stdout + child.stderr[-5000:]
    return child.stdout
