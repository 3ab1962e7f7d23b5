"""Bits per dimension of the runs of a sweep, and their curves (Figures 3, 4, 5 left).

  python sweep.py --config=configs/rounds.py:tiny --config.data.path=FILE \\
      --workdir=runs/rounds --seeds=3
  python reports/bits_per_dim.py runs/rounds --output=reports/results/rounds_tiny

Prints a table with a row for each config, the mean and standard deviation over its
seeds, on the validation split. --output also writes it as PREFIX.md and PREFIX.csv, and
the curves as PREFIX_curves.csv and PREFIX.png; that needs pip install -e '.[reports]'.
Reads the folders of sweeps or of single runs.
"""

import pathlib
import sys
from collections.abc import Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from reports import run_folders
from reports import tables

# Config files -> what the paper says of the experiment. Its curves have no numbers.
_PAPER = {
    'enwik8.py': '1.05 on test (12 layers, section 5)',
    'shared_qk.py': 'Figure 3, left: sharing is not worse',
    'reversible.py': 'Figure 3, right: nearly the same',
    'rounds.py': 'Figure 4: 8 rounds almost match full attention',
    'depth.py': 'Figure 5, left: deeper is better, up to 20 layers',
}
# What makes one task of two runs: everything else may be compared in a table.
_TASK = ('data.dataset', 'data.path', 'data.source', 'data.shrink', 'data.tokenizer')


def report(folders: Sequence[str]) -> tuple[str, list[dict[str, Any]]]:
    """The table as Markdown, and its rows.

    Raises:
      ValueError: the runs are of different data, or have no bits per dimension.
    """
    collection = run_folders.collect(folders)
    run_folders.check_alike(collection.runs, lambda field: field not in _TASK)
    rows = []
    for runs in run_folders.by_experiment(collection.runs):
        values = [bits for run in runs if (bits := _bits(run)) is not None]
        row: dict[str, Any] = {'run': label(runs[0], collection.runs)}
        row |= {'bits/dim': None, '±': None}
        if values:
            mean, spread = run_folders.mean_and_spread(values)
            row['bits/dim'] = f'{mean:.4f}'
            row['±'] = None if spread is None else f'{spread:.4f}'
        rows.append(row | {'paper': _paper(collection)} | run_folders.origin(runs))
    rows += [{'run': name} for name in collection.missing]
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
    fields = run_folders.differing(among)
    shown = [
        f'{field.removeprefix("model.")}={_value(run.fields.get(field))}'
        for field in fields
    ]
    return ', '.join(shown) or run.name


def draw(points: Sequence[dict[str, Any]], target: str) -> None:
    """Draws curves, the mean over seeds, as an image."""
    image, axes = tables.image()
    for name in dict.fromkeys(point['run'] for point in points):
        by_step: dict[int, list[float]] = {}
        for point in points:
            if point['run'] == name:
                by_step.setdefault(point['step'], []).append(point['bits/dim'])
        steps = sorted(by_step)
        means = [sum(by_step[step]) / len(by_step[step]) for step in steps]
        axes.plot(steps, means, marker='o', markersize=2, label=name)
    axes.set_xlabel('step')
    axes.set_ylabel('bits per dimension, validation')
    axes.grid(alpha=0.3)
    axes.legend(fontsize='small')
    image.savefig(target, dpi=150)


def _bits(run: run_folders.Run) -> float | None:
    last = run.last
    if last and 'bits_per_dim' not in last:
        raise ValueError(
            f'{run.name} has no bits per dimension: it is a run on '
            f'{run.fields["data.dataset"]!r}, which is scored otherwise.'
        )
    return last.get('bits_per_dim')


def _paper(collection: run_folders.Collection) -> str | None:
    names = {pathlib.Path(c.partition(':')[0]).name for c in collection.configs}
    return _PAPER.get(names.pop()) if len(names) == 1 else None


def _value(value: Any) -> str:
    return '/'.join(map(str, value)) if isinstance(value, list) else str(value)


def main(arguments: list[str]) -> None:
    options = tables.parse(arguments, __doc__)
    text, rows = report(options.folders)
    print(text)
    if options.output:
        points = curves(options.folders)
        tables.write(options.output, text, rows)
        tables.write_csv(f'{options.output}_curves.csv', points)
        draw(points, f'{options.output}.png')


if __name__ == '__main__':
    main(sys.argv[1:])
