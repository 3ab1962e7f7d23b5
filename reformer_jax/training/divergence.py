"""When training goes wrong: what is no number, spikes, losses worse than guessing."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from reformer_jax.runs import checkpoint
from reformer_jax.runs import metrics
from reformer_jax.training import config as training_config
from reformer_jax.training import optimizer as optimizer_lib

# Times the loss of guessing; what has merely not learned stays below.
_FAR = 10
_NAMES = {
    'loss': 'the loss',
    'grad_norm': 'the norm of the gradient',
    'parameter_norm': 'the norm of the parameters behind its update',
}


class Watch:
    """Looks at the sums of every step before what came of it is saved or reported."""

    def __init__(
        self,
        config: optimizer_lib.OptimizerConfig,
        checkpointer: checkpoint.Checkpointer,
        step: int,
    ):
        """Of a run that has done `step` steps."""
        self._config, self._checkpointer = config, checkpointer
        self._seen, self._in_a_row = step, 0

    def look(self, step: int, sums: Sequence[Mapping[str, jax.Array]]) -> None:
        """At the sums of the last steps, up to `step`, each of them once; says which
        updates were skipped.

        Raises:
          FloatingPointError: a step went wrong and none, or no more, may be skipped.
        """
        fresh = jax.device_get(sums[len(sums) - (step - self._seen) :])
        skipped = []
        for number, values in enumerate(fresh, self._seen + 1):
            if not (wrong := self._wrong(values)):
                self._in_a_row = 0
                continue
            self._in_a_row += 1
            skipped.append((number, wrong))
            if self._in_a_row > self._config.skips:
                self._stop(number, wrong)
        self._seen = step
        if skipped:
            number, wrong = skipped[-1]
            metrics.say(
                f'WARNING: skipped the update of {len(skipped)} of the steps up to '
                f'{step}, the last of step {number}: {wrong}'
            )

    def _wrong(self, values: Mapping[str, Any]) -> str:
        """What is wrong with the sums of a step, in words; '' for nothing."""
        for name, told in _NAMES.items():
            if not math.isfinite(values[name]):
                return f'{told} is {values[name]}'
        if values.get('spike', 0.0) > self._config.spike:
            return (
                f'the norm of the gradient, {values["grad_norm"]:.3g}, is '
                f'{values["spike"]:.3g} times its running mean, above '
                f'optimizer.spike={self._config.spike:g}'
            )
        return ''

    def _stop(self, number: int, wrong: str) -> None:
        latest, skips = self._checkpointer.latest_step(), self._config.skips
        kept = 'no checkpoint was saved before'
        if latest is not None:
            kept = f'the checkpoint of step {latest} is finite'
        before = f', after {skips} skipped in a row (optimizer.skips)' if skips else ''
        raise FloatingPointError(
            f'step {number}: {wrong}{before}; {kept}. Resume with optimizer.skips='
            f'{max(10, 2 * skips)} to go on without such updates, or start another run '
            'with a lower optimizer.learning_rate or with optimizer.clip_norm=1.'
        )


def warn_of_loss(
    config: training_config.RunConfig, split: str, step: int, loss: float
) -> None:
    """Says so if a loss [nats] is far above that of guessing."""
    model = config.model
    choices = {
        'classification': model.classes,
        'token_classification': model.classes,
        'question_answering': model.length,
    }.get(model.head, model.vocab_size)
    guess = math.log(choices)
    if guess and loss > _FAR * guess:  # a squared error has no such measure
        metrics.say(
            f'WARNING: the {split} loss at step {step} is {loss:.4g} nats, '
            f'{loss / guess:,.0f} times that of guessing: training diverges; lower '
            'optimizer.learning_rate, or set optimizer.clip_norm=1'
        )
