"""Tests of reformer_jax.checkpoint."""

import dataclasses
import gc
import hashlib
import math
import os
import pathlib
import shutil
import subprocess
import sys
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from reformer_jax.runs import checkpoint

WIDTH = 256  # wide enough for a save to be still writing when the next step starts


class Mlp(nnx.Module):
    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.up = nnx.Linear(8, width, rngs=rngs)
        self.down = nnx.Linear(width, 8, rngs=rngs, param_dtype=jnp.bfloat16)


class Model(nnx.Module):
    def __init__(self, width: int = WIDTH, *, rngs: nnx.Rngs):
        self.embed = nnx.Embed(16, 8, rngs=rngs)
        keys = jax.random.split(rngs.params(), 3)
        self.layers = jax.vmap(lambda key: Mlp(width, rngs=nnx.Rngs(key)))(keys)
        self.heads = nnx.List([nnx.Linear(8, 16, rngs=rngs)])


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class State:
    step: jax.Array
    params: Model
    opt_state: Any


def make_state(seed: int = 0, width: int = WIDTH) -> State:
    params = Model(width, rngs=nnx.Rngs(seed))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    opt_state = jax.tree.map(lambda x: x + seed, optimizer.init(params))
    return State(jnp.asarray(seed, jnp.int32), params, opt_state)


def make_iterator() -> grain.DatasetIterator:
    numbers = grain.MapDataset.range(50).seed(1).shuffle().repeat()
    return iter(numbers.batch(4).to_iter_dataset())


def abstract(state: State) -> State:
    def leaf(x: jax.Array) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)

    return jax.tree.map(leaf, state)


def copied(state: State) -> list[np.ndarray]:
    return [np.array(leaf) for leaf in jax.tree.leaves(state)]


def assert_same(state: State, expected: list[np.ndarray]) -> None:
    leaves = jax.tree.leaves(state)
    assert len(leaves) == len(expected)
    for leaf, array in zip(leaves, expected, strict=True):
        assert leaf.dtype == array.dtype
        assert np.asarray(leaf).tobytes() == array.tobytes()


@pytest.fixture(scope='module')
def small() -> dict[str, jax.Array]:
    return {'a': jnp.arange(3.0)}


def test_restores_state_and_iterator(tmp_path):
    state, iterator = make_state(seed=3), make_iterator()
    for _ in range(20):  # past the first epoch
        next(iterator)
    with checkpoint.Checkpointer(tmp_path, keep=2) as saver:
        assert saver.save(7, state, iterator)
        following = [next(iterator) for _ in range(20)]  # while it is being written
    fresh = make_iterator()
    with checkpoint.Checkpointer(tmp_path) as reader:
        restored, step = reader.restore(abstract(make_state(seed=4)), fresh)
    assert step == 7
    assert isinstance(restored.params.layers.up, nnx.Linear)
    assert_same(restored, copied(state))
    np.testing.assert_array_equal(following, [next(fresh) for _ in range(20)])


def test_template_may_be_arrays_and_iterator_may_be_absent(tmp_path):
    state = make_state(seed=3)
    with checkpoint.Checkpointer(tmp_path, keep=1) as saver:
        saver.save(1, state)
        restored, _ = saver.restore(make_state(seed=4))
        assert_same(restored, copied(state))
        with pytest.raises(ValueError, match='no place in the data.*config.init_from='):
            saver.restore(state, make_iterator())


def test_another_number_of_processes_goes_on_in_the_data(tmp_path, small):
    iterator = make_iterator()
    next(iterator)
    with checkpoint.Checkpointer(tmp_path, keep=1) as saver:
        saver.save(1, small, iterator)
    data = tmp_path / 'checkpoints' / '1' / 'data'
    (data.parent / 'digests.json').unlink()
    saved = (data / 'process_0-of-1.json').rename(data / 'process_0-of-2.json')
    shutil.copy(saved, data / 'process_1-of-2.json')
    fresh = make_iterator()
    with checkpoint.Checkpointer(tmp_path) as reader:
        reader.restore(small, fresh)
    np.testing.assert_array_equal(next(fresh), next(iterator))


