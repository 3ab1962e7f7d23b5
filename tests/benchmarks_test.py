"""The benchmarks at tiny sizes: that they run, and that they time the right thing."""

import importlib.util
import json
import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_models

from benchmarks import attention
from benchmarks import decoding
from benchmarks import figure5
from benchmarks import peers
from benchmarks import roofline
from benchmarks import small_lm
from benchmarks import timing
from benchmarks import training_step
from reformer_jax import model as model_lib
from reformer_jax.attention import hashing
from reformer_jax.training import config as training_config
from reformer_jax.training import start
from reports import decoding as decoding_report
from reports import misspelled

pytestmark = pytest.mark.slow


def test_runs_take_turns():
    calls = []
    steps = {name: lambda name=name: calls.append(name) for name in 'ab'}
    seconds = timing.interleaved(steps, 2)
    assert ''.join(calls) == 'ababab'
    assert [len(seconds[name]) for name in 'ab'] == [2, 2]
    calls.clear()
    timing.interleaved(steps, 1, warm_up=False)
    assert ''.join(calls) == 'ab'


def test_point_is_a_line_of_json_with_its_environment(capsys, monkeypatch):
    monkeypatch.setenv('GLIBC_TUNABLES', 'glibc.malloc.hugetlb=1')
    timing.print_point({'seconds': 0.00123456, 'runs': [12345.678], 'name': 'x'})
    printed = capsys.readouterr().out
    assert printed.count('\n') == 1
    point = json.loads(printed)
    assert point['seconds'] == 0.001235 and point['runs'] == [12350.0]
    assert point['GLIBC_TUNABLES'] == 'glibc.malloc.hugetlb=1'
    assert point['jax'] == jax.__version__ and point['cpu_cores'] >= 1


def test_config_is_the_small_lm():
    run = training_config.run_config(training_step.config(16_384).to_dict())
    assert (run.model.layers, run.model.pattern) == (2, ('lsh',))
    assert run.model.axial_shape == (128, 128) and run.model.dropout == 0
    assert run.model.buckets == () and run.model.rounds == 4
    assert hashing.default_buckets(16_384, run.model.lsh_chunk_length) == (32, 16)


def test_length_must_be_a_power_of_two():
    assert small_lm.axial_shape(2048) == (32, 64)
    with pytest.raises(ValueError, match='use 2048'):
        small_lm.axial_shape(3000)


def test_step_trains():
    config = training_step.config(128, layers=1, rounds=1)
    run_step, info = training_step.step(config)
    losses = [run_step() for _ in range(20)]
    assert losses[-1] < losses[0] - 0.1
    assert info['parameters'] > 0 and info['temporary_mib'] > 0


def test_attention_passes_run():
    passes = attention.steps(128, (1,), 'float32')
    assert list(passes) == [
        (name, which)
        for name in ('full', 'full_shared', 'local', 'lsh-1')
        for which in ('forward', 'forward_backward')
    ]
    for run in passes.values():
        for array in jax.tree.leaves(run()):
            assert array.shape == (1, 128, 4, 64) and jnp.isfinite(array).all()


def test_attention_is_compared_with_what_torch_computes(monkeypatch, capsys):
    torch = pytest.importorskip('torch')
    _, inputs, dout = attention.attentions(128, (), 'float32')['full']
    arrays = (torch.tensor(np.asarray(x.swapaxes(1, 2))) for x in (*inputs, dout))
    monkeypatch.setattr(torch, 'randn', lambda *_, **__: next(arrays))
    theirs = attention.torch_steps(128, 'float32')['torch', 'forward_backward']()
    ours = attention.steps(128, (), 'float32')['full', 'forward_backward']()
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        wanted = b.detach().numpy().swapaxes(1, 2)
        np.testing.assert_allclose(a, wanted, rtol=1e-3, atol=1e-4)
    monkeypatch.undo()
    attention.time_attention([64, 128], 'float32', runs=1, with_torch=True)
    points = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    ratios = [p for p in points if 'full_over_torch' in p]
    assert [(p['length'], p['pass']) for p in ratios] == [
        (length, which)
        for length in (64, 128)
        for which in ('forward', 'forward_backward')
    ]
    seconds = {p['attention']: p['seconds'] for p in points[-13:-5]}
    assert list(seconds)[-1] == 'torch'
    ratio = seconds['local'] / seconds['lsh-2']
    np.testing.assert_allclose(points[-5]['local_over_lsh-2'], ratio, rtol=2e-3)
    assert [p['rounds'] for p in points[-4:]] == [1, 2, 4, 8]


