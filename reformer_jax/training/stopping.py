"""When a run ends before its last step."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any, Self

import jax
import numpy as np
from jax.experimental import multihost_utils

# Ctrl-C, kill, a terminal that closes, and the warning that Slurm sends when asked to.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class Interrupted(BaseException):
    """A signal came while there was nothing to save."""


class Stop:
    """A time limit or one of `SIGNALS`; a context manager that listens for these.

    A signal that is ignored, as SIGHUP under nohup, stays so. A second one of a kind
    ends the process as ever. Several processes stop after the same step, whichever of
    them a signal reaches: JAX passes SIGTERM on between them, so that one becomes what
    the others (the other signals, the first process's time limit) are told by. No step
    waits for that.

    Attributes:
      by_signal: whether a signal came.
    """

    def __init__(self, started: float):
        """Counts time from `started` (time.monotonic)."""
        self._started = started
        self._end: float | None = None
        self._handlers: dict[int, Any] = {}
        self._several = jax.process_count() > 1
        self._calls = 0
        self._at_once = False
        self._out_of_time = False
        self._agreed = False  # the processes have: JAX says so once
        self.by_signal = False

    def limit(self, minutes: float) -> None:
        """Stops `minutes` after the start; never by time if 0."""
        self._end = self._started + 60 * minutes if minutes else None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                # Of several processes SIGTERM belongs to JAX.
                if self._several and number == signal.SIGTERM:
                    continue
                if signal.getsignal(number) != signal.SIG_IGN:
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
            return
        self.by_signal = True
        if self._at_once:
            raise Interrupted

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Where there is nothing to save: a signal raises `Interrupted`, unless there
        are several processes, which stop together when they come to `now`."""
        self._at_once = True
        try:
            if self.by_signal:
                raise Interrupted
            yield
        finally:
            self._at_once = False

    def soon(self) -> None:
        """Ends the run as if its time were over."""
        self._end = time.monotonic()

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
