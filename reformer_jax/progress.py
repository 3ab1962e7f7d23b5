"""How far a long piece of work is, on stderr: a bar on a terminal, else plain lines."""

import contextlib
import math
import operator
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich import console as rich_console
from rich import progress as rich_progress

_SECONDS_BETWEEN_LINES = 10
_LINES = 20  # a log of days stays short


_Item = TypeVar('_Item')


def track(
    items: Iterable[_Item], what: str, total: int | None = None
) -> Iterator[_Item]:
    """Yields the items and shows how many have been worked on, as `bar`.

    Args:
      items: what is worked on, one after the other.
      what: what is done with them.
      total: their number; None for that of `items`, if it has one.
    """
    with bar(what, total or operator.length_hint(items) or None) as advance:
        for item in items:
            yield item
            advance(1)


@contextlib.contextmanager
def bar(
    what: str, total: int | None = None, unit: str = '', *, shown: bool = True
) -> Iterator[Callable[[int], None]]:
    """Shows the progress of what is done in the context.

    Where there is no terminal a line is printed every ten seconds, later more rarely:
    work that takes less says nothing.

    Args:
      what: the work, 'evaluating validation'.
      total: how much there is to do; None if it is not known.
      unit: of what is counted, 'batches'.
      shown: whether it is; of several processes only one should.

    Yields:
      A function to call with how much more has been done.
    """
    if not shown:
        yield lambda count: None
    elif sys.stderr.isatty():
        with _rich() as display:
            task = display.add_task(what, total=total, unit=unit)
            yield lambda count: display.advance(task, count)
    else:
        yield _Lines(what, total, unit).advance


def _rich() -> rich_progress.Progress:
    return rich_progress.Progress(
        rich_progress.TextColumn('{task.description}'),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TextColumn('{task.fields[unit]}'),
        rich_progress.TimeElapsedColumn(),
        rich_progress.TimeRemainingColumn(),
        console=rich_console.Console(stderr=True),
        transient=True,
        # What the work itself prints on the terminal comes above the bar.
        redirect_stdout=sys.stdout.isatty(),
    )


class _Lines:
    def __init__(self, what: str, total: int | None, unit: str):
        self._what, self._total, self._unit = what, total, unit
        self._done = 0
        self._started = self._said = time.monotonic()

    def advance(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        seconds = now - self._started
        if now - self._said < max(_SECONDS_BETWEEN_LINES, seconds / _LINES):
            return
        self._said = now
        line = f'{self._what}: {self._done:,}'
        if self._total is not None:
            line += f' of {self._total:,}'
        line += f' {self._unit}'.rstrip() + f' in {format_seconds(seconds)}'
        if self._total is not None and 0 < self._done < self._total:
            left = seconds / self._done * (self._total - self._done)
            line += f', {format_seconds(left)} left'
        print(line, file=sys.stderr, flush=True)


def format_seconds(seconds: float) -> str:
    """A duration by its two largest units: 45s, 3m12s, 2h05m, 3d04h."""
    if not math.isfinite(seconds):
        return '?'
    whole = max(0, round(seconds))
    if whole < 60:
        return f'{whole}s'
    if whole < 3600:
        return f'{whole // 60}m{whole % 60:02d}s'
    if whole < 86400:
        return f'{whole // 3600}h{whole % 3600 // 60:02d}m'
    return f'{whole // 86400}d{whole % 86400 // 3600:02d}h'
