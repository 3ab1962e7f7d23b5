"""tokenizer.json, the files of Hugging Face's tokenizers: read, and made of other
tokenizers, so that transformers makes the same tokens."""

import base64
import contextlib
import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

# The space in pieces made of those of SentencePiece, whose own sign for it then is a
# character like any; this one is none, Unicode says.
_SPACE = '\ufdd0'
_SPIECE_SPACE = '\u2581'
_PADDINGS = ('<pad>', '[PAD]', '<|padding|>')
_SEPARATORS = (
    *('</s>', '[SEP]', '<sep>', '<|endoftext|>', '<eos>', '[EOS]'),
    '<|end_of_text|>',
)
_UNKNOWN = ('<unk>', '[UNK]')
_BYTE = re.compile('<0x([0-9A-F]{2})>')
_PROBES = 2000
_NEVER = 1e5  # less likely than any text

Offsets = tuple[np.ndarray, np.ndarray, np.ndarray]


class TokenizerJson:
    """A tokenizer of a tokenizer.json, without the tokens that it puts around a text.

    Attributes:
      vocab_size: one more than the largest id.
      pad_id: of the piece with a usual name for padding; 0 if there is none.
    """

    def __init__(self, text: str) -> None:
        library = _library()

        def check(part: dict[str, Any]) -> dict[str, Any]:
            # The library checks it here, where from_str panics and prints a backtrace.
            if isinstance(charsmap := part.get('precompiled_charsmap'), str):
                decoded = base64.b64decode(charsmap, validate=True)
                library.normalizers.Precompiled(decoded)
            return part

        content = json.loads(text, object_hook=check)
        with _panics_as_errors():
            self._tokenizer = library.Tokenizer.from_str(text)
        # transformers writes down those that were used last.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        ids = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size: int = max(ids.values(), default=-1) + 1
        self.pad_id: int = next((ids[n] for n in _PADDINGS if n in ids), 0)
        named = (ids[n] for n in _SEPARATORS if n in ids)
        self._separator_id = next(named, self.pad_id)
        piece_bytes = _piece_bytes(self._tokenizer, content)
        self._pieces = [b''] * self.vocab_size
        for piece, token in ids.items():
            self._pieces[token] = piece_bytes(piece)

    @property
    def separator_id(self) -> int:
        """Of the piece that is called the end of a text; else as `pad_id`.

        Raises:
          ValueError: that is a piece of text, which would end what has it.
        """
        if text := self._pieces[self._separator_id]:
            raise ValueError(
                f'the tokenizer.json has no end of a text, which pairs need: piece '
                f'{self._separator_id} is the text {text.decode(errors="replace")!r}. '
                f'Name one, such as {" or ".join(_SEPARATORS[:2])}, or use another as '
                'config.data.tokenizer'
            )
        return self._separator_id

    def encode(self, text: str | bytes) -> np.ndarray:
        """As `SentencePiece.encode`."""
        return np.array(self._encoded(text).ids, np.int32)

    def encode_with_offsets(self, text: str) -> Offsets:
        """As `SentencePiece.encode_with_offsets`."""
        encoded = self._encoded(text)
        starts, ends = np.array(encoded.offsets, np.int32).reshape(-1, 2).T.copy()
        return np.array(encoded.ids, np.int32), starts, ends

    def _encoded(self, text: str | bytes) -> Any:
        text = as_text(text)
        try:
            with _panics_as_errors():
                return self._tokenizer.encode(text, add_special_tokens=False)
        except Exception as error:  # which the library raises by this name
            raise ValueError(
                f'the tokenizer.json has no tokens for {text[:50]!r} ({error}): use '
                'another as config.data.tokenizer'
            ) from error

    def decode(self, ids: np.ndarray) -> bytes:
        """As `Bytes.decode`; special pieces have no text either."""
        return b''.join(self._pieces[i] for i in ids if 0 <= i < self.vocab_size)


