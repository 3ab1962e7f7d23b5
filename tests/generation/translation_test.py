"""Translations of texts: in order, each as it is alone, in few shapes of batches."""

import functools

import jax
import numpy as np
import pytest
import small_models as models

from reformer_jax import data
from reformer_jax.data import translation_scores
from reformer_jax.generation import decoding
from reformer_jax.generation import show
from reformer_jax.generation import translation

_TEXTS = ['abc', '', 'a', 'ab cd ef', '  ', 'a b', 'cdefgh abcd', 'é']


@functools.cache
def _model():
    return models.build(
        vocab_size=258,
        length=24,
        pattern=('full',),
        layers=2,
        buckets=(),
        encoder={'length': 16},
    )


@functools.cache
def _dataset():
    fields = {'source': 'none', 'source_column': 'a', 'target_column': 'b'}
    fields |= {'lengths': (4, 8), 'batch_size': 2, 'seed': 0}
    return data.open({'dataset': 'pairs', **fields})


def _alone(text, beams):
    """By the first tokens of the best beam up to the end."""
    row = np.append(_dataset().encode(text.encode()), 1)
    tokens, _ = decoding.beam_search(
        _model(),
        source=row[None],
        steps=min(row.size + 50, 24),
        beams=beams,
        stop_token=1,
    )
    made = tokens[0, 0]
    made = made[: np.argmax(made == 1)] if (made == 1).any() else made
    text = _dataset().decode(made).decode('utf-8', 'replace')
    return ' '.join(text.splitlines()).strip()


@pytest.mark.slow
def test_each_is_what_it_is_alone():
    how = translation.Decoding(beams=3)
    found = translation.translate(_model(), _dataset(), _TEXTS, how)
    wanted = [_alone(text, 3) if text.strip() else '' for text in _TEXTS]
    assert found == wanted
    assert len(set(found)) > 2


def test_widths_are_those_of_the_buckets_and_more_up_to_the_encoder(monkeypatch):
    shapes = []

    def search(model, *, source, steps, **options):
        shapes.append(source[0].shape)
        np.testing.assert_array_equal(steps, np.minimum(source[1].sum(1) + 3, 24))
        return np.ones((len(steps), 1, 1), np.int32), None

    monkeypatch.setattr(decoding, 'beam_search', search)
    monkeypatch.setattr(translation, '_TOKENS', 16)
    how = translation.Decoding(more_tokens=3)
    translation.translate(_model(), _dataset(), [*_TEXTS, *['x'] * 6], how)
    # Ten of at most 4 tokens, the last batch filled up; one of 9, one of 12.
    assert shapes == [(4, 4)] * 3 + [(1, 16)] * 2


def test_lines_are_printed_in_order(capsys, monkeypatch):
    monkeypatch.setattr(show, '_LINES', 3)
    # As Windows writes it, with a byte order mark.
    text = '\ufeff'.encode() + '\r\n'.join(_TEXTS).encode() + b'\r\n'
    show.write_translations(_model(), _dataset(), text, translation.Decoding(beams=3))
    printed = capsys.readouterr().out
    show.write_translations(_model(), _dataset(), text, translation.Decoding(), beams=3)
    assert capsys.readouterr().out == printed
    wanted = translation.translate(
        _model(), _dataset(), _TEXTS, translation.Decoding(beams=3)
    )
    assert printed == ''.join(f'{line}\n' for line in wanted)


def test_a_line_that_is_too_long_is_named_before_any_is_translated(capsys):
    with pytest.raises(
        ValueError, match='line 2 of the input has 17 tokens.*encoder.length=16'
    ):
        show.write_translations(
            _model(), _dataset(), b'a\n' + b'b' * 16, translation.Decoding()
        )
    assert not capsys.readouterr().out


def test_input_that_is_no_text():
    with pytest.raises(ValueError, match='the input is not UTF-8'):
        show.write_translations(
            _model(), _dataset(), b'a\n\xff', translation.Decoding()
        )


def test_one_beam_takes_the_likeliest_token_each_time():
    found = translation.translate(
        _model(), _dataset(), _TEXTS[5:], translation.Decoding(beams=1)
    )
    for text, made in zip(_TEXTS[5:], found, strict=True):
        row = _dataset().tokens(text)
        tokens = decoding.generate(
            _model(),
            source=row[None],
            key=jax.random.key(0),
            steps=min(row.size + 50, 24),
            temperature=0.0,
            stop_token=1,
        )
        assert translation._as_line(_dataset(), tokens[0]) == made


@pytest.mark.parametrize(
    'changes', [{'beams': 0}, {'length_penalty': -1.0}, {'more_tokens': 0}]
)
def test_bad_decoding(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        translation.Decoding(**changes)


def test_scores_of_known_translations():
    references = ['Ein Mann geht über die Straße.', 'Zwei Hunde rennen im Gras umher.']
    values, signatures = translation_scores.scores(references, references, 'de')
    assert values == dict.fromkeys(signatures, pytest.approx(100))
    assert (
        'tok:intl' in signatures['bleu_intl']
        and 'case:lc' in signatures['bleu_lowercase']
    )
    lower = [text.lower() for text in references]
    values, signatures = translation_scores.scores(lower, references, 'fr')
    assert set(values) == {'bleu', 'bleu_lowercase', 'chrf'}
    assert values['bleu'] < 80 and values['bleu_lowercase'] == pytest.approx(100)
    assert 'tok:13a' in signatures['bleu']
