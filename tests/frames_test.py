"""How deep a training step goes to its innermost product: corridors of the house."""

import pathlib
import re
import traceback

import jax
import jax.numpy as jnp
import optax
import pytest
import small_models as models

import reformer_jax
from reformer_jax.attention import numerics
from reformer_jax.training import state as state_lib
from reformer_jax.training import step

_MOST_FRAMES, _MOST_FILES = 18, 6
_PACKAGE = str(pathlib.Path(reformer_jax.__file__).parent)


class _Here(Exception):
    pass


def test_frames_from_the_step_to_the_innermost_product(monkeypatch):
    def product(*arguments):
        raise _Here

    optimizer = optax.sgd(0.1)
    config = models.config(pattern=('lsh',), heads_at_once=1, loss_chunk_length=8)
    state = jax.eval_shape(lambda: state_lib.init_state(config, optimizer, 0))
    batch = {'tokens': jnp.zeros((2, 32), int), 'weights': jnp.ones((2, 32))}
    settings = {'optimizer': optimizer, 'schedule': lambda step: 0.1, 'accumulate': 1}
    monkeypatch.setattr(numerics, 'contract', product)
    with pytest.raises(_Here) as caught:
        jax.eval_shape(
            lambda *arrays: step.train_step(*arrays, **settings),
            state,
            batch,
            jax.random.key(0),
        )
    frames = [
        frame
        for frame in traceback.extract_tb(caught.value.__traceback__)
        if frame.filename.startswith(_PACKAGE)
    ]
    files = dict.fromkeys(pathlib.Path(frame.filename).name for frame in frames)
    told = [f'{pathlib.Path(f.filename).name}: {f.name}' for f in frames]
    assert frames[0].name == 'train_step' and frames[-1].name == '_forward_step'
    assert len(frames) <= _MOST_FRAMES and len(files) <= _MOST_FILES, '\n'.join(told)


def test_traces_of_a_profiler_can_be_read():
    """Each part of a layer has its name in the compiled step."""
    model = jax.eval_shape(
        lambda: models.build(pattern=('local', 'lsh'), layers=2, dropout=0.1)
    )
    batch = {'tokens': jnp.zeros((2, 32), int), 'weights': jnp.ones((2, 32))}
    gradients = jax.jit(jax.grad(step.sums, has_aux=True))
    lowered = gradients.lower(model, jnp.zeros(()), batch, jax.random.key(0))
    text = lowered.as_text(debug_info=True)
    names = 'project', 'hash', 'sort', 'attend', 'combine', 'feed_forward', 'loss'
    scopes = set(re.findall(r'"([\w(/)]+)', text))  # jvp(attend)/dot_general
    found = {word for scope in scopes for word in re.split(r'[/()]', scope)[:-1]}
    assert set(names) <= found, set(names) - found
