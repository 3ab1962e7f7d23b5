"""The paper's Table 2: duplication, trained with and evaluated with full and LSH.

  python sweep.py --config=configs/duplication.py:tiny --workdir=runs/table2
  python reports/table2.py runs/table2 --output=reports/results/table2_tiny

Prints the share of the second half's symbols that are right on the test split, in
percent, beside the paper's. --output also writes it as PREFIX.md and PREFIX.csv. Reads
the folders of sweeps or of single runs, and what eval.py left there.
"""

import dataclasses
import pathlib
import statistics
import sys
from collections.abc import Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from reformer_jax.runs import folder as run_folder
from reformer_jax.training import command_line
from reports import run_folders
from reports import tables

_COLUMNS = ('full', 'LSH-8', 'LSH-4', 'LSH-2', 'LSH-1')
# Paper section 5, Table 2: trained with (rows), evaluated with (columns), in percent.
_PAPER = {
    'full': (100.0, 94.8, 92.5, 76.9, 52.5),
    'LSH-4': (0.8, 100.0, 99.9, 99.4, 91.9),
    'LSH-2': (0.8, 100.0, 99.9, 98.1, 86.8),
    'LSH-1': (0.8, 99.9, 99.6, 94.8, 77.9),
}


def report(folders: Sequence[str]) -> tuple[str, list[dict[str, Any]]]:
    """The table as Markdown, and one row for each of its cells.

    Raises:
      ValueError: a run is not of the duplication task, or the runs differ in more than
        their attention.
    """
    collection = run_folders.collect(folders)
    for run in collection.runs:
        if run.fields['data.dataset'] != 'duplication':
            raise ValueError(
                f'{run.name} is a run on {run.fields["data.dataset"]!r}, and Table 2 '
                'is of the duplication task.'
            )
    run_folders.check_alike(collection.runs, run_folders.ATTENTION.__contains__)
    rows, cells = [], []
    found = [run_folders.attention(run.fields) for run in collection.runs]
    nothing = (None,) * len(_COLUMNS)
    for trained in dict.fromkeys([*_PAPER, *found]):
        paper = _PAPER.get(trained, nothing)
        runs = [
            run
            for run, kind in zip(collection.runs, found, strict=True)
            if kind == trained
        ]
        row: dict[str, Any] = {'trained with': trained}
        origin = run_folders.origin(runs) if runs else {}
        for column, theirs in zip(_COLUMNS, paper, strict=True):
            ours = [a for run in runs if (a := _accuracy(run, column)) is not None]
            told = '-' if theirs is None else f'{theirs:g}'
            row[f'{column} (paper)'] = f'{_percent(ours)} ({told})'
            cells.append(
                {
                    'trained with': trained,
                    'evaluated with': column,
                    'accuracy %': _number(ours),
                    'paper %': theirs,
                    **{name: origin.get(name) for name in run_folders.ORIGIN},
                }
            )
        rows.append(row | {name: origin.get(name) for name in run_folders.ORIGIN})
    return _text(collection, rows), cells


def _accuracy(run: run_folders.Run, column: str) -> float | None:
    """In percent, of the newest evaluation of the run's last checkpoint.

    It must differ from the run in its attention only.
    """
    for evaluation in reversed(run.evaluations):
        fields = run_folder.flat(evaluation['config'])
        evaluated = dataclasses.replace(run, fields=fields)
        test = evaluation['results'].get('test')
        if (
            test
            and test['step'] == run.last.get('step')
            and run_folders.attention(fields) == column
            and set(run_folders.differing([run, evaluated])) <= {*run_folders.ATTENTION}
        ):
            return 100 * test['accuracy']
    return None


def _percent(values: Sequence[float]) -> str:
    if not values:
        return '-'
    mean, spread = run_folders.mean_and_spread(values)
    return f'{mean:.2f}' + (f' ± {spread:.2f}' if spread is not None else '')


def _number(values: Sequence[float]) -> float | None:
    return round(statistics.fmean(values), 4) if values else None


def _text(collection: run_folders.Collection, rows: Sequence[dict[str, Any]]) -> str:
    task = ''
    if collection.runs:
        fields = collection.runs[0].fields
        task = (
            f' |w| = {fields["data.half_length"]}, {fields["data.symbols"]} symbols, '
            f'd_model {fields["model.d_model"]}.'
        )
        if source := fields.get('init_from'):
            task += f' All start from the parameters of {source}.'
    return (
        "# Table 2: duplication\n\nShare of the second half's symbols that are right, "
        "in percent, on the test split; in brackets the paper's, of |w| = 511, 127 "
        f'symbols, d_model 256. Ours:{task}\n\n'
        f'{tables.markdown(rows)}{tables.gaps(collection.missing)}'
    )


def main(arguments: list[str]) -> None:
    options = tables.parse(arguments, __doc__)
    text, cells = report(options.folders)
    print(text)
    if options.output:
        tables.write(options.output, text, cells)


if __name__ == '__main__':
    command_line.script(main, sys.argv[1:])
