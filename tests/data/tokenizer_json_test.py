"""tokenizer.json: read as its own library reads it, and made of other tokenizers."""

import json
import random

import numpy as np
import pytest

from reformer_jax.data import tokenizer_json
from reformer_jax.data import tokenizers

library = pytest.importorskip('tokenizers')

TEXT = (
    'def walk(path):\n    """Walks a path; naïve, wörld."""\n    return path.walk()\n\n'
    'The quick brown fox walks over the lazy dog, and the dog walks on.\n'
)
_NAMES = ['<pad>', '<unk>', '</s>']


def _trained(model, trainer, before, decoder, **options):
    tokenizer = library.Tokenizer(model)
    tokenizer.pre_tokenizer, tokenizer.decoder = before, decoder
    settings = {'vocab_size': 350, 'special_tokens': _NAMES, 'show_progress': False}
    tokenizer.train_from_iterator([TEXT] * 3, trainer(**settings, **options))
    return tokenizer


def _byte_level():
    level = library.pre_tokenizers.ByteLevel
    return _trained(
        library.models.BPE(),
        library.trainers.BpeTrainer,
        level(add_prefix_space=False),
        library.decoders.ByteLevel(),
        initial_alphabet=level.alphabet(),
    )


def _metaspace():  # what transformers saves for a Reformer
    return _trained(
        library.models.BPE(unk_token='<unk>'),
        library.trainers.BpeTrainer,
        library.pre_tokenizers.Metaspace(),
        library.decoders.Metaspace(),
    )


def _unigram():
    return _trained(
        library.models.Unigram(),
        library.trainers.UnigramTrainer,
        library.pre_tokenizers.Metaspace(),
        library.decoders.Metaspace(),
        unk_token='<unk>',
    )


def _word_piece():
    return _trained(
        library.models.WordPiece(unk_token='<unk>'),
        library.trainers.WordPieceTrainer,
        library.pre_tokenizers.BertPreTokenizer(),
        library.decoders.WordPiece(),
    )


def _suffixes():
    return _trained(
        library.models.BPE(unk_token='<unk>', end_of_word_suffix='</w>'),
        library.trainers.BpeTrainer,
        library.pre_tokenizers.Whitespace(),
        library.decoders.BPEDecoder(),
        end_of_word_suffix='</w>',
    )


def _words():
    return _trained(
        library.models.WordLevel(unk_token='<unk>'),
        library.trainers.WordLevelTrainer,
        library.pre_tokenizers.Whitespace(),
        None,
    )


_KINDS = [_byte_level, _metaspace, _unigram, _word_piece, _suffixes, _words]


@pytest.fixture(params=_KINDS, ids=lambda make: make.__name__)
def both(request, tmp_path):
    """A tokenizer of the library, and ours of its file."""
    theirs = request.param()
    theirs.save(str(tmp_path / 'tokenizer.json'))
    return theirs, tokenizers.load(str(tmp_path / 'tokenizer.json'))


@pytest.mark.parametrize(
    'text',
    [TEXT, 'the  dog\n\n naïve zebra', '日本 walks', '', ' ', 'é\u2581x', 'a</s>b'],
)
def test_the_same_tokens_and_texts(both, text):
    theirs, ours = both
    ids = ours.encode(text)
    assert ids.dtype == np.int32 and ids.ndim == 1
    assert ids.tolist() == theirs.encode(text, add_special_tokens=False).ids
    assert ours.encode(text.encode()).tolist() == ids.tolist()
    decoded = ours.decode(ids)
    # The space that some put in front is of the text before it.
    assert decoded.decode().strip(' ') == theirs.decode(ids.tolist()).strip(' ')
    for cut in range(len(ids)):
        assert ours.decode(ids[:cut]) + ours.decode(ids[cut:]) == decoded


def test_offsets_rise_and_end_with_the_text(both):
    _, ours = both
    ids, starts, ends = ours.encode_with_offsets(TEXT)
    assert ids.tolist() == ours.encode(TEXT).tolist()
    assert (np.diff(starts) >= 0).all() and (np.diff(ends) >= 0).all()
    words = TEXT.split()
    assert TEXT[starts[0] : ends[-1]].split() == words
    assert ours.encode_with_offsets('')[1].size == 0


def test_ids_with_a_meaning(both):
    _, ours = both
    assert (ours.pad_id, ours.separator_id) == (0, 2)
    assert ours.decode([0, 2, -1, ours.vocab_size]) == b''
    assert ours.encode(TEXT).max() < ours.vocab_size


def test_a_piece_of_text_is_no_end_of_one():
    """Or the target 'Go! Now' would end at its '!'."""
    level = library.pre_tokenizers.ByteLevel
    theirs = library.Tokenizer(library.models.BPE())
    theirs.pre_tokenizer = level(add_prefix_space=False)
    theirs.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        initial_alphabet=level.alphabet(), show_progress=False
    )
    theirs.train_from_iterator([TEXT], trainer)
    ours = tokenizer_json.TokenizerJson(theirs.to_str())
    assert ours.encode('!').tolist() == [ours.pad_id]
    with pytest.raises(ValueError, match=r"no end of a text.* piece 0 .*'!'.*</s>"):
        ours.separator_id  # noqa: B018
    theirs.add_special_tokens(['<|end_of_text|>'])
    ours = tokenizer_json.TokenizerJson(theirs.to_str())
    assert ours.separator_id == ours.vocab_size - 1


def test_a_text_that_the_library_refuses_is_named():
    theirs = library.Tokenizer(library.models.WordLevel({'a': 0}, unk_token='[UNK]'))
    ours = tokenizer_json.TokenizerJson(theirs.to_str())
    for encode in (ours.encode, ours.encode_with_offsets):
        with pytest.raises(ValueError, match=r"no tokens for 'b' .*UNK.*: use another"):
            encode('b')


