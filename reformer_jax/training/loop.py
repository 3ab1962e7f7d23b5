"""Training and evaluation: config -> data, model, optimizer -> metrics. Read top down.

The pieces are pure: train_step maps (state, batch, key) to (state, sums). train() puts
them on the mesh, jits the step once and loops.
"""

import dataclasses
import functools
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from reformer_jax import model as model_lib
from reformer_jax import sharding
from reformer_jax.model import config as model_config
from reformer_jax.runs import checkpoint
from reformer_jax.runs import folder as run_folder
from reformer_jax.runs import metrics
from reformer_jax.stack import compilation
from reformer_jax.training import config as training_config
from reformer_jax.training import losses
from reformer_jax.training import optimizer as optimizer_lib
from reformer_jax.training import start as start_lib
from reformer_jax.training import state as state_lib
from reformer_jax.training import stopping

Batch = losses.Batch
Sums = losses.Sums
Run = state_lib.Run
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


def train(config_dict: ml_collections.ConfigDict, workdir: str) -> dict[str, float]:
    """Trains for config.steps, resuming what `workdir` has; returns final metrics.

    Everything the config says is checked before the run folder is touched. SIGINT and
    SIGTERM end the run after the step in progress, with a checkpoint.

    Raises:
      ValueError: a field is unknown or impossible, or the folder is another run's.
      FloatingPointError: the loss is not finite.
    """
    started = time.monotonic()
    config_dict = start_lib.resolve(config_dict, workdir)
    run = state_lib.prepare(config_dict)
    config = run.config
    parameters = {}
    if config.init_from and not checkpoint.exists(workdir):
        parameters = start_lib.load_parameters(config, run.mesh)
    iterator = config.data.batches('train')
    config.data.batches('validation')  # an error now, not at the first evaluation
    tokenizer = _check_tokenizer(config, workdir)
    folder = checkpoint.open_workdir(
        workdir, config_dict.to_dict(), training_config.absent(config_dict)
    )
    if tokenizer:
        run_folder.keep_tokenizer(folder, tokenizer)
    with (
        jax.set_mesh(run.mesh),
        checkpoint.Checkpointer(folder, keep=config.keep_checkpoints) as checkpointer,
        _writer(folder, config.steps) as writer,
        stopping.Stop(started, config.minutes) as stop,
    ):
        state = _init_or_restore(run, checkpointer, iterator, parameters)
        first_step = int(state.step)
        _say(_description(run, folder, first_step))
        evaluate_model = _jit_evaluate(run)
        if first_step < config.steps:
            state = _train_steps(
                run, state, iterator, evaluate_model, checkpointer, writer, stop
            )
        step = int(state.step)
        if stop.by_signal:
            checkpointer.save(step, state, iterator)
            _say(f'stopped after {step} steps; the same command resumes')
            return {}
        validation = evaluate_split(run, evaluate_model, state.model, 'validation', 0)
        if step > first_step or step == 0:
            writer.write(step, 'validation', validation)
            checkpointer.save(step, state, iterator, validation)
    _write_result(run, folder, step, validation)
    _say('final ' + metrics.summary('validation', step, validation))
    return validation


def _train_steps(
    run: Run, state, iterator, evaluate_model, checkpointer, writer, stop
) -> TrainState:
    """The loop: steps until config.steps or until it is time to stop."""
    config, key = run.config, jax.random.key(run.config.seed)
    compiling = time.monotonic()
    compiled_step = compile_train_step(run)
    _say(f'compiled the training step in {time.monotonic() - compiling:.0f} s')
    throughput = metrics.Throughput()
    since_log: list[Sums] = []
    step = int(state.step)
    while step < config.steps and not stop.now():
        batch = next(iterator)
        _check_tokens(run, batch)
        placed = sharding.place_batch(batch, run.mesh)
        state, step_sums = compiled_step(state, placed, key)
        since_log.append(step_sums)
        step += 1
        last = step == config.steps
        if last or _is_due(step, config.log_every):
            values = _train_values(step, since_log)
            throughput.add(batch['tokens'].size * len(since_log), len(since_log))
            values['tokens_per_second'] = throughput.read()
            since_log = []
            writer.write(step, 'train', values)
            seconds_left = throughput.seconds_left(config.steps - step)
            writer.progress(step, values, stop.seconds_left(seconds_left))
        validation = None
        if not last and _is_due(step, config.eval_every):
            with throughput.pause():
                validation = evaluate_split(
                    run, evaluate_model, state.model, 'validation', config.eval_batches
                )
                writer.write(step, 'validation', validation)
                _say(metrics.summary('validation', step, validation))
        if not last and _is_due(step, config.checkpoint_every):
            if since_log:  # no checkpoint of a loss that is not finite
                _train_values(step, since_log)
            with throughput.pause():
                checkpointer.save(step, state, iterator, validation)
    if since_log:
        _train_values(step, since_log)
    return state


