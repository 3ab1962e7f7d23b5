"""Runs the commands of a sweep: each in a process of its own, some at a time."""

import concurrent.futures
import contextlib
import fcntl
import os
import pathlib
import queue
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, Self

from reformer_jax.runs import metrics
from reformer_jax.sweeps import points as points_lib

_LOGS = 'logs'
_TAIL = 5  # lines of a failed process's log that are shown
_GPUS = 'CUDA_VISIBLE_DEVICES'


class Processes:
    """The processes that are running; a context manager that listens for signals.

    The first SIGINT, SIGTERM or SIGHUP stops all, each run after the step in progress
    with a checkpoint; the second kills them.

    Attributes:
      stopping: whether a signal came: nothing more is to be started.
    """

    def __init__(self, lock_file: int) -> None:
        """Starts none; each will keep the open file `lock_file`, and so its lock."""
        self.stopping = False
        self._lock_file = lock_file
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._handlers[number] = signal.signal(number, self._stop)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def call(
        self, command: Sequence[str], log: pathlib.Path, gpu: str | None
    ) -> int | None:
        """Runs a command to its end, its output appended to a log.

        Args:
          command: the program and its arguments.
          log: the file; created when absent.
          gpu: which the process gets of the GPUs in CUDA_VISIBLE_DEVICES; None for all.

        Returns:
          The exit status, negative for a signal; None if nothing was started any more.
        """
        environment = os.environ | ({_GPUS: gpu} if gpu is not None else {})
        with open(log, 'ab') as output:
            output.write(f'$ {shlex.join(command)}\n'.encode())
            output.flush()
            with self._lock:
                if self.stopping:
                    return None
                # In a session of its own: a terminal's Ctrl-C comes from here alone.
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    start_new_session=True,
                    pass_fds=(self._lock_file,),
                )
                self._running.add(process)
            if self.stopping:  # the signal came before the process was known
                process.send_signal(signal.SIGTERM)
            status = process.wait()
        with self._lock:
            self._running.discard(process)
        return status

    def _stop(self, *_: Any) -> None:
        number = signal.SIGKILL if self.stopping else signal.SIGTERM
        if not self.stopping:
            print('stopping after the step in progress; again to kill', flush=True)
        self.stopping = True
        for process in list(self._running):
            process.send_signal(number)


def run(sweep: points_lib.Sweep, *, parallel: int) -> bool:
    """Runs what is missing of a sweep; says so point by point.

    Args:
      sweep: its folder gets what is run.
      parallel: points at a time. With CUDA_VISIBLE_DEVICES set to several GPUs, each
        gets one of them.

    Returns:
      Whether all of it is done.

    Raises:
      FileNotFoundError: there are no data.
      ValueError: fewer GPUs in CUDA_VISIBLE_DEVICES than points at a time; another
        process runs this sweep; the data are damaged.
    """
    free = _free_gpus(parallel)
    points_lib.check_data(sweep)
    points_lib.record(sweep)
    (sweep.workdir / _LOGS).mkdir(exist_ok=True)
    with (
        _locked(sweep.workdir) as lock_file,
        Processes(lock_file) as processes,
        concurrent.futures.ThreadPoolExecutor(parallel) as pool,
    ):
        waiting = [
            pool.submit(_run_point, sweep, number, processes, free)
            for number in range(len(sweep.points))
        ]
        failed = [
            point.name
            for point, future in zip(sweep.points, waiting, strict=True)
            if not future.result()
        ]
    if processes.stopping:
        print('stopped; the same command goes on from here', flush=True)
    elif failed:
        names = ', '.join(failed)
        print(f'{len(failed)} of {len(waiting)} points failed: {names}', flush=True)
    else:
        print(
            f'all {len(waiting)} points are complete; next: python '
            f'reports/bits_per_dim.py {sweep.workdir}, or the report that '
            f'{sweep.file} names',
            flush=True,
        )
    return not failed and not processes.stopping


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[int]:
    """Holds the lock of a sweep's folder; its processes hold it as long as they run."""
    with open(folder / '.lock', 'w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f'a sweep is running in {folder}, or what is left of one: wait for it, '
                'or stop its processes.'
            ) from error
        yield file.fileno()


def _run_point(
    sweep: points_lib.Sweep,
    number: int,
    processes: Processes,
    free: queue.SimpleQueue[str | None],
) -> bool:
    """Whether all of a point has been done or was left because of a signal."""
    point = sweep.points[number]
    label = f'[{number + 1}/{len(sweep.points)}] {point.name}'
    try:
        commands = points_lib.missing(point)
    except ValueError as error:
        print(f'{label}: {error}', flush=True)
        return False
    if not commands or processes.stopping:
        print(f'{label}: {points_lib.status(point)}', flush=True)
        return True
    log = sweep.workdir / _LOGS / f'{point.name}.txt'
    print(f'{label}: {len(commands)} commands, log in {log}', flush=True)
    started, gpu = time.monotonic(), free.get()
    try:
        for command in commands:
            status = processes.call(_argv(sweep, point, command), log, gpu)
            if processes.stopping:
                print(f'{label}: {points_lib.status(point)}', flush=True)
                return True
            unfinished = command is point.train and not points_lib.is_trained(point)
            if status or unfinished:
                _say_failure(label, command, status, log)
                return False
    finally:
        free.put(gpu)
    took = metrics.format_seconds(time.monotonic() - started)
    print(f'{label}: {points_lib.status(point)} ({took})', flush=True)
    return True


def command_line(sweep: points_lib.Sweep, point: points_lib.Point) -> str:
    """What is missing of a point as one line for a shell; '' if nothing is."""
    return ' && '.join(
        shlex.join(['python', *_argv(sweep, point, command)[1:]])
        for command in points_lib.missing(point)
    )


def _argv(
    sweep: points_lib.Sweep, point: points_lib.Point, command: points_lib.Command
) -> list[str]:
    program = os.path.join(os.path.dirname(sys.argv[0]), command.program)
    return [sys.executable, program, *points_lib.arguments(sweep, point, command)]


def _free_gpus(parallel: int) -> queue.SimpleQueue[str | None]:
    """One entry for each point that may run at a time: its GPU, None for all."""
    listed = os.environ.get(_GPUS, '').split(',')
    names = [name for name in listed if name not in ('', '-1')]
    if 1 <= len(names) < parallel:
        raise ValueError(
            f'--parallel={parallel} points with {_GPUS}={",".join(names)}: a process '
            'needs a GPU of its own, so name as many or run fewer at a time.'
        )
    free: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    for place in range(parallel):
        free.put(names[place] if parallel > 1 and names else None)
    return free


def _say_failure(
    label: str, command: points_lib.Command, status: int | None, log: pathlib.Path
) -> None:
    tail = log.read_text('utf-8', 'replace').splitlines()[-_TAIL:]
    lines = '\n'.join(f'    {line}' for line in tail)
    print(
        f'{label}: {command.program} ended early with exit status {status}; the end '
        f'of {log}:\n{lines}',
        flush=True,
    )
