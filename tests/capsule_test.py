"""What the code before the rooms made, the code of today makes: capsule/README.md.

To rounding, since the order of sums has changed with the speed. And bit for bit what
the code made when bits.json was recorded last, by the XLA and processor of then:
  CAPSULE_RECORD=1 python -m pytest -n 0 tests/capsule_test.py
records anew, for a change that is meant to change last bits.
"""

import hashlib
import json
import os
import pathlib
import re
import shutil

import jax
import ml_collections
import numpy as np
import pytest

from reformer_jax import huggingface
from reformer_jax.generation import show
from reformer_jax.runs import checkpoint
from reformer_jax.runs import folder as run_folder
from reformer_jax.runs import metrics
from reformer_jax.training import evaluation
from reformer_jax.training import exchange
from reformer_jax.training import loop
from reformer_jax.training import start

pytestmark = [pytest.mark.slow, pytest.mark.optimized]

_ROOT = pathlib.Path(__file__).parents[1]
_CAPSULE = pathlib.Path('tests/capsule')
_BITS = _CAPSULE / 'bits.json'
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


_EXACT = (jax.__version__, _processor()) == (_JAX, _PROCESSOR)


@pytest.fixture(autouse=True)
def _in_root(monkeypatch):
    monkeypatch.chdir(_ROOT)  # the runs' data have relative paths


def _config(workdir, **model):
    fields = run_folder.load_config(workdir)
    fields['model'] |= model
    return ml_collections.ConfigDict(fields)


# Counts of the likeliest prediction, which rounding can turn.
_COUNTED = ('accuracy', 'f1', 'precision', 'recall')


def _assert_same(new, old, name='', *, rtol=1e-3):
    if not any(word in name for word in _COUNTED):
        np.testing.assert_allclose(new, old, rtol=rtol, atol=1e-4, err_msg=name)


def _assert_bits(name, *values):
    """That the bytes of arrays, or bytes, are those that were recorded."""
    if not _EXACT:
        return
    content = b''.join(
        value if isinstance(value, bytes) else np.asarray(value).tobytes()
        for value in values
    )
    found = hashlib.sha256(content).hexdigest()[:16]
    recorded = json.loads(_BITS.read_text())
    if os.environ.get('CAPSULE_RECORD'):
        recorded[name] = found
        _BITS.write_text(json.dumps(recorded, indent=2, sort_keys=True) + '\n')
    assert recorded[name] == found, name


def _tolerance(config):
    """Relative."""
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


def _assert_same_run(workdir, original, how):
    config = _config(original)
    new, old = _metrics(workdir), _metrics(original)
    # What training has told since: the streams, which the backward pass found again.
    since = {name: new.pop(name) for name in new.keys() - old.keys()}
    assert {name for _, _, name in since} <= {
        'largest_stream',
        'missed',
        'parameter_norm',
    }
    assert not any(v for (_, _, name), v in since.items() if name == 'missed')
    assert new.keys() == old.keys()
    for name, value in old.items():
        _assert_same(new[name], value, str(name), rtol=_tolerance(config))
    states, originals = _states(workdir, config), _states(original, config)
    assert jax.tree.structure(states) == jax.tree.structure(originals)
    for step, state in states.items():
        _assert_bits(f'{original.name}, {how}, step {step}', *jax.tree.leaves(state))
    for step in _STEPS:
        place = f'checkpoints/{step}/data/process_0-of-1.json'
        text = pathlib.Path(workdir, place).read_text()
        assert json.loads(text) == json.loads((original / place).read_text())


@pytest.mark.parametrize('name', _RUNS)
def test_trained_anew(name, tmp_path):
    original = _CAPSULE / 'runs' / name
    loop.train(_config(original), str(tmp_path / 'run'))
    _assert_same_run(tmp_path / 'run', original, 'anew')


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
    _assert_same_run(workdir, original, 'resumed')


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
                name = f'{found} {split} {metric}'
                _assert_same(new[split][metric], value, name, rtol=_tolerance(config))
                _assert_bits(name, np.float64(new[split][metric]))


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
    assert written.startswith(b'The Reformer')
    _assert_bits(f'sample {rule}', written)


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
    _assert_bits('huggingface logits', logits)
