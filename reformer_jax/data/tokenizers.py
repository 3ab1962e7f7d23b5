"""Tokenizers: bytes, tokenizer.json, and SentencePiece models, those of others or
trained here."""

import concurrent.futures
import functools
import io
import os
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import sentencepiece

from reformer_jax import progress
from reformer_jax.data import tokenizer_json

MODEL_TYPES = ('unigram', 'bpe')
BYTES = 'bytes'
_TRAIN = 'train:'

_FIRST_BYTE_ID = 2

# Bytes of one text given to the trainer, which drops longer ones without a word.
_TRAINING_PIECE = 4000
# The trainer drops a whole text for the first, and takes the second for a space.
_RESERVED = '[\u2585\u2581]'
# SentencePiece's own sign for a space.
_SPACE = '\u2581'
# One of these, of three bytes as well, stands for it in what SentencePiece reads.
_PRIVATE = range(0xE000, 0xF900)
# Padding, unknown, end of sentence, and the 256 bytes, which a trained model has.
_CONTROL_AND_BYTES = 259
_UNKNOWN = ' \u2047 '  # what SentencePiece itself decodes an unknown piece to

Offsets = tokenizer_json.Offsets
as_text = tokenizer_json.as_text
config_of = tokenizer_json.config_of
TokenizerJson = tokenizer_json.TokenizerJson


class Bytes:
    """Token = byte + 2, so that 0 is padding and 1 a separator.

    As in tensor2tensor and in the Hugging Face checkpoint google/reformer-enwik8.
    """

    vocab_size = _FIRST_BYTE_ID + 256
    pad_id = 0
    separator_id = 1

    def encode(self, text: str | bytes | np.ndarray) -> np.ndarray:
        """Returns the token ids of a text, int32 [n], or of uint8 of any shape."""
        if isinstance(text, str):
            text = text.encode('utf-8', 'surrogatepass')  # JSON may hold lone ones
        if isinstance(text, bytes):
            text = np.frombuffer(text, np.uint8)
        return text.astype(np.int32) + _FIRST_BYTE_ID

    def encode_with_offsets(self, text: str) -> Offsets:
        """As `SentencePiece.encode_with_offsets`."""
        ids = self.encode(text)
        # All bytes of a character but the first are 0b10xxxxxx.
        first = (ids - _FIRST_BYTE_ID) & 0xC0 != 0x80
        starts = np.cumsum(first, dtype=np.int32) - 1
        return ids, starts, starts + 1

    def decode(self, ids: np.ndarray) -> bytes:
        """Returns the bytes of token ids [n]; what two parts give, joined, is both.

        Ids beyond the vocabulary have none.
        """
        values = np.asarray(ids) - _FIRST_BYTE_ID
        return values[(values >= 0) & (values < 256)].astype(np.uint8).tobytes()

    def to_json(self) -> tuple[str, float]:
        """As `SentencePiece.to_json`; of texts that are no UTF-8 it is not the same."""
        return tokenizer_json.of_bytes(_FIRST_BYTE_ID), 0.0


