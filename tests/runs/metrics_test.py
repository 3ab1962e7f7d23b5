"""Tests of reformer_jax.metrics."""

import json
import math
import pathlib

import numpy as np
import pytest
from tensorboardX import proto

from reformer_jax import progress
from reformer_jax.runs import metrics


class Clock:
    """Time that passes only when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def raw_events(folder: pathlib.Path) -> list[proto.event_pb2.Event]:
    """All that the folder's TensorBoard files hold."""
    found = []
    for file in sorted(folder.iterdir()):
        data = file.read_bytes()
        while data:  # records: length (8 bytes), checksum (4), event, checksum (4)
            length = int.from_bytes(data[:8], 'little')
            found.append(proto.event_pb2.Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def events(folder: pathlib.Path) -> list[tuple[str, int, float]]:
    """(tag, step, value) of every scalar of the folder's TensorBoard files."""
    return [
        (value.tag, event.step, value.simple_value)
        for event in raw_events(folder)
        for value in event.summary.value
    ]


def test_writes_each_line_at_once_and_tensorboard(tmp_path):
    path = tmp_path / 'metrics.jsonl'
    with metrics.Writer(tmp_path, 0) as writer:
        writer.write(1, 'train', {'loss': np.float32(1.5), 'tokens_per_second': 7})
        assert path.read_text() == (
            '{"step": 1, "split": "train", "loss": 1.5, "tokens_per_second": 7.0}\n'
        )
        writer.write(np.int64(2), 'valid', {'loss': 0.5})
    assert metrics.read(path)[1] == {'step': 2, 'split': 'valid', 'loss': 0.5}
    assert events(tmp_path / 'tensorboard') == [
        ('train/loss', 1, 1.5),
        ('train/tokens_per_second', 1, 7.0),
        ('valid/loss', 2, 0.5),
    ]


def test_an_earlier_run_stays(tmp_path):
    for step in (1, 2, 3):  # within one second, the resolution of event file names
        with metrics.Writer(tmp_path, step - 1) as writer:
            writer.write(step, 'train', {'loss': step})
    lines = metrics.read(tmp_path / 'metrics.jsonl')
    assert [line['step'] for line in lines] == [1, 2, 3]
    assert [step for _, step, _ in events(tmp_path / 'tensorboard')] == [1, 2, 3]


def test_a_truncated_line_spoils_no_other(tmp_path):
    path = tmp_path / 'metrics.jsonl'
    path.write_text('{"step": 1, "split": "train"}\n{"step": 2, "spl')
    assert [line['step'] for line in metrics.read(path)] == [1]
    with metrics.Writer(tmp_path, 1) as writer:
        writer.write(2, 'train', {'loss': 1.0})
    assert path.read_text().startswith(
        '{"step": 1, "split": "train"}\n{"step": 2, "split'
    )
    assert [line['step'] for line in metrics.read(path)] == [1, 2]


def test_lines_of_steps_that_are_done_again_are_taken_out(tmp_path):
    path = tmp_path / 'metrics.jsonl'
    with metrics.Writer(tmp_path, 0) as writer:
        for step in (1, 2, 3, 4):
            writer.write(step, 'train', {'loss': step})
            writer.write(step, 'validation', {'loss': step})
    with open(path, 'a', encoding='utf-8') as file:
        file.write('a remark\n')
    before = path.read_text().splitlines()
    with open(path, encoding='utf-8') as reader, metrics.Writer(tmp_path, 2) as writer:
        assert path.read_text().splitlines() == [*before[:4], 'a remark']
        assert reader.read().splitlines() == before  # replaced, not rewritten in place
        writer.write(3, 'train', {'loss': 9})
        writer.replace(2, 'validation', {'loss': 8})
        writer.replace(3, 'validation', {'loss': 6})
        writer.replace(3, 'validation', {'loss': 7})
    assert [(r['step'], r['split'], r.get('loss')) for r in metrics.read(path)] == [
        (1, 'train', 1),
        (1, 'validation', 1),
        (2, 'train', 2),
        (3, 'train', 9),
        (2, 'validation', 8),
        (3, 'validation', 7),
    ]


def test_tensorboard_is_told_where_a_run_goes_on(tmp_path):
    with metrics.Writer(tmp_path, 2):
        pass
    found = raw_events(tmp_path / 'tensorboard')
    assert [e.step for e in found if e.HasField('session_log')] == [3]


def test_no_empty_lines_between_runs(tmp_path):
    for step in (1, 2):
        with metrics.Writer(tmp_path, step - 1) as writer:
            writer.write(step, 'train', {})
    assert (tmp_path / 'metrics.jsonl').read_text().count('\n') == 2


def test_non_finite_values_are_null(tmp_path):
    with metrics.Writer(tmp_path, 0) as writer:
        writer.write(1, 'train', {'loss': math.nan, 'norm': -math.inf, 'rate': 2.0})
    text = (tmp_path / 'metrics.jsonl').read_text()
    strict = json.loads(text, parse_constant=pytest.fail)
    assert strict == {
        'step': 1,
        'split': 'train',
        'loss': None,
        'norm': None,
        'rate': 2.0,
    }
    assert events(tmp_path / 'tensorboard') == [('train/rate', 1, 2.0)]


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        ({'loss': np.ones(2)}, 'loss=.*not one number'),
        ({'loss': 'low'}, "loss='low' is not one number"),
        ({'split': 1.0}, "metric is named 'split'"),
    ],
)
def test_wrong_values_are_named_and_nothing_is_written(tmp_path, values, message):
    with metrics.Writer(tmp_path, 0) as writer:
        with pytest.raises(ValueError, match=message):
            writer.write(1, 'train', {'accuracy': 1.0} | values)
    assert (tmp_path / 'metrics.jsonl').read_text() == ''
    assert events(tmp_path / 'tensorboard') == []


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere is not a folder'):
        metrics.Writer(tmp_path / 'nowhere', 0)