def test_buffers_may_be_donated_right_after_save(tmp_path):
    def change(state: State) -> State:
        return jax.tree.map(lambda x: x * 2 + jnp.ones_like(x), state)

    step = jax.jit(change, donate_argnums=0)
    # 25 MB: measured to be still being written when the next step is done.
    donated = make_state(seed=1, width=50_000)
    state = jax.block_until_ready(step(donated))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(donated))
    with checkpoint.Checkpointer(tmp_path, keep=3) as saver:
        expected = copied(state)
        saver.save(1, state)
        for _ in range(3):
            state = step(state)
        restored, _ = saver.restore(abstract(state))
        assert_same(restored, expected)
        jax.block_until_ready(step(restored))  # what was restored may be donated too
        assert_same(saver.restore(abstract(state))[0], expected)


def test_names_are_readable(tmp_path):
    with checkpoint.Checkpointer(tmp_path, keep=1) as saver:
        saver.save(1, make_state())
    metadata = (tmp_path / 'checkpoints' / '1' / 'state' / '_METADATA').read_text()
    for name in (
        'step',
        'params/embed/embedding',
        'params/layers/up/kernel',
        'params/heads/0/bias',
        'opt_state/1/0/mu/layers/down/kernel',
    ):
        assert f'"{name}"' in metadata
    assert '/value"' not in metadata


EIGHT_DEVICES = """
import sys
import jax
sys.path[:0] = sys.argv[2:]
import checkpoint_test
from reformer_jax.runs import checkpoint
mesh = jax.make_mesh((4, 2), ('data', 'model'))
def sharded(x):
    spec = [None] * x.ndim
    if x.ndim and x.shape[-1] % 2 == 0:
        spec[-1] = 'model'
    if x.ndim > 1 and x.shape[-2] % 4 == 0:
        spec[-2] = 'data'
    sharding = jax.sharding.NamedSharding(mesh, jax.P(*spec))
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
template = jax.tree.map(sharded, jax.eval_shape(checkpoint_test.make_state))
with checkpoint.Checkpointer(sys.argv[1], keep=2) as saver:
    state, step = saver.restore(template)
    saver.save(step + 1, state)
kernel = state.params.layers.up.kernel[...]
assert len(kernel.sharding.device_set) == 8, kernel.sharding
assert kernel.addressable_shards[0].data.shape == (3, 2, 128)
print(checkpoint_test.digest(state))
"""


def digest(state: State) -> str:
    leaves = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]
    return hashlib.sha256(b''.join(leaves)).hexdigest()


