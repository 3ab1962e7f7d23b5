"""Training steps on one GPU: the paper's enwik8 model, a million tokens; JSON lines.

  python benchmarks/gpu_training.py peers      ours and transformers', 65,536 tokens
  python benchmarks/gpu_training.py million    1,048,576 tokens at d_model 512

`peers` is configs/enwik8.py with one sequence a step and all heads at once, and the
Reformer of transformers in the same sizes, with the same dropout, in bfloat16 and in
float32 with TF32, by AdamW. Seconds are the minimum of the runs, which take turns. It
needs a torch for the GPU and transformers. `million` is configs/enwik8.py:million: a
step's seconds, and the peak of the GPU's memory as JAX counts it.
"""

import contextlib
import dataclasses
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
import ml_collections

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks import memory
from benchmarks import timing
from benchmarks import training_step
from reformer_jax.huggingface import fields as huggingface_fields
from reformer_jax.training import command_line
from reformer_jax.training import config as training_config

_PRECISIONS = ('bfloat16', 'float32')


def their_steps(
    config: ml_collections.ConfigDict, device: str
) -> dict[str, Callable[[], float]]:
    """The training step of transformers' Reformer in the sizes of ours."""
    from benchmarks import torch_models

    run = training_config.run_config(config.to_dict())
    model = dataclasses.replace(run.model, rule='trax', dense_length=0, start_token=-1)
    fields = huggingface_fields.from_model_config(model)
    return {
        f'hugging_face_{precision}': torch_models.training_step(
            *torch_models.hugging_face_of(fields, precision), model.length, device
        )
        for precision in _PRECISIONS
    }


def time_peers(config: ml_collections.ConfigDict, device: str, runs: int) -> None:
    """Prints a point for each implementation, or what it failed with."""
    config.model.heads_at_once = 0
    steps = {'ours': training_step.step(config)[0], **their_steps(config, device)}
    failed = {name: _failure(step) for name, step in steps.items()}
    working = {name: step for name, step in steps.items() if not failed[name]}
    seconds = timing.interleaved(working, runs, warm_up=False)
    ours = min(seconds['ours']) if 'ours' in working else None
    length = config.data.length
    for name in steps:
        point: dict[str, Any] = {'implementation': name, 'length': length}
        if name in working:
            least = min(seconds[name])
            point |= {
                'seconds': least,
                'tokens_per_second': length / least,
                'times_ours': least / ours if ours else None,
                'runs': seconds[name],
            }
        timing.print_point(point | ({'error': failed[name]} if failed[name] else {}))


def _failure(step: Callable[[], float]) -> str:
    """What a first step says if it fails, such as that memory runs out; else ''."""
    try:
        step()
    except Exception as error:  # noqa: BLE001
        return f'{type(error).__name__}: {str(error)[:300]}'
    return ''


def time_million(config: ml_collections.ConfigDict) -> None:
    """Prints the seconds of a step and the peak memory of the device."""
    run_step, info = training_step.step(config)
    seconds = timing.interleaved({'step': run_step}, 2)['step']
    point = {'length': config.data.length, 'layers': config.model.layers, **info}
    point |= {'seconds': min(seconds), 'runs': seconds}
    with contextlib.suppress(KeyError, TypeError):  # a CPU counts none
        peak = jax.local_devices()[0].memory_stats()['peak_bytes_in_use']
        point['peak_gib'] = peak / 2**30
    timing.print_point(point)


def main(arguments: list[str]) -> None:
    parser = command_line.ArgumentParser(description='Training steps on one GPU.')
    parser.add_argument('what', choices=('peers', 'million'))
    parser.add_argument('--runs', type=int, default=3, help='of which the minimum')
    options = parser.parse_args(arguments)
    timing.check_gpu()
    if options.what == 'peers':
        time_peers(memory.one_sequence(''), 'cuda', options.runs)
    else:
        time_million(memory.one_sequence('million'))


if __name__ == '__main__':
    command_line.script(main, sys.argv[1:])
