"""Our training step as train.py runs it, on random tokens; one JSON line per point.

  python benchmarks/training_step.py lengths   time per token, 2,048 to 131,072 tokens
  python benchmarks/training_step.py stacks    the kinds of stack, 16,384 tokens
  python benchmarks/training_step.py devices   heads split over the devices
  python benchmarks/training_step.py million   one step of 1,048,576 tokens
  python benchmarks/training_step.py compile   compiling the paper's enwik8 step

`lengths`, `stacks` and `devices` take other lengths behind them; with
JAX_NUM_CPU_DEVICES=2 each of two cores is a device. Seconds are the minimum of the
runs, which take turns.
"""

import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks import memory
from benchmarks import small_lm
from benchmarks import timing
from configs import enwik8
from reformer_jax import sharding
from reformer_jax.model import config as model_config
from reformer_jax.training import command_line
from reformer_jax.training import start

_LENGTHS = tuple(2**exponent for exponent in range(11, 18))
_STACK_LENGTHS = (2**14,)
_STACK_LAYERS = (2, 6)
_MODES = ('lengths', 'stacks', 'devices', 'million', 'compile')


def config(length: int, **model_changes: Any) -> ml_collections.ConfigDict:
    """The small LM of small_lm.py at batch 1; model_changes are fields of its model."""
    config = enwik8.get_config('tiny')
    config.data.length = length
    config.data.batch_size = 1
    config.optimizer.clip_norm = 0.0  # the peers do not clip either
    config.model.update(
        {
            'vocab_size': small_lm.VOCAB_SIZE,
            'length': length,
            'd_model': small_lm.D_MODEL,
            'd_ff': small_lm.D_FF,
            'heads': small_lm.HEADS,
            'head_size': small_lm.HEAD_SIZE,
            'layers': small_lm.LAYERS,
            'pattern': ('lsh',),
            'lsh_chunk_length': small_lm.CHUNK_LENGTH,
            'local_chunk_length': small_lm.CHUNK_LENGTH,
            'rounds': small_lm.ROUNDS,
            'dense_length': 0,
            'axial_shape': small_lm.axial_shape(length),
            'axial_sizes': small_lm.AXIAL_SIZES,
            'feed_forward_chunk_length': min(1024, length),
            'loss_chunk_length': min(1024, length),
        }
        | model_changes
    )
    return config


def step(
    config: ml_collections.ConfigDict,
) -> tuple[Callable[[], float], dict[str, float]]:
    """As `step_of`, of the run that a config makes on the devices there are."""
    return step_of(start.open(config, 'no run folder'))


def step_of(run: start.Run) -> tuple[Callable[[], float], dict[str, float]]:
    """The compiled step with its state, and what memory.compile_run says about it.

    Returns:
      A function that runs one step, waits for it and returns its mean loss in nats.
      It carries the state along: the state goes in donated and comes out new, and the
      hashes change with its step. The random tokens are the same in every call.
    """
    compiled, info = memory.compile_run(run)
    shape = run.batch['tokens'].shape
    tokens_BL = np.random.default_rng(0).integers(256, size=shape, dtype=np.int32)
    weights_BL = np.ones(shape, np.float32)
    with jax.set_mesh(run.mesh):
        shardings = jax.tree.map(lambda x: x.sharding, run.state)
        state = jax.jit(run.init_state, out_shardings=shardings)()
        batch = sharding.place_batch(
            {'tokens': tokens_BL, 'weights': weights_BL}, run.mesh
        )
    key = jax.random.key(run.config.seed)

    def run_step() -> float:
        nonlocal state
        state, sums = jax.block_until_ready(compiled(state, batch, key))
        return float(sums['loss'] / sums['weight'])

    return run_step, info


def time_lengths(lengths: Sequence[int], runs: int) -> None:
    """Seconds of a step and per token; `of_fastest` is the time per token relative to
    the length where it is least."""
    steps, infos = {}, {}
    for length in lengths:
        steps[str(length)], infos[length] = step(config(length))
    seconds = timing.interleaved(steps, runs)
    least = {length: min(seconds[str(length)]) for length in lengths}
    fastest = min(least[length] / length for length in lengths)
    for length in lengths:
        timing.print_point(
            {
                'length': length,
                'seconds': least[length],
                'microseconds_per_token': 1e6 * least[length] / length,
                'of_fastest': least[length] / length / fastest,
                'tokens_per_second': length / least[length],
                'runs': seconds[str(length)],
                **infos[length],
            }
        )


def time_stacks(lengths: Sequence[int], runs: int) -> None:
    """Seconds of a step with each kind of stack, and relative to jax.checkpoint."""
    for length in lengths:
        for layers in _STACK_LAYERS:
            steps, infos = {}, {}
            for stack in model_config.STACKS:
                steps[stack], infos[stack] = step(
                    config(length, layers=layers, stack=stack)
                )
            seconds = timing.interleaved(steps, runs)
            for stack in model_config.STACKS:
                least = min(seconds[stack])
                timing.print_point(
                    {
                        'stack': stack,
                        'layers': layers,
                        'length': length,
                        'seconds': least,
                        'of_checkpoint': least / min(seconds['checkpoint']),
                        'runs': seconds[stack],
                        **infos[stack],
                    }
                )


def time_devices(lengths: Sequence[int], runs: int) -> None:
    """Seconds of a step whose heads and hidden units are split over all devices."""
    for length in lengths:
        changed = config(length)
        changed.mesh.update({'data': 1, 'model': jax.device_count()})
        run_step, info = step(changed)
        seconds = timing.interleaved({'step': run_step}, runs)['step']
        point = {'devices': jax.device_count(), 'length': length}
        timing.print_point(point | {'seconds': min(seconds), 'runs': seconds, **info})


def time_million() -> None:
    """One real step of 1,048,576 tokens, and the peak resident memory."""
    run_step, info = step(config(2**20, layers=3, rounds=2))
    before = timing.resident_memory_mib()
    peak_before = timing.peak_memory_mib()
    seconds = timing.interleaved({'step': run_step}, 1, warm_up=False)['step'][0]
    timing.print_point(
        {
            'length': 2**20,
            'layers': 3,
            'rounds': 2,
            'seconds': seconds,
            'resident_before_step_mib': before,
            'peak_before_step_mib': peak_before,
            'peak_mib': timing.peak_memory_mib(),
            **info,
        }
    )


def time_compilation() -> None:
    """Seconds to trace, lower and compile the paper's enwik8 step of one sequence."""
    info = memory.measure(memory.one_sequence(''))
    timing.print_point({'config': 'enwik8:paper', **info})


def main(arguments: list[str]) -> None:
    parser = command_line.ArgumentParser(description='Times our training step.')
    parser.add_argument('what', choices=_MODES)
    parser.add_argument('lengths', nargs='*', type=int, help='powers of two, in tokens')
    parser.add_argument('--runs', type=int, default=3, help='of which the minimum')
    options = parser.parse_args(arguments)
    match options.what:
        case 'lengths':
            time_lengths(options.lengths or _LENGTHS, options.runs)
        case 'stacks':
            time_stacks(options.lengths or _STACK_LENGTHS, options.runs)
        case 'devices':
            time_devices(options.lengths or _STACK_LENGTHS, options.runs)
        case 'million':
            time_million()
        case 'compile':
            time_compilation()


if __name__ == '__main__':
    command_line.script(main, sys.argv[1:])
