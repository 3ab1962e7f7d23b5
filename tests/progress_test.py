"""Progress where there is no terminal, and on one."""

import sys
import time

from reformer_jax import progress


def test_plain_lines_now_and_then(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, 'monotonic', lambda: now[0])
    with progress.bar('reading', 1000, 'tokens') as advance:
        for _ in range(4):
            now[0] += 6
            advance(200)
    with progress.bar('reading', unit='tokens') as advance:
        now[0] += 61
        advance(1500)
    with progress.bar('reading') as advance:
        now[0] += 9
        advance(7)
    captured = capsys.readouterr()
    assert captured.out == ''
    assert captured.err.splitlines() == [
        'reading: 400 of 1,000 tokens in 12s, 18s left',
        'reading: 800 of 1,000 tokens in 24s, 6s left',
        'reading: 1,500 tokens in 1m01s',
    ]


def test_lines_become_rarer(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, 'monotonic', lambda: now[0])
    with progress.bar('training', 10**6) as advance:
        for _ in range(86_400):
            now[0] += 1
            advance(1)
    assert 50 < len(capsys.readouterr().err.splitlines()) < 200


def test_a_bar_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: True)
    monkeypatch.setenv('TERM', 'xterm')
    with progress.bar('reading', 10, 'tokens') as advance:
        advance(5)
    captured = capsys.readouterr()
    assert captured.out == ''
    assert 'reading' in captured.err and '5/10' in captured.err


def test_what_is_not_shown(capsys, monkeypatch):
    monkeypatch.setattr(progress, '_SECONDS_BETWEEN_LINES', 0)
    with progress.bar('reading', 10, shown=False) as advance:
        advance(5)
    captured = capsys.readouterr()
    assert not captured.out and not captured.err


def test_items_are_counted(capsys, monkeypatch):
    monkeypatch.setattr(progress, '_SECONDS_BETWEEN_LINES', 0)
    assert list(progress.track(['a', 'b'], 'reading')) == ['a', 'b']
    assert 'reading: 1 of 2' in capsys.readouterr().err