def _init_or_restore(run: Run, checkpointer, iterator, parameters) -> TrainState:
    if checkpointer.latest_step() is not None:
        return checkpointer.restore(run.state, iterator)[0]
    init = functools.partial(
        state_lib.init_state, run.config.model, run.optimizer, run.config.seed
    )
    shardings = jax.tree.map(lambda x: x.sharding, run.state)
    state = jax.jit(init, out_shardings=shardings)()
    if not parameters:
        return state
    model, fresh = start_lib.put(state.model, parameters)
    _say(
        f'started from {run.config.init_from}: {len(parameters)} parameters; fresh: '
        f'{", ".join(fresh) or "none"}'
    )
    parameters.clear()  # the caller's as well: their memory is needed
    return dataclasses.replace(state, model=model)


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
    compiled = lowered.compile(compilation.options())
    compilation.return_freed_memory()
    return compiled


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
    config: ml_collections.ConfigDict,
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
      config: the model and the data to evaluate on.
      workdir: the run folder.
      splits: names of splits; () for all that the data have besides training's.
      step: which checkpoint; None for the newest, 'best' for the best on validation.
    """
    config = start_lib.resolve(config, workdir)
    run = state_lib.prepare(config)
    _check_tokenizer(run.config, workdir)
    results = {}
    with jax.set_mesh(run.mesh):
        model, at_step = state_lib.restore_model(run.config, run.mesh, workdir, step)
        evaluate_model = _jit_evaluate(run)
        for split in splits or _held_out(run):
            values = evaluate_split(run, evaluate_model, model, split, 0)
            results[split] = {'step': at_step, **values}
    if jax.process_index() == 0:
        record = {'results': results, 'config': config.to_dict()}
        _say(f'wrote {run_folder.write_evaluation(workdir, at_step, record)}')
    return results


def _held_out(run: Run) -> list[str]:
    return [split for split in run.config.data.splits if split != 'train']


def _check_tokenizer(config: training_config.RunConfig, workdir: str) -> str | None:
    """The file of the tokenizer, if any, which must be the run's own."""
    tokenizer = getattr(config.data, 'tokenizer', run_folder.NO_TOKENIZER)
    if tokenizer == run_folder.NO_TOKENIZER:
        return None
    run_folder.check_tokenizer(workdir, tokenizer)
    return tokenizer


def evaluate_split(
    run: Run, evaluate_model, model: Any, split: str, batches: int
) -> dict[str, float]:
    """Means over the first `batches` batches of a split, or all of them if 0."""
    outcomes, real_rows = [], []
    for index, batch in enumerate(run.config.data.batches(split)):
        if batches and index == batches:
            break
        _check_tokens(run, batch)
        outcomes.append(evaluate_model(model, sharding.place_batch(batch, run.mesh)))
        if 'mask' in batch:
            real_rows.append(batch['mask'].any(axis=1))
    sums, predictions = zip(*jax.device_get(outcomes), strict=True)
    total = {name: sum(float(s[name]) for s in sums) for name in sums[0]}
    values = metrics.means(total)
    if predictions[0] is None:
        return values | {'tokens': total['weight']}
    predicted = np.concatenate(predictions)[np.concatenate(real_rows)]
    scores = run.config.data.score(split, predicted)
    return values | scores | {'examples': float(len(predicted))}


def _check_tokens(run: Run, batch: Mapping[str, np.ndarray]) -> None:
    remedy = ': raise model.vocab_size or mend the data'
    model_config.check_tokens(run.config.model, batch['tokens'], remedy)


def _jit_evaluate(run: Run):
    return jax.jit(
        losses.evaluate,
        out_shardings=NamedSharding(run.mesh, P()),
        compiler_options=compilation.options(),
    )


def _write_result(run: Run, folder: pathlib.Path, step: int, validation: Any) -> None:
    if jax.process_index() == 0:
        fields = {
            'step': step,
            'steps': run.config.steps,
            'minutes': run.config.minutes,
        }
        run_folder.write_result(folder, fields | {'validation': validation})


def _writer(folder: pathlib.Path, steps: int) -> Any:
    first = jax.process_index() == 0
    return (
        metrics.Writer(folder, total_steps=steps) if first else metrics.SilentWriter()
    )


def _is_due(step: int, every: int) -> bool:
    return bool(every) and step % every == 0


def _description(run: Run, workdir: Any, step: int) -> str:
    batch_size, length = run.batch['tokens'].shape
    parameters = model_lib.parameter_count(run.state.model)
    devices = ', '.join(f'{axis} {size}' for axis, size in run.mesh.shape.items())
    start = f'resuming at step {step}' if step else 'starting'
    return (
        f'{start} in {workdir}: {parameters:,} parameters, {batch_size} x {length} '
        f'tokens a step, {run.mesh.size} {jax.devices()[0].device_kind} ({devices})'
    )


def _say(line: str) -> None:
    if jax.process_index() == 0:
        print(line, flush=True)
