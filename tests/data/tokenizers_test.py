"""Tests of the tokenizers: offsets, streams of bytes, training, errors."""

import io
import re
import subprocess
import sys

import numpy as np
import pytest
import sentencepiece

import convert
from reformer_jax.data import tokenizers

TEXT = (
    'def walk(path):\n    """Walks a path; naïve, wörld."""\n    return path.walk()\n\n'
    'The quick brown fox walks over the lazy dog, and the dog walks on.\n'
)
STRANGE = 'dög walks\n\n\t日本 Ⅳ ﬁ 👍🏽  the  path '


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp('model') / 'spiece.model'
    tokenizers.train([TEXT] * 3, path, vocab_size=300)
    return str(path)


@pytest.fixture(scope='module')
def foreign(tmp_path_factory):
    """A model as others train them: normalizing, without bytes, end or padding."""
    proto = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.splitlines() * 3),
        model_writer=proto,
        vocab_size=50,
        eos_id=-1,
        minloglevel=2,
    )
    path = tmp_path_factory.mktemp('model') / 'spiece.model'
    path.write_bytes(proto.getvalue())
    return str(path)


def assert_types(tokenizer, ids):
    assert ids.dtype == np.int32 and ids.ndim == 1
    assert 0 <= ids.min() and ids.max() < tokenizer.vocab_size


def test_bytes_are_tokens():
    tokenizer = tokenizers.load('bytes')
    assert tokenizer.vocab_size == 258
    assert (tokenizer.pad_id, tokenizer.separator_id) == (0, 1)
    assert tokenizer.encode('aé').tolist() == [99, 0xC3 + 2, 0xA9 + 2]
    assert tokenizer.encode(b'a\xff').tolist() == [99, 257]
    assert tokenizer.decode(np.array([99, 1, 0, 257, 300])) == b'a\xff'
    assert tokenizer.decode([99]) == b'a'
    assert tokenizer.encode('').size == 0
    assert tokenizer.encode('\ud800').size == 3  # JSON can hold half a character


def test_bytes_know_their_characters():
    ids, starts, ends = tokenizers.load('bytes').encode_with_offsets('aé日b')
    assert ids.tolist() == tokenizers.load('bytes').encode('aé日b').tolist()
    assert starts.tolist() == [0, 1, 1, 2, 2, 2, 3]
    assert ends.tolist() == [1, 2, 2, 3, 3, 3, 4]
    assert starts.dtype == ends.dtype == np.int32


def test_a_trained_model_keeps_all_of_a_text(model):
    tokenizer = tokenizers.load(model)
    assert tokenizer.vocab_size == 300
    assert (tokenizer.pad_id, tokenizer.separator_id) == (0, 2)
    for text in (TEXT, STRANGE, ' ', '\n', '<pad></s>'):
        ids = tokenizer.encode(text)
        assert_types(tokenizer, ids)
        assert tokenizer.decode(ids) == b' ' + text.encode()
        assert tokenizer.encode(text.encode()).tolist() == ids.tolist()
    assert len(tokenizer.encode(TEXT)) < 0.9 * len(TEXT)
    assert tokenizer.encode('').size == 0


@pytest.mark.parametrize(
    'text',
    [
        'a table: \u2581\u2582\u2583\u2584 and a_b, c\u2581d\n',
        '\u2581' * 5,
        ' \u2581 \u2581\u2581the\u2581dog',
        'dög\u2581\ue000\ue001\u2581',  # characters that could stand for it
    ],
)
def test_its_own_space_is_a_character_like_any(model, text):
    tokenizer = tokenizers.load(model)
    assert tokenizer.decode(tokenizer.encode(text)) == b' ' + text.encode()
    ids, starts, ends = tokenizer.encode_with_offsets(text)
    assert ids.tolist() == tokenizer.encode(text).tolist()
    for place, character in enumerate(text):
        if character == '\u2581':
            of_it = ids[(starts == place) & (ends == place + 1)]
            assert tokenizer.decode(of_it) == '\u2581'.encode()


def test_training_does_not_take_its_own_space_for_one(tmp_path):
    text = 'the\u2581dog\u2581walks ' * 50
    tokenizers.train([text], tmp_path / 'model', vocab_size=272, model_type='bpe')
    tokenizer = tokenizers.load(str(tmp_path / 'model'))
    assert tokenizer.decode(tokenizer.encode(text)) == b' ' + text.encode()
    assert len(tokenizer.encode(' dog')) > 1  # it was never seen behind a space


