"""How a call of attention is computed, decided here alone.

LSH attention: exactly, by the XLA path, or by a kernel for the device at hand. Exact
attention: by cuDNN or in blocks.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from reformer_jax.attention import kinds
from reformer_jax.attention import xla
from reformer_jax.attention.kernels import cudnn
from reformer_jax.attention.kernels import mosaic_tpu
from reformer_jax.attention.kernels import triton

EXACT = 'exact'

_ATTEND: dict[str, Callable[..., jax.Array]] = {
    'xla': xla.attend,
    'triton': triton.attend,
    'mosaic_tpu': mosaic_tpu.attend,
}
_KERNELS = {'triton': triton, 'mosaic_tpu': mosaic_tpu}
_PLATFORMS = {'triton': 'gpu', 'mosaic_tpu': 'tpu'}


def check(kind: kinds.LSH, dtype: Any, head_size: int) -> None:
    """Raises a ValueError if the kind's implementation does not take such arrays, or
    is of another accelerator than the one here."""
    name, here = kind.implementation, jax.default_backend()
    if not name:
        return
    if not _takes(name, dtype, head_size, kind.chunk_length):
        raise ValueError(
            f'implementation={name!r} does not take dtype={dtype}, head_size='
            f'{head_size}, chunk_length={kind.chunk_length}, but '
            f"{_KERNELS[name].SUPPORTED}: use them or implementation='xla'."
        )
    needed = _PLATFORMS.get(name)
    if needed and here not in ('cpu', needed):
        raise ValueError(
            f'implementation={name!r} is for a {needed} and JAX runs on a {here} here: '
            "use implementation='xla', or leave the choice to the device."
        )


def is_interpreted(implementation: str) -> bool:
    """Whether it is a kernel of an accelerator and JAX runs on a CPU."""
    return implementation in _PLATFORMS and jax.default_backend() == 'cpu'


def of_lsh(kind: kinds.LSH, length: int, dtype: Any, head_size: int) -> str:
    """'exact', 'xla', 'triton' or 'mosaic_tpu' for LSH attention to such arrays.

    XLA's where a kernel does not take the single chunk of a short sequence, and on a
    mesh of several devices outside shard_map, since kernels cannot be partitioned.

    Raises:
      ValueError: as `check`.
    """
    if kind.is_exact(length):
        return EXACT
    check(kind, dtype, head_size)
    if _is_partitioned():
        return 'xla'
    name = kind.implementation or _of_this_device()
    chunk_length = min(kind.chunk_length, length)
    return name if _takes(name, dtype, head_size, chunk_length) else 'xla'


def describe(kind: kinds.LSH, length: int, dtype: Any, head_size: int) -> str:
    """In words how LSH attention to such arrays is computed."""
    chosen = of_lsh(kind, length, dtype, head_size)
    if chosen == EXACT:
        return 'exact attention'
    rounds = f'{kind.rounds} round' + ('s' if kind.rounds > 1 else '')
    return f'{chosen}, {rounds}, {kind.num_buckets:,} buckets, rule {kind.rule}'


def attend(implementation: str) -> Callable[..., jax.Array]:
    """LSH attention by the name of an implementation: a function as xla.attend."""
    return _ATTEND[implementation]


def of_full(kind: kinds.Full, arrays: Sequence[jax.Array], key: Any) -> str:
    """'cudnn' or 'blocks' for exact attention to queries, keys and values."""
    alike = len({x.dtype for x in arrays}) == 1
    without_dropout = not (kind.dropout and key is not None)
    takes = alike and without_dropout and cudnn.takes(kind, arrays[0])
    return 'cudnn' if takes and not _is_partitioned() else 'blocks'


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