def test_restores_on_other_devices_and_back(tmp_path):
    state = make_state()
    with checkpoint.Checkpointer(tmp_path, keep=2) as saver:
        saver.save(1, state)
    here = pathlib.Path(__file__).parent
    flags = '--xla_force_host_platform_device_count=8'
    done = subprocess.run(
        [sys.executable, '-c', EIGHT_DEVICES, tmp_path, here, here.parents[1]],
        env=os.environ | {'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == digest(state)
    with checkpoint.Checkpointer(tmp_path) as reader:
        restored, step = reader.restore(abstract(state))
    assert step == 2
    assert_same(restored, copied(state))


def saved_steps(workdir: pathlib.Path) -> set[str]:
    return {path.name for path in (workdir / 'checkpoints').iterdir()}


def test_keeps_the_last_and_the_best(tmp_path, small):
    with checkpoint.Checkpointer(tmp_path, keep=2) as saver:
        assert saver.latest_step() is None
        for step, loss in enumerate([math.nan, 3.0, 1.0, None, 1.5, 2.0], start=1):
            saver.save(step, small)
            if loss is not None:
                saver.record(step, {'loss': loss, 'other': 0})
        assert saver.latest_step() == 6
        assert saver.best_step() == 3
        assert saved_steps(tmp_path) == {'3', '5', '6'}
    with checkpoint.Checkpointer(tmp_path, keep=1) as saver:  # a resumed run
        assert saver.restore(small, step='best')[1] == 3
        assert saver.restore(small)[1] == 6
        saver.save(7, small)
        saver.record(7, {'loss': 1.5})
        saver.save(8, small)
        saver.record(7, {'loss': 0.0})  # is kept no more
        assert saved_steps(tmp_path) == {'3', '8'}
        saver.save(9, small)
        saver.record(9, {'loss': 0.5})  # kept before it was the best one
        saver.save(10, small)
        assert saver.best_step() == 9
        assert saved_steps(tmp_path) == {'9', '10'}


def test_of_equal_checkpoints_the_last_is_the_best(tmp_path, small):
    with checkpoint.Checkpointer(tmp_path, keep=1) as saver:
        for step in (1, 2, 3):
            saver.save(step, small)
            saver.record(step, {'loss': 1.0 if step < 3 else math.inf})
        assert saver.best_step() == 2
        assert saved_steps(tmp_path) == {'2', '3'}


@pytest.mark.slow
def test_saves_leave_nothing_in_memory(tmp_path, small):
    """Neither objects nor, for each array, texts that only TensorStore knows of."""
    arrays = {str(number): small['a'] for number in range(30)}
    objects, blocks = [], []
    with checkpoint.Checkpointer(tmp_path, keep=1) as saver:
        for step in range(31):
            saver.save(step, arrays)
            if step % 10 == 0:
                assert saver.latest_step() == step  # waits
                gc.collect()
                objects.append(len(gc.get_objects()))
                blocks.append(sys.getallocatedblocks())
    assert objects[3] - objects[2] < 50
    assert blocks[3] - blocks[2] < 10 * len(arrays)


def test_restores_leave_nothing_in_memory(tmp_path, small):
    with checkpoint.Checkpointer(tmp_path, keep=1) as saver:
        saver.save(0, small)
    counts = []
    with checkpoint.Checkpointer(tmp_path) as reader:
        for number in range(31):
            reader.restore(small)
            if number % 10 == 0:
                gc.collect()
                counts.append(len(gc.get_objects()))
    assert counts[3] - counts[2] < 50


def test_an_existing_step_is_not_saved_again(tmp_path, small):
    with checkpoint.Checkpointer(tmp_path, keep=2) as saver:
        assert saver.save(1, small)
        assert not saver.save(1, {'a': small['a'] + 1})  # while it is being written
    with checkpoint.Checkpointer(tmp_path, keep=2) as saver:
        assert not saver.save(1, {'a': small['a'] + 1})
        restored, _ = saver.restore(small)
    np.testing.assert_array_equal(restored['a'], small['a'])


def test_a_killed_save_is_never_picked(tmp_path, small):
    with checkpoint.Checkpointer(tmp_path, keep=2) as saver:
        saver.save(1, small)
        saver.save(2, small)
    # The folder of a save that was killed just before its renaming.
    killed = tmp_path / 'checkpoints' / '2.orbax-checkpoint-tmp'
    (tmp_path / 'checkpoints' / '2').rename(killed)
    with checkpoint.Checkpointer(tmp_path) as reader:
        assert reader.latest_step() == 1
        assert reader.restore(small)[1] == 1
    assert killed.exists()  # a reader does not disturb a run that is saving
    with checkpoint.Checkpointer(tmp_path, keep=2) as saver:
        assert saver.latest_step() == 1
        assert saver.save(2, small)
    assert saved_steps(tmp_path) == {'1', '2'}


def test_a_partial_copy_is_named(tmp_path, small):
    (tmp_path / 'checkpoints' / '5').mkdir(parents=True)
    with checkpoint.Checkpointer(tmp_path) as reader:
        with pytest.raises(
            ValueError, match='checkpoint 5 in .* is damaged or incompl'
        ):
            reader.restore(small)


def test_reading_only(tmp_path, small):
    with checkpoint.Checkpointer(tmp_path) as reader:
        assert reader.latest_step() is None
        assert reader.best_step() is None
        with pytest.raises(FileNotFoundError, match='no checkpoint in .*train first'):
            reader.restore(small)
        with pytest.raises(ValueError, match='open for reading only'):
            reader.save(1, small)
    assert list(tmp_path.iterdir()) == []


def test_absent_steps_are_answered_with_those_there_are(tmp_path, small):
    with checkpoint.Checkpointer(tmp_path, keep=2) as saver:
        saver.save(10, small)
        saver.save(20, small)
        assert saver.restore(small, step=10)[1] == 10
        with pytest.raises(FileNotFoundError, match='step 15 .* It has: 10, 20'):
            saver.restore(small, step=15)
        with pytest.raises(FileNotFoundError, match='best step .* It has: 10, 20'):
            saver.restore(small, step='best')


def test_another_model_is_refused_by_name_and_shape(tmp_path):
    with checkpoint.Checkpointer(tmp_path, keep=1) as saver:
        saver.save(1, make_state())
        with pytest.raises(ValueError) as error:
            saver.restore(abstract(make_state(width=64)))
        message = str(error.value)
        assert (
            'params/layers/up/kernel: float32[3, 8, 256] in the checkpoint, '
            'float32[3, 8, 64] asked for'
        ) in message
        assert 'embed' not in message
        assert 'wrong config for this workdir' in message
        assert 'and 1 more' in message  # 3 arrays, with mu and nu 9, 8 of them listed


@pytest.mark.parametrize(
    ('template', 'line'),
    [
        ({'a': jnp.zeros(3, jnp.int32)}, r'a: float32\[3\] in .* int32\[3\] asked'),
        ({'a': jnp.zeros(3), 'b': jnp.zeros(2)}, r'b: \(absent\) in .* float32\[2\]'),
        ({'c': jnp.zeros(3)}, r'a: float32\[3\] in the checkpoint, \(absent\)'),
    ],
)
def test_other_trees_and_dtypes_are_refused(tmp_path, small, template, line):
    with checkpoint.Checkpointer(tmp_path, keep=1) as saver:
        saver.save(1, small)
        with pytest.raises(ValueError, match=line):
            saver.restore(template)


def test_a_template_without_sharding_is_refused(tmp_path, small):
    with checkpoint.Checkpointer(tmp_path, keep=1) as saver:
        saver.save(1, small)
        with pytest.raises(ValueError, match='a of the template has no sharding'):
            saver.restore({'a': jax.ShapeDtypeStruct((3,), jnp.float32)})


def test_keep_none_of_the_last_is_refused(tmp_path):
    with pytest.raises(ValueError, match='keep=0 .* at least 1'):
        checkpoint.Checkpointer(tmp_path, keep=0)


def test_a_part_is_restored_alone(tmp_path):
    state = make_state(seed=3)
    with checkpoint.Checkpointer(tmp_path, keep=2) as checkpointer:
        checkpointer.save(4, state)
        checkpointer.save(5, make_state(seed=5))
    params = abstract(state).params
    with checkpoint.Checkpointer(tmp_path) as checkpointer:
        part, step = checkpointer.restore_part({'params': params}, '4')
        assert step == 4
        assert_same(part['params'], copied(state.params))
        assert checkpointer.restore_part({'params': params})[1] == 5
        wider = abstract(make_state(width=2 * WIDTH)).params
        with pytest.raises(ValueError, match=r'params/layers/up/kernel.*asked for'):
            checkpointer.restore_part({'params': wider})
        with pytest.raises(ValueError, match=r'weights/embed/embedding: \(absent\)'):
            checkpointer.restore_part({'weights': params})
        with pytest.raises(FileNotFoundError, match="step '6'"):
            checkpointer.restore_part({'params': params}, '6')
