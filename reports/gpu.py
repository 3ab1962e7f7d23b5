"""The figures of one GPU as tables, from what benchmarks/gpu.sh measured.

  python reports/gpu.py reports/results/gpu

Reads error.jsonl, attention.jsonl, million.jsonl and training.jsonl of a folder, those
that are there, and prints Markdown. `goal` is what the kernels were made to reach.
"""

import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from reformer_jax.training import command_line
from reports import tables

# Times as fast as cuDNN's exact attention: by tokens with 4 rounds, and with 1.
GOALS = {
    4: {8192: 1, 16_384: 2, 32_768: 4, 65_536: 8, 131_072: 16},
    1: {131_072: 50},
}
_PARTS = {
    'attention': 'Attention, forward and backward, against cuDNN',
    'error': 'Relative errors with bfloat16 operands',
    'training': "Training steps of the paper's enwik8 model, one sequence",
    'million': 'One training step of a million tokens (goal: under 16 GB)',
}

Point = dict[str, Any]


def report(folder: str) -> str:
    """Markdown of all the points in a folder.

    Raises:
      FileNotFoundError: there is none.
    """
    found = {part: _points(pathlib.Path(folder, f'{part}.jsonl')) for part in _PARTS}
    if not any(found.values()):
        raise FileNotFoundError(
            f'{folder} has none of {", ".join(f"{part}.jsonl" for part in _PARTS)}: '
            f'make them on a GPU with benchmarks/gpu.sh {folder}'
        )
    rows_of = {'attention': _attention_rows, 'training': _training_rows}
    text = f'# One GPU\n\n{_where(found)}\n'
    for part, title in _PARTS.items():
        points = found[part]
        try:
            rows = rows_of.get(part, _rows)(points) if points else []
        except KeyError as error:
            raise ValueError(
                f'{folder}/{part}.jsonl has a line without {error}: measure it anew.'
            ) from error
        table = tables.markdown(rows) if rows else 'Not measured.\n'
        text += f'\n## {title}\n\n{table}'
    return text


def _points(path: pathlib.Path) -> list[Point]:
    if not path.exists():
        return []
    points = []
    for number, line in enumerate(path.read_text('utf-8').splitlines(), 1):
        if line.startswith('{'):
            try:
                points.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f'{path}, line {number}: {error}') from error
    return points


def _where(found: dict[str, list[Point]]) -> str:
    """What was measured on: one line for each device and set of versions."""
    names = ('device', 'jax', 'torch', 'python')
    places = {
        ', '.join(f'{name} {point[name]}' for name in names if name in point)
        for points in found.values()
        for point in points
    }
    return '\n'.join(f'- {place}' for place in sorted(places))


def _attention_rows(points: Sequence[Point]) -> list[Point]:
    return [
        {
            'tokens': point['length'],
            'attention': point['attention'],
            'rounds': point['rounds'],
            'chunk': point['chunk_length'],
            'milliseconds': f'{1e3 * point["seconds"]:.3f}',
            'ns per token and head': f'{point["ns_per_token_head"]:.2f}',
            'times as fast as cuDNN': f'{point["exact_over_this"]:.2f}',
            'goal': _goal(point),
        }
        for point in points
    ]


def _goal(point: Point) -> int | None:
    if point['attention'] != 'triton':
        return None
    return GOALS.get(point['rounds'], {}).get(point['length'])


def _training_rows(points: Sequence[Point]) -> list[Point]:
    return [
        {
            'implementation': point['implementation'],
            'tokens': point['length'],
            'tokens per second': point.get('tokens_per_second', point.get('error')),
            'seconds': point.get('seconds'),
            'times ours (goal: 5)': point.get('times_ours'),
        }
        for point in points
    ]


def _rows(points: Sequence[Point]) -> list[Point]:
    """All that a point has but for its environment and the single runs."""
    left_out = ('cpu_cores', 'device', 'jax', 'torch', 'python', 'runs')
    return [
        {name: value for name, value in point.items() if name not in left_out}
        for point in points
    ]


def main(arguments: list[str]) -> None:
    parser = command_line.ArgumentParser(description=__doc__)
    parser.add_argument('folder', help='of the measurements')
    print(report(parser.parse_args(arguments).folder), end='')


if __name__ == '__main__':
    command_line.script(main, sys.argv[1:])
