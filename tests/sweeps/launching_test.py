"""Running a sweep: what is called, what is skipped, what fails, what is stopped."""

import importlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from reformer_jax.runs import lock
from reformer_jax.sweeps import launching
from reformer_jax.sweeps import points as points_lib

# Stand for train.py and eval.py: note the call, leave what those leave.
_TRAIN = """
    import json, os, pathlib, signal, sys, time
    arguments = dict(a.removeprefix('--').split('=', 1) for a in sys.argv[1:])
    folder = pathlib.Path(arguments['workdir'])
    with open(folder.parent / 'calls', 'a') as file:
        gpu = os.environ.get('CUDA_VISIBLE_DEVICES')
        print(pathlib.Path(sys.argv[0]).name, folder.name, gpu, file=file)
    folder.mkdir(exist_ok=True)
    if arguments.get('config.seed') == '1':
        sys.exit('out of luck')
    if arguments.get('config.seed') == '2':
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        time.sleep(60)
    values = {'loss': 1, 'bits_per_dim': 1, 'accuracy': 1, 'tokens': 1}
    result = {'step': 3, 'steps': 2800, 'minutes': 0.0, 'validation': values}
    (folder / 'result.json').write_text(json.dumps(result))
"""
_EVAL = """
    import os, pathlib, sys
    arguments = dict(a.removeprefix('--').split('=', 1) for a in sys.argv[1:])
    folder = pathlib.Path(arguments['workdir'])
    with open(folder.parent / 'calls', 'a') as file:
        gpu = os.environ.get('CUDA_VISIBLE_DEVICES')
        print('eval.py', folder.name, arguments['config.model.rounds'], gpu, file=file)
"""


@pytest.fixture
def sweep_of(tmp_path, monkeypatch):
    """A sweep over configs/text.py whose programs only note that they are called."""
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    monkeypatch.setattr(sys, 'argv', [str(tmp_path / 'sweep.py')])
    (tmp_path / 'train.py').write_text(textwrap.dedent(_TRAIN))
    (tmp_path / 'eval.py').write_text(textwrap.dedent(_EVAL))

    def make(*points, evaluations=()):
        file = tmp_path / 'experiment.py'
        file.write_text(
            f'def sweep(add):\n    for point in {points}:\n        add(point)\n'
            f'def evaluations(add):\n    for e in {evaluations}:\n        add(e)\n'
        )
        config = importlib.import_module('configs.text').get_config('tiny')
        return points_lib.load(str(file), config, str(tmp_path / 'runs'), given={})

    return make


def _calls(sweep):
    return (sweep.workdir / 'calls').read_text().splitlines()


def test_points_are_trained_and_evaluated_in_order(sweep_of, capsys):
    sweep = sweep_of({'seed': 5}, {'seed': 6}, evaluations=({'model.rounds': 2},))
    assert not launching.run(sweep, parallel=1)
    assert _calls(sweep) == [
        'train.py seed=5 None',
        'eval.py seed=5 2 None',
        'train.py seed=6 None',
        'eval.py seed=6 2 None',
    ]
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith('[1/2] seed=5: 2 commands, log in ')
    assert shown[1].startswith('[1/2] seed=5: validation after 3 steps: 1.0000 bits')
    assert shown[4].startswith('all 2 points are complete; next: python rep')


def test_what_is_finished_is_skipped(sweep_of):
    sweep = sweep_of({'seed': 5}, {'seed': 6})
    launching.run(sweep, parallel=1)
    launching.run(sweep_of({'seed': 5}, {'seed': 7}, {'seed': 6}), parallel=1)
    assert [call.split()[1] for call in _calls(sweep)] == ['seed=5', 'seed=6', 'seed=7']


def test_a_failed_point_is_named_and_the_others_run(sweep_of, capsys):
    sweep = sweep_of({'seed': 5}, {'seed': 1}, {'seed': 6})
    assert launching.run(sweep, parallel=1) == 1
    assert len(_calls(sweep)) == 3
    shown = capsys.readouterr().out
    assert f'seed=1: train.py ended early with status 1: see {sweep.workdir}' in shown
    assert 'are complete' not in shown
    assert '1 of 3 points failed: seed=1\n' in shown
    log = (sweep.workdir / 'logs' / 'seed=1.txt').read_text()
    assert log.startswith('$ ') and 'train.py' in log and 'out of luck' in log


def test_an_unknown_failure_of_an_evaluation_is_one_of_the_point(sweep_of):
    sweep = sweep_of({'seed': 5}, evaluations=({'seed': 8},))  # eval.py: KeyError
    assert launching.run(sweep, parallel=1) == 1