class SentencePiece:
    """A SentencePiece model.

    Attributes:
      vocab_size: pieces of the model.
      pad_id: the model's, or 0 if it has none.
      separator_id: the model's end of sentence; else its unknown piece.
    """

    def __init__(self, processor: sentencepiece.SentencePieceProcessor) -> None:
        self._processor = processor
        self.vocab_size: int = processor.vocab_size()
        self.pad_id: int = max(processor.pad_id(), 0)
        end, unknown = processor.eos_id(), processor.unk_id()
        self.separator_id: int = end if end >= 0 else max(unknown, 0)
        self._is_byte = np.array([processor.is_byte(i) for i in range(self.vocab_size)])
        self._pieces = [_piece_bytes(processor, i) for i in range(self.vocab_size)]
        self._ids = {self._pieces[i]: i for i in np.flatnonzero(self._is_byte)}
        known = b''.join(self._pieces).decode('utf-8', 'replace')
        private = (c for c in map(chr, _PRIVATE) if c not in known)
        self._stand_in: str = next(private) if self._ids else ''

    def encode(self, text: str | bytes) -> np.ndarray:
        """Returns the token ids of a text, int32 [n].

        A U+2581 stays one where the model has bytes; else it is a space. Half a
        character, which JSON may hold, is '?'.

        Raises:
          ValueError: bytes that are no UTF-8.
        """
        text = as_text(text)
        ids = self._processor.encode(self._encodable(text), return_type='numpy')
        return self._restored(np.array(ids), text)

    def encode_with_offsets(self, text: str) -> Offsets:
        """Returns the token ids of a text and the characters each one stands for.

        Returns:
          ids, starts and ends, each int32 [n]: text[starts[i]:ends[j]] is the text of
          tokens i to j. Starts and ends never fall. The bytes of one character each
          stand for all of it; the space that a model adds in front stands for none.
        """
        text = as_text(text)
        result = self._processor.encode(
            self._encodable(text), return_type='offset_mapping'
        )
        ids = self._restored(np.array(result['ids'], np.int32), text)
        starts, ends = np.array(result['offsets'], np.int32).reshape(-1, 2).T.copy()
        # SentencePiece gives a character to the last of its bytes alone.
        empty = np.flatnonzero((starts == ends) & self._is_byte[ids])
        for i in reversed(empty[empty < len(ids) - 1]):
            if starts[i] == starts[i + 1]:
                ends[i] = ends[i + 1]
        return ids, starts, ends

    def decode(self, ids: np.ndarray) -> bytes:
        """As `Bytes.decode`; control pieces have no text either."""
        known = (int(i) for i in ids if 0 <= i < self.vocab_size)
        return b''.join(self._pieces[i] for i in known)

    def to_json(self) -> tuple[str, float]:
        """As `tokenizer_json.of_sentencepiece`."""
        return tokenizer_json.of_sentencepiece(self._processor)

    def _encodable(self, text: str) -> str:
        """A text with another character, which becomes bytes, for each U+2581."""
        return text.replace(_SPACE, self._stand_in) if self._stand_in else text

    def _restored(self, ids: np.ndarray, text: str) -> np.ndarray:
        """Ids of the encodable text with the bytes of each U+2581 of the text."""
        if not self._stand_in or _SPACE not in text:
            return ids
        stand_in, ours = (
            np.array([self._ids[bytes([byte])] for byte in character.encode()])
            for character in (self._stand_in, _SPACE)
        )
        windows = np.lib.stride_tricks.sliding_window_view(ids, stand_in.size)
        places = np.flatnonzero((windows == stand_in).all(axis=1))
        either = [c == _SPACE for c in text if c in (_SPACE, self._stand_in)]
        ids[places[either][:, None] + np.arange(ours.size)] = ours
        return ids


Tokenizer = Bytes | SentencePiece | TokenizerJson


@functools.lru_cache(maxsize=4)
def load(name: str) -> Tokenizer:
    """Returns a tokenizer; a file is read once in a process.

    Args:
      name: 'bytes', or the path of a SentencePiece model (spiece.model), or of a
        tokenizer.json, which takes the package tokenizers.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is neither; if the package is not installed.
    """
    if name == BYTES:
        return Bytes()
    file = pathlib.Path(name).expanduser()
    if not file.is_file():
        raise FileNotFoundError(
            f"no tokenizer at {name!r}: set config.data.tokenizer to 'bytes' or to the "
            'path of a SentencePiece model or tokenizer.json; python convert.py '
            'tokenizer makes one from a text'
        )
    proto = file.read_bytes()
    if file.suffix == '.json':
        return _load_json(name, proto)
    try:
        if not proto:  # an empty message parses
            raise RuntimeError('it is empty')
        processor = sentencepiece.SentencePieceProcessor(model_proto=proto)
    except RuntimeError as error:
        raise ValueError(
            f'{name!r} is no SentencePiece model ({error}): give the spiece.model '
            "itself, or 'bytes', as config.data.tokenizer"
        ) from error
    return SentencePiece(processor)


def _load_json(name: str, content: bytes) -> TokenizerJson:
    try:
        return TokenizerJson(content.decode())
    except Exception as error:  # whatever the library says
        raise ValueError(f'the tokenizer {name!r} cannot be read: {error}') from error


def is_of_bytes(file: str) -> bool:
    """Whether a file is the tokenizer.json of `Bytes`, which need none."""
    made, _ = Bytes().to_json()
    return file.endswith('.json') and pathlib.Path(file).read_bytes() == made.encode()


