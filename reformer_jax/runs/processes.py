"""What the processes of one run tell each other."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from reformer_jax.runs import folder as run_folder


def of_first(told: Callable[[], str]) -> str:
    """What process 0 is told, in every process."""
    if jax.process_count() == 1:
        return told()
    text = told().encode() if jax.process_index() == 0 else b''
    size = int(multihost_utils.broadcast_one_to_all(np.array(len(text))))
    sent = np.zeros(size, np.uint8)
    if jax.process_index() == 0:
        sent[:] = np.frombuffer(text, np.uint8)
    return bytes(multihost_utils.broadcast_one_to_all(sent)).decode()


def check_same(workdir: str, fields: Mapping[str, Any]) -> None:
    """Raises a ValueError, in every process, unless all have the same folder and
    config."""
    if jax.process_count() == 1:
        return
    flat = run_folder.flat(run_folder.as_json({'config': fields, 'workdir': workdir}))
    first = json.loads(of_first(lambda: json.dumps(flat)))
    other = {n for n in (*flat, *first) if flat.get(n, ...) != first.get(n, ...)}
    differ = np.flatnonzero(multihost_utils.process_allgather(np.array(bool(other))))
    if not differ.size:
        return
    whose = f'processes {differ.tolist()} have another config than process 0'
    if other:
        name = min(other)
        here, there = (x.get(name, 'nothing') for x in (flat, first))
        whose = (
            f'process {jax.process_index()} has {name}={here!r}, and process 0 '
            f'has {there!r}'
        )
    raise ValueError(f'{whose}: start all processes of a run with the same flags.')
