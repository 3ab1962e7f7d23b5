"""The examples do what they say, and are short."""

import pathlib

import pytest

from examples import attention_in_your_model
from examples import pretrained
from examples import your_reversible_stack
from reformer_jax import huggingface

pytestmark = pytest.mark.slow

_ROOT = pathlib.Path(__file__).parents[1]


def test_examples_are_under_60_lines():
    files = list((_ROOT / 'examples').glob('*.py'))
    assert len(files) == 3
    for file in files:
        assert len(file.read_text().splitlines()) < 60, file


def test_attention_learns_to_repeat():
    first, last = attention_in_your_model.main(steps=60)
    assert first > 2.5 and last < 0.1


def test_memory_of_the_reversible_stack_is_flat():
    (flat, saved), (flat_deep, saved_deep) = your_reversible_stack.main((2, 8))
    assert flat_deep <= 1.01 * flat
    assert saved_deep > 1.5 * saved


def test_a_pretrained_model_is_fine_tuned_and_saved(tmp_path, capsys):
    golden = _ROOT / 'tests' / 'golden' / 'causal_local_lsh'
    losses = pretrained.main(str(golden), str(tmp_path / 'new'), steps=3)
    assert losses[-1] < losses[0]
    config, _ = huggingface.load(tmp_path / 'new')
    assert config == huggingface.load_config(golden)
    assert 'continues with tokens' in capsys.readouterr().out
