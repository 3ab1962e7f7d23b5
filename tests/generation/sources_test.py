"""Generation from the sources of an encoder, against the parallel pass."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_models as models

from reformer_jax.generation import decoding
from reformer_jax.generation import prompts
from reformer_jax.generation import steps as steps_lib

_KEY = jax.random.key(7)
_STOP = 4

# Exact attention, averaged, an odd number of half-steps; LSH on both sides with a table
# and a width of the encoder's own.
_CASES = {
    'full': {
        'pattern': ('full',),
        'layers': 3,
        'combine': 'average',
        'positions': 'sinusoidal',
        'encoder': {'layers': 1},
    },
    'lsh': {
        'pattern': ('lsh',),
        'layers': 2,
        'rule': 'strict',
        'buckets': (),
        'heads_at_once': 1,
        'feed_forward_chunk_length': 5,
        **models.ENCODER_OF_ITS_OWN,
    },
}


@functools.cache
def _model(name='full', **changes):
    return models.build(**{**_CASES[name], **changes})


@functools.cache
def _sources(*lengths):
    rng = np.random.default_rng(3)
    return [rng.integers(0, 5, length).tolist() for length in lengths]


@jax.jit
def _log_p(model, tokens, source):
    """Of each next token, by one parallel pass."""
    return jax.nn.log_softmax(model(tokens, memory=model.read_source(*source)))


# --- Steps ------------------------------------------------------------------------

_PROMPTS = np.array([13, 6, 1])
_BEAMS = 2
_ROWS = np.repeat(np.arange(3), _BEAMS)


@jax.jit
def _prefill_and_steps(model, tokens_BP, source, following_TN):
    """Log-probabilities after the prompts and what follows, [T, N, V]; the state."""
    logits, state = steps_lib.prefill(
        model, tokens_BP, _PROMPTS, capacity=32, source=source
    )
    state = steps_lib.take_rows(state, jnp.asarray(_ROWS))
    layers = model.unstacked()

    def step(state, tokens_N):
        logits, state = steps_lib.decode_step(model, state, tokens_N, layers)
        return state, logits

    state, more = jax.lax.scan(step, state, following_TN)
    logits_TNV = jnp.concatenate([logits[_ROWS][None], more])
    return jax.nn.log_softmax(logits_TNV), state


@pytest.mark.parametrize('name', _CASES)
def test_steps_are_the_parallel_pass(name):
    """Two rows a source; padding anywhere, of one source only padding."""
    model, rng = _model(name), np.random.default_rng(0)
    source = rng.integers(0, 11, (3, 21)), rng.random((3, 21)) < [[0.8], [0.3], [0.0]]
    tokens = rng.integers(0, 11, (6, 32))
    for row, length in zip(_ROWS, _PROMPTS[_ROWS], strict=True):
        tokens[_BEAMS * row : _BEAMS * (row + 1), :length] = tokens[
            _BEAMS * row, :length
        ]
    lengths_N = _PROMPTS[_ROWS]
    following = np.array([tokens[range(6), lengths_N + t] for t in range(19)])
    first = np.where(np.arange(16) < _PROMPTS[:, None], tokens[::_BEAMS, :16], 9)
    actual, state = _prefill_and_steps(model, first, source, following)
    wanted = np.asarray(_log_p(model, tokens, tuple(x[_ROWS] for x in source)))
    for row, length in enumerate(lengths_N):
        np.testing.assert_allclose(
            actual[:, row], wanted[row, length - 1 :][:20], atol=1e-4
        )
    assert np.isfinite(wanted).all()
    kept = jax.tree.leaves(state.memories)
    assert len(kept) == 2 * model.config.layers
    assert {x.shape for x in kept} == {(3, 2, 21, 4)}


# --- Rows -------------------------------------------------------------------------


def _greedy(model, source, steps):
    tokens = np.zeros((1, model.config.length), np.int32)
    for place in range(steps):
        tokens[0, place + 1] = _log_p(model, tokens, source)[0, place].argmax()
    return tokens[0, 1 : steps + 1]


def test_likeliest_tokens():
    """Of sources of unequal length, which one beam and each of two samples finds."""
    sources, steps = _sources(21, 3, 24), 12
    tokens, mask = prompts.pad(sources)
    wanted = [
        _greedy(_model(), (tokens[b : b + 1], mask[b : b + 1]), steps) for b in range(3)
    ]
    settings = {'source': (tokens, mask), 'steps': steps}
    made = decoding.generate(_model(), key=_KEY, temperature=0, samples=2, **settings)
    np.testing.assert_array_equal(made, np.repeat(wanted, 2, axis=0))
    found, _ = decoding.beam_search(_model(), beams=1, **settings)
    np.testing.assert_array_equal(found[:, 0], wanted)
    assert len({tuple(row) for row in wanted}) == 3


@pytest.mark.slow
def test_beams_of_a_batch_are_those_of_each_source_alone():
    sources, limits, stop = _sources(21, 3, 24), [20, 17, 18], 10
    settings = {'beams': 3, 'stop_token': stop, 'length_penalty': 1.0}
    together, scores = decoding.beam_search(
        _model(), source=prompts.pad(sources), steps=limits, **settings
    )
    assert together.shape == (3, 3, 20)
    lengths = (together != stop).sum(-1)
    assert 0 < lengths[0, 2] < 17 and lengths[1, 2] == 17  # some stop, some are cut off
    for row, (source, limit) in enumerate(zip(sources, limits, strict=True)):
        alone, score = decoding.beam_search(
            _model(), source=[source], steps=limit, **settings
        )
        np.testing.assert_array_equal(together[row, :, :limit], alone[0])
        assert (together[row, :, limit:] == stop).all()
        np.testing.assert_allclose(scores[row], score[0], atol=1e-4)


@pytest.mark.parametrize('length_penalty', [0.0, 2.0])
def test_wide_beams_find_the_best_of_all(length_penalty):
    """Of all continuations up to each source's own limit."""
    model, limits = _model(vocab_size=5), np.array([3, 2])
    source = prompts.pad(_sources(21, 3))
    found, scores = decoding.beam_search(
        model,
        source=source,
        steps=limits,
        beams=64,
        length_penalty=length_penalty,
        stop_token=_STOP,
    )
    every = np.array(list(itertools.product(range(5), repeat=3)))
    read = np.pad(every, ((0, 0), (1, 0)))
    for row, limit in enumerate(limits):
        of_row = tuple(np.repeat(x[row : row + 1], len(every), axis=0) for x in source)
        log_p = np.take_along_axis(
            np.asarray(_log_p(model, read, of_row))[:, :3], every[..., None], axis=2
        )[..., 0]
        wanted = {}
        for tokens, of_tokens in zip(every, log_p, strict=True):
            stops = np.flatnonzero(tokens[:limit] == _STOP)
            length = stops[0] + 1 if stops.size else limit
            penalty = ((5 + length) / 6) ** length_penalty
            filled = tuple(np.where(np.arange(3) < length, tokens, _STOP).tolist())
            wanted[filled] = of_tokens[:length].sum() / penalty
        best = sorted(wanted, key=wanted.__getitem__, reverse=True)[:12]
        assert [tuple(t) for t in found[row, :12].tolist()] == best
        np.testing.assert_allclose(
            scores[row, :12], [wanted[t] for t in best], atol=1e-4
        )


