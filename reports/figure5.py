"""The paper's Figure 5, right: speed against length, of the training step of runs.

(The paper's is of attention alone: benchmarks/attention.py.)

  python sweep.py --config=configs/length.py:tiny --config.data.path=FILE \\
      --workdir=runs/length
  python reports/figure5.py runs/length --output=reports/results/length_tiny

Prints the seconds of a training step for every attention and length, the fastest that
metrics.jsonl has (tokens of a step / tokens_per_second). --output also writes
PREFIX.md, PREFIX.csv and PREFIX.png; that needs pip install -e '.[reports]'.
"""

import pathlib
import statistics
import sys
from collections.abc import Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from reformer_jax.training import command_line
from reports import plots
from reports import run_folders
from reports import tables

_SIZES = ('data.length', 'data.batch_size', 'model.length')


def report(folders: Sequence[str]) -> tuple[str, list[dict[str, Any]]]:
    """The table as Markdown, and one row for each run.

    Raises:
      ValueError: the runs differ in more than length and attention, or in the tokens of
        a step.
    """
    collection = run_folders.collect(folders)
    runs = collection.runs
    run_folders.check_alike(
        runs, lambda field: field in (*_SIZES, *run_folders.ATTENTION)
    )
    tokens = sorted({_tokens(run) for run in runs})
    if len(tokens) > 1:
        raise ValueError(
            f'the runs have {", ".join(map(str, tokens))} tokens in a step: speeds '
            'compare at one number of tokens only. Make a report of each.'
        )
    hardware = {run_folders.origin([run])['hardware'] for run in runs}
    if len(hardware) > 1:
        raise ValueError(
            f'the runs are of different hardware, {" and ".join(sorted(hardware))}: '
            'speeds compare on the same only. Make a report of each.'
        )
    points = [_point(group) for group in run_folders.by_experiment(runs)]
    if not points:
        raise ValueError(f'no run in {", ".join(folders)} has been started yet.')
    text = (
        f'# Figure 5, right: seconds per training step of {tokens[0]:,} tokens\n\n'
        'Of the whole model, by the length of the sequences; the mean over seeds.\n\n'
        f'{tables.markdown(_grid(points))}\n{tables.markdown(points)}'
        f'{tables.gaps(collection.missing)}'
    )
    return text, points


def _point(runs: Sequence[run_folders.Run]) -> dict[str, Any]:
    """A row on the runs of one length and attention."""
    seconds = [s for run in runs if (s := _seconds(run)) is not None]
    return {
        'attention': run_folders.attention(runs[0].fields),
        'length': runs[0].fields['data.length'],
        'seconds': round(statistics.fmean(seconds), 3) if seconds else None,
        'paper': 'attention alone: LSH flat, full grows (Figure 5)',
        **run_folders.origin(runs),
    }


def _grid(points: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each attention, a column for each length."""
    lengths = sorted({point['length'] for point in points})
    rows = []
    for kind in dict.fromkeys(point['attention'] for point in points):
        times = {p['length']: p['seconds'] for p in points if p['attention'] == kind}
        row: dict[str, Any] = {'attention': kind}
        rows.append(row | {f'{length:,}': times.get(length) for length in lengths})
    return rows


def draw(points: Sequence[dict[str, Any]], target: str) -> None:
    """Draws seconds against length as an image, both axes logarithmic."""
    image, (axes,) = plots.image()
    axes.set_xscale('log', base=2)
    axes.set_yscale('log')
    named: dict[str, list[tuple[float, float]]] = {}
    for point in sorted(points, key=lambda point: point['length']):
        line = named.setdefault(point['attention'], [])
        if point['seconds'] is not None:
            line.append((point['length'], point['seconds']))
    plots.lines(axes, named, marker='o', markersize=3)
    axes.set_xlabel('sequence length (tokens)')
    axes.set_ylabel('training step (seconds)')
    plots.save(image, target)


def _tokens(run: run_folders.Run) -> int:
    return run.fields['data.length'] * run.fields['data.batch_size']


def _seconds(run: run_folders.Run) -> float | None:
    speeds = [r['tokens_per_second'] for r in run.records if r['split'] == 'train']
    known = [speed for speed in speeds if speed]
    return _tokens(run) / max(known) if known else None


def main(arguments: list[str]) -> None:
    options = tables.parse(arguments, __doc__)
    text, points = report(options.folders)
    print(text)
    if options.output:
        tables.write(options.output, text, points)
        draw(points, f'{options.output}.png')


if __name__ == '__main__':
    command_line.script(main, sys.argv[1:])
