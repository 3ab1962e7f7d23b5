"""Training and evaluation: config -> data, model, optimizer -> metrics. Read top down.

The pieces are pure: train_step maps (state, batch, key) to (state, sums). train() puts
them on the mesh, jits the step once and loops.
"""

import dataclasses
import functools
import itertools
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from reformer_jax import data
from reformer_jax import model as model_lib
from reformer_jax import sharding
from reformer_jax.model import config as model_config
from reformer_jax.runs import checkpoint
from reformer_jax.runs import folder as run_folder
from reformer_jax.runs import metrics
from reformer_jax.runs import progress
from reformer_jax.stack import compilation
from reformer_jax.training import config as training_config
from reformer_jax.training import losses
from reformer_jax.training import optimizer as optimizer_lib
from reformer_jax.training import profiling
from reformer_jax.training import start
from reformer_jax.training import state as state_lib
from reformer_jax.training import stopping

Batch = losses.Batch
Sums = losses.Sums
Run = start.Run
TrainState = state_lib.TrainState


# --- The step ---------------------------------------------------------------------


def train_step(
    state: TrainState,
    batch: Batch,
    key: jax.Array,
    *,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    accumulate: int,
    frozen: str = '',
) -> tuple[TrainState, Sums]:
    """One optimizer step on the mean loss of the batch; returns its sums as well."""
    key = jax.random.fold_in(key, state.step)
    gradient_of = jax.grad(functools.partial(losses.sums, train=True), has_aux=True)

    def add_part(total, inputs):
        index, part = inputs
        part_key = jax.random.fold_in(key, index)
        return jax.tree.map(jnp.add, total, gradient_of(state.model, part, part_key))

    if accumulate == 1:
        gradient, total = gradient_of(state.model, batch, jax.random.fold_in(key, 0))
    else:
        parts = _parts(batch, accumulate)
        part = jax.tree.map(lambda x: x[0], parts)
        shapes = jax.eval_shape(gradient_of, state.model, part, key)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        (gradient, total), _ = jax.lax.scan(
            lambda total, inputs: (add_part(total, inputs), None),
            zeros,
            (jnp.arange(accumulate), parts),
        )
    gradient = jax.tree.map(lambda g: g / jnp.maximum(total['weight'], 1.0), gradient)
    gradient = optimizer_lib.without_frozen(frozen, gradient)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.model)
    total['grad_norm'] = optax.tree.norm(gradient)
    total['learning_rate'] = schedule(state.step)
    model = optax.apply_updates(state.model, updates)
    return TrainState(state.step + 1, model, opt_state), total


def _parts(batch: Batch, count: int) -> Batch:
    """[B, L] -> [count, B / count, L], each part with rows of every device."""
    return {
        name: jnp.swapaxes(x.reshape(-1, count, *x.shape[1:]), 0, 1)
        for name, x in batch.items()
    }


# --- Training ---------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Training:
    """What is open while a run trains."""

    run: Run
    folder: pathlib.Path
    iterator: Any
    checkpointer: checkpoint.Checkpointer
    writer: metrics.Writer
    stop: stopping.Stop
    profile: profiling.Profile


def train(
    config: ml_collections.ConfigDict, workdir: str, *, profile: str = ''
) -> dict[str, Any]:
    """Trains for config.steps, resuming what `workdir` has; returns final metrics.

    Everything the config says is checked before the run folder is touched. SIGINT and
    SIGTERM end the run after the step in progress, with a checkpoint; it then returns
    nothing. The last checkpoint is written before the final evaluation, which the next
    call makes up for where it is missing.

    Args:
      config: the run.
      workdir: its folder.
      profile: 'FIRST:LAST' writes a trace of these steps into `<workdir>/profile`.

    Raises:
      ValueError: a field is unknown or impossible, or the folder is another run's.
      FloatingPointError: the loss is not finite.
    """
    started = time.monotonic()
    run = start.open(config, workdir)
    training_config.check_devices(run.config, run.mesh)
    trace = profiling.Profile(profile, run_folder.absolute(workdir) / 'profile')
    parameters: dict[str, jax.Array] = {}
    if run.config.init_from and not checkpoint.exists(workdir):
        parameters = start.load_parameters(run.config, run.mesh)
    iterator = data.build(run.config.data, 'train')
    data.build(
        run.config.data, 'validation'
    )  # an error now, not at the first evaluation
    folder = run_folder.open_workdir(workdir, run.fields, training_config.DEFAULTS)
    if run.tokenizer:
        run_folder.keep_tokenizer(folder, run.tokenizer)
    config = run.config
    with (
        jax.set_mesh(run.mesh),
        checkpoint.Checkpointer(folder, keep=config.keep_checkpoints) as checkpointer,
        metrics.Writer(folder, total_steps=config.steps) as writer,
        stopping.Stop(started, config.minutes) as stop,
        trace,
    ):
        training = _Training(run, folder, iterator, checkpointer, writer, stop, trace)
        return _train(training, parameters)


