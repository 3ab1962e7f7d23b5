"""When a run stops before its last step."""

import os
import signal
import time

import pytest
from jax.experimental import multihost_utils

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


@pytest.mark.parametrize('minutes', [0, 1])
def test_several_processes_stop_for_good(monkeypatch, minutes):
    """JAX says once that they are to; an evaluation may be what asks then."""
    told = iter([False, True])
    monkeypatch.setattr('jax.process_count', lambda: 2)
    monkeypatch.setattr(
        multihost_utils,
        'reached_preemption_sync_point',
        lambda call: next(told, False),
    )
    monkeypatch.setattr(multihost_utils, 'broadcast_one_to_all', lambda x: x)
    monkeypatch.setattr(os, 'kill', lambda process, number: None)
    before = signal.getsignal(signal.SIGTERM)
    stop = stopping.Stop(time.monotonic() - 61, minutes)
    assert [stop.now() for _ in range(4)] == [False, True, True, True]
    assert stop.by_signal == stop.interrupted() == (minutes == 0)
    signal.signal(signal.SIGTERM, before)
