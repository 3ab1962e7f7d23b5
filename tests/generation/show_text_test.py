"""Samples as text."""

import os
import threading
import time

import numpy as np
import pytest

from reformer_jax import data
from reformer_jax.data import tokenizers
from reformer_jax.generation import show


def _write(capsys, prompt, rows, *, cuts, stop=None, wait=lambda: None):
    tokens = np.array(rows)

    def parts():
        for part in np.split(tokens, cuts, axis=1):
            wait()
            yield part

    def decode(row):
        return bytes(row.tolist())

    ends = None if stop is None else show.Stop(stop, word=False)
    text = show.TextPrompt(prompt, np.frombuffer(prompt, np.uint8), ends, decode)
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


_SAMPLES = [
    (b'.', [b'ab.c.', b'defgh', b'.....'], ['ab', 'defgh', '']),
    (b'\n\n', [b'ab\n\nc', b'\n\n\n\n\n', b'a\nb\nc'], ['ab', '', 'a\nb\nc']),
    (b'aab', [b'aaaab', b'aaxaa', b'aabab'], ['aa', 'aaxaa', '']),
    (b'> ab', [b'ab> a', b'b> ab', b'> ab>'], ['ab> a', 'b', '']),
    ('é'.encode(), ['aéa'.encode(), b'abcd', 'éé'.encode()], ['a', 'abcd', '']),
    (b'longer than all', [b'abcde', b'longe'], ['abcde', 'longe']),
]


@pytest.mark.parametrize(('stop', 'rows', 'shown'), _SAMPLES, ids=str)
def test_samples_end_before_the_stop_text(capsys, stop, rows, shown):
    titles = ['', *(f'\n=== sample {n} ===\n' for n in range(2, len(rows) + 1))]
    wanted = ''.join(f'{t}> {text}\n' for t, text in zip(titles, shown, strict=True))
    for cut in range(len(rows[0]) + 1):
        out, _ = _write(capsys, b'> ', list(map(list, rows)), cuts=[cut], stop=stop)
        assert out == wanted


def test_no_more_is_made_once_all_samples_have_stopped(capsys):
    made = []
    rows = [list(b'ab--cd--'), list(b'abcd--ef')]
    _, err = _write(
        capsys, b'', rows, cuts=range(1, 8), stop=b'--', wait=lambda: made.append(0)
    )
    assert len(made) == 6
    assert err.startswith('6 of 8 tokens')


@pytest.fixture(scope='module')
def subwords(tmp_path_factory):
    path = tmp_path_factory.mktemp('tokenizer') / 'spiece.model'
    text = 'the quick brown fox. The end\nthe lazy dog. The end\n' * 20
    tokenizers.train([text], path, vocab_size=290, model_type='bpe')
    return data.open(
        {
            'dataset': 'text',
            'path': '',
            'tokenizer': str(path),
            'length': 8,
            'batch_size': 1,
            'seed': 0,
        }
    )


@pytest.mark.parametrize(
    ('stop', 'shown'),
    [
        ('The end', ' the quick. '),
        ('. The end\nthe la', ' the quick'),
        ('ick', ' the qu'),  # within a token
        ('e q', ' th'),
        ('zz', ' the quick. The end\nthe lazy'),
        ('zy', ' the quick. The end\nthe la'),
    ],
)
def test_stops_of_several_subwords(capsys, subwords, stop, shown):
    tokens = subwords.encode(b'the quick. The end\nthe lazy')
    prompt = show.text_prompt(subwords, b'x', stop)
    for cut in range(len(tokens)):
        parts = np.split(np.stack([tokens, tokens]), [cut], axis=1)
        show.write(prompt, iter(parts), steps=len(tokens))
        out = capsys.readouterr().out
        assert out == f'x{shown}\n\n=== sample 2 ===\nx{shown}\n'


def test_stops_of_numbers_are_whole_numbers(capsys):
    fields = {'dataset': 'duplication', 'symbols': 200, 'half_length': 8}
    dataset = data.open({**fields, 'batch_size': 1, 'seed': 0, 'eval_examples': 1})
    rows = np.array([[10, 100, 5, 0, 10, 0], [1, 0, 5, 0, 1, 2], [7, 7, 7, 7, 7, 7]])
    for stop, shown in (
        ('0', ['10 100 5 ', '1 ', '7 7 7 7 7 7 ']),
        ('5  0', ['10 100 ', '1 0 ', '7 7 7 7 7 7 ']),
        ('10', ['', '1 0 5 0 1 2 ', '7 7 7 7 7 7 ']),
    ):
        prompt = show.text_prompt(dataset, b'0 ', stop)
        show.write(prompt, iter([rows[:, :3], rows[:, 3:]]), steps=6)
        titles = ['', '\n=== sample 2 ===\n', '\n=== sample 3 ===\n']
        wanted = [f'{t}0 {text}\n' for t, text in zip(titles, shown, strict=True)]
        assert capsys.readouterr().out == ''.join(wanted)
    with pytest.raises(ValueError, match="'x' is no token of the duplication task"):
        show.text_prompt(dataset, b'0', 'x')


def test_an_empty_stop_is_refused(subwords):
    with pytest.raises(ValueError, match='text to stop at is empty: leave out --stop'):
        show.text_prompt(subwords, b'x', '')


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
    cuts, stop = [1, 2, 3, 4, 5], b'.'
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