def _train(training: _Training, parameters: dict[str, jax.Array]) -> dict[str, Any]:
    run, checkpointer = training.run, training.checkpointer
    if checkpointer.latest_step() is None:
        state = start.first_state(run, parameters)
    else:
        state, _ = checkpointer.restore(run.state, training.iterator)
    first_step = int(state.step)
    training.profile.check(first_step, run.config.steps)
    progress.say(_description(run, training.folder, first_step))
    if first_step < run.config.steps:
        state = _train_steps(training, state)
    step = int(state.step)
    checkpointer.save(step, state, training.iterator)
    result = run_folder.load_result(training.folder) or {}
    if step == first_step == result.get('step'):
        validation = result['validation']
    else:
        validation = _validate(training, state.model, step, final=True)
    if validation is None:
        progress.say(f'stopped after {step} steps; the same command resumes')
        return {}
    if jax.process_index() == 0:
        lengths = {'steps': run.config.steps, 'minutes': run.config.minutes}
        result = {'step': step, **lengths, 'validation': validation}
        run_folder.write_result(training.folder, result)
    progress.say('final ' + metrics.summary('validation', step, validation))
    return validation


def _train_steps(training: _Training, state: TrainState) -> TrainState:
    """The loop: steps until config.steps or until it is time to stop."""
    run, config, writer = training.run, training.run.config, training.writer
    stop, step, key = training.stop, int(state.step), jax.random.key(config.seed)
    due = step > 0 and _is_due(step, config.eval_every)
    if due and step not in _validated(training.folder):  # a signal came in between
        _validate(training, state.model, step)
    compiling = time.monotonic()
    compiled_step = compile_train_step(run)
    progress.say(f'compiled the training step in {time.monotonic() - compiling:.0f} s')
    throughput = metrics.Throughput()
    since_log: list[Sums] = []
    while step < config.steps and not stop.now():
        batch = next(training.iterator)
        _check_tokens(run, batch)
        step += 1
        training.profile.before(step)
        placed = sharding.place_batch(batch, run.mesh)
        state, step_sums = compiled_step(state, placed, key)
        since_log.append(step_sums)
        training.profile.after(step, state)
        last = step == config.steps
        if last or _is_due(step, config.log_every):
            values = _train_values(step, since_log)
            throughput.add(batch['tokens'].size * len(since_log), len(since_log))
            values['tokens_per_second'] = throughput.read()
            since_log = []
            writer.write(step, 'train', values)
            seconds_left = throughput.seconds_left(config.steps - step)
            writer.progress(step, values, stop.seconds_left(seconds_left))
        if not last and _is_due(step, config.checkpoint_every):
            if since_log:  # no checkpoint of a loss that is not finite
                _train_values(step, since_log)
            with throughput.pause():
                training.checkpointer.save(step, state, training.iterator)
        if not last and _is_due(step, config.eval_every):
            with throughput.pause():
                _validate(training, state.model, step)
    if since_log:
        _train_values(step, since_log)
    return state


def _validate(
    training: _Training, model: Any, step: int, *, final: bool = False
) -> dict[str, float] | None:
    """Evaluates and takes note; None, with nothing noted, if it is time to stop."""
    stop, batches = training.stop, 0 if final else training.run.config.eval_batches
    values = evaluate_split(
        training.run,
        model,
        'validation',
        batches=batches,
        stopped=stop.interrupted if final else stop.now,
    )
    if values is None:
        return None
    training.writer.write(step, 'validation', values)
    training.checkpointer.record(step, values)
    if not np.isfinite(values['loss']):
        progress.say(
            f'WARNING: the validation loss after {step} steps is {values["loss"]}, '
            'though that of training is finite: this is never the best checkpoint'
        )
    if not final:
        progress.say(metrics.summary('validation', step, values))
    return values


def _validated(folder: pathlib.Path) -> set[int]:
    """Steps with an evaluation in metrics.jsonl."""
    file = folder / 'metrics.jsonl'
    return {
        line['step'] for line in metrics.read(file) if line['split'] == 'validation'
    }


def compile_train_step(run: Run):
    """The one jitted step, compiled: (state, batch, key) -> (state, sums)."""
    config = run.config
    step = functools.partial(
        train_step,
        optimizer=run.optimizer,
        schedule=optimizer_lib.schedule(config.optimizer, config.steps),
        accumulate=config.accumulate,
        frozen=config.optimizer.frozen,
    )
    shardings = jax.tree.map(lambda x: x.sharding, run.state)
    everywhere = NamedSharding(run.mesh, P())
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(shardings, everywhere))
    lowered = jitted.lower(run.state, run.batch, jax.random.key(0))
    return lowered.compile(compilation.options())