def test_read_refuses_what_is_not_metrics(tmp_path):
    with pytest.raises(FileNotFoundError, match='no metrics in'):
        metrics.read(tmp_path / 'metrics.jsonl')
    other = tmp_path / 'other.txt'
    other.write_text('a poem\n12\n')
    with pytest.raises(ValueError, match='2 lines, none of them a JSON object'):
        metrics.read(other)
    other.write_text('')
    assert metrics.read(other) == []


def test_progress_line():
    values = {
        'loss': 1.6726,
        'grad_norm': 3.0,
        'learning_rate': 7e-4,
        'tokens_per_second': 15210.0,
        'bits_per_dim': 2.4131,
    }
    assert metrics.progress_line(1200, 5000, values, 192.4) == (
        'step  1200/5000  bits/dim 2.413  loss 1.673  tokens/s 15.2k  lr 7.0e-04'
        '  left 3m12s'
    )
    assert metrics.progress_line(7, 5000, {'accuracy': 1.0}) == (
        'step     7/5000  accuracy 1.000'
    )


def test_lines_go_to_standard_output(capsys):
    metrics.say('step  20/500')
    metrics.say('step  40/500')
    captured = capsys.readouterr()
    assert captured.out == 'step  20/500\nstep  40/500\n' and not captured.err


@pytest.mark.parametrize(
    ('seconds', 'text'),
    [
        (0.2, '0s'),
        (59.4, '59s'),
        (59.6, '1m00s'),
        (192, '3m12s'),
        (3599.7, '1h00m'),
        (7500, '2h05m'),
        (86399, '23h59m'),
        (3 * 86400 + 4 * 3600 + 1799, '3d04h'),
        (-3, '0s'),
        (math.inf, '?'),
        (math.nan, '?'),
    ],
)
def test_format_seconds(seconds, text):
    assert progress.format_seconds(seconds) == text


