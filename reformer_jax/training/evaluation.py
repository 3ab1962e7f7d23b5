"""Evaluation: a model's metrics on whole splits."""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from reformer_jax import data
from reformer_jax import progress
from reformer_jax import sharding
from reformer_jax.generation import translation
from reformer_jax.model import config as model_config
from reformer_jax.runs import folder as run_folder
from reformer_jax.runs import metrics
from reformer_jax.stack import compilation
from reformer_jax.training import start
from reformer_jax.training import step as step_lib


def evaluate(
    config: ml_collections.ConfigDict | None,
    workdir: str,
    *,
    splits: Sequence[str] = (),
    step: int | str | None = None,
) -> dict[str, dict[str, float]]:
    """Metrics of a run's checkpoint on full passes over the splits; they go to a new
    file `<workdir>/evaluations/step_<step>_<time>.json` as well. Of pairs every source
    is translated, and the translations are written beside it.

    The config may differ from the run's in all that keeps the parameters' shapes
    (hash rounds, attention, length, data).

    Args:
      config: the model and the data to evaluate on; None for the run's own.
      workdir: the run folder.
      splits: () for all that the data have besides training's.
      step: which checkpoint; None for the newest, 'best' for the best on validation,
        'average:N' for the mean of the last N.

    Raises:
      FloatingPointError: a loss is not finite; nothing is written.
      OSError: the file cannot be written; the metrics are printed.
    """
    run = start.open(config, workdir)
    start.check_batches(run)
    held_out = [s for s in run.config.data.splits if s != 'train']
    for split in splits or held_out:
        check_split(run, split)
    results: dict[str, dict[str, float]] = {}
    signatures: dict[str, str] = {}
    lines: dict[str, list[str]] = {}
    with jax.set_mesh(run.mesh):
        model, at_step = run.restore_model(step)
        told = run.lsh
        metrics.say(f'checkpoint of step {at_step}' + (f'; {told}' if told else ''))
        for split in splits or held_out:
            values = evaluate_split(run, model, split)
            assert values is not None
            if not np.isfinite(values['loss']):
                raise FloatingPointError(
                    f'the loss on {split} after {at_step} steps is {values["loss"]}: '
                    'evaluate another checkpoint, or in config.model.dtype=float32.'
                )
            results[split] = {'step': at_step, **values}
            if isinstance(run.config.data, data.pairs.Pairs):
                found = translate_split(run, model, split, run.config.decoding)
                assert found is not None
                scores, signatures, lines[f'{split}.hypotheses'] = found
                results[split] |= scores
    if jax.process_index() == 0:
        record = {'results': results, 'config': run.fields, 'checkpoint': step}
        record |= {'signatures': signatures} if signatures else {}
        try:
            file = run_folder.write_evaluation(workdir, at_step, record, lines)
        except OSError:
            show(results)
            raise
        metrics.say(f'wrote {file}')
    return results


def evaluate_split(
    run: start.Run,
    model: Any,
    split: str,
    *,
    batches: int = 0,
    stopped: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """Means over the first `batches` batches of a split, or all of them if 0.

    `stopped` is asked before each batch; once it says yes there are no means but None.
    """
    outcomes = []
    evaluate_model = _jit_evaluate(run.mesh, run.config.accumulate)
    what, limit, shown = (
        f'evaluating {split}',
        batches or None,
        jax.process_index() == 0,
    )
    with progress.bar(what, limit, 'batches', shown=shown) as advance:
        for batch in itertools.islice(run.read(split), limit):
            if stopped():
                return None
            check_tokens(run, batch)
            placed = sharding.place_batch(batch, run.mesh)
            outcomes.append(evaluate_model(model, placed))
            # One batch is made while the one before is evaluated.
            jax.block_until_ready(outcomes[-2:-1])
            advance(1)
    sums, predictions, real = zip(*jax.device_get(outcomes), strict=True)
    total = {name: sum(float(s[name]) for s in sums) for name in sums[0]}
    values = metrics.means(total)
    if predictions[0] is None:
        return values | {'tokens': total['weight']}
    predicted = np.concatenate(predictions)[np.concatenate(real)]
    scores = run.config.data.score(split, predicted)
    return values | scores | {'examples': float(len(predicted))}


def check_split(run: start.Run, split: str) -> None:
    """Raises an error now for data that could not be evaluated later."""
    dataset = run.config.data
    dataset.batches(split)
    if isinstance(dataset, data.pairs.Pairs):
        sources = dataset.texts(split).sources
        translation.check(run.config.model, dataset, sources, f'the {split} split')


def translate_split(
    run: start.Run,
    model: Any,
    split: str,
    how: translation.Decoding,
    stopped: Callable[[], bool] = lambda: False,
) -> tuple[dict[str, float], dict[str, str], list[str]] | None:
    """Scores of the translations of a split, their signatures, and the translations.

    `left_out` among the scores counts pairs that the loss is not of, as too long. None
    once `stopped` says yes.
    """
    dataset = run.config.data
    assert isinstance(dataset, data.pairs.Pairs)
    sources = dataset.texts(split).sources
    found = translation.translate(model, dataset, sources, how, stopped)
    if not found:
        return None
    scores, signatures = dataset.judged(split, found)
    if left_out := dataset.left_out(split):
        scores['left_out'] = float(left_out)
    return scores, signatures, found


def show(results: Mapping[str, Mapping[str, float]]) -> None:
    """Prints the metrics of each split as a table."""
    rows = [{'split': split, **values} for split, values in results.items()]
    metrics.say(metrics.table(rows, tuple(rows[0])))


def check_tokens(run: start.Run, batch: Mapping[str, np.ndarray]) -> None:
    """Raises a ValueError if a token id is outside of the model's vocabulary."""
    remedy = ': raise model.vocab_size or mend the data'
    model_config.check_tokens(run.config.model, batch['tokens'], remedy)
    if run.config.model.encoder is not None:
        remedy = ': raise model.encoder.vocab_size or mend the data'
        model_config.check_tokens(run.config.model.encoder, batch['source'], remedy)


@functools.cache
def _jit_evaluate(mesh: jax.sharding.Mesh, accumulate: int):
    """The jitted function to the sums, predictions and which of these are of rows."""

    def evaluate(model, batch):
        sums, predictions = step_lib.evaluate(model, batch, accumulate=accumulate)
        real = None if predictions is None else batch['mask'].any(axis=1)
        return sums, predictions, real

    return jax.jit(
        evaluate,
        out_shardings=NamedSharding(mesh, P()),
        compiler_options=compilation.options(),
    )
