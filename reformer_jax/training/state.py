"""From a config to what a run is made of: mesh, optimizer, shapes, restored models."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from reformer_jax import model as model_lib
from reformer_jax import sharding
from reformer_jax.runs import checkpoint
from reformer_jax.training import config as training_config
from reformer_jax.training import optimizer as optimizer_lib


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that training changes: the number of steps done, model, optimizer state."""

    step: jax.Array
    model: Any
    opt_state: Any


class Run(NamedTuple):
    """What training and evaluation both need; holds no arrays."""

    config: training_config.RunConfig
    mesh: jax.sharding.Mesh
    optimizer: optax.GradientTransformation
    state: TrainState  # jax.ShapeDtypeStruct leaves with shardings
    batch: Any  # jax.ShapeDtypeStruct leaves with shardings


def prepare(config_dict: ml_collections.ConfigDict) -> Run:
    """Checks the config and lays the run out on the devices; computes no array."""
    config = training_config.run_config(config_dict)
    mesh = sharding.make_mesh(config.mesh)
    training_config.check(config, mesh)
    rows = NamedSharding(mesh, P(sharding.BATCH_AXES))
    batch = {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=rows)
        for name, (shape, dtype) in config.data.spec.items()
    }
    state = abstract_state(config, mesh)
    optimizer_lib.check_frozen(config.optimizer, state.model)
    return Run(config, mesh, optimizer(config), state, batch)


def optimizer(config: training_config.RunConfig) -> optax.GradientTransformation:
    """The optimizer of a run."""
    return optimizer_lib.build(config.optimizer, config.steps)


def init_state(
    config: model_lib.ModelConfig, optimizer: optax.GradientTransformation, seed: int
) -> TrainState:
    """Fresh parameters and optimizer state."""
    model = model_lib.build(config, nnx.Rngs(jax.random.key(seed)))
    return TrainState(jnp.zeros((), jnp.int32), model, optimizer.init(model))


def abstract_state(
    config: training_config.RunConfig, mesh: jax.sharding.Mesh
) -> TrainState:
    """Shapes and shardings of a run's state."""
    init = functools.partial(init_state, config.model, optimizer(config), config.seed)
    shapes = jax.eval_shape(init)
    return jax.tree.map(_with_sharding, shapes, sharding.parameter_specs(shapes, mesh))


def restore_model(
    config: training_config.RunConfig,
    mesh: jax.sharding.Mesh,
    workdir: str,
    step: int | str | None = None,
) -> tuple[model_lib.Reformer, int]:
    """The model alone of a run's checkpoint, and its step; see Checkpointer.restore.

    Raises:
      FileNotFoundError: no run was started in `workdir`, or it has no such checkpoint.
      ValueError: the checkpoint has other arrays than the config's model.
    """
    checkpoint.load_config(workdir)
    with checkpoint.Checkpointer(workdir) as checkpointer:
        template = {'model': abstract_state(config, mesh).model}
        restored, at_step = checkpointer.restore_part(template, step)
    return restored['model'], at_step


def _with_sharding(x: jax.ShapeDtypeStruct, sharding: NamedSharding):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
