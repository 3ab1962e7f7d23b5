"""Labels of rows: their names, found or given, and the class each one stands for."""

import re
from collections.abc import Callable, Sequence
from typing import Any

# More classes than any task has: a wrong column, such as one of identifiers.
_LIMIT = 10_000

# The name of what is no label: null, a list, an empty cell.
_NO_LABEL = ''
# What programs write for null: among whole numbers it is none of the classes.
_NULLS = frozenset(('nan', 'none', 'null', 'na', 'n/a', '<na>', 'nat'))
# And as they spell it: beside names 'none' and 'NONE' are classes, as those of stances.
_SPELLED_NULLS = frozenset(
    ('nan', 'NaN', 'None', 'null', 'NULL', 'NA', 'N/A', '<NA>', 'NaT')
)


def given(labels: Sequence[Any]) -> tuple[str, ...]:
    """Returns the names of labels from a config.

    Raises:
      ValueError: if `labels` is a string, or a name comes twice.
    """
    if isinstance(labels, str):
        raise ValueError(f'labels={labels!r}: give a tuple of names')
    names = tuple(_name(label) for label in labels)
    if len(set(names)) < len(names):
        raise ValueError(f'labels={names}: give each name once')
    return names


def find(
    rows: Sequence[Sequence[Any]], column: str, where: Callable[[int], str]
) -> tuple[str, ...]:
    """Returns the names of all labels in the rows, for a config that has none.

    Args:
      rows: the labels of each row.
      column: where they stand, for errors.
      where: names a row of this index, for errors.

    Returns:
      '0' to the greatest, if all are whole numbers; '-1' and '1', if these are; else
      the names, sorted.

    Raises:
      ValueError: if there are other negative numbers, a row without a label or with
        what programs write for none, one label for all, none at all or too many.
    """
    names = {_name(label) for row in rows for label in row}

    def first(wrong: set[str]) -> str:
        return next(
            where(i) for i, row in enumerate(rows) if wrong & {*map(_name, row)}
        )

    others = {name for name in names if not _is_number(name)}
    nulls = others & {_NO_LABEL}
    if len(others) < len(names) and {name.lower() for name in others - nulls} <= _NULLS:
        nulls |= others
    if nulls:
        raise ValueError(
            f'{first(nulls)}: column {column!r} has no label there, or one that is no '
            'name and no whole number: remove the row, or choose the column of the '
            'labels'
        )
    if nulls := others & _SPELLED_NULLS:
        raise ValueError(
            f'{first(nulls)}: column {column!r} has the label {min(nulls)!r} there, '
            'as programs write where there is none: remove the row, or give all names '
            'as config.data.labels, if it is one'
        )
    numbers = sorted(map(_number, names - others))
    whole = bool(names) and not others
    if set(numbers) == {-1, 1} and whole:
        return '-1', '1'
    if whole and numbers[0] < 0:
        negative = {name for name in names if _number(name) == numbers[0]}
        raise ValueError(
            f'{first(negative)}: column {column!r} has the label {numbers[0]}, which '
            'hides the true one: choose a source with labels, or give those there are '
            'as config.data.labels'
        )
    count = numbers[-1] + 1 if whole else len(names)
    if not 0 < count <= _LIMIT:
        raise ValueError(
            f'column {column!r} gives {count} labels: choose the column of the labels, '
            f'at most {_LIMIT}, or regression for numbers'
        )
    if len(set(map(_spelled, names))) == 1 and all(rows):
        raise ValueError(
            f'column {column!r} has the one label {min(names)!r} in every row: choose '
            'the column of the labels'
        )
    if whole:
        return tuple(map(str, range(count)))
    # Of several spellings of one number the last.
    return tuple(sorted({_spelled(name): name for name in sorted(names)}.values()))


def classes(
    rows: Sequence[Sequence[Any]],
    labels: tuple[str, ...],
    where: Callable[[int], str],
) -> list[list[int]]:
    """Returns the class, an index into `labels`, of each label of each row.

    A label is a name among `labels`, or a number where none of these is one.

    Args:
      rows: the labels of each row.
      labels: names in the order of the classes.
      where: names a row of this index, for errors.

    Raises:
      ValueError: for any other label.
    """
    known = {_spelled(name): index for index, name in enumerate(labels)}
    known |= {name: index for index, name in enumerate(labels)}
    if not any(map(_is_number, labels)):
        known |= {str(index): index for index in range(len(labels))}
    found = []
    for index, row in enumerate(rows):
        names = [name if name in known else _spelled(name) for name in map(_name, row)]
        unknown = [name for name in names if name not in known]
        if unknown:
            hidden = 'the labels of this split are hidden; ' * (unknown[0] == '-1')
            raise ValueError(
                f'{where(index)}: label {unknown[0]!r}: {hidden}the labels are '
                f'{", ".join(labels)} (config.data.labels)'
            )
        found.append([known[name] for name in names])
    return found


def _name(label: Any) -> str:
    if isinstance(label, bool) or isinstance(label, float) and label.is_integer():
        label = int(label)  # what CSV and JSON writers make of classes
    return str(label).strip() if isinstance(label, str | int) else _NO_LABEL


def _is_number(name: str) -> bool:
    """Whether it is whole, in the notation of any program: 7, 07, +7, 7.0."""
    return re.fullmatch(r'[+-]?\d+(\.0*)?', name) is not None


def _number(name: str) -> int:
    return int(name.partition('.')[0])


def _spelled(name: str) -> str:
    return str(_number(name)) if _is_number(name) else name
