"""Learning-rate schedules and optax optimizers."""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from reformer_jax import sharding
from reformer_jax.attention import arguments
from reformer_jax.attention import fields
from reformer_jax.model import config as model_config

NAMES = ('adam', 'adamw', 'adafactor', 'muon')
DECAYS = ('rsqrt', 'cosine', 'constant')
# Of the running mean of the gradient's norm: about 100 steps.
_MEAN_DECAY = 0.99
# Root mean square of Adam's updates at a learning rate of 1 (Liu et al. 2025).
_ADAMS_RMS = 0.2
# Axes of inputs and outputs of the layers' matrices, which lie stacked along axis 0.
_MATRICES = (
    (r'attention\.(query|key|value|query_key)$', (1,), (2, 3)),
    (r'attention\.output$', (1, 2), (3,)),
    (r'feed_forward\.(hidden|output)$', (1,), (2,)),
)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and its schedule; checked when made.

    Attributes:
      name: 'adam', 'adamw', 'adafactor'; or 'muon', which orthogonalizes the momentum
        of the layers' matrices (Jordan 2024) and scales it to the size of Adam's
        updates (Liu et al. 2025), with Adam for all else.
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
      skips: most updates in a row that are skipped because loss, gradient or the
        parameters behind them are not finite, or for a spike; then the run stops. 0
        stops at the first.
      spike: the norm of a gradient above so many times its running mean is a spike,
        such as 10; 0 for none.
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
    skips: int = 0
    spike: float = 0.0
    frozen: str = ''

    def __post_init__(self):
        fields.check(self, 'optimizer.')
        for name, allowed in (('name', NAMES), ('decay', DECAYS)):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f'optimizer.{name}={getattr(self, name)!r} is none of {allowed}.'
                )
        for name, fits, limit in (
            ('learning_rate', self.learning_rate > 0, 'must be positive'),
            ('warmup_steps', self.warmup_steps > 0, 'must be positive'),
            ('b1', 0 <= self.b1 < 1, 'is not in [0, 1): 0.9 is usual'),
            ('b2', 0 <= self.b2 < 1, 'is not in [0, 1): 0.98 is usual'),
            ('eps', self.eps > 0, 'must be positive: 1e-9 is usual'),
            ('weight_decay', self.weight_decay >= 0, 'is negative: 0 has none'),
            ('clip_norm', self.clip_norm >= 0, 'is negative: 0 does not clip'),
            ('skips', self.skips >= 0, 'is negative: 0 skips none'),
            (
                'spike',
                not 0 != self.spike <= 1,
                'is not above 1: 10 is wide, 0 has none',
            ),
        ):
            if not fits:
                raise ValueError(f'optimizer.{name}={getattr(self, name)} {limit}.')
        if self.weight_decay and self.name != 'adamw':
            raise ValueError(
                f'optimizer.weight_decay={self.weight_decay} has no effect on '
                f"{self.name!r}: use optimizer.name='adamw' or 0."
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

    rsqrt is constant * linear_warmup * rsqrt_decay of trax's supervised/lr_schedules.
    """
    arguments.check_class('config', config, OptimizerConfig, 'an OptimizerConfig')
    fields.check_whole(1, steps=steps)
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
    moments = (config.b1, config.b2, config.eps)
    match config.name:
        case 'adafactor':
            optimizer = optax.adafactor(rate)
        case 'adamw':
            decay = config.weight_decay
            optimizer = optax.adamw(rate, *moments, weight_decay=decay, mask=is_matrix)
        case 'muon':
            optimizer = optax.contrib.muon(
                rate,
                eps=config.eps,
                adam_b1=config.b1,
                adam_b2=config.b2,
                muon_weight_dimension_numbers=_layer_matrices,
                consistent_rms=_ADAMS_RMS,
            )
        case _:
            optimizer = optax.adam(rate, *moments)
    if config.clip_norm:
        clip = optax.clip_by_global_norm(config.clip_norm)
        optimizer = optax.chain(clip, optimizer)
    if config.frozen:
        parts = {'trained': optimizer, 'frozen': optax.set_to_zero()}

        def label(name: str, _: Any) -> str:
            return 'frozen' if re.search(config.frozen, name) else 'trained'

        optimizer = optax.partition(parts, functools.partial(_map_names, label))
    return optax.chain(_keep_norm_mean(), optimizer) if config.spike else optimizer


class _NormMean(NamedTuple):
    norm_mean: jax.Array  # 0 before the first step


def _keep_norm_mean() -> optax.GradientTransformation:
    """Keeps a running mean of the gradient's norm, and the gradient as it is."""

    def update(
        gradient: Any, state: _NormMean, params: Any = None
    ) -> tuple[Any, _NormMean]:
        del params
        norm, mean = optax.tree.norm(gradient), state.norm_mean
        moved = _MEAN_DECAY * mean + (1 - _MEAN_DECAY) * norm
        return gradient, _NormMean(jnp.where(mean > 0, moved, norm))

    return optax.GradientTransformation(lambda _: _NormMean(jnp.zeros(())), update)


def of_mean(gradient_norm: jax.Array, opt_state: Any) -> jax.Array:
    """The norm of a gradient by the running mean before it; 0 at the first step."""
    mean = optax.tree.get(opt_state, 'norm_mean')
    return jnp.where(mean > 0, gradient_norm / mean, 0.0)


def check_frozen(config: OptimizerConfig, model: Any) -> None:
    """Raises a ValueError if `frozen` freezes nothing or everything."""
    names = jax.tree.leaves(_map_names(lambda name, _: name, model))
    count = sum(re.search(config.frozen, name) is not None for name in names)
    if config.frozen and count in (0, len(names)):
        what = 'every parameter' if count else 'no parameter'
        raise ValueError(
            f'optimizer.frozen={config.frozen!r} is found in {what}. There are: '
            f'{", ".join(names)}.'
        )


def without_frozen(frozen: str, gradient: Any) -> Any:
    """The gradient with zeros for frozen parameters, which its norm then leaves out."""
    if not frozen:
        return gradient
    return _map_names(
        lambda name, leaf: jnp.zeros_like(leaf) if re.search(frozen, name) else leaf,
        gradient,
    )


def is_matrix(tree: Any) -> Any:
    """True for the parameters that weight decay applies to: no norms, no biases."""
    return _map_names(
        lambda name, _: not ('norm.' in name or name.endswith('bias')), tree
    )


def _layer_matrices(tree: Any) -> Any:
    """What Muon takes for matrices: MuonDimensionNumbers, None for all else."""

    def axes(name: str, _: Any) -> optax.contrib.MuonDimensionNumbers | None:
        found = (axes for rule, *axes in _MATRICES if re.search(rule, name))
        inputs_and_outputs = next(found, None)
        return inputs_and_outputs and optax.contrib.MuonDimensionNumbers(
            *inputs_and_outputs
        )

    return _map_names(axes, tree)


def _map_names(function: Callable[[str, Any], Any], tree: Any) -> Any:
    """The tree with `function` of each parameter's name and its array for the array."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: function(sharding.leaf_name(path), leaf), tree
    )
