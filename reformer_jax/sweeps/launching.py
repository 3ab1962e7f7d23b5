"""Runs the commands of a sweep: each in a process of its own, some at a time."""

import concurrent.futures
import os
import pathlib
import queue
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any, Self

from reformer_jax import progress
from reformer_jax.runs import lock
from reformer_jax.runs import writing
from reformer_jax.sweeps import points as points_lib

_GPUS = 'CUDA_VISIBLE_DEVICES'
_SECONDS_BETWEEN_LOOKS = 1.0  # at how far the runs are
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)

# Becomes the command that follows, which Linux stops (prctl, PR_SET_PDEATHSIG) when the
# process named first, the one that started it, has ended, kill -9 included.
_WITH_PARENT = f"""
import ctypes, os, sys
if sys.platform == 'linux':
    ctypes.CDLL(None).prctl(1, {int(signal.SIGTERM)})
if os.getppid() != int(sys.argv[1]):
    sys.exit('the sweep has ended')
os.execv(sys.argv[2], sys.argv[2:])
"""


class _Processes:
    """The processes that are running; a context manager that listens for signals.

    The first SIGINT, SIGTERM, SIGHUP (not under nohup) or SIGUSR1 stops all, each run
    after the step in progress with a checkpoint; the second kills them. Then nothing
    more is to be started, which `stopping` says. When this process is killed the others
    get a SIGTERM (on Linux).
    """

    def __init__(self, lock_file: int) -> None:
        """Each process will keep the open file `lock_file`, and so its lock."""
        self.stopping = False
        self._lock_file = lock_file
        self._running: set[subprocess.Popen[bytes]] = set()

    def __enter__(self) -> Self:
        self._handlers = {
            number: signal.signal(number, self._stop)
            for number in _SIGNALS
            if signal.getsignal(number) != signal.SIG_IGN
        }
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def call(self, command: Sequence[str], log: pathlib.Path, gpu: str | None) -> int:
        """The exit status of a command on a GPU (None: on all), its output in a log."""
        with writing.named(log):
            opened = open(log, 'ab', buffering=0)
        with opened as output:
            with writing.named(log):
                output.write(f'$ {shlex.join(command)}\n'.encode())
            # In a session of its own: a terminal's Ctrl-C comes from here alone.
            parent = [sys.executable, '-c', _WITH_PARENT, str(os.getpid())]
            process = subprocess.Popen(
                [*parent, *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | ({_GPUS: gpu} if gpu is not None else {}),
                start_new_session=True,
                pass_fds=(self._lock_file,),
            )
            self._running.add(process)
            if self.stopping:  # the signal came before the process was known
                process.send_signal(signal.SIGTERM)
            status = process.wait()
        self._running.discard(process)
        return status

    def _stop(self, *_: Any) -> None:
        number = signal.SIGKILL if self.stopping else signal.SIGTERM
        if not self.stopping:
            print('stopping after the step in progress; again to kill', flush=True)
        self.stopping = True
        for process in list(self._running):
            process.send_signal(number)


def run(sweep: points_lib.Sweep, *, parallel: int) -> int:
    """Runs what is missing of a sweep, `parallel` points at a time; says so point by
    point. With CUDA_VISIBLE_DEVICES set to several GPUs, each point gets one of them.

    Returns:
      The exit status: 0 if all of it is done, 1 if points failed, 75 (EX_TEMPFAIL) if
      a signal stopped it.

    Raises:
      FileNotFoundError: there are no data.
      ValueError: fewer GPUs in CUDA_VISIBLE_DEVICES than points at a time; another
        process runs this sweep; the data are damaged.
    """
    free = _free_gpus(parallel)
    points_lib.check_data(sweep)
    points_lib.record(sweep)
    with writing.named(sweep.workdir / 'logs'):
        (sweep.workdir / 'logs').mkdir(exist_ok=True)
    with (
        lock.hold(sweep.workdir) as lock_file,
        _Processes(lock_file) as processes,
        concurrent.futures.ThreadPoolExecutor(parallel) as pool,
    ):
        waiting = [
            pool.submit(_run_point, sweep, number, processes, free)
            for number in range(len(sweep.points))
        ]
        _show_progress(sweep, waiting)
        results = [future.result() for future in waiting]
    failed = [p.name for p, done in zip(sweep.points, results, strict=True) if not done]
    status = 0
    told = (
        f'all {len(results)} points are complete; next: python reports/bits_per_dim.py '
        f'{sweep.workdir}, or the report that {sweep.file} names'
    )
    if processes.stopping:
        status, told = os.EX_TEMPFAIL, 'stopped; the same command goes on from here'
    elif failed:
        status = 1
        told = f'{len(failed)} of {len(results)} points failed: {", ".join(failed)}'
    print(told, flush=True)
    return status


def _show_progress(
    sweep: points_lib.Sweep, waiting: Sequence[concurrent.futures.Future[bool]]
) -> None:
    """Shows the training steps that are being done, until all points are."""
    unfinished = [p for p in sweep.points if points_lib.result(p) is None]
    total = sum(point.train.config['steps'] for point in unfinished)
    with progress.bar('training the points', total, 'steps') as advance:
        shown, running = 0, True
        while running:
            looked = concurrent.futures.wait(waiting, _SECONDS_BETWEEN_LOOKS)
            running = bool(looked.not_done)
            steps = sum(points_lib.step(point) or 0 for point in unfinished)
            advance(steps - shown)
            shown = steps


def _run_point(
    sweep: points_lib.Sweep,
    number: int,
    processes: _Processes,
    free: queue.SimpleQueue[str | None],
) -> bool:
    """Whether all of a point has been done or was left because of a signal."""
    point = sweep.points[number]

    def say(line: str) -> None:
        label = f'[{number + 1}/{len(sweep.points)}] {point.name}'
        print(f'{label}: {line}', flush=True)

    try:
        commands = points_lib.missing(point)
    except ValueError as error:
        say(str(error))
        return False
    if not commands or processes.stopping:
        say(points_lib.status(point))
        return True
    log = sweep.workdir / 'logs' / f'{point.name}.txt'
    say(f'{len(commands)} commands, log in {log}')
    started, gpu = time.monotonic(), free.get()
    try:
        for command in commands:
            if processes.stopping:
                break
            argv = [sys.executable, *_argv(sweep, point, command)]
            status = processes.call(argv, log, gpu)
            unfinished = command is point.train and points_lib.result(point) is None
            if (status or unfinished) and not processes.stopping:
                say(f'{command.program} ended early with status {status}: see {log}')
                return False
    finally:
        free.put(gpu)
    took = progress.format_seconds(time.monotonic() - started)
    say(f'{points_lib.status(point)} ({took})')
    return True


def command_line(sweep: points_lib.Sweep, point: points_lib.Point) -> str:
    """What is missing of a point as one line for a shell; '' if nothing is."""
    return ' && '.join(
        shlex.join(['python', *_argv(sweep, point, command)])
        for command in points_lib.missing(point)
    )


def _argv(
    sweep: points_lib.Sweep, point: points_lib.Point, command: points_lib.Command
) -> list[str]:
    program = os.path.join(os.path.dirname(sys.argv[0]), command.program)
    return [program, *points_lib.arguments(sweep, point, command)]


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
