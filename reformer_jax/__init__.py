"""The Reformer (Kitaev, Kaiser, Levskaya 2020) in JAX and Flax, room by room.

attention   section 2 of the paper as pure functions, and their kernels
stack       section 3: reversible layers, chunked feed-forward and loss
model       the Reformer itself, Flax modules and their config
generation  tokens from a model; needs no run
huggingface folders that transformers reads and writes
data        text, images, labelled rows as batches
runs        folders of runs: configs, checkpoints, metrics
sharding    the mesh, and where parameters and batches lie
training    config to trained model, and its evaluation
sweeps      many runs from one config

A room is imported when it is first used: reformer_jax.attention.lsh_attention.
"""

import importlib
from typing import Any

__all__ = (
    'attention',
    'data',
    'generation',
    'huggingface',
    'model',
    'runs',
    'sharding',
    'stack',
    'sweeps',
    'training',
)


def __getattr__(name: str) -> Any:
    if name in __all__:
        return importlib.import_module(f'{__name__}.{name}')
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
