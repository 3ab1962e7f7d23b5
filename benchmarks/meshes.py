"""Runs on meshes of some of the devices there are."""

import dataclasses
import math

import jax
from jax.sharding import AxisType
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from reformer_jax import sharding
from reformer_jax.training import config as training_config
from reformer_jax.training import start
from reformer_jax.training import state as state_lib


def parse(text: str, most: int) -> dict[str, int]:
    """The devices along each axis that `data=2,fsdp=4` names.

    Raises:
      ValueError: it is of another form, an axis is unknown, named twice or empty, or
        there are more than `most` devices.
    """
    shape: dict[str, int] = {}
    for part in text.split(','):
        axis, _, size = part.partition('=')
        if axis not in sharding.AXES or not size.isdecimal() or int(size) < 1:
            raise ValueError(
                f'--mesh={text}: {part!r} is not AXIS=DEVICES with one of the axes '
                f'{", ".join(sharding.AXES)} and at least 1 device, as in '
                '--mesh=data=2,fsdp=4.'
            )
        if axis in shape:
            raise ValueError(f'--mesh={text}: {axis} is there twice: give it once.')
        shape[axis] = int(size)
    if (devices := math.prod(shape.values())) > most:
        raise ValueError(
            f'--mesh={text} is of {devices:,} devices, and at most {most} can be laid '
            'out here: make an axis smaller.'
        )
    return shape


def lay_out(run: start.Run, shape: dict[str, int]) -> start.Run:
    """A run on the first of the devices, as many as its mesh then has.

    With as many heads at a time as this mesh needs, if the config has fewer: they are
    split over devices, which are not to be left without any.

    Raises:
      ValueError: the mesh does not divide batch, heads or positions.
    """
    sizes = [shape.get(axis, 1) for axis in sharding.AXES]
    mesh = jax.make_mesh(
        sizes,
        sharding.AXES,
        axis_types=(AxisType.Auto,) * len(sizes),
        devices=jax.devices()[: math.prod(sizes)],
    )
    config = _with_heads(dataclasses.replace(run.config, mesh=shape), mesh)
    run = dataclasses.replace(run, config=config, mesh=mesh)
    rows = NamedSharding(mesh, P(sharding.BATCH_AXES))
    batches = tuple(
        {
            name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows)
            for name, x in batch.items()
        }
        for batch in run.batches
    )
    state = state_lib.abstract(run.init_state, mesh)  # of as many heads at a time
    return dataclasses.replace(run, state=state, batches=batches)


def _with_heads(
    config: training_config.RunConfig, mesh: jax.sharding.Mesh
) -> training_config.RunConfig:
    """The config with the fewest heads at a time, its own or more, that split."""
    own, heads = config.model.heads_at_once, config.model.heads
    more = [n for n in range(own + 1, heads + 1) if own and heads % n == 0]
    for at_once in (own, *more):
        model = dataclasses.replace(config.model, heads_at_once=at_once)
        tried = dataclasses.replace(config, model=model)
        try:
            training_config.check_devices(tried, mesh)
        except ValueError as error:
            failed = error
        else:
            return tried
    raise failed
