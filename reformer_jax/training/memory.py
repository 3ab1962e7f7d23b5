"""Whether a run fits into the memory there is: said before any of it is taken."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from reformer_jax.model import config as model_config
from reformer_jax.stack import memory
from reformer_jax.training import config as training_config


def check_arrays(arrays: Any, what: str) -> None:
    """Raises a ValueError if a pytree of ShapeDtypeStructs with shardings, named in the
    plural, is too large for a device."""
    limit, needed = memory.of_device(), _bytes(arrays)
    if limit is not None and needed > limit:
        raise ValueError(
            f'{what} take {memory.shown(needed)} on each device, which has '
            f'{memory.shown(limit)}: '
            'make model.vocab_size, d_model, d_ff or layers smaller, or spread them '
            'over more devices with mesh.fsdp.'
        )


def check_batch(batch: Mapping[str, jax.ShapeDtypeStruct]) -> None:
    """As check_arrays, for the arrays of a batch."""
    limit, needed = memory.of_device(), _bytes(batch)
    if limit is not None and needed > limit:
        batch_size = batch['tokens'].shape[0]
        raise ValueError(
            f'data.batch_size={batch_size}: a batch takes {memory.shown(needed)} on '
            f'each device, which has {memory.shown(limit)}: make it smaller.'
        )


def _bytes(arrays: Any) -> int:
    """Of a device's part of ShapeDtypeStructs with shardings."""
    return sum(
        int(np.prod(x.sharding.shard_shape(x.shape), dtype=object)) * x.dtype.itemsize
        for x in jax.tree.leaves(arrays)
    )


def check_step(compiled: jax.stages.Compiled, run: training_config.RunConfig) -> None:
    """Raises a ValueError if a compiled training step is too large for a device."""
    limit, found = memory.of_device(), compiled.memory_analysis()
    if limit is None or found is None:
        return
    kept = found.argument_size_in_bytes
    new = found.output_size_in_bytes - found.alias_size_in_bytes
    needed = kept + new + found.temp_size_in_bytes
    if needed > limit:
        raise ValueError(
            f'a training step takes {memory.shown(needed)} on each device, which has '
            f'{memory.shown(limit)}, {memory.shown(kept)} of it for parameters and '
            f'optimizer: {", ".join(_remedies(run))}.'
        )


def _remedies(run: training_config.RunConfig) -> list[str]:
    """What would take less memory, the cheapest first."""
    found, model = [], run.model
    if model.stack != 'reversible' and model.streams == 2:
        found.append("set model.stack='reversible'")
    batch_size, length = run.data.spec['tokens'][0]
    if not model.loss_chunk_length and model.head in ('lm', 'masked_lm'):
        found.append('set model.loss_chunk_length=256')
    sides = {'model': model, 'model.encoder': model.encoder}
    for where, side in sides.items():
        if side is not None:
            found += _smaller_pieces(where, side)
    if batch_size > run.accumulate:
        found.append(
            f'set accumulate={2 * run.accumulate} or a smaller data.batch_size'
        )
    return [*found, f'shorten sequences ({length} tokens)']


def _smaller_pieces(where: str, side: model_config.ModelConfig) -> list[str]:
    found = []
    if not side.feed_forward_chunk_length:
        found.append(f'set {where}.feed_forward_chunk_length=512')
    if side.heads > 1 and side.heads_at_once != 1:
        found.append(f'set {where}.heads_at_once=1')
    return found
