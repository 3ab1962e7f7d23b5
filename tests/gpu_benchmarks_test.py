"""The benchmarks of GPUs on the CPU, at tiny sizes: they compare like with like."""

import json
import pathlib
import subprocess

import attention_oracles as oracles
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import gpu_attention
from benchmarks import gpu_error
from benchmarks import gpu_training
from configs import enwik8
from reformer_jax import attention
from reports import gpu as gpu_report

pytestmark = pytest.mark.slow

_ROOT = pathlib.Path(__file__).parents[1]


def _points(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_attention(capsys, monkeypatch):
    monkeypatch.setattr(gpu_attention, '_SECONDS_OF_RUN', 0.001)
    cases = [('triton', 64, 2), ('xla', 64, 2)]
    gpu_attention.time_attention(128, cases, runs=1, opponent='xla')
    points = _points(capsys)
    names = [(p['attention'], p['rounds'], p['chunk_length']) for p in points]
    assert names == [
        ('exact', None, None),
        ('local', None, None),
        ('triton', 2, 64),
        ('xla', 2, 64),
    ]
    assert points[0]['exact_over_this'] == 1
    for point in points:
        assert point['length'] == 128 and point['seconds'] > 0
        nanoseconds = point['ns_per_token_head'] * 128 * gpu_attention.HEADS
        np.testing.assert_allclose(nanoseconds, 1e9 * point['seconds'], rtol=2e-3)


def test_local_opponent_sees_the_last_tokens_only():
    q, k, v, _ = oracles.inputs(256, count=3, head_size=8)
    local = gpu_attention.opponents('xla')['local']
    out = local(q, k, v)
    i = np.arange(256)
    seen = (i[:, None] >= i) & (i[:, None] < i + 128)
    wanted = oracles.dense(q, k, v, seen, 8**-0.5)
    np.testing.assert_allclose(out, wanted, rtol=1e-4, atol=1e-4)


def test_references_of_the_errors_are_the_functions_compared():
    qk, v, _ = oracles.inputs(64, head_size=16)
    buckets = oracles.buckets(64, rounds=3)
    met = gpu_error.keys_met(buckets, 8)
    kind = attention.LSH(chunk_length=8, buckets=6)
    seen, _ = oracles.numbers_seen(kind, buckets)
    np.testing.assert_array_equal(met, seen > 0)
    out = attention.lsh_attention(kind, qk, v, jnp.asarray(buckets))
    oracles.assert_near(gpu_error.shared_qk(qk, v, met), out)
    full = attention.full_attention(attention.Full(), qk, 2 * qk, v)
    oracles.assert_near(gpu_error.exact(qk, 2 * qk, v), full)


def test_errors(capsys):
    gpu_error.measure(256, 'xla', 'xla')
    points = _points(capsys)
    assert [p['of'] for p in points] == ['output', 'dqk', 'dv']
    for point in points:
        assert 1e-4 < point['error'] < 0.01 and 1e-4 < point['error_of_exact'] < 0.01
        assert 0.3 < point['times_exact'] < 3


def test_peers_are_compared_with_our_step(capsys, monkeypatch):
    """And one that fails is reported, and stops no other."""

    def step():
        return 0.0

    def fails():
        raise MemoryError('no room')

    config = enwik8.get_config('tiny')
    monkeypatch.setattr(gpu_training.training_step, 'step', lambda config: (step, {}))
    monkeypatch.setattr(
        gpu_training, 'their_steps', lambda *_: {'theirs': step, 'large': fails}
    )
    gpu_training.time_peers(config, 'cpu', runs=2)
    ours, theirs, large = _points(capsys)
    assert ours['implementation'] == 'ours' and ours['times_ours'] == 1
    assert theirs['times_ours'] > 0 and len(theirs['runs']) == 2
    assert large['error'] == 'MemoryError: no room' and 'seconds' not in large


@pytest.mark.parametrize(
    'main',
    [
        lambda: gpu_attention.main([]),
        gpu_error.main,
        lambda: gpu_training.main(['million']),
    ],
)
def test_without_a_gpu_they_say_what_they_need(main):
    with pytest.raises(SystemExit, match=r"'cpu' here.*of a GPU.*jax\[cuda13\]"):
        main()


def test_script_keeps_to_eight_minutes_and_names_real_files():
    script = (_ROOT / 'benchmarks' / 'gpu.sh').read_text('utf-8')
    lines = [line.split() for line in script.splitlines() if line[:8] == 'measure ']
    assert {line[1] for line in lines} == set(gpu_report._PARTS)
    assert sum(int(line[2]) for line in lines) < 480
    for line in lines:
        assert (_ROOT / line[3]).exists()
    syntax = subprocess.run(['bash', '-n', _ROOT / 'benchmarks' / 'gpu.sh'])
    assert syntax.returncode == 0


def test_report_sets_figures_beside_goals(tmp_path):
    where = {'device': 'NVIDIA H200', 'jax': '0.12', 'python': '3.13', 'cpu_cores': 16}
    common = {'seconds': 0.002, 'ns_per_token_head': 30.5, 'chunk_length': 64, **where}
    points = [
        {
            'attention': 'triton',
            'length': 131_072,
            'rounds': 4,
            'exact_over_this': 17.25,
        },
        {
            'attention': 'triton',
            'length': 131_072,
            'rounds': 1,
            'exact_over_this': 49.0,
        },
        {'attention': 'xla', 'length': 131_072, 'rounds': 4, 'exact_over_this': 2.0},
    ]
    lines = [json.dumps(common | point) for point in points]
    tmp_path.joinpath('attention.jsonl').write_text('\n'.join(['warning', *lines]))
    tmp_path.joinpath('error.jsonl').write_text(
        json.dumps(
            {'of': 'dv', 'error': 0.003, 'times_exact': 1.1, 'runs': [1], **where}
        )
    )
    text = gpu_report.report(str(tmp_path))
    assert '- device NVIDIA H200, jax 0.12, python 3.13\n' in text
    assert '| 131072 | triton | 4 | 64 | 2.000 | 30.50 | 17.25 | 16 |' in text
    assert '| 131072 | triton | 1 | 64 | 2.000 | 30.50 | 49.00 | 50 |' in text
    assert '| 131072 | xla | 4 | 64 | 2.000 | 30.50 | 2.00 |  |' in text
    assert '| of | error | times_exact |' in text
    assert text.count('Not measured.') == 2


def test_report_of_nothing_says_what_to_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'benchmarks/gpu\.sh'):
        gpu_report.report(str(tmp_path))
