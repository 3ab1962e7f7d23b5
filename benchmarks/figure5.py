"""The paper's Figure 5, right: seconds per step against length, tokens per step fixed.

  python benchmarks/figure5.py measure                    16,384 tokens per step
  python benchmarks/figure5.py measure --tokens 65536
  python benchmarks/figure5.py plot

`measure` times the training step of benchmarks/training_step.py with full, local and
LSH attention, the kinds in turns at each length, and writes one JSON line per point to
reports/results/figure5.jsonl. `plot` draws reports/results/figure5.png from it and
needs pip install -e '.[reports]'.
"""

import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks import timing
from benchmarks import training_step
from reformer_jax.training import command_line
from reports import figure5

_RESULTS = pathlib.Path(__file__).resolve().parents[1] / 'reports' / 'results'
_SHORTEST = 1024
_KINDS: dict[str, dict[str, Any]] = {
    'full': {'pattern': ('full',)},
    'local': {'pattern': ('local',)},
    'LSH-1': {'rounds': 1},
    'LSH-2': {'rounds': 2},
    'LSH-4': {'rounds': 4},
    'LSH-8': {'rounds': 8},
}


def measure(
    path: pathlib.Path, lengths: Sequence[int], *, tokens: int, runs: int
) -> None:
    """Writes the seconds of every kind of attention at every length.

    Args:
      path: of the JSON lines; replaced.
      lengths: tokens per sequence, each a power of two that divides tokens.
      tokens: per step; the batch has tokens / length sequences.
      runs: timed steps of each, of which the minimum counts.
    """
    path.parent.mkdir(exist_ok=True)
    with open(path, 'w', encoding='utf-8') as file:
        for length in lengths:
            steps = {kind: _step(kind, length, tokens) for kind in _KINDS}
            for kind, seconds in timing.interleaved(steps, runs).items():
                line = timing.line(
                    {
                        'attention': kind,
                        'length': length,
                        'tokens': tokens,
                        'seconds': min(seconds),
                        'runs': seconds,
                    }
                )
                print(line, file=file, flush=True)
                print(line, flush=True)


def _step(kind, length, tokens):
    batch_size = tokens // length
    # As many tokens at a time whatever the length, so that only attention changes.
    chunk_length = max(1, min(1024, tokens) // batch_size)
    config = training_step.config(
        length,
        feed_forward_chunk_length=chunk_length,
        loss_chunk_length=chunk_length,
        **_KINDS[kind],
    )
    config.data.batch_size = batch_size
    return training_step.step(config)[0]


def plot(source: pathlib.Path, target: pathlib.Path) -> None:
    """Draws the points of a file that `measure` wrote as an image."""
    lines = source.read_text('utf-8').splitlines()
    figure5.draw([json.loads(line) for line in lines], str(target))


def main(arguments: list[str]) -> None:
    parser = command_line.ArgumentParser(description="The paper's Figure 5, right.")
    parser.add_argument('what', choices=('measure', 'plot'))
    parser.add_argument('--tokens', type=int, default=2**14, help='per step')
    parser.add_argument('--runs', type=int, default=3, help='of which the minimum')
    options = parser.parse_args(arguments)
    points = _RESULTS / 'figure5.jsonl'
    if options.what == 'plot':
        plot(points, _RESULTS / 'figure5.png')
        return
    longest = options.tokens.bit_length()
    lengths = [2**e for e in range(_SHORTEST.bit_length() - 1, longest)]
    measure(points, lengths, tokens=options.tokens, runs=options.runs)


if __name__ == '__main__':
    command_line.script(main, sys.argv[1:])
