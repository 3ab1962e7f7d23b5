"""What the compiler is told."""

from typing import Any

import jax


def options() -> dict[str, Any] | None:
    """XLA's compiler options for the device at hand.

    On CPUs LLVM's first level of optimisation turns copies of short rows into vector
    instructions, which its third, by unrolling them first, does not: LSH attention
    takes three quarters of the time. XLA's default order of operations needs more
    temporary memory at a million tokens with jax 0.10 (and less with 0.12).

    Only products go to the library YNN, each by itself. It would also take sums with
    what follows them, but only where nothing else needs the sum, as in the norm of a
    forward pass from 4,096 rows on: then the backward pass, which needs it, computes
    other last bits, and does not come back to the streams. That costs a tenth of an LSH
    step of 16,384 tokens with jax 0.12, and gains one with 0.10.
    """
    if jax.default_backend() != 'cpu':
        return None
    return {
        'xla_backend_optimization_level': 1,
        'xla_cpu_scheduler_type': 'CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED',
        'xla_cpu_experimental_ynn_fusion_type': 'LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT',
    }
