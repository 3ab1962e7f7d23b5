"""Training: config -> data, model, optimizer -> metrics. Read top down.

The pieces are pure: train_step maps (state, batch, key) to (state, sums). train() puts
them on the mesh, jits the step once and loops.
"""

import contextlib
import dataclasses
import functools
import pathlib
import re
import time
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from reformer_jax import data
from reformer_jax import model as model_lib
from reformer_jax import sharding
from reformer_jax.runs import checkpoint
from reformer_jax.runs import folder as run_folder
from reformer_jax.runs import lock
from reformer_jax.runs import metrics
from reformer_jax.stack import compilation
from reformer_jax.training import config as training_config
from reformer_jax.training import divergence
from reformer_jax.training import evaluation
from reformer_jax.training import memory
from reformer_jax.training import optimizer as optimizer_lib
from reformer_jax.training import start
from reformer_jax.training import state as state_lib
from reformer_jax.training import step as step_lib
from reformer_jax.training import stopping

Sums = step_lib.Sums
Run = start.Run
TrainState = state_lib.TrainState


@dataclasses.dataclass(frozen=True)
class _Training:
    """What is open while a run trains."""

    run: Run
    folder: pathlib.Path
    iterator: Any
    checkpointer: checkpoint.Checkpointer
    writer: metrics.Writer
    stop: stopping.Stop
    traced: range  # steps


def train(
    config: ml_collections.ConfigDict, workdir: str, *, profile: str = ''
) -> dict[str, Any]:
    """Trains for config.steps, resuming what `workdir` has; returns final metrics.

    Everything the config says is checked before the run folder is touched, which this
    call then keeps for itself. A signal (stopping.SIGNALS) ends the run after the step
    in progress, with a checkpoint, before the first step at once; it then returns
    nothing. The last checkpoint is written before the final evaluation, which the next
    call makes up for where it is missing. A `profile` of 'FIRST:LAST' writes a trace of
    these steps into `<workdir>/profile`.

    Raises:
      ValueError: a field is unknown or impossible, or the folder is another run's or in
        use.
      FloatingPointError: a loss, gradient or parameter is not finite.
      OSError: checkpoints, or metrics unless config.log_may_fail, cannot be written.
    """
    with (
        stopping.Stop(time.monotonic()) as stop,
        contextlib.ExitStack() as opened,
    ):
        try:
            with stop.at_once():
                training, state = _open(config, workdir, profile, stop, opened)
            return _train(training, state)
        except stopping.Interrupted:
            metrics.say('stopped before the first step; the same command goes on')
            return {}


def _open(
    config: ml_collections.ConfigDict,
    workdir: str,
    profile: str,
    stop: stopping.Stop,
    opened: contextlib.ExitStack,
) -> tuple[_Training, TrainState]:
    lock.check(workdir)
    run = start.open(config, workdir)
    stop.limit(run.config.minutes)
    start.check_batches(run)
    memory.check_arrays((run.state, run.state.model), 'state and gradients')
    traced = _steps_to_trace(profile, run.config.steps)
    parameters: dict[str, jax.Array] = {}
    if run.config.init_from and not checkpoint.exists(workdir):
        parameters = start.load_parameters(run.config, run.mesh)
    iterator = run.read('train')
    evaluation.check_split(run, 'validation')
    absent = training_config.absent(run.fields)
    if jax.process_index() == 0:  # for all of them
        opened.enter_context(lock.hold(run_folder.make(workdir)))
    files = data.fingerprint.of(run.config.data.files)
    folder = run_folder.open_workdir(workdir, run.fields, absent, files)
    if run.tokenizer:
        run_folder.keep_tokenizer(folder, run.tokenizer)
    opened.enter_context(jax.set_mesh(run.mesh))
    checkpointer = opened.enter_context(
        checkpoint.Checkpointer(folder, keep=run.config.keep_checkpoints)
    )
    restored = checkpointer.resume(run.state, iterator)
    state = restored[0] if restored else start.first_state(run, parameters)
    writer = opened.enter_context(metrics.Writer(folder, int(state.step)))
    return _Training(run, folder, iterator, checkpointer, writer, stop, traced), state