def test_a_run_that_ends_early_is_not_evaluated(sweep_of, capsys):
    sweep = sweep_of({'model.rounds': 3}, evaluations=({'model.rounds': 2},))
    point = sweep.points[0]
    (sweep.workdir.parent / 'train.py').write_text('')
    assert launching.run(sweep, parallel=1) == 1
    assert not (sweep.workdir / 'calls').exists()
    shown = capsys.readouterr().out
    assert f'{point.name}: train.py ended early with status 0' in shown


def test_one_sweep_at_a_time_in_a_folder(sweep_of):
    sweep = sweep_of({'seed': 5})
    points_lib.record(sweep)
    with lock.hold(sweep.workdir):
        with pytest.raises(
            ValueError, match=f'runs is in use by process {os.getpid()}'
        ):
            launching.run(sweep, parallel=1)
    assert not launching.run(sweep, parallel=1)


def test_points_run_at_the_same_time_on_gpus_of_their_own(sweep_of, monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '2,5')
    sweep = sweep_of(*({'seed': seed} for seed in range(3, 9)))
    assert not launching.run(sweep, parallel=2)
    assert {call.split()[2] for call in _calls(sweep)} == {'2', '5'}
    assert len(_calls(sweep)) == 6


def test_one_point_at_a_time_gets_all_gpus(sweep_of, monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '2,5')
    sweep = sweep_of({'seed': 5})
    launching.run(sweep, parallel=1)
    assert _calls(sweep) == ['train.py seed=5 2,5']


def test_more_points_at_a_time_than_gpus_are_refused(sweep_of, monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '2,5')
    with pytest.raises(ValueError, match='--parallel=3 points with .*=2,5'):
        launching.run(sweep_of({'seed': 5}), parallel=3)


@pytest.mark.parametrize('number', launching._SIGNALS)
def test_a_signal_stops_the_runs_and_starts_no_more(sweep_of, capsys, number):
    sweep = sweep_of({'seed': 2}, {'seed': 6})

    def stop_once_it_runs():
        while not (sweep.workdir / 'calls').exists():
            time.sleep(0.05)
        time.sleep(0.3)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=stop_once_it_runs)
    thread.start()
    started = time.monotonic()
    assert launching.run(sweep, parallel=1) == os.EX_TEMPFAIL
    thread.join()
    assert time.monotonic() - started < 30
    assert _calls(sweep) == ['train.py seed=2 None']
    shown = capsys.readouterr().out
    assert 'stopping after the step in progress; again to kill' in shown
    assert 'stopped; the same command goes on' in shown and 'failed' not in shown


def test_a_second_signal_kills(sweep_of):
    sweep = sweep_of({'seed': 2})
    stubborn = 'import pathlib, signal, sys, time\n'
    stubborn += 'signal.signal(signal.SIGTERM, lambda *_: None)\n'
    stubborn += f'pathlib.Path({str(sweep.workdir)!r}, "calls").touch()\n'
    stubborn += 'time.sleep(60)\ntime.sleep(60)\n'
    (sweep.workdir.parent / 'train.py').write_text(stubborn)

    def stop_twice():
        while not (sweep.workdir / 'calls').exists():
            time.sleep(0.05)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.5)

    thread = threading.Thread(target=stop_twice)
    thread.start()
    started = time.monotonic()
    assert launching.run(sweep, parallel=1) == os.EX_TEMPFAIL
    thread.join()
    assert time.monotonic() - started < 30


def test_a_hangup_under_nohup_is_ignored(sweep_of):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with launching._Processes(0) as processes:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not processes.stopping
    finally:
        signal.signal(signal.SIGHUP, before)


_SWEEP = """
import pathlib, sys
from reformer_jax.sweeps import launching
with launching._Processes(0) as processes:
    processes.call([sys.executable, sys.argv[1]], pathlib.Path(sys.argv[2]), None)
"""
_RUN = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit('saved'))
print('running', flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(
    sys.platform != 'linux',
    reason='only Linux signals a process when its parent has ended (prctl)',
)
def test_a_killed_sweep_stops_its_runs(tmp_path):
    def wait_for(line):
        end = time.monotonic() + 30
        while not (log.exists() and line in log.read_text().splitlines()):
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.02)

    log, program = tmp_path / 'log', tmp_path / 'train.py'
    program.write_text(_RUN)
    with subprocess.Popen([sys.executable, '-c', _SWEEP, program, log]) as sweep:
        wait_for('running')
        sweep.kill()
    wait_for('saved')


def test_command_lines_are_for_a_shell(sweep_of):
    sweep = sweep_of({'data.path': 'a file'}, evaluations=({'model.rounds': 2},))
    points_lib.record(sweep)
    line = launching.command_line(sweep, sweep.points[0])
    path = f'{os.path.dirname(sys.executable)}:{os.environ["PATH"]}'
    environment = os.environ | {'PATH': path}
    subprocess.run(line, shell=True, check=True, env=environment)
    assert [call.split()[0] for call in _calls(sweep)] == ['train.py', 'eval.py']
