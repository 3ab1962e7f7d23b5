"""How far a long piece of work is, on stderr: a bar on a terminal, else plain lines."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

import jax
from rich import console as rich_console
from rich import progress as rich_progress

from reformer_jax.runs import metrics

_SECONDS_BETWEEN_LINES = 10
_LINES = 20  # a log of days stays short


def say(line: str) -> None:
    """Prints a line; only the first of several processes does."""
    if jax.process_index() == 0:
        print(line, flush=True)


@contextlib.contextmanager
def bar(
    what: str, total: int | None = None, unit: str = ''
) -> Iterator[Callable[[int], None]]:
    """Shows the progress of what is done in the context.

    Where there is no terminal a line is printed every ten seconds, later more rarely:
    work that takes less says nothing. Of several processes the first one shows it.

    Args:
      what: the work, 'evaluating validation'.
      total: how much there is to do; None if it is not known.
      unit: of what is counted, 'batches'.

    Yields:
      A function to call with how much more has been done.
    """
    if jax.process_index() == 0 and sys.stderr.isatty():
        with _rich() as shown:
            task = shown.add_task(what, total=total, unit=unit)
            yield lambda count: shown.advance(task, count)
    elif jax.process_index() == 0:
        yield _Lines(what, total, unit).advance
    else:
        yield lambda count: None


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
        line += f' {self._unit}'.rstrip() + f' in {metrics.format_seconds(seconds)}'
        if self._total is not None and 0 < self._done < self._total:
            left = seconds / self._done * (self._total - self._done)
            line += f', {metrics.format_seconds(left)} left'
        print(line, file=sys.stderr, flush=True)
