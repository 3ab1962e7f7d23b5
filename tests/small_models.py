"""Small models with parameters large enough to show an error, without compiling."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from reformer_jax import model as model_lib
from reformer_jax import sharding
from reformer_jax.model import config as model_config

# LSH with a table, a vocabulary and a width that are not the decoder's.
ENCODER_OF_ITS_OWN = {
    'share_embedding': False,
    'encoder': {
        'rule': 'reformer',
        'lsh_chunks_after': 1,
        'd_model': 12,
        'vocab_size': 13,
        'axial_sizes': (5, 7),
    },
}


def config(**changes) -> model_config.ModelConfig:
    fields = {
        'vocab_size': 11,
        'length': 32,
        'd_model': 8,
        'd_ff': 12,
        'heads': 2,
        'head_size': 4,
        'layers': 2,
        'pattern': ('local', 'lsh'),
        'local_chunk_length': 4,
        'lsh_chunk_length': 4,
        'dense_length': 0,
        'buckets': (4,),
        'axial_shape': (4, 8),
        'axial_sizes': (2, 6),
    }
    if not changes.get('causal', True):
        changes = {'head': 'masked_lm', **changes}
    return model_config.ModelConfig(**{**fields, **changes})


def build(**changes) -> model_lib.Reformer:
    """Parameters by name, the same for every config."""
    abstract = jax.eval_shape(lambda: model_lib.build(config(**changes), nnx.Rngs(0)))

    def value(path, leaf):
        name = sharding.leaf_name(path)
        rng = np.random.default_rng(list(name.encode()))
        mean = 1.0 if name.endswith('scale') else 0.0
        return jnp.asarray(rng.normal(mean, 0.3, leaf.shape), jnp.float32)

    return jax.tree.map_with_path(value, abstract)
