"""Learning-rate schedules and optax optimizers."""

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from reformer_jax import sharding
from reformer_jax.model import config as model_config

NAMES = ('adam', 'adamw', 'adafactor')
DECAYS = ('rsqrt', 'cosine', 'constant')

_TRAINED, _FROZEN = 'trained', 'frozen'


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and its schedule; checked when made.

    Attributes:
      name: 'adam', 'adamw' or 'adafactor'.
      learning_rate: the peak, reached at the end of the warm-up. (trax's
        `constant` c of `c * linear_warmup * rsqrt_decay` has its peak at
        c / sqrt(warmup_steps).)
      warmup_steps: steps of linear warm-up.
      decay: after it, 'rsqrt' (peak * sqrt(warmup / step)), 'cosine' (to zero at the
        last step) or 'constant'.
      b1: decay of Adam's first moment.
      b2: decay of Adam's second moment.
      eps: Adam's.
      weight_decay: adamw's, on matrices only.
      clip_norm: largest global norm of the gradient; 0 does not clip.
      frozen: regular expression; parameters in whose names it is found stay as they
        are, '' for none. Names are those of checkpoints: embedding, position_tables.0,
        layers.<place in the pattern>.attention.query_key, norm.scale, head.output ...
    """

    name: str = 'adam'
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    decay: str = 'rsqrt'
    b1: float = 0.9
    b2: float = 0.98
    eps: float = 1e-9
    weight_decay: float = 0.0
    clip_norm: float = 0.0
    frozen: str = ''

    def __post_init__(self):
        for name, allowed in (('name', NAMES), ('decay', DECAYS)):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f'optimizer.{name}={getattr(self, name)!r} is none of {allowed}.'
                )
        if self.learning_rate <= 0 or self.warmup_steps < 1:
            raise ValueError(
                f'optimizer.learning_rate={self.learning_rate} and warmup_steps='
                f'{self.warmup_steps} must be positive.'
            )
        if self.weight_decay and self.name != 'adamw':
            raise ValueError(
                f'optimizer.weight_decay={self.weight_decay} has no effect on '
                f"{self.name!r}: use optimizer.name='adamw' or 0."
            )
        if self.clip_norm < 0:
            raise ValueError(
                f'optimizer.clip_norm={self.clip_norm} is negative: 0 does not clip.'
            )
        try:
            re.compile(self.frozen)
        except re.error as error:
            raise ValueError(
                f'optimizer.frozen={self.frozen!r} is no regular expression ({error}).'
            ) from error


def defaults() -> dict[str, Any]:
    """The fields that have a default, for configs to list."""
    return model_config.defaults(OptimizerConfig)


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate as a function of the step, which counts from 0.

    rsqrt is trax's constant * linear_warmup * rsqrt_decay
    (supervised/lr_schedules.py).
    """
    warmup = config.warmup_steps

    def learning_rate(count: Any) -> jax.Array:
        step = jnp.asarray(count, jnp.float32) + 1
        rate = config.learning_rate * jnp.minimum(1.0, step / warmup)
        if config.decay == 'rsqrt':
            rate *= jnp.sqrt(warmup / jnp.maximum(step, warmup))
        elif config.decay == 'cosine':
            progress = (step - warmup) / max(1, steps - warmup)
            rate *= 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(progress, 0.0, 1.0)))
        return rate

    return learning_rate


def build(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """The optax optimizer for a run of `steps` steps."""
    rate = schedule(config, steps)
    if config.name == 'adafactor':
        optimizer = optax.adafactor(rate)
    elif config.name == 'adamw':
        optimizer = optax.adamw(
            rate,
            config.b1,
            config.b2,
            config.eps,
            weight_decay=config.weight_decay,
            mask=is_matrix,
        )
    else:
        optimizer = optax.adam(rate, config.b1, config.b2, config.eps)
    if config.clip_norm:
        clip = optax.clip_by_global_norm(config.clip_norm)
        optimizer = optax.chain(clip, optimizer)
    if config.frozen:
        parts = {_TRAINED: optimizer, _FROZEN: optax.set_to_zero()}
        label = functools.partial(_labels, config)
        optimizer = optax.partition(parts, label)
    return optimizer


def check_frozen(config: OptimizerConfig, model: Any) -> None:
    """Raises a ValueError if `frozen` freezes nothing or everything."""
    leaves = jax.tree_util.tree_leaves_with_path(model)
    names = [sharding.leaf_name(path) for path, _ in leaves]
    count = sum(re.search(config.frozen, name) is not None for name in names)
    if config.frozen and count in (0, len(names)):
        what = 'every parameter' if count else 'no parameter'
        raise ValueError(
            f'optimizer.frozen={config.frozen!r} is found in {what}. There are: '
            f'{", ".join(names)}.'
        )


def without_frozen(frozen: str, gradient: Any) -> Any:
    """The gradient with zeros for frozen parameters, which its norm then leaves out."""

    def keep(path: Any, leaf: jax.Array) -> jax.Array:
        is_frozen = frozen and re.search(frozen, sharding.leaf_name(path))
        return jnp.zeros_like(leaf) if is_frozen else leaf

    return jax.tree_util.tree_map_with_path(keep, gradient)


def _labels(config: OptimizerConfig, tree: Any) -> Any:
    def label(path: Any, _: Any) -> str:
        frozen = re.search(config.frozen, sharding.leaf_name(path))
        return _FROZEN if frozen else _TRAINED

    return jax.tree_util.tree_map_with_path(label, tree)


def is_matrix(tree: Any) -> Any:
    """True for the parameters that weight decay applies to: no norms, no biases."""

    def decays(path: Any, _: Any) -> bool:
        name = sharding.leaf_name(path)
        return not ('norm.' in name or name.endswith('bias'))

    return jax.tree_util.tree_map_with_path(decays, tree)
