"""What cannot fit into memory is said before it is taken."""

import jax
import jax.numpy as jnp
import pytest

from configs import text
from reformer_jax.stack import memory as stack_memory
from reformer_jax.training import loop
from reformer_jax.training import memory
from reformer_jax.training import start


@pytest.fixture
def config(tmp_path):
    (tmp_path / 'text.txt').write_text('to be or not to be, ' * 1000)
    config = text.get_config('tiny')
    config.data.path = str(tmp_path / 'text.txt')
    return config


@pytest.mark.parametrize('field', ['vocab_size', 'd_ff', 'layers'])
def test_a_model_that_no_machine_holds(config, field):
    config.model[field] = 4 * 10**9
    with pytest.raises(
        ValueError, match=r'the parameters take [\d,]{5,}.\d GiB on each'
    ):
        start.open(config, 'none')


@pytest.mark.slow
def test_a_step_too_large_ends_before_it_begins(config, tmp_path, monkeypatch):
    state = start.open(config, 'none').state
    held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    monkeypatch.setattr(stack_memory, 'of_device', lambda: 2 * held)
    message = (
        'a training step takes .* GiB on each device, which has .*: '
        'set model.loss_chunk_length=256, set model.feed_forward_chunk_length=512, '
        'set model.heads_at_once=1, set accumulate=2 or a smaller data.batch_size, '
    )
    with pytest.raises(ValueError, match=message):
        loop.train(config, str(tmp_path / 'run'))
    assert not (tmp_path / 'run' / 'metrics.jsonl').read_text()
    monkeypatch.setattr(stack_memory, 'of_device', lambda: held)
    with pytest.raises(ValueError, match='state and gradients take'):
        loop.train(config, str(tmp_path / 'other'))
    assert not (tmp_path / 'other').exists()


def test_donated_arguments_count_once(config, monkeypatch):
    numbers = jax.ShapeDtypeStruct((1000,), jnp.float32)
    step = jax.jit(lambda x: x + 1, donate_argnums=0).lower(numbers).compile()
    run = start.open(config, 'none').config
    monkeypatch.setattr(stack_memory, 'of_device', lambda: 4000)
    memory.check_step(step, run)
    monkeypatch.setattr(stack_memory, 'of_device', lambda: 3999)
    with pytest.raises(ValueError, match='a training step takes'):
        memory.check_step(step, run)


def test_only_what_would_help_is_advised(config):
    small = {'loss_chunk_length': 8, 'feed_forward_chunk_length': 8, 'heads_at_once': 1}
    config.model.update(small | {'stack': 'checkpoint'})
    config.accumulate = config.data.batch_size
    assert memory._remedies(start.open(config, 'none').config) == [
        "set model.stack='reversible'",
        f'shorten sequences ({config.data.length} tokens)',
    ]


def test_the_limit_of_a_container(tmp_path, monkeypatch):
    limit = tmp_path / 'memory.max'
    monkeypatch.setattr(stack_memory, '_CGROUPS', [str(limit)])
    machine = stack_memory.of_device()
    limit.write_text('max\n')
    assert stack_memory.of_device() == machine
    limit.write_text(f'{2**20}\n')
    assert stack_memory.of_device() == 2**20 // jax.local_device_count()