def test_memory_of_exact_attention_is_told_in_its_arrays(capsys):
    attention.main(['--memory', '128'])
    full, shared = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    one = 128 * 4 * 64 * 4 / 2**20
    for point, arguments, outputs in ((full, 4, 4), (shared, 3, 3)):
        assert point['arguments_mib'] == arguments * one
        # A tuple of outputs has pointers beside them.
        assert point['outputs_mib'] == pytest.approx(outputs * one, rel=1e-3)
        whole = (arguments + outputs) * one + point['temporaries_mib']
        ratio = whole / ((arguments + outputs) * one)
        assert point['of_arrays'] == pytest.approx(ratio, rel=2e-3)


def test_products_are_counted_as_often_as_they_run():
    def function(x, w):
        def body(x, _):
            unused = x @ x  # noqa: F841
            return jax.checkpoint(lambda x: jnp.sin(x @ w))(x), None

        x, _ = jax.lax.scan(body, x, length=3)
        return jax.lax.fori_loop(0, 5, lambda i, x: jax.jit(jnp.matmul)(x, w), x)

    x, w = jnp.ones((4, 4)), jnp.ones((4, 4))
    [(product, count)] = roofline.products(function, x, w).items()
    assert count == 3 + 5 and product.operations == 2 * 4 * 4 * 4
    gradient = jax.grad(
        lambda w: jax.lax.map(lambda x: x @ w, jnp.ones((7, 2, 4))).sum()
    )
    [(product, count)] = roofline.products(gradient, w).items()
    assert count == 7 and product.operations == 2 * 2 * 4 * 4


def test_products_that_run_who_knows_how_often_are_an_error():
    def function(x, n):
        return jax.lax.fori_loop(0, n, lambda i, x: x @ x, x)

    with pytest.raises(ValueError, match="'while' has 1 matrix products.*scans"):
        roofline.products(function, jnp.ones((2, 2)), 3)


def test_batched_product_has_operations_of_each_of_the_batch():
    def function(a, b):
        return jnp.einsum('bchk,blhk->bhcl', a, b)

    a, b = jnp.ones((2, 3, 4, 5)), jnp.ones((2, 7, 4, 5))
    [product] = roofline.products(function, a, b)
    assert product.operations == 2 * (2 * 4) * 3 * 7 * 5


def test_repeated_products_are_not_taken_out_of_the_loop():
    x = jnp.ones((256, 256))
    [product] = roofline.products(jnp.matmul, x, x)
    steps = {count: roofline.repeated(product, count) for count in (2, 100)}
    seconds = timing.interleaved(steps, 5)
    assert min(seconds[100]) > 10 * min(seconds[2])


def test_roofline_of_a_small_step(capsys):
    roofline.time_products(128, runs=2)
    *points, last = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    seconds = [point['seconds'] for point in points]
    assert seconds == sorted(seconds, reverse=True) and len(points) > 10
    assert last['products_seconds'] == min(last['products_runs'])
    # All 7 products of the feed-forward, forward once more in the backward pass.
    feed_forward = [p['count'] for p in points if 1024 in p['left'] + p['right']]
    assert sum(feed_forward) == 2 * (2 + 2 + 4)


def test_decoding_takes_turns_and_prints_a_line_each(monkeypatch, capsys):
    monkeypatch.setattr(decoding, '_LAYERS', 1)
    monkeypatch.setattr(decoding, '_PATTERN', ('lsh',))
    decoding.measure([64, 128], runs=1, tokens=2, with_peers=False)
    points = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(p['length'], p['implementation']) for p in points] == [
        (64, 'strict'),
        (64, 'reformer'),
        (128, 'strict'),
        (128, 'reformer'),
    ]
    assert all(p['ms_per_token'] > 0 and p['prefill_seconds'] > 0 for p in points)


def test_decoding_report_tells_exact_from_approximate():
    tokens = np.random.default_rng(0).integers(0, 11, (2, 32)).astype(np.int32)
    weights = np.ones((2, 32), np.float32)
    weights[1, 20:] = 0
    batch = {'tokens': tokens, 'weights': weights}
    strict, reformer = (
        decoding_report.compare(small_models.build(rule=rule, **changes), batch)
        for rule, changes in (('strict', {'dense_length': -1}), ('reformer', {}))
    )
    assert strict['tokens'] == 52 and strict['largest_difference'] < 1e-4
    assert reformer['largest_difference'] > 1e-3
    assert 2 < strict['cached_bits'] < 8


