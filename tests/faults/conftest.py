"""A run of six steps that is quickly made many times."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import text
from reformer_jax.training import loop
from reformer_jax.training import start

_FIELDS = {
    'steps': 6,
    'log_every': 1,
    'eval_every': 2,
    'eval_batches': 2,
    'checkpoint_every': 2,
    'keep_checkpoints': 3,
    'data.length': 16,
    'data.batch_size': 4,
    'model.length': 16,
    'model.d_model': 16,
    'model.d_ff': 16,
    'model.heads': 2,
    'model.head_size': 8,
    'model.layers': 1,
    'model.pattern': ('local',),
    'model.local_chunk_length': 8,
    'model.axial_shape': (4, 4),
    'model.axial_sizes': (8, 8),
    'model.dropout': 0.1,
}


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp('data') / 'text.txt'
    words = np.random.default_rng(0).choice(['ab', 'cde ', 'f\n', 'ghi'], 1000)
    path.write_text(''.join(words))
    config = text.get_config('tiny')
    config.update_from_flattened_dict(_FIELDS | {'data.path': str(path)})
    return config


@pytest.fixture(scope='module', autouse=True)
def compiled_once():
    """All runs are the same one, and compiling is most of what they do."""
    steps, states = [], []

    def compile_train_step(*arguments):
        if not steps:
            steps.append(compiled(*arguments))
        return steps[0]

    def first_state(*arguments):
        if not states:
            states.append(first(*arguments))
        return jax.tree.map(jnp.copy, states[0])  # a step donates it

    compiled, first = loop.compile_train_step, start.first_state
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, 'compile_train_step', compile_train_step)
        patch.setattr(start, 'first_state', first_state)
        yield
