"""A row of the paper's Table 2: one duplication run, evaluated with other attention.

  python reports/table2.py runs/duplication_tiny

Prints the share of the second half's symbols that are right, in percent, with full
attention and with 8, 4, 2 and 1 hash rounds; eval.py's JSON files stay in the run
folder.
"""

import pathlib
import sys

import ml_collections

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from reformer_jax import checkpoint
from reformer_jax import loop

_EVALUATIONS = {
    'full': {'pattern': ('full',), 'shared_qk': True},
    'LSH-8': {'rounds': 8},
    'LSH-4': {'rounds': 4},
    'LSH-2': {'rounds': 2},
    'LSH-1': {'rounds': 1},
}


def row(workdir: str) -> dict[str, float]:
    """Accuracy on the test split, in percent, for each evaluation."""
    accuracies = {}
    for name, changes in _EVALUATIONS.items():
        config = ml_collections.ConfigDict(checkpoint.load_config(workdir))
        if config.data.dataset != 'duplication':
            raise SystemExit(f'{workdir} is a run on {config.data.dataset!r}.')
        config.model.update(changes)
        values = loop.evaluate(config, workdir, splits=('test',))['test']
        accuracies[name] = 100 * values['accuracy']
    return accuracies


def main(arguments: list[str]) -> None:
    if len(arguments) != 1:
        raise SystemExit('usage: python reports/table2.py WORKDIR')
    accuracies = row(arguments[0])
    print('| ' + ' | '.join(accuracies) + ' |')
    print('|' + '---|' * len(accuracies))
    print('| ' + ' | '.join(f'{value:.1f}' for value in accuracies.values()) + ' |')


if __name__ == '__main__':
    main(sys.argv[1:])