def test_decoding_report_counts_exact_copies(monkeypatch):
    words = np.array([[0, 1, 2, 0, 1, 2], [0, 3, 4, 0, 3, 4]])

    def generate(model, prompt, **options):
        assert prompt.shape == (2, 4) and options['steps'] == 2
        return np.array([[1, 2], [3, 5]])

    monkeypatch.setattr(decoding_report.decoding, 'generate', generate)
    assert decoding_report.copied(None, words) == 1


def test_peers_decode():
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for package in ('torch', 'transformers', 'reformer_pytorch'):
            pytest.importorskip(package)
        for decoder in (decoding.hugging_face(128, 2), decoding.lucidrains(128)):
            decoder.prefill()
            decoder.decode()


def test_crossover_is_the_greatest_length_where_exact_attention_is_not_slower():
    assert attention.crossover({1024: 0.5, 2048: 1.0, 4096: 1.5}) == 2048
    assert attention.crossover({1024: 1.5}) is None


def test_figure5_measures_every_kind_at_a_fixed_number_of_tokens(
    tmp_path, monkeypatch, capsys
):
    configs = []

    def step(config):
        training_config.run_config(config.to_dict())
        configs.append(config)
        return (lambda: None), {}

    monkeypatch.setattr(training_step, 'step', step)
    path = tmp_path / 'results' / 'figure5.jsonl'
    figure5.measure(path, [64, 256], tokens=256, runs=1)
    points = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(points) == 12 and path.read_text() == capsys.readouterr().out
    assert {(p['attention'], p['length']) for p in points} >= {('full', 256)}
    for config in configs:
        assert config.data.length * config.data.batch_size == 256
        chunk_length = config.model.feed_forward_chunk_length
        assert chunk_length * config.data.batch_size == 256


def test_figure5_is_drawn(tmp_path):
    pytest.importorskip('matplotlib')
    source, target = tmp_path / 'points.jsonl', tmp_path / 'figure.png'
    common = {'tokens': 16_384, 'device': 'cpu', 'cpu_cores': 2}
    points = [
        {'attention': kind, 'length': length, 'seconds': seconds, **common}
        for kind, length, seconds in [
            ('full', 2048, 3.0),
            ('full', 1024, 1.5),
            ('LSH-1', 1024, 1.0),
        ]
    ]
    source.write_text(''.join(json.dumps(point) + '\n' for point in points))
    figure5.plot(source, target)
    assert target.read_bytes().startswith(b'\x89PNG')


def test_missing_peers_are_named_with_what_installs_them(monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(SystemExit, match=r'torch, .*reformer-pytorch.*\[peers\]'):
        peers.check_installed()


def test_only_some_are_compared(capsys):
    peers.main(['64', '--only', 'ours_exact,ours', '--runs', '1', '--no-warm-up'])
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first['implementation'] == 'ours_exact' and first['times_first'] == 1
    assert second['implementation'] == 'ours'
    with pytest.raises(SystemExit):
        peers.main(['64', '--only', 'theirs'])
    assert "['theirs'] unknown: take ours, " in capsys.readouterr().err


@pytest.mark.parametrize('name', peers.PEERS)
def test_peers_train_a_model_of_our_size(name):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # theirs, while they are imported
        for package in ('torch', 'transformers', 'reformer_pytorch'):
            pytest.importorskip(package)
        model, _ = peers.build_peer(name, 256, 8)
        loss = peers.build_step(name, 256, 8)()
    assert math.isfinite(loss)
    state = start.open(training_step.config(256), 'none').state
    ours = model_lib.parameter_count(state.model)
    theirs = sum(parameter.numel() for parameter in model.parameters())
    assert 0.8 < theirs / ours < 1.2


def test_misspelled_passages(tmp_path, capsys):
    lines = [f'the {word} of several longer words here ' * 5 for word in 'abcdefgh']
    text, table = tmp_path / 'text.txt', tmp_path / 'rows.jsonl'
    text.write_text('\n'.join([*lines, lines[0], 'too short']), 'utf-8')
    misspelled.main([str(text), str(table)])
    assert '8 of 8 passages' in capsys.readouterr().out
    rows = [json.loads(line) for line in table.read_text('utf-8').splitlines()]
    labels = [row['label'] for row in rows]
    assert labels == ['written', 'misspelled'] * 4
    for row in rows:
        words = row['text'].split(' ')
        letters = [''.join(sorted(word)) for word in words]
        originals = [line.split(' ')[: len(words)] for line in lines]
        fitting = [o for o in originals if [''.join(sorted(w)) for w in o] == letters]
        assert len(fitting) == 1
        assert (words == fitting[0]) == (row['label'] == 'written')
        assert len(row['text'].encode()) <= 250
