"""When a run ends before its last step."""

import os
import signal
import threading
import time
from typing import Any, Self

import jax
import numpy as np
from jax.experimental import multihost_utils


class Stop:
    """A time limit, SIGINT or SIGTERM; a context manager that listens for the signals.

    Several processes stop after the same step, whichever of them a signal reaches: JAX
    passes SIGTERM on between them, so that one becomes what the others (SIGINT, the
    first process's time limit) are told by. No step waits for that.

    Attributes:
      by_signal: whether a signal came.
    """

    def __init__(self, started: float, minutes: float):
        """Stops `minutes` after `started` (time.monotonic); never by time if 0."""
        self._end = started + 60 * minutes if minutes else None
        self._handlers: dict[int, Any] = {}
        self._several = jax.process_count() > 1
        self._calls = 0
        self._out_of_time = False
        self._agreed = False  # the processes have: JAX says so once
        self.by_signal = False

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            # Of several processes SIGTERM belongs to JAX.
            ours = [signal.SIGINT] if self._several else [signal.SIGINT, signal.SIGTERM]
            for number in ours:
                self._handlers[number] = signal.signal(number, self._stop)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _stop(self, number: int, _: Any) -> None:
        # A second signal ends the process as ever.
        signal.signal(number, self._handlers[number])
        if self._several:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            self.by_signal = True

    def now(self) -> bool:
        """Whether to stop; every process asks equally often."""
        over = self._end is not None and time.monotonic() >= self._end
        if not self._several:
            return over or self.by_signal
        if self._agreed:
            return True
        if over and not self._out_of_time and jax.process_index() == 0:
            self._out_of_time = True
            os.kill(os.getpid(), signal.SIGTERM)
        self._calls += 1
        if not multihost_utils.reached_preemption_sync_point(self._calls):
            return False
        self._agreed = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one, as above
        in_time = not self._out_of_time
        self.by_signal = bool(multihost_utils.broadcast_one_to_all(np.array(in_time)))
        return True

    def interrupted(self) -> bool:
        """As `now`, whatever the time."""
        return self.now() and self.by_signal

    def seconds_left(self, estimate: float | None) -> float | None:
        """The estimate, or what the time limit leaves of it."""
        if self._end is None or estimate is None:
            return estimate
        return min(estimate, max(0.0, self._end - time.monotonic()))
