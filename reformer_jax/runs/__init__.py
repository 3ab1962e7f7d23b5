"""Run folders: config and record (folder), checkpoints, metrics."""

from reformer_jax.runs import checkpoint
from reformer_jax.runs import folder
from reformer_jax.runs import metrics

__all__ = ('checkpoint', 'folder', 'metrics')
