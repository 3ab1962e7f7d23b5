"""Several processes of one run: stopped together, resumed by another number."""

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from reformer_jax.runs import checkpoint
from reformer_jax.runs import metrics

pytestmark = pytest.mark.slow

_ROOT = pathlib.Path(__file__).parents[2]
_SMALL = (
    '--config=configs/text.py:tiny --config.eval_every=0 --config.log_every=1 '
    '--config.data.length=64 --config.model.length=64 --config.model.d_model=16 '
    '--config.model.d_ff=32 --config.model.axial_sizes=(8,8) --config.model.layers=2 '
    '--config.model.axial_shape=(8,8)'
).split()

_PAIRS = (
    '--config=configs/multi30k.py --config.eval_every=0 --config.data.tokenizer=bytes '
    '--config.model.vocab_size=258 --config.data.lengths=(8,32) '
    '--config.data.batch_size=2 --config.model.d_model=16 --config.model.d_ff=16 '
    '--config.model.length=48 --config.model.layers=1 --config.model.encoder.layers=1'
).split()


def _free_port():
    with socket.socket() as found:
        found.bind(('localhost', 0))
        return found.getsockname()[1]


def _start(door, *flags, count=2, own=(), devices=1):
    """Processes of a door; the last one has flags of its `own` besides."""
    xla = f'--xla_force_host_platform_device_count={devices}'
    several = f'--coordinator=localhost:{_free_port()} --processes={count}'.split()
    return [
        subprocess.Popen(
            [
                *(sys.executable, door, *flags),
                *(('--distributed', *several, f'--process={index}') * (count > 1)),
                *(tuple(own) * (index == count - 1)),
            ],
            cwd=_ROOT,
            env=os.environ
            | {'JAX_PLATFORMS': 'cpu'}
            | {'XLA_FLAGS': f'{os.environ.get("XLA_FLAGS", "")} {xla}'},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(count)
    ]


def _said(processes, timeout=120):
    return [process.communicate(timeout=timeout)[0] for process in processes]


def test_a_signal_to_any_process_stops_all(tmp_path):
    text, workdir = tmp_path / 'text.txt', tmp_path / 'run'
    text.write_text('to be or not to be, ' * 1000)
    run = [*_SMALL, f'--config.data.path={text}', f'--workdir={workdir}']
    first, second = _start('train.py', *run, '--config.steps=100000')
    while 'step  ' not in (line := first.stdout.readline()):
        assert line, 'ended before the first step'
    second.send_signal(signal.SIGUSR1)
    said = _said((first, second))
    assert [first.returncode, second.returncode] == [os.EX_TEMPFAIL] * 2, said
    stopped = int(re.search(r'stopped after (\d+) steps', said[0])[1])
    with checkpoint.Checkpointer(workdir) as checkpointer:
        assert checkpointer.latest_step() == stopped

    # One process goes on; two evaluate.
    more = f'--config.steps={stopped + 2}'
    done = subprocess.run(
        [sys.executable, 'train.py', *run, more],
        cwd=_ROOT,
        capture_output=True,
        text=True,
    )
    assert f'resuming at step {stopped}' in done.stdout, done.stdout + done.stderr
    assert f'final validation after {stopped + 2} steps' in done.stdout
    said = _said(_start('eval.py', f'--workdir={workdir}'))
    alone = re.search(r'final .* (\S+) bits/dim', done.stdout)[1]
    together = re.search(r'\nvalidation +\d+ +\S+ +(\S+)', said[0])[1]
    assert float(together) == pytest.approx(float(alone), abs=1e-3)
    assert 'validation' not in said[1]
    # And sample: alike, of which one process shows it.
    flags = f'--workdir={workdir}', '--prompt=to be', '--tokens=9', '--temperature=0'
    said = _said(_start('sample.py', *flags))
    assert 'to be' in said[0] and '9 of 9 tokens' in said[0]
    assert 'to be' not in said[1]


def test_time_is_over_for_all_processes(tmp_path):
    """Of pairs, whose translations all of them make in the end."""
    for split in ('train', 'val', 'test_2016_flickr'):
        for column, line in (('en', 'be to not or be to\n'), ('de', 'to be\n')):
            (tmp_path / f'{split}.{column}').write_text(line * 50)
    run = [*_PAIRS, f'--config.data.source={tmp_path}/{{split}}.{{column}}']
    before = time.monotonic()
    run += [f'--workdir={tmp_path}/run', '--config.minutes=0.2']
    said = _said(_start('train.py', *run))
    assert time.monotonic() - before > 12
    assert re.search('final validation after .* BLEU', said[0]), said


def test_all_processes_go_on_from_the_same_intact_checkpoint(tmp_path):
    text, workdir = tmp_path / 'text.txt', tmp_path / 'run[1]'
    text.write_text('to be or not to be, ' * 1000)
    run = [*_SMALL, f'--config.data.path={text}', f'--workdir={workdir}']

    def train(steps):
        flags = (f'--config.steps={steps}', '--config.checkpoint_every=2')
        both = _start('train.py', *run, *flags)
        said = _said(both)
        assert [process.returncode for process in both] == [0, 0], said
        return said

    train(4)
    arrays = (workdir / 'checkpoints' / '4' / 'state').rglob('d/*')
    largest = max(arrays, key=lambda file: file.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    said = train(6)
    assert f'{largest.name} is not as it was written' in said[0]
    assert 'going on from step 2' in said[0] and 'resuming at step 2' in said[0]
    saved = {path.name for path in (workdir / 'checkpoints').iterdir()}
    assert saved >= {'4', '6', 'damaged_4'}


def test_any_processes_and_devices_go_on_as_one_would(tmp_path):
    """Each reads the rows of its own; the order of the data is that of one process."""
    text = tmp_path / 'text.txt'
    text.write_text('to be or not to be, that is the question; ' * 500)
    run = [*_SMALL, f'--config.data.path={text}', '--config.data.batch_size=4']

    def train(name, steps, count, **settings):
        flags = f'--workdir={tmp_path / name}', f'--config.steps={steps}'
        processes = _start('train.py', *run, *flags, count=count, **settings)
        said = _said(processes)
        assert [process.returncode for process in processes] == [0] * count, said

    def losses(name):
        lines = metrics.read(tmp_path / name / 'metrics.jsonl')
        of_training = {x['step']: x['loss'] for x in lines if x['split'] == 'train'}
        return [of_training.pop(step) for step in range(1, 7)]

    train('alone', 6, 1)
    train('several', 2, 4)
    mesh = [f'--config.mesh.{axis}=2' for axis in ('data', 'fsdp', 'model')]
    train('several', 4, 1, devices=8, own=mesh)
    train('several', 6, 2)
    np.testing.assert_allclose(losses('several'), losses('alone'), rtol=1e-5)


@pytest.mark.parametrize(('victim', 'sent'), [(0, 'SIGKILL'), (1, 'SIGSTOP')])
def test_without_one_process_the_other_ends(tmp_path, victim, sent):
    text = tmp_path / 'text.txt'
    text.write_text('to be or not to be, ' * 1000)
    run = [*_SMALL, f'--config.data.path={text}', f'--workdir={tmp_path}/run']
    both = _start('train.py', *run, '--config.steps=100000')
    while 'step  ' not in (line := both[0].stdout.readline()):
        assert line, 'ended before the first step'
    both[victim].send_signal(signal.Signals[sent])
    (said,) = _said([both[1 - victim]], timeout=60)
    assert both[1 - victim].returncode not in (0, os.EX_TEMPFAIL)
    assert re.search('another process has ended|another task died', said), said
    both[victim].kill()
    _said([both[victim]])


def test_processes_of_another_config_are_refused(tmp_path):
    text = tmp_path / 'text.txt'
    text.write_text('to be or not to be, ' * 1000)
    run = [*_SMALL, f'--config.data.path={text}', f'--workdir={tmp_path}/run']
    both = _start('train.py', *run, own=('--config.optimizer.learning_rate=0.5',))
    first, second = _said(both)
    assert [process.returncode for process in both] == [1, 1]
    assert 'train.py: processes [1] have another config than process 0: ' in first
    name = 'config.optimizer.learning_rate'
    assert re.search(f'process 1 has {name}=0.5, and process 0 has 0.002', second)
    assert not (tmp_path / 'run').exists()