def _train(training: _Training, state: TrainState) -> dict[str, Any]:
    run = training.run
    first_step = int(state.step)
    traced, steps = training.traced, run.config.steps
    if traced and first_step >= traced[0]:
        raise ValueError(
            f'--profile={traced[0]}:{traced[-1]}: this run does steps {first_step + 1} '
            f'to {steps}: trace some of these.'
        )
    metrics.say(_description(run, training.folder, first_step))
    if first_step < steps:
        state = _train_steps(training, state)
    step = int(state.step)
    _save(training, step, state)
    _check_log(training)
    result = run_folder.load_result(training.folder) or {}
    if step == first_step == result.get('step'):
        validation = result['validation']
    else:
        validation = _validate(training, state.model, step, final=True)
        _check_log(training)
    if validation is None:
        metrics.say(f'stopped after {step} steps; the same command resumes')
        return {}
    if jax.process_index() == 0:
        lengths = {'steps': steps, 'minutes': run.config.minutes}
        result = {'step': step, **lengths, 'validation': validation}
        run_folder.write_result(training.folder, result)
    metrics.say('final ' + metrics.summary('validation', step, validation))
    return validation


def _train_steps(training: _Training, state: TrainState) -> TrainState:
    """The loop: steps until config.steps or until it is time to stop."""
    run, config = training.run, training.run.config
    stop, step, key = training.stop, int(state.step), jax.random.key(config.seed)
    if step > 0 and _is_due(step, config.eval_every):
        file = training.folder / 'metrics.jsonl'
        lines = metrics.read(file) if file.is_file() else []
        validated = [line['step'] for line in lines if line['split'] == 'validation']
        if step not in validated:  # a signal came in between
            _validate(training, state.model, step)
    compiling = time.monotonic()
    with stop.at_once():
        compiled = {
            _shapes(batch): compile_train_step(run, batch) for batch in run.batches
        }
    for program in compiled.values():
        memory.check_step(program, run.config)
    shapes = f' for {len(compiled)} shapes of batches' if len(compiled) > 1 else ''
    seconds = time.monotonic() - compiling
    metrics.say(f'compiled the training step{shapes} in {seconds:.0f} s')
    throughput = metrics.Throughput()
    watch = divergence.Watch(config.optimizer, training.checkpointer, step)
    since_log: list[Sums] = []
    with contextlib.ExitStack() as tracing:
        while step < config.steps and not stop.now():
            batch = next(training.iterator)
            evaluation.check_tokens(run, batch)
            step += 1
            if step in training.traced[:1]:
                tracing.enter_context(jax.profiler.trace(training.folder / 'profile'))
            placed = sharding.place_batch(batch, run.mesh)
            state, step_sums = compiled[_shapes(placed)](state, placed, key)
            since_log.append(step_sums)
            if step in training.traced[-1:]:
                jax.block_until_ready(state)
                tracing.close()
            last = step == config.steps
            if last or _is_due(step, config.log_every):
                watch.look(step, since_log)
                values = _train_values(since_log)
                _warn_of_what_was_missed(run, values)
                divergence.warn_of_loss(config, 'training', step, values['loss'])
                tokens = values.pop('tokens')
                per_second = throughput.read(int(tokens), len(since_log))
                values['tokens_per_second'] = per_second
                if of_sources := values.pop('source_tokens', 0.0):
                    values['source_tokens_per_second'] = (
                        per_second * of_sources / tokens
                    )
                since_log = []
                training.writer.write(step, 'train', values)
                left = stop.seconds_left(throughput.seconds_left(config.steps - step))
                metrics.say(metrics.progress_line(step, config.steps, values, left))
            if not last and _is_due(step, config.checkpoint_every):
                watch.look(step, since_log)  # no checkpoint of what is not finite
                with throughput.pause():
                    _save(training, step, state)
            if not last and _is_due(step, config.eval_every):
                with throughput.pause():
                    _validate(training, state.model, step)
            if _log_fails(training):
                stop.soon()
    watch.look(step, since_log)
    return state


def _steps_to_trace(profile: str, last: int) -> range:
    """The steps that 'FIRST:LAST' names; none for ''."""
    match = re.fullmatch(r'([1-9]\d*):(\d+)', profile)
    steps = range(int(match[1]), int(match[2]) + 1) if match else range(0)
    if profile and not (steps and steps[-1] <= last):
        raise ValueError(
            f'--profile={profile}: give the first and the last step to trace, counted '
            f'from 1 to {last:,}, as in --profile=11:15.'
        )
    return steps


