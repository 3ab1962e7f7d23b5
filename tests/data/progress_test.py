"""Tests of the progress of long work on data: a bar on a terminal, lines elsewhere."""

import io

import pytest
from rich import console

from reformer_jax.data import progress


@pytest.mark.parametrize(
    ('seconds', 'lines'), [(10, []), (-1, ['reading: 1 of 2', 'reading: 2 of 2'])]
)
def test_lines_without_a_terminal(monkeypatch, capsys, seconds, lines):
    monkeypatch.setattr(progress, '_SECONDS_BETWEEN_LINES', seconds)
    assert list(progress.track(['a', 'b'], 'reading')) == ['a', 'b']
    assert capsys.readouterr() == ('', ''.join(f'{line}\n' for line in lines))
    assert list(progress.track((c for c in 'ab'), 'counting')) == ['a', 'b']
    assert ('counting: 2\n' in capsys.readouterr().err) == bool(lines)


def test_a_bar_on_a_terminal(monkeypatch, capsys):
    screen = io.StringIO()
    terminal = console.Console(file=screen, force_terminal=True)
    monkeypatch.setattr(console, 'Console', lambda **_: terminal)
    for item in progress.track(['a', 'b'], 'reading'):
        assert item in 'ab'
    assert 'reading' in screen.getvalue() and '100%' in screen.getvalue()
    assert capsys.readouterr() == ('', '')
