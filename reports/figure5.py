"""The paper's Figure 5, right: training speed against length, from runs.

  python sweep.py --config=configs/length.py:tiny --config.data.path=FILE \\
      --workdir=runs/length
  python reports/figure5.py runs/length --output=reports/results/length_tiny

Prints the seconds of a training step for every attention and length, the fastest that
metrics.jsonl has (tokens of a step / tokens_per_second). --output also writes
PREFIX.md, PREFIX.csv and PREFIX.png; that needs pip install -e '.[reports]'.
"""

import pathlib
import sys
from collections.abc import Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from reports import run_folders
from reports import tables

_SIZES = ('data.length', 'data.batch_size', 'model.length')
_ATTENTION = ('model.pattern', 'model.rounds')


def report(folders: Sequence[str]) -> tuple[str, list[dict[str, Any]]]:
    """The table as Markdown, and one row for each run.

    Raises:
      ValueError: the runs differ in more than length and attention, or in the tokens of
        a step.
    """
    collection = run_folders.collect(folders)
    runs = collection.runs
    run_folders.check_alike(runs, lambda field: field in (*_SIZES, *_ATTENTION))
    tokens = sorted({_tokens(run) for run in runs})
    if len(tokens) > 1:
        raise ValueError(
            f'the runs have {", ".join(map(str, tokens))} tokens in a step: speeds '
            'compare at one number of tokens only. Make a report of each.'
        )
    points = [
        {
            'attention': _attention(run),
            'length': run.fields['data.length'],
            'seconds': _seconds(run),
            'paper': 'Figure 5, right: LSH flat, full grows with the length',
            **run_folders.origin([run]),
        }
        for run in runs
    ]
    if not points:
        raise ValueError(f'no run in {", ".join(folders)} has been started yet.')
    lengths = sorted({point['length'] for point in points})
    rows = []
    for kind in dict.fromkeys(point['attention'] for point in points):
        times = {p['length']: p['seconds'] for p in points if p['attention'] == kind}
        row: dict[str, Any] = {'attention': kind}
        rows.append(row | {f'{length:,}': times.get(length) for length in lengths})
    first = points[0]
    text = (
        f'# Figure 5, right: seconds per training step of {tokens[0]:,} tokens\n\n'
        f'By the length of its sequences; {first["hardware"]}, commit '
        f'{first["commit"]}. In the paper LSH attention is flat and full attention '
        f'grows with the length.\n\n{tables.markdown(rows)}'
        f'{tables.gaps(collection.missing)}'
    )
    return text, points


def draw(points: Sequence[dict[str, Any]], target: str) -> None:
    """Draws seconds against length as an image, both axes logarithmic."""
    image, axes = tables.image()
    for kind in dict.fromkeys(point['attention'] for point in points):
        line = sorted(
            (point['length'], point['seconds'])
            for point in points
            if point['attention'] == kind and point['seconds'] is not None
        )
        if line:
            axes.plot(*zip(*line, strict=True), marker='o', markersize=3, label=kind)
    axes.set_xscale('log', base=2)
    axes.set_yscale('log')
    axes.set_xlabel('sequence length (tokens)')
    axes.set_ylabel('training step (seconds)')
    axes.grid(alpha=0.3)
    axes.legend(title='attention')
    image.savefig(target, dpi=150)


def _tokens(run: run_folders.Run) -> int:
    return run.fields['data.length'] * run.fields['data.batch_size']


def _attention(run: run_folders.Run) -> str:
    pattern = '/'.join(run.fields['model.pattern'])
    rounds = run.fields['model.rounds']
    return f'LSH-{rounds}' if pattern == 'lsh' else pattern


def _seconds(run: run_folders.Run) -> float | None:
    speeds = [r['tokens_per_second'] for r in run.records if r['split'] == 'train']
    known = [speed for speed in speeds if speed]
    return round(_tokens(run) / max(known), 3) if known else None


def main(arguments: list[str]) -> None:
    options = tables.parse(arguments, __doc__)
    text, points = report(options.folders)
    print(text)
    if options.output:
        tables.write(options.output, text, points)
        draw(points, f'{options.output}.png')


if __name__ == '__main__':
    main(sys.argv[1:])