@contextlib.contextmanager
def _panics_as_errors() -> Iterator[None]:
    """A panic of the library's Rust is no Exception, and has no class to import."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != 'PanicException':
            raise
        raise ValueError(f'a panic of the library, {error}') from error


def as_text(text: str | bytes, told: str = 'the text', before: int = 0) -> str:
    """Text for a tokenizer of subwords; half a character, which JSON may hold, is '?'.

    Raises:
      ValueError: bytes are no UTF-8; it tells where, with so many `before` these.
    """
    if isinstance(text, str):
        return text.encode('utf-8', 'replace').decode('utf-8')
    try:
        return text.decode('utf-8')
    except UnicodeDecodeError as error:
        raise ValueError(
            f'{told} is no UTF-8 at byte {before + error.start:,} '
            f'(0x{text[error.start]:02x}), and subwords are made of that: convert it '
            "(iconv -t UTF-8), or use the tokenizer 'bytes', which takes any."
        ) from error


def config_of(text: str) -> dict[str, Any]:
    """The tokenizer_config.json for the class of transformers that takes a
    tokenizer.json as it is."""
    added = {token['content'] for token in json.loads(text).get('added_tokens') or ()}
    kinds = {'pad_token': _PADDINGS, 'eos_token': _SEPARATORS, 'unk_token': _UNKNOWN}
    named = {
        kind: name
        for kind, names in kinds.items()
        for name in reversed(names)
        if name in added
    }
    return {
        'tokenizer_class': 'PreTrainedTokenizerFast',
        'clean_up_tokenization_spaces': False,
        **named,
    }


def of_bytes(first: int) -> str:
    """The tokenizer.json of bytes as tokens, from `first` on, of texts in UTF-8, as
    transformers has no others; padding is 0 and a separator 1."""
    ids = {character: first + byte for byte, character in _byte_characters().items()}
    level = {'type': 'ByteLevel', 'trim_offsets': True, 'use_regex': False}
    level |= {'add_prefix_space': False}
    return _document(
        normalizer=None,
        pre_tokenizer=level,
        decoder=level,
        model=_bpe({'<pad>': 0, '</s>': 1, **ids}, []),
        special={'<pad>': 0, '</s>': 1},
    )


def of_sentencepiece(processor: Any) -> tuple[str, float]:
    """The tokenizer.json of a SentencePiece model, and how far it is the same.

    Returns:
      The text of the file, and the share of many random texts of which it makes other
      tokens: 0 for a model of type bpe that was trained here; a few in ten thousand for
      unigram ones, between equally likely cuts; most for models that normalize.
    """
    size, unknown = processor.vocab_size(), processor.unk_id()
    pieces = [processor.id_to_piece(i) for i in range(size)]
    scores = [processor.get_score(i) for i in range(size)]
    special = {
        pieces[i]: i
        for i in range(size)
        if processor.is_control(i) or processor.is_unknown(i)
    }
    plain = [
        i for i in range(size) if pieces[i] not in special and not processor.is_byte(i)
    ]
    for i in plain:
        pieces[i] = pieces[i].replace(_SPIECE_SPACE, _SPACE)
    # The scores of bpe are the numbers of the merges.
    if all(scores[i] == int(scores[i]) for i in plain):
        ids = {piece: i for i, piece in enumerate(pieces)}
        model = _bpe(ids, _merges([(scores[i], pieces[i]) for i in plain], ids))
        model |= {'byte_fallback': True, 'unk_token': pieces[unknown], 'fuse_unk': True}
    else:
        # Written out in a text, the others are no pieces.
        never = min(scores) - _NEVER
        likely = {pieces[i]: scores[i] for i in plain}
        vocabulary = [[piece, likely.get(piece, never)] for piece in pieces]
        model = {'type': 'Unigram', 'unk_id': unknown, 'vocab': vocabulary}
        model |= {'byte_fallback': True}
    space = {'String': ' '}
    text = _document(
        normalizer={
            'type': 'Sequence',
            'normalizers': [
                {'type': 'Prepend', 'prepend': _SPACE},
                {'type': 'Replace', 'pattern': space, 'content': _SPACE},
            ],
        },
        pre_tokenizer=None,
        decoder={
            'type': 'Sequence',
            'decoders': [
                {'type': 'Replace', 'pattern': {'String': _SPACE}, 'content': ' '},
                {'type': 'ByteFallback'},
                {'type': 'Fuse'},
                {'type': 'Strip', 'content': ' ', 'start': 1, 'stop': 0},
            ],
        },
        model=model,
        special=special,
    )
    return text, _share_of_others(processor, text, [pieces[i] for i in plain])


def _merges(
    ranked: Sequence[tuple[float, str]], ids: dict[str, int]
) -> list[list[str]]:
    """All pairs of pieces that make one, in the order that these were made."""
    known = {piece for _, piece in ranked}
    return [
        [piece[:cut], piece[cut:]]
        for _, piece in sorted(ranked, key=lambda pair: (-pair[0], ids[pair[1]]))
        for cut in range(1, len(piece))
        if piece[:cut] in known and piece[cut:] in known
    ]


def _share_of_others(processor: Any, text: str, pieces: Sequence[str]) -> float:
    """How many random texts have other tokens."""
    made, rng = TokenizerJson(text), random.Random(0)
    known = [piece.replace(_SPACE, ' ') for piece in pieces]
    known += [' ', '\n', 'é', '日', '~', 'ﬁ', 'Ⅳ']
    texts = [''.join(rng.choices(known, k=rng.randint(1, 30))) for _ in range(_PROBES)]
    others = [t for t in texts if processor.encode(t) != made.encode(t).tolist()]
    return len(others) / _PROBES


def _document(*, special: dict[str, int], **parts: Any) -> str:
    flags = ('single_word', 'lstrip', 'rstrip', 'normalized')
    added = [
        {'id': token, 'content': piece, 'special': True, **dict.fromkeys(flags, False)}
        for piece, token in special.items()
    ]
    content = {'version': '1.0', 'added_tokens': added, 'post_processor': None, **parts}
    return json.dumps(content, ensure_ascii=False, indent=1) + '\n'


def _bpe(ids: dict[str, int], merges: list[list[str]]) -> dict[str, Any]:
    return {'type': 'BPE', 'vocab': ids, 'merges': merges}


def _library() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise ValueError(
            'a tokenizer.json takes the package tokenizers, which is not installed: '
            'pip install tokenizers.'
        ) from error
    return tokenizers


def _byte_characters() -> dict[int, str]:
    """The characters that stand for bytes (Radford et al. 2019): themselves where they
    can be seen, the others counted on from U+0100."""
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (byte for byte in range(256) if byte not in seen)
    shifted = {byte: chr(256 + number) for number, byte in enumerate(others)}
    return {byte: chr(byte) for byte in seen} | shifted


def _piece_bytes(tokenizer: Any, content: dict[str, Any]) -> Callable[[str], bytes]:
    """From a piece to its text behind another one: what two parts give, joined, is what
    both do, which the decoder of the file does not care for."""
    special = {t['content'] for t in content.get('added_tokens') or () if t['special']}
    told = json.dumps(content.get('decoder'))
    by_level = {c: byte for byte, c in _byte_characters().items()}
    decoder = tokenizer.decoder

    def decoded(pieces: list[str]) -> str:
        return ' '.join(pieces) if decoder is None else decoder.decode(pieces)

    behind = decoded(['a', 'a'])[1:]  # 'a', or with a space

    def piece_bytes(piece: str) -> bytes:
        if piece in special:
            return b''
        if '"ByteLevel"' in told and all(c in by_level for c in piece):
            return bytes(by_level[c] for c in piece)
        if '"ByteFallback"' in told and (byte := _BYTE.fullmatch(piece)):
            return bytes([int(byte[1], 16)])
        return decoded(['a', piece, 'a'])[1:].removesuffix(behind).encode()

    return piece_bytes
