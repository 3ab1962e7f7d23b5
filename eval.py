"""Evaluates a run on whole splits: python eval.py --workdir=runs/text_tiny

With --config the run is evaluated as that config says, which may differ from its own in
all that keeps the parameters' shapes:
  python eval.py --config=configs/duplication.py:tiny --workdir=... \\
      --config.model.rounds=8
"""

from absl import flags

from reformer_jax.training import command_line
from reformer_jax.training import evaluation

command_line.define_distributed()
_CONFIG = command_line.define_config("Default: the run's own.")
_WORKDIR = flags.DEFINE_string('workdir', None, 'Run folder.', required=True)
_SPLITS = flags.DEFINE_list('splits', [], 'Default: all but the training split.')
_CHECKPOINT = flags.DEFINE_string(
    'checkpoint',
    None,
    "Step, 'best' or 'average:N' of the last N. Default: the newest.",
)


def main() -> None:
    results = evaluation.evaluate(
        _CONFIG.value, _WORKDIR.value, splits=_SPLITS.value, step=_CHECKPOINT.value
    )
    evaluation.show(results)


if __name__ == '__main__':
    command_line.run(main)
