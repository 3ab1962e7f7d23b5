"""A clock that is set on or back while a checkpoint is saved."""

import itertools
import time

import jax.numpy as jnp
import numpy as np
import pytest

from reformer_jax.runs import checkpoint

_DAY = 24 * 3600


@pytest.mark.parametrize('jump', [_DAY, -30 * _DAY])
def test_a_save_does_not_mind_the_clock(tmp_path, monkeypatch, jump):
    state = {'numbers': jnp.arange(1000)}
    jumps = itertools.count(time.time(), jump)
    with checkpoint.Checkpointer(tmp_path, keep=1) as checkpointer:
        # Every look at the clock is that much after the one before.
        monkeypatch.setattr(time, 'time', lambda: next(jumps))
        for step in (1, 2):
            checkpointer.save(step, state)
            assert checkpointer.latest_step() == step  # has waited
        monkeypatch.undo()
        restored, step = checkpointer.restore(state)
    assert step == 2
    np.testing.assert_array_equal(restored['numbers'], state['numbers'])
