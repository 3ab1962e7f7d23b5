"""How far long work on data is: a bar on a terminal, elsewhere a line now and then."""

import operator
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich import console
from rich import progress

_Item = TypeVar('_Item')
_SECONDS_BETWEEN_LINES = 10


def track(
    items: Iterable[_Item], description: str, total: int | None = None
) -> Iterator[_Item]:
    """Yields the items and says on stderr how many have been worked on.

    Args:
      items: what is worked on, one after the other.
      description: what is done with them.
      total: their number; None for that of `items`, if it has one.
    """
    total = total or operator.length_hint(items) or None
    terminal = console.Console(stderr=True)
    if terminal.is_terminal:
        yield from progress.track(
            items, description, total, console=terminal, transient=True
        )
        return
    said = time.monotonic()
    for count, item in enumerate(items, 1):
        yield item
        if time.monotonic() - said > _SECONDS_BETWEEN_LINES:
            said = time.monotonic()
            of_all = f' of {total:,}' if total else ''
            print(f'{description}: {count:,}{of_all}', file=sys.stderr, flush=True)
