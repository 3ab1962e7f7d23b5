"""When a run stops before its last step."""

import os
import signal
import time

import pytest
from jax.experimental import multihost_utils

from reformer_jax.training import stopping


@pytest.mark.parametrize('number', stopping.SIGNALS)
def test_signal_stops_once_and_handlers_come_back(number):
    before = signal.getsignal(number)
    with stopping.Stop(time.monotonic()) as stop:
        assert not stop.now()
        os.kill(os.getpid(), number)
        assert stop.now() and stop.by_signal
        assert signal.getsignal(number) == before  # a second signal acts as ever
    assert signal.getsignal(number) == before


def test_handlers_come_back_without_a_signal():
    before = signal.getsignal(signal.SIGINT)
    with stopping.Stop(time.monotonic()):
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with stopping.Stop(time.monotonic()) as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.now()
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_at_once_is_where_there_is_nothing_to_save():
    with stopping.Stop(time.monotonic()) as stop:
        with pytest.raises(stopping.Interrupted), stop.at_once():
            os.kill(os.getpid(), signal.SIGTERM)
            pytest.fail('went on')
        with pytest.raises(stopping.Interrupted), stop.at_once():
            pytest.fail('forgot the signal')  # some callbacks swallow exceptions
    with stopping.Stop(time.monotonic()) as stop:
        with stop.at_once():
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.now()


def test_time_limit():
    stop = stopping.Stop(time.monotonic() - 59)
    stop.limit(1)
    assert not stop.now()
    assert 0 < stop.seconds_left(1000.0) <= 1
    assert stop.seconds_left(0.1) == 0.1
    over = stopping.Stop(time.monotonic() - 61)
    over.limit(1)
    assert over.now() and not over.by_signal
    assert over.seconds_left(1000.0) == 0


def test_no_limit():
    stop = stopping.Stop(time.monotonic() - 1e9)
    stop.limit(0)
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
    stop = stopping.Stop(time.monotonic() - 61)
    stop.limit(minutes)
    assert [stop.now() for _ in range(4)] == [False, True, True, True]
    assert stop.by_signal == stop.interrupted() == (minutes == 0)
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize('number', [n for n in stopping.SIGNALS if n != signal.SIGTERM])
def test_several_processes_are_told_by_sigterm(monkeypatch, number):
    monkeypatch.setattr('jax.process_count', lambda: 2)
    sent, kill = [], os.kill
    monkeypatch.setattr(os, 'kill', lambda process, number: sent.append(number))
    before = signal.getsignal(signal.SIGTERM)
    with stopping.Stop(time.monotonic()) as stop, stop.at_once():
        kill(os.getpid(), number)  # one process alone does not stop at once
        assert sent == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGTERM) == before
