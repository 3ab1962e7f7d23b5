"""The values of a dataclass of settings against the types of its fields."""

import dataclasses
import math
import numbers
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

# Seeds have 32 bits on a device, and so has the counter of the steps.
_BEYOND = 2**32


def check(config: Any, where: str) -> None:
    """Raises a ValueError unless the fields of a dataclass are of their types.

    No bool is a number, no float an integer, and numbers are finite. So are those in
    tuples and mappings; fields of other types than these and str may be anything.

    Args:
      config: the dataclass.
      where: what a config has before the names of its fields, such as 'model.'.
    """
    for field in dataclasses.fields(config):
        given, kind, each = getattr(config, field.name), field.type, ''
        values: Iterable[Any] = [given]
        if of := typing.get_args(kind):
            several = given.values() if isinstance(given, Mapping) else given
            one = given is None or isinstance(given, str | numbers.Number)
            values = [given] if one else several
            kind, each = next(filter(_KINDS.get, reversed(of)), None), 'each '
        fits, told = _KINDS.get(kind, (lambda _: True, ''))
        if not all(map(fits, values)):
            raise ValueError(f'{where}{field.name}={given!r} {each}must be {told}.')


def check_whole(least: int, **given: Any) -> None:
    """Raises a ValueError unless all are whole numbers of at least so much."""
    for name, value in given.items():
        whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        if not whole or value < least:
            raise ValueError(
                f'{name}={value!r} must be a whole number of at least {least}.'
            )


def _is_integer(value: Any) -> bool:
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return whole and abs(value) < _BEYOND


def _is_finite(value: Any) -> bool:
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return real and math.isfinite(value)


_KINDS: dict[Any, tuple[Callable[[Any], bool], str]] = {
    int: (_is_integer, f'a whole number below {_BEYOND:,}'),
    float: (_is_finite, 'a finite number'),
    bool: (lambda value: isinstance(value, bool), 'True or False'),
    str: (lambda value: isinstance(value, str), 'a text'),
}