def test_what_transformers_wrote_down_does_not_cut_or_fill_texts(tmp_path):
    """save_pretrained keeps truncation and padding as they were used last."""
    theirs = _metaspace()
    wanted = theirs.encode(TEXT).ids
    theirs.enable_truncation(4)
    theirs.enable_padding(length=50)
    theirs.save(str(tmp_path / 'tokenizer.json'))
    ours = tokenizers.load(str(tmp_path / 'tokenizer.json'))
    assert ours.encode(TEXT).tolist() == wanted
    assert ours.encode('the').size < 4


def test_tokens_around_a_text_are_left_out(tmp_path):
    theirs = _word_piece()
    around = library.processors.BertProcessing(('</s>', 2), ('<pad>', 0))
    theirs.post_processor = around
    theirs.save(str(tmp_path / 'tokenizer.json'))
    ids = tokenizers.load(str(tmp_path / 'tokenizer.json')).encode('the dog')
    assert ids.tolist() == theirs.encode('the dog').ids[1:-1]


@pytest.mark.parametrize(
    'content',
    [
        '',
        '[]',
        '{"version": "1.0", "model": {"type": "BPE"}}',
        '{"model": {"type": "New", "vocab": {}}}',
        '\xff',
    ],
)
def test_files_that_cannot_be_read_are_named(tmp_path, content):
    file = tmp_path / 'tokenizer.json'
    file.write_bytes(content.encode('latin-1'))
    with pytest.raises(ValueError, match=r"tokenizer .*tokenizer.json' cannot be read"):
        tokenizers.load(str(file))


def _with_charsmap(charsmap, tmp_path):
    fields = json.loads(_word_piece().to_str())
    part = {'type': 'Precompiled', 'precompiled_charsmap': charsmap}
    fields['normalizer'] = {'type': 'Sequence', 'normalizers': [part]}
    file = tmp_path / 'tokenizer.json'
    file.write_text(json.dumps(fields), 'utf-8')
    return str(file)


@pytest.mark.parametrize('charsmap', ['////AGFiYw==', '', '!!!'])
def test_a_broken_charsmap_is_an_error_and_no_panic(tmp_path, charsmap, capfd):
    with pytest.raises(ValueError, match="tokenizer.json' cannot be read"):
        tokenizers.load(_with_charsmap(charsmap, tmp_path))
    assert not capfd.readouterr().err


def test_a_panic_on_a_text_is_an_error(tmp_path):
    tokenizer = tokenizers.load(_with_charsmap('AwAAAGFiY2Q=', tmp_path))
    with pytest.raises(ValueError, match="no tokens for 'the' .a panic of .*, index"):
        tokenizer.encode('the')


# --- Made of others ---------------------------------------------------------------

_STRANGE = [
    '',
    ' ',
    '  a  b ',
    '\n\n\t x',
    '日本 é 👍🏽',
    '\x00',
    'a\u2581b \u2581',
    'ﬁ Ⅳ',
]


def _made(tokenizer, tmp_path):
    text, others = tokenizer.to_json()
    (tmp_path / 'tokenizer.json').write_text(text, 'utf-8')
    return library.Tokenizer.from_file(str(tmp_path / 'tokenizer.json')), others


def test_of_bytes(tmp_path):
    ours = tokenizers.load('bytes')
    theirs, others = _made(ours, tmp_path)
    assert others == 0
    for text in (TEXT, *_STRANGE, ''.join(map(chr, range(1000)))):
        assert theirs.encode(text).ids == ours.encode(text).tolist()
        assert theirs.decode(ours.encode(text).tolist()) == text
    assert tokenizers.is_of_bytes(str(tmp_path / 'tokenizer.json'))


@pytest.mark.parametrize('kind', ['bpe', 'unigram'])
def test_of_models_trained_here(tmp_path, kind):
    path = tmp_path / 'spiece.model'
    tokenizers.train([TEXT] * 3, path, vocab_size=310, model_type=kind)
    ours = tokenizers.load(str(path))
    theirs, others = _made(ours, tmp_path)
    assert others < (0.01 if kind == 'unigram' else 1e-9)
    rng = random.Random(1)
    words = [TEXT[i : i + rng.randint(1, 9)] for i in range(len(TEXT))]
    mixed = [''.join(rng.sample(words, 9)) for _ in range(50 if kind == 'bpe' else 0)]
    again = tokenizers.load(str(tmp_path / 'tokenizer.json'))
    for text in (TEXT, *_STRANGE, *mixed):
        ids = ours.encode(text).tolist()
        assert theirs.encode(text).ids == again.encode(text).tolist() == ids
        assert theirs.decode(ids) == text
        assert again.decode(ids) == ours.decode(ids)
    assert not tokenizers.is_of_bytes(str(tmp_path / 'tokenizer.json'))
    assert (again.pad_id, again.separator_id, again.vocab_size) == (0, 2, 310)


def test_of_models_that_normalize_most_texts_differ(tmp_path):
    import io

    import sentencepiece

    proto = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.splitlines() * 3),
        model_writer=proto,
        vocab_size=50,
        minloglevel=2,
    )
    (tmp_path / 'spiece.model').write_bytes(proto.getvalue())
    _, others = _made(tokenizers.load(str(tmp_path / 'spiece.model')), tmp_path)
    assert others > 0.5


def test_the_config_beside_it_names_only_what_is_there():
    made, _ = tokenizers.load('bytes').to_json()
    config = tokenizer_json.config_of(made)
    assert config['pad_token'] == '<pad>' and config['eos_token'] == '</s>'
    assert 'unk_token' not in config
    assert (
        not {'pad_token', 'eos_token'} & tokenizer_json.config_of(json.dumps({})).keys()
    )
