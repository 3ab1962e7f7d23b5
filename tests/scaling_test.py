"""Step times on some of the devices there are: that each point is what it says."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest

from benchmarks import scaling
from configs import enwik8
from configs import masked_text

pytestmark = pytest.mark.slow

_ROOT = pathlib.Path(__file__).parents[1]


def test_points_of_both_scalings(monkeypatch, capsys):
    opened = []

    def open_run(config, batch_size, shape):
        opened.append((batch_size, shape))
        return opened[-1]

    monkeypatch.setattr(jax, 'device_count', lambda: 6)
    monkeypatch.setattr(scaling, 'open_run', open_run)
    monkeypatch.setattr(
        scaling.training_step, 'step_of', lambda run: (lambda: 0.0, {'run': run})
    )
    monkeypatch.setattr(
        scaling.timing,
        'interleaved',
        lambda steps, runs: {(b, n): [9.0, b / n**0.5] for b, n in steps},
    )
    config = enwik8.get_config('tiny')
    config.data.update({'batch_size': 4, 'length': 100})
    scaling.measure(config, 'fsdp', ('strong', 'weak'), runs=2)
    assert opened == [
        (4, {'fsdp': 1}),
        (4, {'fsdp': 2}),
        (4, {'fsdp': 4}),
        (8, {'fsdp': 2}),
        (16, {'fsdp': 4}),
    ]
    points = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [
        (p['scaling'], p['devices'], p['batch_size'], p['seconds'], p['efficiency'])
        for p in points
    ] == [
        ('strong', 1, 4, 4.0, 1.0),
        ('strong', 2, 4, 2.828, 0.7071),
        ('strong', 4, 4, 2.0, 0.5),
        ('weak', 1, 4, 4.0, 1.0),
        ('weak', 2, 8, 5.657, 0.7071),
        ('weak', 4, 16, 8.0, 0.5),
    ]
    assert {p['tokens_per_second'] for p in points} == {100.0, 141.4, 200.0}


def test_on_virtual_devices():
    small = {
        'data.length': 64,
        'model.length': 64,
        'model.axial_shape': (8, 8),
        'model.layers': 1,
        'model.pattern': ('local',),
        'model.local_chunk_length': 16,
        'model.d_ff': 64,
    }
    child = subprocess.run(
        [
            sys.executable,
            'benchmarks/scaling.py',
            '--config=configs/enwik8.py:tiny',
            *(f'--config.{name}={value}' for name, value in small.items()),
            '--axis=fsdp',
            '--scaling=strong',
            '--runs=1',
        ],
        cwd=_ROOT,
        env=os.environ | {'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': '2'},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert child.returncode == 0, child.stderr
    one, two = (json.loads(line) for line in child.stdout.splitlines())
    assert (one['devices'], two['devices']) == (1, 2)
    # Parameters and their moments are split.
    assert two['argument_mib'] < 0.6 * one['argument_mib']


def test_other_data_than_text_to_continue_are_refused(tmp_path):
    config = masked_text.get_config('tiny')
    config.data.path = str(_ROOT / 'README.md')
    with pytest.raises(ValueError, match=r'data.dataset=.* is not of a language model'):
        scaling.open_run(config, 2, {'data': 1})
