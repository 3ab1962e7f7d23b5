"""Run folders: config and record (folder), owner (lock), checkpoints, metrics, files
as a whole (writing)."""

from reformer_jax.runs import checkpoint
from reformer_jax.runs import folder
from reformer_jax.runs import lock
from reformer_jax.runs import metrics
from reformer_jax.runs import processes
from reformer_jax.runs import writing

__all__ = ('checkpoint', 'folder', 'lock', 'metrics', 'processes', 'writing')
