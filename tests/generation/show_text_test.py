"""Samples as text."""

import os
import threading
import time

import numpy as np
import pytest

from reformer_jax.generation import show


def _write(capsys, prompt, rows, *, cuts, stop=None, wait=lambda: None):
    tokens = np.array(rows)

    def parts():
        for part in np.split(tokens, cuts, axis=1):
            wait()
            yield part

    def decode(row):
        return bytes(row.tolist())

    text = show.TextPrompt(prompt, np.frombuffer(prompt, np.uint8), stop, decode)
    show.write(text, parts(), steps=tokens.shape[1])
    return capsys.readouterr()


@pytest.fixture
def clock(monkeypatch):
    """A function that lets seconds pass."""
    now = [0.0]
    monkeypatch.setattr(time, 'monotonic', lambda: now[0])

    def wait(seconds):
        now[0] += seconds

    return wait


def test_characters_that_parts_cut_in_two(capsys):
    text = 'aé€𝄞b'.encode()
    for cut in range(len(text) + 1):
        out, err = _write(capsys, 'Ü'.encode(), [list(text)], cuts=[cut])
        assert out == 'Üaé€𝄞b\n'
        assert err == f'{len(text)} of {len(text)} tokens\n'


def test_prompt_that_ends_within_a_character(capsys):
    out, _ = _write(capsys, 'é'.encode()[:1], [list('é'.encode()[1:])], cuts=[])
    assert out == 'é\n'


def test_bytes_that_are_no_text(capsys):
    out, _ = _write(capsys, b'a', [[0xFF, ord('b'), 0xC3]], cuts=[1])
    assert out == 'a\ufffdb\ufffd\n'


def test_samples_end_at_the_stop_token(capsys):
    rows = [list(b'ab.c.'), list(b'defgh'), list(b'.....')]
    for cut in range(6):
        out, _ = _write(capsys, b'> ', rows, cuts=[cut], stop=ord('.'))
        assert out == '> ab\n\n=== sample 2 ===\n> defgh\n\n=== sample 3 ===\n> \n'


def test_speed_counts_all_samples_after_the_second_part(capsys, clock):
    rows = [list(b'abcdefgh'), list(b'abcdefgh')]
    _, err = _write(capsys, b'', rows, cuts=[1, 4], wait=lambda: clock(4))
    assert err.endswith('8 of 8 tokens, 2.0 tokens/s\n')


@pytest.mark.parametrize('terminal', [False, True])
def test_progress_does_not_cut_the_text_on_a_terminal(
    capsys, monkeypatch, clock, terminal
):
    monkeypatch.setattr(show.sys.stdout, 'isatty', lambda: terminal, raising=False)
    rows = [list(b'ab.....'), list(b'abcdefg')]
    cuts, stop = [1, 2, 3, 4, 5], ord('.')
    _, err = _write(capsys, b'', rows, cuts=cuts, stop=stop, wait=lambda: clock(20))
    # After each of six parts and at the end, but not after the three of the text.
    assert err.count('of 7 tokens') == (4 if terminal else 7)
    assert 'sampling: 5 of 7 tokens in ' in err


def test_a_pipe_is_read_after_a_word(tmp_path, capsys):
    os.mkfifo(tmp_path / 'pipe')
    told = f'reading {tmp_path / "pipe"} to its end\n'
    writer = threading.Thread(target=(tmp_path / 'pipe').write_bytes, args=(b'prompt',))
    writer.start()
    assert show.from_file(str(tmp_path / 'pipe')) == b'prompt'
    writer.join()
    assert capsys.readouterr().err == told
    (tmp_path / 'file').write_bytes(b'prompt')
    assert show.from_file(str(tmp_path / 'file')) == b'prompt'
    assert not capsys.readouterr().err
