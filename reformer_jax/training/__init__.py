"""Training and evaluation of what a config describes: train, evaluate."""

from reformer_jax.training import command_line
from reformer_jax.training import config
from reformer_jax.training import evaluation
from reformer_jax.training import exchange
from reformer_jax.training import loop
from reformer_jax.training import optimizer
from reformer_jax.training import start
from reformer_jax.training import state
from reformer_jax.training import step
from reformer_jax.training.evaluation import evaluate
from reformer_jax.training.loop import train

__all__ = (
    'command_line',
    'config',
    'evaluate',
    'evaluation',
    'exchange',
    'loop',
    'optimizer',
    'start',
    'state',
    'step',
    'train',
)
