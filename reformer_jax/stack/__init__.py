"""The reversible stack (paper section 3) and what saves memory beside it, pure.

reversible_scan runs layers whose activations are computed back from their outputs;
residual_scan is the same function with saved ones. map_chunks and cross_entropy take a
chunk of the sequence at a time.
"""

from reformer_jax.stack import chunking
from reformer_jax.stack import compilation
from reformer_jax.stack import linear
from reformer_jax.stack import memory
from reformer_jax.stack import parts
from reformer_jax.stack import reversible
from reformer_jax.stack.chunking import cross_entropy
from reformer_jax.stack.chunking import map_chunks
from reformer_jax.stack.reversible import HeadGroup
from reformer_jax.stack.reversible import Inputs
from reformer_jax.stack.reversible import Pass
from reformer_jax.stack.reversible import residual_scan
from reformer_jax.stack.reversible import reversible_scan

__all__ = (
    'HeadGroup',
    'Inputs',
    'Pass',
    'chunking',
    'compilation',
    'cross_entropy',
    'linear',
    'map_chunks',
    'memory',
    'parts',
    'residual_scan',
    'reversible',
    'reversible_scan',
)
