"""The memory there is, for what is refused before it is begun."""

import os
import pathlib

import jax

_CGROUPS = (
    '/sys/fs/cgroup/memory.max',
    '/sys/fs/cgroup/memory/memory.limit_in_bytes',
)


def of_device() -> int | None:
    """Bytes that a device of this process has; None where it does not say.

    The devices of a CPU share what the machine has, or its container.
    """
    device, *_ = devices = jax.local_devices()
    if stats := device.memory_stats():
        return stats.get('bytes_limit')
    if device.platform != 'cpu':
        return None
    try:
        machine = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    except (AttributeError, OSError, ValueError):
        return None
    files = map(pathlib.Path, _CGROUPS)
    limits = [file.read_text('utf-8') for file in files if file.is_file()]
    known = [int(limit) for limit in limits if limit.strip().isdecimal()]
    return min(machine, *known) // len(devices) if known else machine // len(devices)


def shown(size: int) -> str:
    """Bytes in words."""
    return f'{size / 2**30:,.1f} GiB'
