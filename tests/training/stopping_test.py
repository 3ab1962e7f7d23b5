"""When a run stops before its last step."""

import os
import signal
import time

import pytest

from reformer_jax.training import stopping


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_signal_stops_once_and_handlers_come_back(number):
    before = signal.getsignal(number)
    with stopping.Stop(time.monotonic(), 0) as stop:
        assert not stop.now()
        os.kill(os.getpid(), number)
        assert stop.now() and stop.by_signal
        assert signal.getsignal(number) == before  # a second signal acts as ever
    assert signal.getsignal(number) == before


def test_handlers_come_back_without_a_signal():
    before = signal.getsignal(signal.SIGINT)
    with stopping.Stop(time.monotonic(), 0):
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before


def test_time_limit():
    stop = stopping.Stop(time.monotonic() - 59, 1)
    assert not stop.now()
    assert 0 < stop.seconds_left(1000.0) <= 1
    assert stop.seconds_left(0.1) == 0.1
    over = stopping.Stop(time.monotonic() - 61, 1)
    assert over.now() and not over.by_signal
    assert over.seconds_left(1000.0) == 0


def test_no_limit():
    stop = stopping.Stop(time.monotonic() - 1e9, 0)
    assert not stop.now()
    assert stop.seconds_left(5.0) == 5.0 and stop.seconds_left(None) is None
