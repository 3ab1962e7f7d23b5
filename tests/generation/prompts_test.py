"""Prompts: brought to one shape, and what is refused."""

import numpy as np
import pytest
import small_models as models

from reformer_jax.generation import prompts
from reformer_jax.model import config as model_config


def test_pad():
    tokens, mask = prompts.pad([[1, 2, 3], [], [4]])
    np.testing.assert_array_equal(tokens, [[1, 2, 3], [0, 0, 0], [4, 0, 0]])
    np.testing.assert_array_equal(mask, tokens > 0)


def test_real_tokens_may_stand_anywhere():
    tokens = [[9, 1, 9, 2], [3, 9, 9, 9], [9, 9, 9, 4]]
    mask = np.array(tokens) != 9
    made = prompts.prompts(models.config(start_token=5), tokens, mask, steps=2)
    np.testing.assert_array_equal(made.tokens_BP, [[5, 1, 2], [5, 3, 0], [5, 4, 0]])
    np.testing.assert_array_equal(made.lengths_B, [3, 2, 2])
    assert made.capacity == 4


@pytest.mark.parametrize(
    'length, padded', [(1, 1), (3, 3), (4, 4), (5, 8), (31, 32), (32, 32)]
)
def test_padded_length(length, padded):
    assert model_config.padded_length(models.config(), length) == padded


def test_padded_length_with_different_chunks():
    config = models.config(local_chunk_length=8)
    assert [model_config.padded_length(config, n) for n in (4, 5, 8, 9)] == [
        4,
        8,
        8,
        16,
    ]


def test_padded_length_of_exact_attention():
    config = models.config(pattern=('full',))
    padded = [model_config.padded_length(config, n) for n in (7, 127, 128, 131)]
    assert padded == [7, 127, 128, 256]


def test_padded_length_of_hugging_face():
    """A multiple of all chunks beyond the shortest (_pad_to_mult_of_chunk_length)."""
    chunks = {'local_chunk_length': 8, 'lsh_chunk_length': 32}
    padded = {
        rule: [
            model_config.padded_length(models.config(rule=rule, **chunks), length)
            for length in (7, 8, 9, 24, 32, 33)
        ]
        for rule in ('trax', 'reformer')
    }
    assert padded['trax'] == [7, 8, 32, 32, 32, 64]
    assert padded['reformer'] == [7, 8, 16, 24, 32, 64]


def test_lengths_that_differ_little_share_their_shapes():
    def shapes(length):
        made = prompts.prompts(
            models.config(length=2048, axial_shape=(64, 32), start_token=-1),
            np.ones((1, length), int),
            None,
            steps=10,
        )
        return made.tokens_BP.shape[1], made.capacity

    several = {shapes(length) for length in range(1025, 1250)}
    assert several == {(1280, 1280)}
    assert shapes(1024) == (1024, 1280)
    assert shapes(1900) == (2048, 2048)


@pytest.mark.parametrize('start, steps', [(-1, 5), (0, 4)])
def test_longest_that_fits(start, steps):
    prompt = np.ones((1, 28), int)
    config = models.config(start_token=start)
    made = prompts.prompts(config, prompt, None, steps)
    assert made.capacity == 32
    with pytest.raises(ValueError, match=f'steps={steps + 1} do not fit .*length=32'):
        prompts.prompts(config, prompt, None, steps + 1)


@pytest.mark.parametrize(
    'tokens, mask, changes, message',
    [
        ([[]], None, {'start_token': -1}, 'an empty prompt'),
        (np.zeros((0, 3), int), None, {}, 'an empty prompt'),
        ([[1, 2], [3, 4]], [[1, 1], [0, 0]], {'start_token': -1}, 'an empty prompt'),
        ([1, 2], None, {}, r'shape \(2,\)'),
        ([[1.0]], None, {}, 'float64'),
        ([[1, 2]], [[True]], {}, r'mask of shape \(1, 1\)'),
        ([[1, 11]], None, {}, r'token 11 is outside \[0, 11\)'),
        ([[1, -1]], None, {}, r'token -1 is outside \[0, 11\)'),
        ([[1] * 33], None, {}, 'a prompt of 34 tokens with its start token'),
        ([[1]], None, {'causal': False}, 'bidirectional'),
        ([[1]], None, {'head': 'none'}, "head='none' predicts no tokens"),
    ],
)
def test_refused(tokens, mask, changes, message):
    with pytest.raises(ValueError, match=message):
        prompts.prompts(models.config(**changes), tokens, mask, steps=1)
