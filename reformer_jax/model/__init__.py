"""Reformers as Flax modules: embeddings, layers, heads, and the config of them all."""

from reformer_jax.model import config
from reformer_jax.model import layers
from reformer_jax.model import padding
from reformer_jax.model.config import ModelConfig
from reformer_jax.model.config import defaults
from reformer_jax.model.reformer import Memory
from reformer_jax.model.reformer import Reformer
from reformer_jax.model.reformer import build
from reformer_jax.model.reformer import hash_rotations
from reformer_jax.model.reformer import parameter_count
from reformer_jax.model.reformer import shift_right

__all__ = (
    'Memory',
    'ModelConfig',
    'Reformer',
    'build',
    'config',
    'defaults',
    'hash_rotations',
    'layers',
    'padding',
    'parameter_count',
    'shift_right',
)