@pytest.mark.parametrize('model_type', ['unigram', 'bpe'])
def test_every_character_stays(tmp_path, model_type):
    path = tmp_path / 'model'
    tokenizers.train([TEXT] * 3, path, vocab_size=300, model_type=model_type)
    tokenizer = tokenizers.load(str(path))
    planes = [range(0xD800), range(0xE000, 0x20000), range(0xE0000, 0xE0200)]
    text = ''.join(chr(code) for plane in planes for code in plane)
    assert tokenizer.decode(tokenizer.encode(text)) == b' ' + text.encode()


@pytest.mark.parametrize('kind', ['model', 'foreign'])
@pytest.mark.parametrize(
    ('text', 'told'),
    [
        (b'caf\xe9 au lait', r'byte 3 \(0xe9\)'),
        ('dög '.encode() * 300 + b'\xff', r'byte 1,500 \(0xff\)'),
        ('日本'.encode()[:-1], r'byte 3 \(0xe6\)'),
        ('the dog'.encode('utf-16'), r'byte 0 \(0xff\)'),
    ],
)
def test_bytes_that_are_no_text_are_named(request, kind, text, told):
    tokenizer = tokenizers.load(request.getfixturevalue(kind))
    with pytest.raises(ValueError, match=f'the text is no UTF-8 at {told}.*iconv'):
        tokenizer.encode(text)
    assert tokenizers.load('bytes').encode(text).size == len(text)


@pytest.mark.parametrize('kind', ['model', 'foreign'])
def test_decoding_may_be_cut_anywhere(request, kind):
    tokenizer = tokenizers.load(request.getfixturevalue(kind))
    ids = tokenizer.encode(STRANGE)
    whole = tokenizer.decode(ids)
    for cut in range(len(ids) + 1):
        assert tokenizer.decode(ids[:cut]) + tokenizer.decode(ids[cut:]) == whole
    # Control pieces and ids outside have no text.
    control = [0, 2] if kind == 'model' else [1]
    assert tokenizer.decode([*control, -1, tokenizer.vocab_size]) == b''


def test_a_foreign_model_decodes_as_sentencepiece_does(foreign):
    tokenizer = tokenizers.load(foreign)
    theirs = sentencepiece.SentencePieceProcessor(model_file=foreign)
    assert (tokenizer.pad_id, tokenizer.separator_id) == (0, 0)  # it has but <unk>
    ids = tokenizer.encode(STRANGE)
    assert 0 in ids  # unknown
    assert tokenizer.decode(ids).decode() == ' ' + theirs.decode(ids.tolist())


@pytest.mark.parametrize('kind', ['bytes', 'model', 'foreign'])
@pytest.mark.parametrize('text', [TEXT, STRANGE, '日本', 'é\ud800x', 'a', ''])
def test_offsets_give_back_the_text(request, kind, text):
    name = kind if kind == 'bytes' else request.getfixturevalue(kind)
    tokenizer = tokenizers.load(name)
    ids, starts, ends = tokenizer.encode_with_offsets(text)
    np.testing.assert_array_equal(ids, tokenizer.encode(text))
    assert len(ids) == len(starts) == len(ends)
    assert (np.diff(starts) >= 0).all() and (np.diff(ends) >= 0).all()
    if kind == 'foreign' or not text:  # it leaves out spaces
        return
    first_space = kind == 'model'
    assert starts[0] == 0 and ends[-1] == len(text)
    for i in range(len(ids)):
        part = text[starts[i] : ends[i]]
        decoded = tokenizer.decode(ids[i : i + 1])
        if decoded.decode('utf-8', 'replace').strip('\ufffd') == '':
            assert len(part) == 1  # every byte of a character stands for all of it
        elif '\ud800' not in part:
            assert part.encode() == (decoded[1:] if first_space and i == 0 else decoded)


def test_offsets_of_normalized_text(foreign):
    ids, starts, ends = tokenizers.load(foreign).encode_with_offsets('the  dog Ⅳ')
    words = ['the  dog Ⅳ'[start:end] for start, end in zip(starts, ends, strict=True)]
    assert ''.join(words).replace(' ', '') == 'thedogⅣ'


def test_training_is_repeatable_and_sees_long_lines(tmp_path, model):
    again = tmp_path / 'new' / 'folder' / 'spiece.model'
    tokenizers.train(iter([TEXT] * 3), again, vocab_size=300)
    with open(model, 'rb') as first:
        assert again.read_bytes() == first.read()
    assert [file.name for file in again.parent.iterdir()] == ['spiece.model']
    line = 'zyxw vuts ' * 2000  # one line of 20,000 bytes
    tokenizers.train([line], tmp_path / 'long', vocab_size=276, model_type='bpe')
    tokenizer = tokenizers.load(str(tmp_path / 'long'))
    assert len(tokenizer.encode('zyxw vuts')) == 2


