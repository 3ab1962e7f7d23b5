"""Which implementation of LSH attention runs: one by name, or the fastest."""

from collections.abc import Callable
from typing import Any

import jax

from reformer_jax.attention import xla
from reformer_jax.attention.kernels import cudnn
from reformer_jax.attention.kernels import mosaic_tpu
from reformer_jax.attention.kernels import triton

_ATTEND: dict[str, Callable[..., jax.Array]] = {
    'xla': xla.attend,
    'triton': triton.attend,
    'mosaic_tpu': mosaic_tpu.attend,
}
_KERNELS = {'triton': triton, 'mosaic_tpu': mosaic_tpu}
_PLATFORMS = {'triton': 'gpu', 'mosaic_tpu': 'tpu'}
IMPLEMENTATIONS = tuple(_ATTEND)


def check(implementation: str, dtype: Any, head_size: int, chunk_length: int) -> None:
    """Raises a ValueError if an implementation does not take such arrays."""
    if not _takes(implementation, dtype, head_size, chunk_length):
        raise ValueError(
            f'implementation={implementation!r} does not take dtype={dtype}, '
            f'head_size={head_size}, chunk_length={chunk_length}, but '
            f"{_KERNELS[implementation].SUPPORTED}: use them or implementation='xla'."
        )


def choose(preferred: str, dtype: Any, head_size: int, chunk_length: int) -> str:
    """The preferred implementation, or '' for that of the device at hand.

    XLA's where it does not take such arrays, and on a mesh of several devices outside
    shard_map, since kernels cannot be partitioned.
    """
    if _is_partitioned():
        return 'xla'
    name = preferred or _of_this_device()
    return name if _takes(name, dtype, head_size, chunk_length) else 'xla'


def attend(implementation: str) -> Callable[..., jax.Array]:
    """An implementation by name: a function as xla.attend.

    Raises:
      ValueError: it is of another accelerator than the one here.
    """
    here, needed = jax.default_backend(), _PLATFORMS.get(implementation)
    if needed and here not in ('cpu', needed):
        raise ValueError(
            f'implementation={implementation!r} is for a {needed} and JAX runs on a '
            f"{here} here: use implementation='xla', or leave the choice to the device."
        )
    return _ATTEND[implementation]


def _takes(name: str, dtype: Any, head_size: int, chunk_length: int) -> bool:
    return name == 'xla' or _KERNELS[name].supports(dtype, head_size, chunk_length)


def _is_partitioned() -> bool:
    mesh = jax.sharding.get_abstract_mesh()
    manual = all(kind == jax.sharding.AxisType.Manual for kind in mesh.axis_types)
    return not mesh.empty and mesh.size > 1 and not manual


def _of_this_device() -> str:
    backend = jax.default_backend()
    if backend == 'tpu':
        return 'mosaic_tpu'
    if backend == 'gpu' and cudnn.is_ampere_or_later(jax.local_devices()[0]):
        return 'triton'
    return 'xla'
