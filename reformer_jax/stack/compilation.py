"""What the compiler is told."""

from typing import Any

import jax


def options() -> dict[str, Any] | None:
    """XLA's compiler options for the device at hand.

    On CPUs LLVM's first level of optimisation turns copies of short rows into vector
    instructions, which its third, by unrolling them first, does not: LSH attention
    takes three quarters of the time. XLA's default order of operations needs more
    temporary memory at a million tokens with jax 0.10 (and less with 0.12).
    """
    if jax.default_backend() != 'cpu':
        return None
    return {
        'xla_backend_optimization_level': 1,
        'xla_cpu_scheduler_type': 'CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED',
    }
