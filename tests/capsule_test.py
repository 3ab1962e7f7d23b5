"""What the code before the rooms made, the code of today makes: capsule/README.md.

Bit for bit with the XLA and the processor of then and its options. Elsewhere sums have
another order: there the same to rounding.
"""

import hashlib
import json
import os
import pathlib
import re
import shutil

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from reformer_jax import huggingface
from reformer_jax.generation import decoding
from reformer_jax.generation import show
from reformer_jax.runs import checkpoint
from reformer_jax.runs import folder as run_folder
from reformer_jax.runs import metrics
from reformer_jax.stack import compilation
from reformer_jax.training import evaluation
from reformer_jax.training import exchange
from reformer_jax.training import loop
from reformer_jax.training import start

pytestmark = [pytest.mark.slow, pytest.mark.optimized]

_ROOT = pathlib.Path(__file__).parents[1]
_CAPSULE = pathlib.Path('tests/capsule')
_RUNS = ('lm', 'masked', 'classes')
_JAX, _PROCESSOR = '0.10.2', ('26', '2')
_STEPS = (3, 6)


def _processor():
    """Family and model of the CPU."""
    file = pathlib.Path('/proc/cpuinfo')
    text = file.read_text() if file.exists() else ''
    return tuple(
        ''.join(re.findall(rf'^{name}\s*: (\S+)', text, re.M)[:1])
        for name in ('cpu family', 'model')
    )


def _arithmetic():
    """Hash of the last bits of what XLA makes of a norm, products and a softmax."""
    x, w = np.random.default_rng(0).normal(size=(2, 256, 256)).astype(np.float32)

    def layer(x):
        x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6)
        return jax.nn.softmax(x @ w, axis=-1) @ x

    made = x
    for _ in range(3):
        made = jax.jit(layer)(made)
    return hashlib.sha256(np.asarray(made).tobytes()).hexdigest()[:16]


# Of the same family and model, and other last bits from the same XLA, before this code
# and after it.
_OTHERS = ('9e54fde2bb3c3cb2',)
_EXACT = (jax.__version__, _processor()) == (_JAX, _PROCESSOR) and (
    _arithmetic() not in _OTHERS
)


@pytest.fixture(autouse=True)
def _in_root(monkeypatch):
    monkeypatch.chdir(_ROOT)  # the runs' data have relative paths


@pytest.fixture(autouse=True)
def _compiled_as_then(monkeypatch):
    """Without the option that has come since, which changes last bits."""
    then = dict(compilation.options() or {})
    then.pop('xla_cpu_experimental_ynn_fusion_type', None)
    cached = decoding._compiled, evaluation._jit_evaluate
    for functions in cached:
        functions.cache_clear()
    monkeypatch.setattr(compilation, 'options', lambda: then or None)
    yield
    for functions in cached:
        functions.cache_clear()


def _config(workdir, **model):
    fields = run_folder.load_config(workdir)
    fields['model'] |= model
    return ml_collections.ConfigDict(fields)


# Counts of the likeliest prediction, which rounding can turn.
_COUNTED = ('accuracy', 'f1', 'precision', 'recall')


def _assert_same(new, old, name='', *, rtol=1e-3):
    if _EXACT:
        np.testing.assert_array_equal(new, old, name)
    elif not any(word in name for word in _COUNTED):
        np.testing.assert_allclose(new, old, rtol=rtol, atol=1e-4, err_msg=name)


def _tolerance(config):
    """Relative, where XLA or the processor is another."""
    return 3e-2 if config.model.dtype == 'bfloat16' else 1e-3


def _states(workdir, config):
    run = start.open(config, workdir)
    with checkpoint.Checkpointer(workdir) as checkpointer:
        return {step: checkpointer.restore(run.state, step=step)[0] for step in _STEPS}


def _metrics(workdir):
    lines = metrics.read(pathlib.Path(workdir) / 'metrics.jsonl')
    return {
        (line['step'], line['split'], name): value
        for line in lines
        for name, value in line.items()
        if name not in ('split', 'tokens_per_second')
    }


