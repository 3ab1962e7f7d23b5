"""Rows of a table from the text of a file.

A .csv or .tsv has a header row, and a .csv may have semicolons or tabs between its
cells. JSON is an object a line; or one document: an array of objects, alone or as
'data', what pandas writes by columns or by index, or SQuAD's own nesting, of which a
row is a question.
"""

import csv
import functools
import io
import json
import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

Row = dict[str, Any]

# A cell in quotes that has quotes within, as programs write it.
_DOUBLED = re.compile(
    r"""(?:\A|[\t\r\n])"[^"\t\r\n]*""(?:[^"\t\r\n]|"")*"(?=[\t\r\n]|\Z)"""
)
# The beginning of a document, whose first line is none by itself, nor a row.
_NO_LINES = re.compile(r'\s*(\[|\{[ \t]*[\r\n])')


def read(
    path: pathlib.Path, suffix: str, text: str
) -> tuple[str, list[tuple[int, Row]]]:
    """What the rows of a file are numbered by, 'line' or 'row', and the rows with their
    numbers.

    Args:
      path: of the file, for errors.
      suffix: one of `SUFFIXES`.
      text: what it holds.

    Raises:
      ValueError: it is malformed; names the line or the row.
    """
    if suffix in _CELLS:
        csv.field_size_limit(2**31 - 1)  # the default, 131072, is one long text
        return 'line', list(_csv(path, _CELLS[suffix](text)))
    if (document := _document(path, text)) is not None:
        return 'row', list(enumerate(_rows(path, document), 1))
    return 'line', list(_json(path, io.StringIO(text, newline=None)))


def _comma(text: str) -> Any:
    """Reads a .csv: where a comma is for decimals, others stand between cells. Of
    several in the header it is the one that makes all rows as long, and longest."""
    header = re.split(r'[\r\n]', text, maxsplit=1)[0]
    there = [mark for mark in ',;\t' if mark in header] or [',']

    def read(mark: str) -> Any:
        return csv.reader(_lines(text), strict=True, delimiter=mark)

    def columns(mark: str) -> int:
        return len(next(read(mark))) if _is_table(read(mark)) else 0

    return read(there[0] if len(there) == 1 else max(there, key=columns))


def _tab(text: str) -> Any:
    """Reads a .tsv: quotes mean nothing, as in GLUE, unless the columns' names have
    some, or all can be read with them and a cell has doubled ones, or line ends or tabs
    without which the rows are of different lengths."""
    quoted = functools.partial(csv.reader, strict=True, delimiter='\t')
    plain = functools.partial(csv.reader, delimiter='\t', quoting=csv.QUOTE_NONE)
    if text.startswith('"'):
        return quoted(_lines(text))
    told = _DOUBLED.search(text) or ('"' in text and not _is_table(plain(_lines(text))))
    return (quoted if told and _is_table(quoted(_lines(text))) else plain)(_lines(text))


def _is_table(reader: Any) -> bool:
    try:
        return len({len(cells) for cells in reader if cells}) == 1
    except csv.Error:
        return False


def _lines(text: str) -> Iterable[str]:
    return io.StringIO(text, newline='')  # \r, \n and \r\n, as the csv module asks


_CELLS = {'.csv': _comma, '.tsv': _tab}
SUFFIXES = ('.jsonl', '.ndjson', '.json', *_CELLS)


def _document(path: pathlib.Path, text: str) -> Any:
    """What a file is that is one JSON document; None for a file of lines."""
    if not text.lstrip().startswith(('[', '{')):
        return None
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        if _NO_LINES.match(text):
            raise ValueError(f'{path} is no JSON ({error})') from error
        return None
    if isinstance(document, dict) and not isinstance(document.get('data'), list):
        one_line = '\n' not in text.strip()
        return _of_pandas(document) or (None if one_line else [document])
    return document


def _of_pandas(document: Row) -> list[Row]:
    """The rows of {column: {'0': value, ...}, ...}, or of {'0': row, ...}; else []."""
    keys = {tuple(v) if isinstance(v, dict) else () for v in document.values()}
    if len(keys) != 1 or () in keys:
        return []
    if all(map(str.isdigit, document)):
        return list(document.values())
    if not all(map(str.isdigit, *keys)):
        return []
    cells = zip(*(column.values() for column in document.values()), strict=True)
    return [dict(zip(document, row, strict=True)) for row in cells]


def _rows(path: pathlib.Path, document: Any) -> Iterator[Row]:
    """The rows of a JSON document: an array of objects, alone or as 'data'."""
    rows = document['data'] if isinstance(document, dict) else document
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise ValueError(
                f'row {number} of {path} is no JSON object: give a line, or an item of '
                'one array, {"column": value, ...} for each row'
            )
        yield from _flat(f'row {number} of {path}', row)


def _flat(where: str, row: Row) -> Iterator[Row]:
    """A row as it is; of an article of SQuAD a row for each question."""
    paragraphs = row.get('paragraphs')
    nested = isinstance(paragraphs, list) and any(
        isinstance(part, dict) and 'qas' in part for part in paragraphs
    )
    return _questions(where, row) if nested else iter([row])


def _questions(where: str, article: Row) -> Iterator[Row]:
    try:
        for paragraph in article['paragraphs']:
            for asked in paragraph['qas']:
                answers = asked.get('answers') or []
                yield {
                    'title': article.get('title', ''),
                    'context': paragraph['context'],
                    **asked,
                    'answers': {
                        'text': [answer['text'] for answer in answers],
                        'answer_start': [answer['answer_start'] for answer in answers],
                    },
                }
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{where} is no article as in SQuAD: {error!r} in its 'paragraphs'"
        ) from error


def _json(path: pathlib.Path, lines: Iterable[str]) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f'line {number} of {path} is no JSON ({error})') from error
        if not isinstance(row, dict):
            raise ValueError(
                f'line {number} of {path} is no JSON object: give a line '
                '{"column": value, ...} for each row'
            )
        for flat in _flat(f'line {number} of {path}', row):
            yield number, flat


def _csv(path: pathlib.Path, reader: Any) -> Iterator[tuple[int, Row]]:
    begin = 1
    try:
        header = [name.strip() for name in next(reader, [])]
        # pandas writes the numbers of its rows into a first column without a name.
        named = header[1:] if header[:1] == [''] and len(header) > 1 else header
        if not all(named) or len(set(named)) != len(named):
            raise ValueError(
                f'the first line of {path} must name the columns, each once, and has '
                f'{", ".join(map(repr, header))}'
            )
        begin = reader.line_num + 1
        for cells in reader:
            if cells and len(cells) != len(header):
                raise ValueError(
                    f'line {begin} of {path} has {len(cells)} cells, but the header '
                    f'has {len(header)} ({", ".join(header)})'
                )
            if cells:
                yield begin, dict(zip(named, cells[-len(named) :], strict=True))
            begin = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f'line {begin} of {path} cannot be read ({error})') from error
