"""Prefill and steps: the parallel forward pass at every position, at constant cost."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_models as models

from reformer_jax import model as model_lib
from reformer_jax.generation import steps as steps_lib
from reformer_jax.stack import compilation

_STRICT = {'rule': 'strict', 'buckets': ()}
_PROMPTS = np.array(
    [13, 6, 1]
)  # one of them no multiple of a chunk, one a single token
_WIDTH = 16


def _tokens(length=32):
    return np.random.default_rng(0).integers(0, 11, (3, length)).astype(np.int32)


@jax.jit
def _parallel(model, tokens):
    return model(tokens)


@functools.partial(jax.jit, static_argnames='capacity')
def _prefill_and_steps(model, prompts, lengths, following_TB, capacity):
    """Logits after the prompts and after each of the tokens that follow, [T, B, V]."""
    logits, state = steps_lib.prefill(model, prompts, lengths, capacity=capacity)
    layers = model.unstacked()

    def step(state, tokens_B):
        logits, state = steps_lib.decode_step(model, state, tokens_B, layers)
        return state, logits

    _, more = jax.lax.scan(step, state, following_TB)
    return jnp.concatenate([logits[None], more])


def _step_by_step(model, tokens_BL):
    """Logits [T, B, V] with row b's first at position _PROMPTS[b] - 1."""
    length = tokens_BL.shape[1]
    # What stands behind a prompt must not matter.
    prompts = np.where(np.arange(_WIDTH) < _PROMPTS[:, None], tokens_BL[:, :_WIDTH], 9)
    following = [
        [row[n + t] for row, n in zip(tokens_BL, _PROMPTS, strict=True)]
        for t in range(length - _PROMPTS.max())
    ]
    return _prefill_and_steps(
        model, prompts, _PROMPTS, np.array(following), capacity=length
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    'changes',
    [
        *({**_STRICT, 'pattern': ('lsh',), 'rounds': rounds} for rounds in (1, 2, 4)),
        {**_STRICT, 'pattern': ('full', 'local', 'lsh', 'local'), 'layers': 8},
        {'pattern': ('local',), 'local_chunks_before': 2, 'positions': 'learned'},
        {'pattern': ('full',), 'positions': 'sinusoidal'},
        {'pattern': ('full',), 'shared_qk': True, 'positions': 'none'},
        {
            **_STRICT,
            'heads_at_once': 1,
            'feed_forward_chunk_length': 5,
            'tie_output': True,
            'combine': 'average',
            'buckets': (2, 4),
            'axial_shape': (2, 4, 4),
            'axial_sizes': (1, 2, 5),
        },
        {'rule': 'reformer', 'dense_length': 32},  # exact attention at every length
    ],
    ids=str,
)
def test_steps_are_the_parallel_forward_pass(changes):
    model, tokens = models.build(**changes), _tokens()
    parallel = np.asarray(_parallel(model, tokens))
    steps = np.asarray(_step_by_step(model, tokens))
    for row, prompt in enumerate(_PROMPTS):
        wanted = parallel[row, prompt - 1 :][: len(steps)]
        np.testing.assert_allclose(steps[:, row], wanted, atol=2e-5)
    assert np.abs(parallel).mean() > 0.3


@pytest.mark.slow
def test_other_rounds_than_the_configs():
    model, tokens = models.build(**_STRICT, rounds=1), _tokens()
    three = model.with_rounds(3)
    parallel = np.asarray(_parallel(three, tokens))
    steps = np.asarray(_step_by_step(three, tokens))
    np.testing.assert_allclose(steps[:, 0], parallel[0, 12:], atol=2e-5)
    assert np.abs(parallel - _parallel(model, tokens)).max() > 1e-2


@pytest.mark.slow
def test_bfloat16_steps_differ_by_its_rounding():
    changes = {**_STRICT, 'dtype': 'bfloat16', 'pattern': ('local', 'full', 'lsh')}
    model, tokens = models.build(**changes, layers=3), _tokens()
    parallel = np.asarray(_parallel(model, tokens))
    steps = np.asarray(_step_by_step(model, tokens))
    assert np.abs(steps[:, 0] - parallel[0, 12:]).max() < 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
    'changes',
    [
        {'rule': 'reformer', 'rounds': 3},
        {'rule': 'bucket', 'lsh_chunks_before': 2},
        {'rule': 'trax'},  # what look-around meets depends on the padding
    ],
    ids=str,
)
def test_a_step_gives_what_the_prompt_up_to_it_gives_its_last_token(changes):
    """The approximation of the other rules, where no other layer adds to it."""
    model = models.build(**changes, pattern=('lsh',), layers=1)
    tokens = _tokens()
    steps = np.asarray(_step_by_step(model, tokens))
    prefill = jax.jit(functools.partial(steps_lib.prefill, capacity=32))
    whole, _ = prefill(model, tokens, np.full(3, 32))
    np.testing.assert_allclose(whole, _parallel(model, tokens)[:, -1], atol=2e-5)
    compared = 0
    for t in range(len(steps)):
        wanted = np.asarray(prefill(model, tokens, _PROMPTS + t)[0])
        for row, length in enumerate(_PROMPTS + t):
            # With the trax rule what is looked at around the ends may be padding.
            if changes['rule'] != 'trax' or length <= 4:
                np.testing.assert_allclose(steps[t, row], wanted[row], atol=2e-5)
                compared += 1
    assert compared > 3


