"""Run folders: config and record (folder), checkpoints, metrics, progress."""

from reformer_jax.runs import checkpoint
from reformer_jax.runs import folder
from reformer_jax.runs import metrics
from reformer_jax.runs import progress

__all__ = ('checkpoint', 'folder', 'metrics', 'progress')