def _train_values(step: int, since_log: list[Sums]) -> dict[str, float]:
    """Means over the steps since the last log; waits for the last of them."""
    host = jax.device_get(since_log)
    total = {name: sum(float(s[name]) for s in host) for name in host[0]}
    values = metrics.means(total)
    if not np.isfinite(values['loss']):
        raise FloatingPointError(
            f'the loss became {values["loss"]} between steps {step - len(host)} and '
            f'{step}: the run stops before a checkpoint is written. Resume from the '
            'last one with a lower optimizer.learning_rate or optimizer.clip_norm=1.'
        )
    values['grad_norm'] = float(host[-1]['grad_norm'])
    values['learning_rate'] = float(host[-1]['learning_rate'])
    return values


# --- Evaluation -------------------------------------------------------------------


def evaluate(
    config: ml_collections.ConfigDict | None,
    workdir: str,
    *,
    splits: Sequence[str] = (),
    step: int | str | None = None,
) -> dict[str, dict[str, float]]:
    """Metrics of a run's checkpoint on full passes over the splits.

    The config may differ from the run's in all that keeps the parameters' shapes
    (hash rounds, attention, length, data). Writes a new file
    `<workdir>/evaluations/step_<step>_<time>.json`.

    Args:
      config: the model and the data to evaluate on; None for the run's own.
      workdir: the run folder.
      splits: names of splits; () for all that the data have besides training's.
      step: which checkpoint; None for the newest, 'best' for the best on validation.

    Raises:
      FloatingPointError: a loss is not finite; nothing is written.
    """
    run = start.open(config, workdir)
    training_config.check_devices(run.config, run.mesh)
    results = {}
    with jax.set_mesh(run.mesh):
        model, at_step = run.restore_model(step)
        held_out = [s for s in data.splits(run.config.data) if s != 'train']
        for split in splits or held_out:
            values = evaluate_split(run, model, split)
            assert values is not None
            if not np.isfinite(values['loss']):
                raise FloatingPointError(
                    f'the loss on {split} after {at_step} steps is {values["loss"]}: '
                    'evaluate another checkpoint, or in config.model.dtype=float32.'
                )
            results[split] = {'step': at_step, **values}
    if jax.process_index() == 0:
        record = {'results': results, 'config': run.fields}
        file = run_folder.write_evaluation(workdir, at_step, record)
        progress.say(f'wrote {file}')
    return results


def evaluate_split(
    run: Run,
    model: Any,
    split: str,
    *,
    batches: int = 0,
    stopped: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """Means over the first `batches` batches of a split, or all of them if 0.

    `stopped` is asked before each batch; once it says yes there are no means but None.
    """
    outcomes, real_rows = [], []
    evaluate_model = _jit_evaluate(run.mesh)
    with progress.bar(f'evaluating {split}', batches or None, 'batches') as advance:
        for batch in itertools.islice(
            data.build(run.config.data, split), batches or None
        ):
            if stopped():
                return None
            _check_tokens(run, batch)
            outcomes.append(
                evaluate_model(model, sharding.place_batch(batch, run.mesh))
            )
            if 'mask' in batch:
                real_rows.append(batch['mask'].any(axis=1))
            # One batch is made while the one before is evaluated.
            jax.block_until_ready(outcomes[-2:-1])
            advance(1)
    sums, predictions = zip(*jax.device_get(outcomes), strict=True)
    total = {name: sum(float(s[name]) for s in sums) for name in sums[0]}
    values = metrics.means(total)
    if predictions[0] is None:
        return values | {'tokens': total['weight']}
    predicted = np.concatenate(predictions)[np.concatenate(real_rows)]
    scores = data.score(run.config.data, split, predicted)
    return values | scores | {'examples': float(len(predicted))}


def _check_tokens(run: Run, batch: Mapping[str, np.ndarray]) -> None:
    remedy = ': raise model.vocab_size or mend the data'
    model_config.check_tokens(run.config.model, batch['tokens'], remedy)


@functools.cache
def _jit_evaluate(mesh: jax.sharding.Mesh):
    return jax.jit(
        losses.evaluate,
        out_shardings=NamedSharding(mesh, P()),
        compiler_options=compilation.options(),
    )


def _is_due(step: int, every: int) -> bool:
    return bool(every) and step % every == 0


def _description(run: Run, workdir: Any, step: int) -> str:
    batch_size, length = run.batch['tokens'].shape
    parameters = model_lib.parameter_count(run.state.model)
    devices = ', '.join(f'{axis} {size}' for axis, size in run.mesh.shape.items())
    beginning = f'resuming at step {step}' if step else 'starting'
    return (
        f'{beginning} in {workdir}: {parameters:,} parameters, {batch_size} x {length} '
        f'tokens a step, {run.mesh.size} {jax.devices()[0].device_kind} ({devices})'
    )
