"""Bits per dimension of the runs of a sweep, and their curves (Figures 3, 4, 5 left).

  python sweep.py --config=configs/rounds.py:tiny --config.data.path=FILE \\
      --workdir=runs/rounds --seeds=3
  python reports/bits_per_dim.py runs/rounds --output=reports/results/rounds_tiny

Prints a table with a row for each config, the mean and standard deviation over its
seeds, on the validation split. --output also writes it as PREFIX.md and PREFIX.csv, and
the curves as PREFIX_curves.csv and PREFIX.png; that needs pip install -e '.[reports]'.
Reads the folders of sweeps or of single runs. Runs that are not complete count only
where no seed is, and are marked: their evaluations are of fewer batches.
"""

import pathlib
import sys
from collections.abc import Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from reformer_jax.training import command_line
from reports import plots
from reports import run_folders
from reports import tables

# Config files -> what the paper's curves say, which have no numbers.
_CURVES = {
    'shared_qk.py': 'enwik8, imagenet64: sharing is not worse (Figure 3)',
    'reversible.py': 'enwik8, imagenet64: nearly the same (Figure 3)',
    'rounds.py': 'imagenet64: 8 rounds almost match full attention (Figure 4)',
    'depth.py': 'enwik8: up to 20 layers train (Figure 5)',
}
# The paper's one number, of its 12 layers on 65,536 bytes of enwik8.
_ENWIK8 = {'data.dataset': 'enwik8', 'model.layers': 12, 'model.length': 65_536}
# What makes one task of two runs: everything else may be compared in a table.
_TASK = (
    'data.dataset',
    'data.path',
    'data.source',
    'data.shrink',
    'data.tokenizer',
    'data.masked_fraction',
    'model.head',
)
_COLUMNS = ('run', 'bits/dim', '±', 'paper', *run_folders.ORIGIN)


def report(folders: Sequence[str]) -> tuple[str, list[dict[str, Any]]]:
    """The table as Markdown, and its rows.

    Raises:
      ValueError: the runs are of different data, or have no bits per dimension.
    """
    collection = run_folders.collect(folders)
    run_folders.check_alike(collection.runs, lambda field: field not in _TASK)
    for run in collection.runs:
        if run.fields['model.head'] not in ('lm', 'masked_lm'):
            raise ValueError(
                f'{run.name} has no bits per dimension: it is a run with model.head='
                f'{run.fields["model.head"]!r}, which is scored otherwise.'
            )
    rows = []
    for runs in run_folders.by_experiment(collection.runs):
        row = dict.fromkeys(_COLUMNS) | {'run': label(runs[0], collection.runs)}
        complete = [run for run in runs if run.is_complete]
        values = [run.last['bits_per_dim'] for run in complete or runs if run.last]
        if values:
            mean, spread = run_folders.mean_and_spread(values)
            row['bits/dim'] = f'{mean:.4f}' + ('' if complete else ' (unfinished)')
            row['±'] = None if spread is None else f'{spread:.4f}'
        row['paper'] = _paper(collection, runs[0])
        rows.append(row | run_folders.origin(complete or runs))
    rows += [dict.fromkeys(_COLUMNS) | {'run': name} for name in collection.missing]
    if not rows:
        raise ValueError(f'no run in {", ".join(folders)} has been started yet.')
    title = ', '.join(dict.fromkeys(collection.configs)) or ', '.join(folders)
    text = (
        f'# Bits per dimension: {title}\n\nOn the validation split, mean and standard '
        f'deviation over seeds.\n\n{tables.markdown(rows)}'
        f'{tables.gaps(collection.missing)}'
    )
    return text, rows


def curves(folders: Sequence[str]) -> list[dict[str, Any]]:
    """Bits per dimension on the validation split while training, one row a point."""
    runs = run_folders.collect(folders).runs
    return [
        {
            'run': label(run, runs),
            'seed': run.fields['seed'],
            'step': point['step'],
            'bits/dim': round(point['bits_per_dim'], 5),
        }
        for run in runs
        for point in run.curve()
    ]


def label(run: run_folders.Run, among: Sequence[run_folders.Run]) -> str:
    """The fields in which a run differs from others, and their values."""
    fields = list(run_folders.differing(among))
    shown = []
    if set(fields) & {*run_folders.ATTENTION}:
        shown.append(run_folders.attention(run.fields))
    shown += [
        f'{field.removeprefix("model.")}={_value(run.fields.get(field))}'
        for field in fields
        if field not in run_folders.ATTENTION
    ]
    return ', '.join(shown) or run.name


def draw(points: Sequence[dict[str, Any]], target: str) -> None:
    """Draws curves, the mean over seeds, as an image."""
    image, (axes,) = plots.image()
    named: dict[str, list[tuple[int, float]]] = {}
    for name in dict.fromkeys(point['run'] for point in points):
        by_step: dict[int, list[float]] = {}
        for point in points:
            if point['run'] == name:
                by_step.setdefault(point['step'], []).append(point['bits/dim'])
        steps = sorted(by_step)
        means = [sum(by_step[step]) / len(by_step[step]) for step in steps]
        named[name] = list(zip(steps, means, strict=True))
    plots.lines(axes, named)
    axes.set_xlabel('step')
    axes.set_ylabel('bits per dimension, validation')
    plots.save(image, target)


def _paper(collection: run_folders.Collection, run: run_folders.Run) -> str | None:
    if all(run.fields[field] == value for field, value in _ENWIK8.items()):
        return '1.05 on test (section 5)'
    names = {pathlib.Path(c.partition(':')[0]).name for c in collection.configs}
    return _CURVES.get(names.pop()) if len(names) == 1 else None


def _value(value: Any) -> str:
    return '/'.join(map(str, value)) if isinstance(value, list) else str(value)


def main(arguments: list[str]) -> None:
    options = tables.parse(arguments, __doc__)
    text, rows = report(options.folders)
    print(text)
    if options.output:
        points = curves(options.folders)
        tables.write(options.output, text, rows)
        if points:
            tables.write_csv(f'{options.output}_curves.csv', points)
            draw(points, f'{options.output}.png')


if __name__ == '__main__':
    command_line.script(main, sys.argv[1:])