def test_score_is_the_parallel_pass():
    sources, targets = _sources(21, 3), [[3, 1, 4], [2, 2, 7, 9, 1, 0]]
    source = prompts.pad(sources)
    tokens, mask = prompts.pad(targets)
    actual = decoding.score(_model(), tokens, mask=mask, source=source)
    wanted = np.asarray(_log_p(_model(), np.pad(tokens, ((0, 0), (1, 0))), source))
    wanted = np.take_along_axis(wanted[:, :-1], tokens[..., None], axis=2)[..., 0]
    np.testing.assert_allclose(actual, np.where(mask, wanted, 0), atol=2e-5)


# --- Bad input --------------------------------------------------------------------


@pytest.mark.parametrize(
    'source, message',
    [
        (None, 'has an encoder .* gets no source'),
        ([[1]], '1 sources and 2 prompts'),
        ([[1] * 33] * 2, 'longer than the model.*length=32.*model.encoder.length'),
        ([[1, 2], [11, 3]], r"token 11 is outside \[0, 11\), .* the model's encoder"),
        ([[1, 2], [3]], 'sources of different lengths, prompts.pad makes'),
        ([1, 2], r'sources of shape \(2,\)'),
        ([[0.5], [0.5]], 'sources of .* type float64'),
        (([[1], [2]], [[True]]), r'mask of shape \(1, 1\) .* \(2, 1\)'),
        ([[], []], 'an empty source'),
        (np.zeros((0, 3), int), 'an empty source'),
    ],
)
def test_errors_before_anything_is_compiled(source, message, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError('compiled')

    monkeypatch.setattr(decoding, '_compiled', refuse)
    for function, settings in (
        (decoding.stream, {'key': _KEY, 'steps': 2}),
        (decoding.beam_search, {'steps': 2}),
        (decoding.score, {}),
    ):
        with pytest.raises(ValueError, match=message):
            function(_model(), [[1], [2]], source=source, **settings)


def test_a_source_and_no_encoder():
    model, tokens = models.build(), np.ones((1, 4), np.int32)
    with pytest.raises(ValueError, match='has no encoder .* leave source out'):
        decoding.score(model, [[1]], source=[[1]])
    with pytest.raises(ValueError, match='has no encoder .* leave source out'):
        steps_lib.prefill(
            model, tokens, np.array([4]), capacity=4, source=(tokens, tokens > 0)
        )
