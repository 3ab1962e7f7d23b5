"""What training changes, and how it lies on the devices."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from reformer_jax import model as model_lib
from reformer_jax import sharding
from reformer_jax.runs import checkpoint
from reformer_jax.runs import folder as run_folder
from reformer_jax.runs import metrics
from reformer_jax.training import config as training_config

_AVERAGE = 'average:'


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that training changes: the number of steps done, model, optimizer state."""

    step: jax.Array
    model: Any
    opt_state: Any


def init_state(
    config: model_lib.ModelConfig, optimizer: optax.GradientTransformation, seed: int
) -> TrainState:
    """Fresh parameters and optimizer state."""
    model = model_lib.build(config, nnx.Rngs(jax.random.key(seed)))
    return TrainState(jnp.zeros((), jnp.int32), model, optimizer.init(model))


def abstract(init: Any, mesh: jax.sharding.Mesh, placement: sharding.Rules = ()) -> Any:
    """Shapes and shardings of what a function without arguments makes."""

    shapes = jax.eval_shape(init)
    return jax.tree.map(
        lambda x, spec: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=spec),
        shapes,
        sharding.parameter_specs(shapes, mesh, placement),
    )


def restore_model(
    workdir: str,
    mesh: jax.sharding.Mesh,
    *,
    config: model_lib.ModelConfig | None = None,
    step: int | str | None = None,
) -> tuple[model_lib.Reformer, int]:
    """The model alone of a run's checkpoint, and its step.

    Args:
      workdir: the run folder.
      mesh: the devices.
      config: another one than the run's, for parameters of the same shapes.
      step: which checkpoint, and what is raised for it: see Checkpointer.restore; or
        'average:N' for the mean parameters of the last N, under the last one's step.

    Raises:
      FileNotFoundError: no run was started in `workdir`.
      ValueError: N is no number of at least 1, or there are fewer checkpoints.
    """
    own = run_folder.load_config(workdir)
    config = config or training_config.run_config(own).model
    template = {'model': abstract(lambda: model_lib.build(config, nnx.Rngs(0)), mesh)}
    with checkpoint.Checkpointer(workdir) as checkpointer:
        steps: Sequence[int | str | None] = [step]
        if str(step).startswith(_AVERAGE):
            steps = checkpointer.latest_steps(_count(str(step)))
        # One after the other: two models at a time.
        restored, at_step = checkpointer.restore_part(template, steps[-1])
        for other in steps[:-1]:
            more, _ = checkpointer.restore_part(template, other)
            restored = jax.tree.map(jnp.add, restored, more)
    model = restored['model']
    if len(steps) > 1:
        metrics.say(f'mean of the checkpoints of steps {", ".join(map(str, steps))}')
        model = jax.tree.map(lambda x: x / len(steps), model)
    return model, at_step


def _count(average: str) -> int:
    count = average.removeprefix(_AVERAGE)
    if not count.isdecimal() or int(count) < 1:
        raise ValueError(
            f'--checkpoint={average}: give the number of checkpoints, as in average:5.'
        )
    return int(count)
