"""Sweeps: the runs that a config file asks for (points), and running them."""

from reformer_jax.sweeps import launching
from reformer_jax.sweeps import points

__all__ = ('launching', 'points')