def _validate(
    training: _Training, model: Any, step: int, *, final: bool = False
) -> dict[str, float] | None:
    """Evaluates and takes note; None, with nothing noted, if it is time to stop."""
    stop = training.stop
    values = evaluation.evaluate_split(
        training.run,
        model,
        'validation',
        batches=0 if final else training.run.config.eval_batches,
        stopped=stop.interrupted if final else stop.now,
    )
    if values is None:
        return None
    if final and isinstance(training.run.config.data, data.pairs.Pairs):
        how = dataclasses.replace(training.run.config.decoding, beams=1)  # the quickest
        found = evaluation.translate_split(
            training.run, model, 'validation', how, stop.interrupted
        )
        if found is None:
            return None
        values |= found[0]
    # In this order: what a kill in between leaves out is made up for.
    training.checkpointer.record(step, values)
    training.writer.replace(step, 'validation', values)
    divergence.warn_of_loss(training.run.config, 'validation', step, values['loss'])
    if not np.isfinite(values['loss']):
        told = (
            f'the validation loss after {step} steps is {values["loss"]}, though that '
            'of training is finite: this is never the best checkpoint'
        )
        if final:
            raise FloatingPointError(
                f'{told}. Evaluate another, or start another run in '
                "model.dtype='float32' or with a lower optimizer.learning_rate."
            )
        metrics.say(f'WARNING: {told}')
    if not final:
        metrics.say(metrics.summary('validation', step, values))
    return values


def _save(training: _Training, step: int, state: TrainState) -> None:
    """Saves a checkpoint; of a folder that was removed orbax would make one again."""
    if not (training.folder / 'config.json').is_file():
        raise FileNotFoundError(
            f'{training.folder} or its config.json has been removed: the run ends '
            f'without a checkpoint of step {step}.'
        )
    training.checkpointer.save(step, state, training.iterator)


def _log_fails(training: _Training) -> OSError | None:
    """What ends the run after the step in progress."""
    return None if training.run.config.log_may_fail else training.writer.failure()


def _check_log(training: _Training) -> None:
    """Raises the error of a metrics.jsonl that lacks lines; all else is saved."""
    if failure := _log_fails(training):
        step = training.checkpointer.latest_step()
        raise OSError(f'{failure} Step {step} is saved.')


def compile_train_step(run: Run, batch: Mapping[str, jax.ShapeDtypeStruct]):
    """The one jitted step, compiled for a shape of batch: (state, batch, key) ->
    (state, sums)."""
    config = run.config
    step = functools.partial(
        step_lib.train_step,
        optimizer=run.optimizer,
        schedule=optimizer_lib.schedule(config.optimizer, config.steps),
        accumulate=config.accumulate,
        config=config.optimizer,
    )
    shardings = jax.tree.map(lambda x: x.sharding, run.state)
    everywhere = NamedSharding(run.mesh, P())
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(shardings, everywhere))
    lowered = jitted.lower(run.state, batch, jax.random.key(0))
    return lowered.compile(compilation.options())


def _shapes(batch: Mapping[str, Any]) -> tuple[tuple[int, ...], ...]:
    return tuple(batch[name].shape for name in sorted(batch))


def _train_values(since_log: list[Sums]) -> dict[str, float]:
    """Means over the steps since the last log, without those that were skipped unless
    all were; waits for the last of them."""
    every = jax.device_get(since_log)
    host = [s for s in every if not s.get('skipped')] or every
    total = {name: sum(float(s[name]) for s in host) for name in host[0]}
    values = metrics.means(total)
    if 'smoothed_loss' in total:
        values['smoothed_loss'] = total['smoothed_loss'] / max(total['weight'], 1.0)
    for name in ('grad_norm', 'parameter_norm', 'learning_rate'):
        values[name] = float(host[-1][name])
    for name in {'tokens', 'source_tokens'} & host[0].keys():
        values[name] = float(sum(int(s[name]) for s in every))
    values['largest_stream'] = max(float(s['largest_stream']) for s in host)
    if 'missed' in total:
        values['missed'] = total['missed']
    if 'skipped' in total:
        values['skipped'] = float(sum(bool(s['skipped']) for s in every))
    return values


def _warn_of_what_was_missed(run: Run, values: Mapping[str, float]) -> None:
    if values.get('missed'):
        bits = run.config.model.grid_bits
        metrics.say(
            f'WARNING: the backward pass came back to other streams in '
            f'{values["missed"]:,.0f} numbers: gradients are not exact. The streams '
            f'reach {values["largest_stream"]:,.0f}, the grid is exact below '
            f'{2 ** (24 - bits):,}: lower model.grid_bits, or set '
            "model.stack='checkpoint'"
        )


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _description(run: Run, workdir: Any, step: int) -> str:
    batch_size, length = run.batch['tokens'].shape
    parameters = model_lib.parameter_count(run.state.model)
    devices = ', '.join(f'{axis} {size}' for axis, size in run.mesh.shape.items())
    beginning = f'resuming at step {step}' if step else 'starting'
    return (
        f'{beginning} in {workdir}: {parameters:,} parameters, {batch_size} x {length} '
        f'tokens a step, {run.mesh.size} {jax.devices()[0].device_kind} ({devices})'
        + ''.join(f'; {told}' for told in (run.lsh, run.config.data.told) if told)
    )