def size_to_train(name: str) -> int:
    """Tokens of the SentencePiece model that 'train:SIZE' says is to be made of the
    data; 0 for the name of a tokenizer that there is.

    Raises:
      ValueError: for 'train:' with no such size.
    """
    if not name.startswith(_TRAIN):
        return 0
    size = name.removeprefix(_TRAIN)
    if not (size.isascii() and size.isdigit() and int(size) > _CONTROL_AND_BYTES):
        raise ValueError(
            f'tokenizer={name!r}: give train: and a number of tokens above '
            f'{_CONTROL_AND_BYTES}, such as train:8000'
        )
    return int(size)


def train(
    texts: Iterable[str],
    path: str | os.PathLike[str],
    *,
    vocab_size: int,
    model_type: str = 'unigram',
) -> None:
    """Trains a SentencePiece model and writes it to a file.

    Nothing is normalized: line breaks, runs of spaces and all characters stay, rare
    ones as their bytes, so that the tokens of a text decode to that text (behind the
    space that SentencePiece puts in front). Padding is 0, unknown 1, end of sentence 2,
    the 256 bytes follow. All of the text is held in memory, several times over.

    Args:
      texts: the text, in parts of any length.
      path: file to write; its folder is made.
      vocab_size: number of token ids.
      model_type: 'unigram' or 'bpe'.

    Raises:
      FileExistsError: if `path` exists; nothing is overwritten.
      ValueError: for a bad argument; if the text is too small for `vocab_size`.
    """
    path = pathlib.Path(path).expanduser()
    if model_type not in MODEL_TYPES:
        raise ValueError(
            f'model_type={model_type!r}: give one of {", ".join(MODEL_TYPES)}'
        )
    if path.exists():
        raise FileExistsError(f'{str(path)!r} exists: give another path, or delete it')
    path.parent.mkdir(parents=True, exist_ok=True)  # an error of it before long work
    model = io.BytesIO()
    training = functools.partial(
        sentencepiece.SentencePieceTrainer.train,
        sentence_iterator=_training_pieces(texts),
        model_writer=model,
        vocab_size=vocab_size,
        model_type=model_type,
        pad_id=0,
        unk_id=1,
        eos_id=2,
        bos_id=-1,
        byte_fallback=True,
        normalization_rule_name='identity',
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
    )
    try:
        _run_with_progress(training)
    except RuntimeError as error:
        raise ValueError(
            f'vocab_size={vocab_size!r} does not fit the text: {error} (the bytes and '
            f'control pieces alone are {_CONTROL_AND_BYTES})'
        ) from error
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        whole = pathlib.Path(folder) / 'spiece.model'
        whole.write_bytes(model.getvalue())
        whole.rename(path)


def pieces(text: bytes, limit: int) -> Iterator[bytes]:
    """Cuts a text into pieces of at most `limit` bytes, where it can at line ends.

    Where a piece holds no line end, it ends behind a space; else behind a character.

    Args:
      text: UTF-8, though any bytes will do.
      limit: at least 4, the longest character.
    """
    start = 0
    while len(text) - start > limit:
        end = text.rfind(b'\n', start, start + limit) + 1
        end = end or text.rfind(b' ', start, start + limit) + 1
        if not end:
            end = start + limit
            inside = (i for i in range(4) if text[end - i] & 0xC0 != 0x80)
            end -= next(inside, 0)
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]


def _run_with_progress(training: Callable[[], object]) -> None:
    """Counts the seconds: SentencePiece does not say how far it is."""
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        future = thread.submit(training)

        def seconds() -> Iterator[None]:
            while concurrent.futures.wait([future], timeout=1).not_done:
                yield

        for _ in progress.track(seconds(), 'seconds of training a tokenizer'):
            pass
        future.result()


def _training_pieces(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for part in re.split(_RESERVED, text):
            for piece in pieces(part.encode('utf-8', 'replace'), _TRAINING_PIECE):
                yield piece.decode('utf-8')


def _piece_bytes(processor: sentencepiece.SentencePieceProcessor, token: int) -> bytes:
    piece: str = processor.id_to_piece(token)
    if processor.is_byte(token):  # '<0x41>'
        return bytes([int(piece[3:5], 16)])
    if processor.is_control(token) or processor.is_unused(token):
        return b''
    if processor.is_unknown(token):
        return _UNKNOWN.encode()
    return piece.replace('\u2581', ' ').encode()
