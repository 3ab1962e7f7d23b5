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


def _of_sources(source, prompt=None):
    config = models.config(pattern=('full',), encoder={'layers': 1})
    return prompts.prompts(config, prompt, None, 3, source)


def test_sources_are_brought_to_few_shapes():
    made = _of_sources(prompts.pad([[1] * 17, [], [2, 3]]))
    tokens, mask = made.source
    assert mask.sum(axis=1).tolist() == [17, 0, 2]
    assert tokens.shape == (3, 20) and tokens[2, :2].tolist() == [2, 3]
    assert {
        _of_sources([[1] * length]).source[0].shape for length in range(17, 21)
    } == {(1, 20)}
    # Padding stays, so that who pads to few widths compiles few functions.
    assert _of_sources(([[9, 1], [1, 9]], [[0, 1], [1, 0]])).source[0].shape == (2, 2)
    assert _of_sources(prompts.pad([[], []])).source[0].shape == (2, 1)


def test_no_prompt_is_the_start_token_alone():
    source = [[1, 2], [3, 4]]
    made, empty = _of_sources(source), _of_sources(source, [[], []])
    np.testing.assert_array_equal(made.tokens_BP, [[0], [0]])
    np.testing.assert_array_equal(made.tokens_BP, empty.tokens_BP)
    np.testing.assert_array_equal(made.lengths_B, [1, 1])


def test_each_row_has_room_for_its_own_steps():
    config, (tokens, mask) = models.config(), prompts.pad([[1] * 27, [1]])
    made = prompts.prompts(config, tokens, mask, [5, 31])
    assert made.capacity == 32
    with pytest.raises(ValueError, match='a prompt of 28 tokens.*and steps=6 do not'):
        prompts.prompts(config, tokens, mask, [6, 31])
    with pytest.raises(ValueError, match='a prompt of 2 tokens.*and steps=32 do not'):
        prompts.prompts(config, tokens, mask, [5, 32])


@pytest.mark.parametrize(
    'steps, message',
    [
        ([2, 0], r'steps=\[2, 0\] must be at least 1'),
        ([2], r'steps=\[2\] for 2 prompts: give a whole number, or one for each'),
        (2.5, 'steps=2.5 for 2 prompts'),
        (None, 'steps=None for 2 prompts'),
    ],
)
def test_refused_steps(steps, message):
    with pytest.raises(ValueError, match=message):
        prompts.prompts(models.config(), [[1], [2]], None, steps)


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
        (None, None, {}, 'no prompt and no source'),
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