def _assert_same_run(workdir, original):
    config = _config(original)
    new, old = _metrics(workdir), _metrics(original)
    # What training has told since: the streams, which the backward pass found again.
    since = {name: new.pop(name) for name in new.keys() - old.keys()}
    assert {name for _, _, name in since} <= {'largest_stream', 'missed'}
    assert not any(v for (_, _, name), v in since.items() if name == 'missed')
    assert new.keys() == old.keys()
    for name, value in old.items():
        _assert_same(new[name], value, str(name), rtol=_tolerance(config))
    states, originals = _states(workdir, config), _states(original, config)
    assert jax.tree.structure(states) == jax.tree.structure(originals)
    for path, leaf in jax.tree.leaves_with_path(originals):
        found = dict(jax.tree.leaves_with_path(states))[path]
        if _EXACT:
            _assert_same(found, leaf, jax.tree_util.keystr(path))
    for step in _STEPS:
        place = f'checkpoints/{step}/data/process_0-of-1.json'
        text = pathlib.Path(workdir, place).read_text()
        assert json.loads(text) == json.loads((original / place).read_text())


@pytest.mark.parametrize('name', _RUNS)
def test_trained_anew(name, tmp_path):
    original = _CAPSULE / 'runs' / name
    loop.train(_config(original), str(tmp_path / 'run'))
    _assert_same_run(tmp_path / 'run', original)


@pytest.mark.parametrize('name', _RUNS)
def test_resumed_in_the_middle_and_evaluated(name, tmp_path):
    original, workdir = _CAPSULE / 'runs' / name, tmp_path / 'run'
    shutil.copytree(original, workdir)
    shutil.rmtree(workdir / 'checkpoints' / '6')
    os.remove(workdir / 'result.json')
    lines = (workdir / 'metrics.jsonl').read_text().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)['step'] <= 3]
    (workdir / 'metrics.jsonl').write_text(''.join(kept))
    loop.train(_config(workdir), str(workdir))
    _assert_same_run(workdir, original)


@pytest.mark.parametrize('name', _RUNS)
def test_evaluations(name, tmp_path):
    expected = json.loads((_CAPSULE / 'evaluations.json').read_text())
    workdir = tmp_path / 'run'
    shutil.copytree(_CAPSULE / 'runs' / name, workdir)
    for rounds, found in (({}, name), ({'rounds': 4}, f'{name}, 4 rounds')):
        splits = list(expected[found])
        config = _config(workdir, **rounds)
        new = evaluation.evaluate(config, str(workdir), splits=splits)
        for split, values in expected[found].items():
            assert new[split].keys() == values.keys()
            for metric, value in values.items():
                _assert_same(
                    new[split][metric],
                    value,
                    f'{found} {split} {metric}',
                    rtol=_tolerance(config),
                )


@pytest.mark.parametrize('rule', ('reformer', 'strict', 'trax'))
def test_samples(rule, capfdbinary):
    workdir = str(_CAPSULE / 'runs' / 'lm')
    run = start.open(_config(workdir, rule=rule), workdir)
    prompt = show.text_prompt(run.config.data, b'The Reformer')
    with jax.set_mesh(run.mesh):
        model, _ = run.restore_model()
        show.write_text(
            model,
            prompt,
            tokens=64,
            key=jax.random.key(5),
            temperature=0.9,
            top_k=None,
            top_p=0.95,
            samples=2,
        )
    written = capfdbinary.readouterr().out
    old = (_CAPSULE / f'sample_{rule}.bin').read_bytes()
    assert written.startswith(b'The Reformer')
    if _EXACT:
        assert written == old


def test_export(tmp_path):
    exchange.export_run(str(_CAPSULE / 'runs' / 'lm'), str(tmp_path), rule_trax=True)
    for file in (_CAPSULE / 'huggingface').iterdir():
        assert (tmp_path / file.name).read_bytes() == file.read_bytes()


def test_huggingface_logits():
    _, model = huggingface.load(str(_CAPSULE / 'huggingface'))
    data = (_CAPSULE / 'text.txt').read_bytes()[:256]
    tokens = np.frombuffer(data, np.uint8).reshape(4, 64).astype(np.int32) + 2
    logits = jax.jit(lambda model, tokens: model(tokens))(model, tokens)
    _assert_same(logits[:, ::8], np.load(_CAPSULE / 'huggingface_logits.npy'))
