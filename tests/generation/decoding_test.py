"""generate, stream, beam_search and score against recomputation with the model."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_models as models

from reformer_jax.generation import beams as beams_lib
from reformer_jax.generation import decoding
from reformer_jax.generation import prompts
from reformer_jax.generation import steps as steps_lib
from reformer_jax.training import step as step_lib

_KEY = jax.random.key(7)
_PROMPTS = [[1, 2, 3, 4, 5], [7], [9, 8, 7, 6, 5, 4, 3, 2, 1, 2, 3]]
_STOP = 4


@functools.cache
def _model(**changes):
    return models.build(rule='strict', buckets=(), **changes)


@jax.jit
def _log_p(model, tokens):
    return jax.nn.log_softmax(model(tokens))


def _next_log_p(model, sequence, start=0):
    """Of the token after a sequence, by the whole forward pass."""
    tokens = np.zeros((1, model.config.length), np.int32)
    tokens[0, : len(sequence) + 1] = [start, *sequence]
    return np.asarray(_log_p(model, tokens))[0, len(sequence)]


def _greedy(model, prompt, steps):
    sequence = list(prompt)
    for _ in range(steps):
        sequence.append(int(_next_log_p(model, sequence).argmax()))
    return sequence[len(prompt) :]


def _generate(model, prompt, **options):
    return decoding.generate(model, prompt, **{'key': _KEY, 'steps': 12, **options})


# --- Generate ---------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize('side', ['right', 'left'])
def test_greedy_rows_are_those_of_each_prompt_alone(side):
    tokens, mask = prompts.pad(_PROMPTS)
    if side == 'left':
        tokens, mask = (
            np.array(
                [np.roll(x, -len(p)) for x, p in zip(array, _PROMPTS, strict=True)]
            )
            for array in (tokens, mask)
        )
    made = _generate(_model(), tokens, mask=mask, temperature=0)
    wanted = [_greedy(_model(), prompt, 12) for prompt in _PROMPTS]
    np.testing.assert_array_equal(made, wanted)


@pytest.mark.slow
def test_start_token_none_is_no_start_token():
    with_start = _generate(_model(), [[2, 3]])
    headless = _model(start_token=-1)
    by_hand = _generate(headless, [[0, 2, 3]])
    without = _generate(headless, [[2, 3]])
    np.testing.assert_array_equal(with_start, by_hand)
    assert (without != with_start).any()


def test_an_empty_prompt_has_the_start_token_alone():
    by_hand = _generate(_model(start_token=-1), [[0]], temperature=0)
    np.testing.assert_array_equal(_generate(_model(), [[]], temperature=0), by_hand)
    with pytest.raises(ValueError, match='an empty prompt.*no start token'):
        _generate(_model(start_token=-1), [[]])


def test_samples_follow_the_model():
    made = _generate(_model(), [[1, 2]], steps=2, samples=4000)
    first = np.exp(_next_log_p(_model(), [1, 2]))
    counts = np.bincount(made[:, 0], minlength=11) / len(made)
    np.testing.assert_allclose(counts, first, atol=0.03)
    likeliest = int(first.argmax())
    second = np.exp(_next_log_p(_model(), [1, 2, likeliest]))
    seconds = made[made[:, 0] == likeliest, 1]
    counts = np.bincount(seconds, minlength=11) / len(seconds)
    np.testing.assert_allclose(counts, second, atol=0.06)


@pytest.mark.slow
def test_rows_depend_on_key_and_place_and_prompt_only():
    tokens, mask = prompts.pad(_PROMPTS)
    made = _generate(_model(), tokens, mask=mask, samples=2)
    assert made.shape == (6, 12)
    np.testing.assert_array_equal(
        made, _generate(_model(), tokens, mask=mask, samples=2)
    )
    # The first prompt's samples, with another batch around them.
    np.testing.assert_array_equal(
        made[:2], _generate(_model(), [_PROMPTS[0]], samples=2)
    )
    assert (made[0] != made[1]).any()
    other = _generate(_model(), tokens, mask=mask, samples=2, key=jax.random.key(8))
    assert (made != other).any()


def test_stop_token_ends_a_row():
    without = _generate(_model(), [[1, 2]], samples=16, steps=20)
    made = _generate(_model(), [[1, 2]], samples=16, steps=20, stop_token=_STOP)
    stopped = 0
    for row, free in zip(made, without, strict=True):
        places = np.flatnonzero(free == _STOP)
        end = places[0] if places.size else 20
        stopped += places.size > 0
        np.testing.assert_array_equal(row[:end], free[:end])
        assert (row[end:] == _STOP).all()
    assert 0 < stopped


def test_stream_ends_when_all_rows_have_stopped():
    first = int(_next_log_p(_model(), [1, 2]).argmax())
    options = {'key': _KEY, 'temperature': 0, 'stop_token': first, 'steps': 25}
    parts = list(decoding.stream(_model(), [[1, 2]], **options))
    np.testing.assert_array_equal(parts, [[[first]]])
    made = decoding.generate(_model(), [[1, 2]], **options)
    np.testing.assert_array_equal(made, [[first] * 25])


def test_parts_of_a_stream_are_what_generate_returns(monkeypatch):
    monkeypatch.setattr(decoding, '_STEPS_PER_CALL', 5)
    decoding._compiled.cache_clear()
    parts = list(decoding.stream(_model(), [[1, 2]], key=_KEY, steps=13))
    assert [part.shape for part in parts] == [(1, 1), (1, 5), (1, 5), (1, 2)]
    decoding._compiled.cache_clear()
    monkeypatch.undo()
    np.testing.assert_array_equal(
        np.concatenate(parts, axis=1), _generate(_model(), [[1, 2]], steps=13)
    )


def test_numbers_and_keys_may_be_arrays():
    ours = {'steps': 3, 'samples': 2, 'temperature': 0.5, 'top_k': 4, 'top_p': 0.5}
    wanted = _generate(_model(), [[1, 2]], **ours)
    arrays = {name: jnp.asarray(value) for name, value in ours.items()}
    raw = jax.random.PRNGKey(7)
    np.testing.assert_array_equal(
        _generate(_model(), [[1, 2]], **arrays, key=raw), wanted
    )


@pytest.mark.parametrize(
    'options, message',
    [
        ({'prompt': np.zeros((0, 3), int)}, 'an empty prompt'),
        ({'prompt': [[1] * 32]}, 'do not fit the model, which has model.length=32'),
        ({'prompt': [[11]]}, 'token 11'),
        ({'stop_token': 11}, r'stop_token=11 is outside \[0, 11\)'),
        ({'stop_token': -1}, 'stop_token=-1'),
        ({'top_p': 0.0}, 'top_p=0.0'),
        ({'top_p': 1.5}, 'top_p=1.5'),
        ({'top_k': 12}, 'top_k=12'),
        ({'steps': 0}, 'steps=0 must be .*at least 1'),
        ({'steps': 10**12}, 'steps=1000000000000 must be .* at most model.length=32'),
        ({'samples': 0}, 'samples=0'),
        ({'prompt': [[1, 2], [3]]}, 'prompts.pad makes tokens and mask'),
    ],
)
def test_errors_before_anything_is_compiled(options, message, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError('compiled')

    monkeypatch.setattr(decoding, '_compiled', refuse)
    options = {'prompt': [[1]], 'key': _KEY, 'steps': 3, **options}
    with pytest.raises(ValueError, match=message):
        decoding.stream(_model(), **options)  # not even read
    if not set(options) & {'top_p', 'top_k', 'samples'}:
        del options['key']
        with pytest.raises(ValueError, match=message):
            decoding.beam_search(_model(), **options)


def test_more_continuations_than_memory():
    message = 'need [0-9,]{6,}.. GiB of caches, and the device has .*: ask for fewer'
    with pytest.raises(ValueError, match=f'samples=1000000000000 {message}'):
        decoding.stream(_model(), [[1]], key=_KEY, steps=4, samples=10**12)
    with pytest.raises(ValueError, match=f'beams=1000000000000 {message}'):
        decoding.beam_search(_model(), [[1]], steps=4, beams=10**12)


# --- Beam search ------------------------------------------------------------------


def _all_continuations(model, prompt, steps, length_penalty):
    """Scores by brute force of all that stop and all that do not."""
    scores = {}
    frontier = {(): 0.0}
    for length in range(1, steps + 1):
        longer = {}
        for tokens, log_p in frontier.items():
            next_log_p = _next_log_p(model, [*prompt, *tokens])
            for token in range(model.config.vocab_size):
                longer[(*tokens, token)] = log_p + float(next_log_p[token])
        done = {t for t in longer if t[-1] == _STOP or length == steps}
        for tokens in done:
            penalty = ((5 + length) / 6) ** length_penalty
            filled = (*tokens, *(_STOP,) * (steps - length))
            scores[filled] = longer[tokens] / penalty
        frontier = {t: s for t, s in longer.items() if t not in done}
    return scores


@pytest.mark.slow
@pytest.mark.parametrize('length_penalty', [0.0, 0.6, 2.0])
def test_wide_beams_find_the_best_of_all(length_penalty):
    model = _model(vocab_size=5)
    tokens, mask = prompts.pad([[1, 2, 3, 0, 1, 2], [3]])
    found, scores = decoding.beam_search(
        model,
        tokens,
        mask=mask,
        steps=3,
        beams=64,
        length_penalty=length_penalty,
        stop_token=_STOP,
    )
    assert found.shape == (2, 64, 3) and scores.shape == (2, 64)
    found, scores = found[:, :40], scores[:, :40]
    for row, prompt in enumerate([[1, 2, 3, 0, 1, 2], [3]]):
        every = _all_continuations(model, prompt, 3, length_penalty)
        best = sorted(every, key=every.__getitem__, reverse=True)[:40]
        assert any(_STOP in tokens for tokens in best)
        assert [tuple(t) for t in found[row].tolist()] == best
        np.testing.assert_allclose(scores[row], [every[t] for t in best], atol=1e-4)


def test_narrow_beams_follow_the_definition():
    """Three beams, no stop token: each step keeps the three best extensions."""
    steps, beams = 7, 3
    found, scores = decoding.beam_search(
        _model(), [[1, 2]], steps=steps, beams=beams, length_penalty=0.0
    )
    kept = {(): 0.0}
    for _ in range(steps):
        longer = {
            (*tokens, token): score + float(log_p)
            for tokens, score in kept.items()
            for token, log_p in enumerate(_next_log_p(_model(), [1, 2, *tokens]))
        }
        kept = dict(
            itertools.islice(sorted(longer.items(), key=lambda x: -x[1]), beams)
        )
    assert [tuple(t) for t in found[0].tolist()] == list(kept)
    np.testing.assert_allclose(scores[0], list(kept.values()), atol=1e-4)


def test_one_beam_is_greedy():
    found, _ = decoding.beam_search(_model(), [[1, 2]], steps=9, beams=1)
    np.testing.assert_array_equal(found[0, 0], _greedy(_model(), [1, 2], 9))


@pytest.mark.slow
def test_rows_with_their_own_limits_fill_the_model(monkeypatch):
    """One ends where its caches do, while the other goes on."""
    model, rows, limits = _model(pattern=('full',)), [[5] * 27, [1]], [5, 31]
    positions, decode_step = [], steps_lib.decode_step

    def watched(model, state, *others):
        jax.debug.callback(positions.append, state.lengths_B)
        return decode_step(model, state, *others)

    tokens, mask = prompts.pad(rows)
    given = prompts.prompts(model.config, tokens, mask, limits)
    with monkeypatch.context() as patch:
        patch.setattr(steps_lib, 'decode_step', watched)
        search = jax.jit(functools.partial(beams_lib.search, beams=2, steps=31))
        found, _ = search(model, given, np.array(limits), 0.6, -1)
    jax.effects_barrier()
    assert len(positions) == 30 and np.max(positions) == 31 == given.capacity - 1
    for row, (prompt, limit) in enumerate(zip(rows, limits, strict=True)):
        alone, _ = decoding.beam_search(model, [prompt], steps=limit, beams=2)
        np.testing.assert_array_equal(found[row, :, :limit], alone[0])


@pytest.mark.parametrize(
    'options, message',
    [
        ({'beams': 0}, 'beams=0 must be .*at least 1'),
        ({'length_penalty': -1.0}, 'length_penalty=-1.0'),
        ({'length_penalty': float('inf')}, 'length_penalty=inf'),
    ],
)
def test_bad_beams(options, message):
    with pytest.raises(ValueError, match=message):
        decoding.beam_search(_model(), [[1]], steps=2, **options)


def test_more_beams_than_continuations():
    found, scores = decoding.beam_search(_model(), [[1, 2]], steps=1, beams=14)
    assert sorted(found[0, :11, 0].tolist()) == list(range(11))
    assert np.isfinite(scores[0, :11]).all() and (scores[0, 11:] == -np.inf).all()
    assert ((found >= 0) & (found < 11)).all()


# --- Score ------------------------------------------------------------------------


def test_score_is_the_loss_of_evaluation():
    tokens = np.random.default_rng(0).integers(0, 11, (2, 32)).astype(np.int32)
    logp = decoding.score(_model(), tokens)
    batch = {'tokens': tokens, 'weights': np.ones((2, 32), np.float32)}
    sums, _ = jax.jit(step_lib.evaluate)(_model(), batch)
    np.testing.assert_allclose(-logp.sum(), sums['loss'], rtol=1e-5)


@pytest.mark.parametrize('changes', [{}, {'loss_chunk_length': 3}])
def test_score_of_rows_of_different_lengths(changes):
    rows = [[3, 1, 2, 7, 7], [5], list(range(11)) + [1, 1]]
    tokens = np.full((3, 15), 6)
    mask = np.zeros((3, 15), bool)
    for row, (first, values) in enumerate(zip([2, 14, 0], rows, strict=True)):
        mask[row, first : first + len(values)] = True
        tokens[row, mask[row]] = values
    logp = decoding.score(_model(**changes), tokens, mask=mask)
    assert (logp[~mask] == 0).all()
    for row, values in enumerate(rows):
        wanted = [
            _next_log_p(_model(), values[:n])[value] for n, value in enumerate(values)
        ]
        np.testing.assert_allclose(logp[row, mask[row]], wanted, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize('rule', ['reformer', 'strict'])
def test_score_of_a_row_does_not_depend_on_the_others(rule):
    model = models.build(
        rule=rule, buckets=(), dense_length=0 if rule != 'strict' else -1
    )
    tokens = np.random.default_rng(0).integers(0, 11, (2, 32))
    mask = np.ones((2, 32), bool)
    mask[0, 15:] = False
    together = decoding.score(model, tokens, mask=mask)
    alone = decoding.score(model, tokens[:1, :15])
    np.testing.assert_allclose(together[0, :15], alone[0], atol=2e-5)
    # And they are those of evaluation at the full length.
    logp = jax.jit(lambda m, t: jax.nn.log_softmax(m(t)))(
        model, np.concatenate([[[0]], tokens[1:, :-1]], axis=1)
    )
    wanted = np.take_along_axis(np.asarray(logp)[0], tokens[1][:, None], 1)[:, 0]
    np.testing.assert_allclose(together[1], wanted, atol=2e-5)


@pytest.mark.slow
def test_score_without_a_start_token():
    headless = _model(start_token=-1)
    logp = decoding.score(headless, [[0, 3, 1, 2]])
    wanted = decoding.score(_model(), [[3, 1, 2]])
    np.testing.assert_allclose(logp[0], [0.0, *wanted[0]], atol=2e-5)
    np.testing.assert_array_equal(decoding.score(headless, [[3]]), 0)


@pytest.mark.slow
def test_what_is_generated_has_the_score_that_steps_gave_it():
    """With the whole length of the model used."""
    tokens, scores = decoding.beam_search(
        _model(), [[1, 2]], steps=30, beams=2, length_penalty=0.0
    )
    logp = decoding.score(_model(), np.concatenate([[[1, 2]], tokens[:, 0]], axis=1))
    np.testing.assert_allclose(logp[0, 2:].sum(), scores[0, 0], atol=1e-3)
