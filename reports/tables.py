"""Writes the rows of a report as Markdown and CSV."""

import argparse
import csv
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from reformer_jax.training import command_line

Rows = Sequence[Mapping[str, Any]]


def parse(arguments: Sequence[str], description: str | None) -> argparse.Namespace:
    """The command line of a report: its folders, and output, a prefix or None."""
    parser = command_line.ArgumentParser(description=description)
    parser.add_argument('folders', nargs='+', help='of sweeps or of runs')
    parser.add_argument('--output', metavar='PREFIX', help='of the files to write')
    return parser.parse_args(arguments)


def gaps(missing: Sequence[str]) -> str:
    """A line on the points of a sweep that have not been started; '' if all have."""
    return f'\nNot started yet: {", ".join(missing)}.\n' if missing else ''


def markdown(rows: Rows) -> str:
    """A table with the columns of its first row; empty where there is no value."""
    columns = list(rows[0])
    lines = ['| ' + ' | '.join(columns) + ' |', '|' + '---|' * len(columns)]
    for row in rows:
        cells = (_cell(row.get(column)) for column in columns)
        lines.append('| ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines) + '\n'


def write(prefix: str, text: str, rows: Rows) -> None:
    """Writes `<prefix>.md` and, of the rows, `<prefix>.csv`; replaces them."""
    path = pathlib.Path(prefix)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(f'{path.name}.md').write_text(text, 'utf-8')
    write_csv(f'{prefix}.csv', rows)


def write_csv(path: str, rows: Rows) -> None:
    """Writes rows as CSV with the columns of the first; replaces the file."""
    with open(path, 'w', encoding='utf-8', newline='') as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)


def _cell(value: Any) -> str:
    if value is None:
        return ''
    return str(value).replace('|', '\\|')
