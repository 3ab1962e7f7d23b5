"""Metrics of a run: written as JSON lines and TensorBoard files, shown as text.

`<workdir>/metrics.jsonl` holds one JSON object a line: step, split and the values of
that moment. A run that resumes from a checkpoint does the steps since that checkpoint
again, and their lines too: the earlier ones are taken out, so that a step has one line
of each split. (Folders of before have several: the last counts.)
"""

import contextlib
import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

import jax
from rich import console as rich_console
from rich import table as rich_table
from tensorboardX import proto
from tensorboardX import record_writer
from tensorboardX import summary as summaries

from reformer_jax import progress
from reformer_jax.runs import writing

_SECONDS_UNTIL_FLUSHED = 60.0  # TensorBoard's file


class Writer:
    """Adds to a run's metrics in its folder.

    A context manager. Every process of a run makes one; the first one's writes.
    """

    def __init__(self, workdir: str | os.PathLike[str], step: int):
        """Opens `<workdir>/metrics.jsonl` and a new file in `<workdir>/tensorboard`,
        for a run that has done `step` steps and will do the later ones again.

        Their lines are taken out of metrics.jsonl, which is replaced as a whole. Of
        TensorBoard's files none is changed: the new one tells TensorBoard to leave them
        out, which shows what it has loaded of them until it is started again.

        Raises:
          FileNotFoundError: there is no such folder.
          OSError: metrics.jsonl cannot be written.
        """
        self._writes = jax.process_index() == 0
        if not self._writes:
            return
        folder = pathlib.Path(workdir)
        if not folder.is_dir():
            raise FileNotFoundError(
                f'workdir {folder} is not a folder: run_folder.open_workdir makes it.'
            )
        self._path = folder / 'metrics.jsonl'
        self._latest = step  # with lines that `replace` may meet
        _take_out(self._path, lambda line: line['step'] > step)
        self._lines = writing.Lines(self._path)
        self._tensorboard = _TensorBoard(folder / 'tensorboard', step + 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        if not self._writes:
            return
        self._lines.add()
        if failure := self.failure():
            lacking = self._lines.waiting.decode().rstrip()
            say(f'WARNING: {failure} It lacks:\n{lacking}')
        self._lines.close()
        self._tensorboard.close()

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Writes the values of `split` ('train', 'valid', ...) after `step` steps.

        The line is with the operating system when this returns, unless there is then a
        `failure`. A value that is not finite is written as null, for JSON has no NaN,
        and not to TensorBoard.

        Raises:
          ValueError: a value is not one number, or is named 'step' or 'split'.
        """
        record: dict[str, Any] = {'step': int(step), 'split': split}
        scalars = {name: _scalar(name, value) for name, value in values.items()}
        if taken := scalars.keys() & record:
            raise ValueError(
                f'a metric is named {min(taken)!r}, which every line has: rename it.'
            )
        for name, value in scalars.items():
            record[name] = value if math.isfinite(value) else None
        if not self._writes:
            return
        known = self._lines.problem
        self._lines.add(json.dumps(record, allow_nan=False) + '\n')
        if self._lines.problem and not known:
            say(f'WARNING: {self.failure()}')
        finite = {n: value for n, value in scalars.items() if math.isfinite(value)}
        self._tensorboard.write(int(step), split, finite)

    def replace(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """As `write`, in place of what there is of this split after so many steps."""
        if self._writes and step == self._latest and not self.failure():
            of = (step, split)
            if _take_out(self._path, lambda line: (line['step'], line['split']) == of):
                self._lines.close()
                self._lines = writing.Lines(self._path)
        if self._writes:
            self._latest = step
        self.write(step, split, values)

    def failure(self) -> OSError | None:
        """The error of a metrics.jsonl that lacks lines; each `write`, and the end,
        tries again."""
        if not self._writes or not self._lines.problem:
            return None
        return writing.failure(self._path, self._lines.problem)


class _TensorBoard:
    """A new file for TensorBoard, given up when it cannot be written.

    tensorboardX's SummaryWriter writes in a thread, which ends with its first error;
    whoever then adds to its queue waits for ever.
    """

    def __init__(self, folder: pathlib.Path, step: int):
        """Of files there are TensorBoard leaves out what is of `step` and later."""
        self._folder = folder
        self._file: record_writer.RecordWriter | None = None
        self._flushed = -math.inf
        with self._or_none():
            folder.mkdir(exist_ok=True)
            # Not by the second, which two starts may share: opening would empty it.
            path = folder / f'events.out.tfevents.{time.time_ns()}'
            self._file = record_writer.RecordWriter(str(path))
            self._add(file_version='brain.Event:2')
            log = proto.event_pb2.SessionLog
            self._add(step=step, session_log=log(status=log.START))

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        with self._or_none():
            for name, value in values.items():
                summary = summaries.scalar(f'{split}/{name}', value)
                self._add(step=step, summary=summary)
            if self._file and time.monotonic() > self._flushed + _SECONDS_UNTIL_FLUSHED:
                self._flushed = time.monotonic()
                self._file.flush()

    def close(self) -> None:
        with self._or_none():
            if self._file:
                self._file.close()

    def _add(self, **event: Any) -> None:
        if self._file:
            record = proto.event_pb2.Event(wall_time=time.time(), **event)
            self._file.write(record.SerializeToString())

    @contextlib.contextmanager
    def _or_none(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            say(
                f'WARNING: {self._folder} cannot be written ({error.strerror}): '
                'TensorBoard gets no more of this run, metrics.jsonl has it all'
            )
            file, self._file = self._file, None
            with contextlib.suppress(OSError):
                if file:
                    file.close()


def _take_out(path: pathlib.Path, chosen: Callable[[dict[str, Any]], bool]) -> bool:
    """Takes lines out of a metrics.jsonl, and a last one that a killed run left
    incomplete; what else is no metrics stays. Whether there were any."""
    content = path.read_bytes() if path.is_file() else b''
    kept = []
    for line in content.splitlines(keepends=True):
        try:
            out = chosen(json.loads(line))
        except (ValueError, TypeError, KeyError):
            out = not line.endswith(b'\n')
        if not out:
            kept.append(line if line.endswith(b'\n') else line + b'\n')
    if (rest := b''.join(kept)) == content:
        return False
    writing.whole(path, rest)
    return True


def read(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, without those that a killed run left incomplete.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: not one line of the file is a JSON object with step and split.
    """
    file = pathlib.Path(path)
    if not file.is_file():
        raise FileNotFoundError(
            f'no metrics in {file}: the run has written none yet, or this is not the '
            'path of a <workdir>/metrics.jsonl.'
        )
    lines = file.read_text(encoding='utf-8', errors='replace').splitlines()
    records = []
    for line in lines:
        with contextlib.suppress(json.JSONDecodeError):
            records.append(json.loads(line))
    kept = [r for r in records if isinstance(r, dict) and {'step', 'split'} <= set(r)]
    if lines and not kept:
        raise ValueError(
            f'{file} has {len(lines)} lines, none of them a JSON object with step and '
            'split: give the path of a <workdir>/metrics.jsonl.'
        )
    return kept


class Throughput:
    """Tokens per second while training, and the time that is left.

    The clock runs from construction on. Steps run in the background: read it after
    waiting for the metrics of the last step.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        self._started = self._since = clock()  # the last reading, later by the pauses
        self._steps = 0

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Leaves out the time in the context: an evaluation, a checkpoint."""
        began = self._clock()
        try:
            yield
        finally:
            self._since += self._clock() - began

    def read(self, tokens: int, steps: int) -> float:
        """Tokens per second, of `tokens` over all devices in `steps` steps since the
        last reading; 0.0 when no time has passed."""
        now = self._clock()
        seconds, self._since = now - self._since, now
        self._steps += steps
        return tokens / seconds if seconds > 0 else 0.0

    def seconds_left(self, steps_left: int) -> float | None:
        """Estimate from the mean time, with pauses, of a step; None before any."""
        if not self._steps:
            return None
        return steps_left * (self._clock() - self._started) / self._steps


def format_count(count: float) -> str:
    """A number to three digits: 950, 15.2k, 1.3M, 2.1G."""
    if not math.isfinite(count):
        return '?'
    scaled = float(count)
    for suffix in ('', 'k', 'M', 'G'):
        if abs(scaled) < 999.5:
            return f'{scaled:.3g}{suffix}'
        scaled /= 1000
    return f'{scaled:.3g}T'


# What a progress line shows, in this order, with its label and format.
_PROGRESS: dict[str, tuple[str, Callable[[float], str]]] = {
    'bits_per_dim': ('bits/dim', '{:.3f}'.format),
    'loss': ('loss', '{:.3f}'.format),
    'accuracy': ('accuracy', '{:.3f}'.format),
    'tokens_per_second': ('tokens/s', format_count),
    'learning_rate': ('lr', '{:.1e}'.format),
}


def progress_line(
    step: int,
    total_steps: int,
    values: Mapping[str, float],
    seconds_left: float | None = None,
) -> str:
    """One line for a person; values it does not know stay in metrics.jsonl."""
    columns = [f'step  {step:>{len(str(total_steps))}}/{total_steps}']
    columns += [
        f'{label} {show(values[name])}'
        for name, (label, show) in _PROGRESS.items()
        if name in values
    ]
    if seconds_left is not None:
        columns.append(f'left {progress.format_seconds(seconds_left)}')
    return '  '.join(columns)


def say(line: str) -> None:
    """Prints a line; only the first of several processes does."""
    if jax.process_index() != 0:
        return
    try:
        print(line, flush=True)
    except OSError as error:  # a log on a full disk, a pipe that nobody reads
        with contextlib.suppress(OSError):
            print(f'WARNING: no more is said here ({error.strerror})', file=sys.stderr)
        sys.stdout = open(os.devnull, 'w')


def means(total: Mapping[str, float]) -> dict[str, float]:
    """Loss (nats), bits_per_dim and accuracy from their sums and the sum of weights.

    Only the loss where there is no accuracy (NaN): a squared error is no nats.
    """
    weight = max(total['weight'], 1.0)
    loss, accuracy = total['loss'] / weight, total['accuracy'] / weight
    if math.isnan(accuracy):
        return {'loss': loss}
    return {'loss': loss, 'bits_per_dim': loss / math.log(2), 'accuracy': accuracy}


# What a summary of a classifier's evaluation shows, where there is such a value.
_SCORES = ('loss', 'accuracy', 'f1', 'exact_match', 'precision', 'recall', 'pearson')


def summary(split: str, step: int, values: Mapping[str, float | None]) -> str:
    """One line on an evaluation, of `tokens` or of `examples`; None, as result.json has
    for what is no number, is shown as '-'."""

    shown = {n: '-' if v is None else f'{v:.4f}' for n, v in values.items()}
    if 'tokens' in values:
        scores = [f'{shown["bits_per_dim"]} bits/dim', f'accuracy {shown["accuracy"]}']
        scores += [f'BLEU {shown["bleu"]}'] if 'bleu' in values else []
    else:
        scores = [f'{name} {shown[name]}' for name in _SCORES if name in values]
    unit = 'tokens' if 'tokens' in values else 'examples'
    told = ', '.join([*scores, f'{values[unit]:.0f} {unit}'])
    return f'{split} after {step} steps: {told}'


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """A plain text table: a heading, then one line a row; '-' where there is none."""
    shown = rich_table.Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        numeric = all(isinstance(row.get(column), int | float | None) for row in rows)
        shown.add_column(column, justify='right' if numeric else 'left', no_wrap=True)
    for row in rows:
        shown.add_row(*(_cell(row.get(column)) for column in columns))
    # As wide as it is, whatever the terminal; cells are no markup.
    console = rich_console.Console(width=10_000, color_system=None, markup=False)
    with console.capture() as captured:
        console.print(shown)
    return '\n'.join(line.rstrip() for line in captured.get().splitlines())


def _cell(value: Any) -> str:
    if value is None:
        return '-'
    if isinstance(value, float):
        return f'{value:.0f}' if 1000 <= abs(value) < 1e15 else f'{value:.4g}'
    return str(value)


def _scalar(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f'metric {name}={value!r} is not one number ({error}): write its mean or '
            'sum.'
        ) from error