@pytest.mark.slow
def test_numpy_lengths_and_eager_calls():
    model, tokens = models.build(**_STRICT), _tokens()[:1]
    lengths = np.array([13])
    _, state = steps_lib.prefill(model, tokens[:, :16], lengths, capacity=32)
    logits, state = steps_lib.decode_step(model, state, tokens[:, 13])
    wanted = np.asarray(_parallel(model, _tokens()))[0, 13]
    np.testing.assert_allclose(logits[0], wanted, atol=2e-5)
    assert lengths.tolist() == [13] and state.lengths_B.tolist() == [14]


@pytest.mark.parametrize(
    'changes, capacity, message',
    [
        ({}, 15, 'capacity=15 must be at least the 16 tokens'),
        ({}, 33, 'at most the 32 of the model'),
        ({'causal': False}, 32, 'bidirectional'),
    ],
)
def test_bad_prefill(changes, capacity, message):
    with pytest.raises(ValueError, match=message):
        steps_lib.prefill(
            models.build(**changes), _tokens()[:, :16], _PROMPTS, capacity=capacity
        )


@pytest.mark.parametrize(
    'changes',
    [
        {**_STRICT, 'pattern': ('lsh',), 'rounds': 3},
        {**_STRICT, 'pattern': ('local', 'full', 'lsh'), 'layers': 3},
    ],
    ids=str,
)
def test_later_tokens_change_no_earlier_logit_at_all(changes):
    model, tokens = models.build(**changes), _tokens()
    before = np.asarray(_parallel(model, tokens))
    for first in (1, 7, 16, 31):
        other = tokens.copy()
        other[:, first:] = (other[:, first:] + 1 + np.arange(32 - first)) % 11
        after = np.asarray(_parallel(model, other))
        np.testing.assert_array_equal(after[:, :first], before[:, :first])
        assert np.abs(after - before)[:, first:].max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize('changes', [_STRICT, {'buckets': ()}, {'buckets': (2, 4)}])
def test_hash_rotations_are_those_of_a_call(changes):
    model, tokens = models.build(**changes, layers=4), _tokens(16)
    key = jax.random.key(5)
    rotations = model_lib.hash_rotations(model, key)
    assert [r is None for r in rotations] == [True, False, True, False]
    call = jax.jit(lambda m, **options: m(tokens, **options))
    drawn = call(model, key=key)
    np.testing.assert_array_equal(drawn, call(model, key=key, hash_rotations=rotations))


def test_buckets_do_not_depend_on_the_length():
    assert models.config(buckets=()).lsh.buckets == 16
    assert models.config(buckets=(), length=16).lsh.buckets == 8
    tokens = _tokens()
    model = models.build(**_STRICT)
    np.testing.assert_allclose(
        _parallel(model, tokens[:, :8]), _parallel(model, tokens)[:, :8], atol=1e-5
    )


def _fifty_steps(model, state, tokens_B):
    def step(carry, _):
        logits, state = steps_lib.decode_step(model, *carry)
        return (state, logits.argmax(-1).astype(jnp.int32)), None

    return jax.lax.scan(step, (state, tokens_B), None, length=50)[0]


@pytest.mark.slow
@pytest.mark.parametrize('rule', ['strict', 'reformer', 'trax'])
def test_a_step_costs_the_same_after_any_length(rule):
    def compiled(length):
        changes = {'rule': rule, 'length': length, 'buckets': (32, 32)}
        model = jax.eval_shape(lambda: models.build(**changes, positions='none'))
        lengths = jax.ShapeDtypeStruct((1,), jnp.int32)
        tokens = jax.ShapeDtypeStruct((1, 8), jnp.int32)
        _, state = jax.eval_shape(
            functools.partial(steps_lib.prefill, capacity=length),
            model,
            tokens,
            lengths,
        )
        steps = jax.jit(_fifty_steps, donate_argnums=1)
        return steps.lower(model, state, lengths).compile(compilation.options())

    short, long = compiled(64), compiled(4096)
    assert short.cost_analysis()['flops'] == long.cost_analysis()['flops']
    # Copies of a token's own arrays only: all caches but the local one are larger.
    assert max(_copied(short) + _copied(long)) < 1024


def _copied(compiled):
    """Sizes of the arrays that a compiled program copies."""
    shapes = re.findall(r' = \w+\[([\d,]*)\]\S* copy\(', compiled.as_text())
    return [math.prod(map(int, filter(None, shape.split(',')))) for shape in shapes]
