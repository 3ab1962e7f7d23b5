"""When a run ends before its last step."""

import signal
import threading
import time
from typing import Any, Self

import jax
import numpy as np
from jax.experimental import multihost_utils


class Stop:
    """A time limit, SIGINT or SIGTERM; a context manager that listens for the signals.

    Attributes:
      by_signal: whether a signal came.
    """

    def __init__(self, started: float, minutes: float):
        """Stops `minutes` after `started` (time.monotonic); never by time if 0."""
        self._end = started + 60 * minutes if minutes else None
        self._handlers: dict[int, Any] = {}
        self.by_signal = False

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._stop)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _stop(self, number: int, _: Any) -> None:
        # A second signal ends the process as ever.
        signal.signal(number, self._handlers[number])
        self.by_signal = True

    def now(self) -> bool:
        """Whether to stop; all processes follow the first one."""
        over = self._end is not None and time.monotonic() >= self._end
        if jax.process_count() == 1:
            return over or self.by_signal
        both = multihost_utils.broadcast_one_to_all(np.array([over, self.by_signal]))
        self.by_signal = bool(both[1])
        return bool(both.any())

    def seconds_left(self, estimate: float | None) -> float | None:
        """The estimate, or what the time limit leaves of it."""
        if self._end is None or estimate is None:
            return estimate
        return min(estimate, max(0.0, self._end - time.monotonic()))