def test_indentation_is_one_token(tmp_path):
    text = 'if x:\n        y\n' * 20
    tokenizers.train([text], tmp_path / 'code', vocab_size=275, model_type='bpe')
    _, starts, ends = tokenizers.load(str(tmp_path / 'code')).encode_with_offsets(text)
    assert 8 in ends - starts


@pytest.mark.parametrize('reserved', ['\0', '\u2585'])
def test_training_goes_on_behind_reserved_characters(tmp_path, reserved):
    path = tmp_path / 'spiece.model'
    tokenizers.train([f'ab cd{reserved}ab cd'] * 9, path, vocab_size=265)
    tokenizer = tokenizers.load(str(path))
    text = f'ab{reserved}cd'
    assert tokenizer.decode(tokenizer.encode(text)) == b' ' + text.encode()
    assert len(tokenizer.encode('ab cd')) < 6


def test_training_errors(tmp_path, capfd):
    path = tmp_path / 'spiece.model'
    with pytest.raises(ValueError, match=r"model_type='char': give one of unigram"):
        tokenizers.train([TEXT], path, vocab_size=300, model_type='char')
    with pytest.raises(ValueError, match=r'vocab_size=5000 does not fit.*<= \d+'):
        tokenizers.train([TEXT], path, vocab_size=5000)
    with pytest.raises(ValueError, match=r'vocab_size=100 does not fit.*are 259'):
        tokenizers.train([TEXT], path, vocab_size=100)
    with pytest.raises(ValueError, match='vocab_size=300 does not fit'):
        tokenizers.train([], path, vocab_size=300)
    assert not list(tmp_path.iterdir())
    path.write_bytes(b'mine')
    message = f'{re.escape(repr(str(path)))} exists'
    with pytest.raises(FileExistsError, match=message):
        tokenizers.train([TEXT], path, vocab_size=300)
    assert path.read_bytes() == b'mine'
    assert capfd.readouterr() == ('', '')


def test_a_file_that_cannot_be_written_is_known_before_training(tmp_path):
    (tmp_path / 'file').write_text('')

    def texts():
        raise AssertionError('read')
        yield

    with pytest.raises(OSError, match='file'):
        tokenizers.train(texts(), tmp_path / 'file' / 'new', vocab_size=300)


def test_a_tokenizer_json_takes_its_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'tokenizers', None)
    file = tmp_path / 'tokenizer.json'
    file.write_text('{}')
    with pytest.raises(ValueError, match='is not installed: pip install tokenizers'):
        tokenizers.load(str(file))


def test_command_line_names_a_text_that_is_none(tmp_path):
    (tmp_path / 'text').write_bytes(TEXT.encode() * 3 + 'café'.encode('latin-1'))
    arguments = ['tokenizer', str(tmp_path / 'text'), str(tmp_path / 'new')]
    place = f'{3 * len(TEXT.encode()) + 3:,}'
    with pytest.raises(ValueError, match=rf"text' is no UTF-8 at byte {place} \(0xe9"):
        convert.main([*arguments, '--vocab_size=300'])
    assert not (tmp_path / 'new').exists()


def test_loading_errors(tmp_path, model):
    for name in ('', str(tmp_path / 'none.model'), str(tmp_path)):
        message = rf"no tokenizer at {re.escape(repr(name))}.*'bytes'"
        with pytest.raises(FileNotFoundError, match=message):
            tokenizers.load(name)
    with open(model, 'rb') as file:
        whole = file.read()
    for name, content in {
        'empty': b'',
        'other': b'garbage' * 100,
        'cut': whole[:-100],
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}' is no SentencePiece model"):
            tokenizers.load(str(tmp_path / name))


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        (b'ab\ncd\nef gh', [b'ab\ncd\n', b'ef gh']),
        (b'ab cd ef gh', [b'ab cd ', b'ef gh']),
        ('日本日本'.encode(), ['日本'.encode()] * 2),
        (b'abcdefgh', [b'abcdefg', b'h']),
        (b'\x80' * 8, [b'\x80' * 7, b'\x80']),
        (b'', []),
    ],
)
def test_pieces_end_at_lines_words_or_characters(text, expected):
    assert list(tokenizers.pieces(text, 7)) == expected


def test_command_line_trains_a_model(tmp_path, capsys):
    (tmp_path / 'text').write_text(TEXT * 3, 'utf-8')
    path = tmp_path / 'spiece.model'
    arguments = ['tokenizer', str(tmp_path / 'text'), str(path), '--vocab_size=320']
    done = subprocess.run(
        [sys.executable, '-W', 'error', convert.__file__, *arguments]
        + ['--model_type=bpe'],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f'{path}: 320 tokens\n' and not done.stderr
    assert tokenizers.load(str(path)).vocab_size == 320
    with pytest.raises(FileExistsError, match='exists'):
        convert.main(arguments)