@pytest.mark.parametrize(
    ('count', 'text'),
    [
        (0, '0'),
        (950, '950'),
        (999.6, '1k'),
        (15210, '15.2k'),
        (999_600, '1M'),
        (1.3e6, '1.3M'),
        (2.14e9, '2.14G'),
        (5e12, '5T'),
        (math.nan, '?'),
    ],
)
def test_format_count(count, text):
    assert metrics.format_count(count) == text


def test_throughput_is_since_the_last_reading():
    clock = Clock()
    throughput = metrics.Throughput(clock)
    assert throughput.read(0, 0) == 0.0
    clock.now += 2.0
    assert throughput.read(100, 1) == 50.0
    clock.now += 4.0
    assert throughput.read(40, 2) == 10.0


def test_throughput_leaves_out_pauses():
    clock = Clock()
    throughput = metrics.Throughput(clock)
    clock.now += 1.0
    with throughput.pause():
        clock.now += 50.0
    clock.now += 1.0
    assert throughput.read(100, 1) == 50.0


def test_a_pause_ends_with_an_error_too():
    clock = Clock()
    throughput = metrics.Throughput(clock)
    with pytest.raises(KeyError), throughput.pause():
        clock.now += 50.0
        raise KeyError
    clock.now += 2.0
    assert throughput.read(100, 1) == 50.0


def test_seconds_left_counts_what_recurs():
    clock = Clock()
    throughput = metrics.Throughput(clock)
    assert throughput.seconds_left(10) is None
    clock.now += 3.0
    assert throughput.read(100, 3) > 0  # readings do not reset the estimate
    with throughput.pause():  # evaluation
        clock.now += 3.0
    assert throughput.seconds_left(10) == pytest.approx(20.0)


def test_bits_per_dim():
    total = {'loss': 3 * math.log(256), 'accuracy': 1.5, 'weight': 3.0}
    means = metrics.means(total)
    assert means['bits_per_dim'] == pytest.approx(8.0) and means['accuracy'] == 0.5


def test_table():
    rows = [
        {'split': 'valid', 'loss': 1.67263, 'tokens': 1_048_576, 'ignored': 1},
        {'split': 'test', 'loss': None, 'rate': 15210.2},
    ]
    assert metrics.table(rows, ['split', 'loss', 'tokens', 'rate']) == (
        'split   loss   tokens   rate\n'
        'valid  1.673  1048576      -\n'
        'test       -        -  15210'
    )
    assert metrics.table(rows, ['loss', 'split']) == (
        ' loss  split\n1.673  valid\n    -  test'
    )
    assert metrics.table([], ['split', 'loss']) == 'split  loss'
    wide = metrics.table(
        [{'[red]split': 'x' * 300}], ['[red]split']
    )  # no markup, whole
    assert wide == f'[red]split\n{"x" * 300}'


def test_only_process_0_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr('jax.process_index', lambda: 1)
    with metrics.Writer(tmp_path, 0) as writer:
        writer.write(1, 'train', {'loss': 1.0})
        metrics.say('step  1/1')
    assert not capsys.readouterr().out and not list(tmp_path.iterdir())


def test_a_squared_error_has_no_bits_and_no_accuracy():
    total = {'loss': 6.0, 'accuracy': math.nan, 'weight': 3.0}
    assert metrics.means(total) == {'loss': 2.0}


def test_summary_of_what_is_no_number():
    values = {'loss': None, 'pearson': None, 'examples': 4.0}  # as result.json has it
    line = metrics.summary('test', 7, values)
    assert line == 'test after 7 steps: loss -, pearson -, 4 examples'


def test_summary_of_scores():
    values = {'loss': 0.5, 'bits_per_dim': 0.7, 'accuracy': 0.9, 'f1': 0.8}
    line = metrics.summary('test', 7, values | {'examples': 40.0})
    assert line == (
        'test after 7 steps: loss 0.5000, accuracy 0.9000, f1 0.8000, 40 examples'
    )
