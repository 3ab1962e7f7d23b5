"""Packed files are read or refused whatever they are called; never as they are."""

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
import zlib

import pytest

from reformer_jax.data import corpus
from reformer_jax.data import packing

_TEXT = b'What is packed is no text. ' * 40


def _tarred(members, mode='w'):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def _zipped(members):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, 'w') as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def _without_marks(tarred):
    """As the tar of 1979 wrote it."""
    content = bytearray(tarred)
    for start in range(0, len(content), tarfile.BLOCKSIZE):
        header = memoryview(content)[start : start + tarfile.BLOCKSIZE]
        if header[257:262] == b'ustar':
            header[257:265] = bytes(8)
            header[148:156] = b' ' * 8
            header[148:156] = b'%06o\0 ' % sum(header)
    return bytes(content)


def _name_alone(value):
    """Names a case: packed bytes tell the time, which differs between processes."""
    return value if isinstance(value, str) else ''


_HALVES = {'b/2': _TEXT[500:], 'a/1': _TEXT[:500], 'a/.hidden': b'x', '__': b''}


@pytest.mark.parametrize(
    'name, content',
    {
        'a.GZ': gzip.compress(_TEXT),
        'a.txt.Bz2': bz2.compress(_TEXT),
        'A.XZ': lzma.compress(_TEXT),
        'a.lzma': lzma.compress(_TEXT, lzma.FORMAT_ALONE),
        'a.tar': _tarred(_HALVES),
        'a.TGZ': _tarred(_HALVES, 'w:gz'),
        'a.tar.bz2': _tarred(_HALVES, 'w:bz2'),
        'a.txz': _tarred(_HALVES, 'w:xz'),
        'a.Zip': _zipped(_HALVES),
        'a': gzip.compress(_TEXT),
        'a.txt': _zipped({'t': _TEXT}),
        'a.bak': bz2.compress(_TEXT),
        'a.gz.1': _tarred({'t.bz2': bz2.compress(_TEXT)}, 'w:gz'),
        'a.zip.part': _zipped({'1.gz': gzip.compress(_TEXT), '2': b''}),
        'a.tbz': _tarred(_HALVES, 'w:bz2'),
        'old.tar': _without_marks(_tarred(_HALVES)),
        'old.TAR.GZ': gzip.compress(_without_marks(_tarred(_HALVES))),
        'above.tgz': _tarred({'../t': _TEXT}, 'w:gz'),
        'below.tgz': _tarred({'./t': _TEXT, './.t': b'x'}, 'w:gz'),
        'pieces.gz': gzip.compress(_TEXT[:99]) + gzip.compress(_TEXT[99:]),
    }.items(),
    ids=_name_alone,
)
def test_packed_texts_are_unpacked(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert corpus.read(tmp_path / name).tobytes() == _TEXT
    (tmp_path / name).rename(tmp_path / 'new')
    assert corpus.read(tmp_path / 'new').tobytes() == _TEXT


@pytest.mark.parametrize(
    'name, content, message',
    [
        ('a.zst', b'\x28\xb5\x2f\xfd' + _TEXT, r'a\.zst.* packed by zstd: .*zstd -d'),
        ('a.txt', b'\x28\xb5\x2f\xfd' + _TEXT, r'a\.txt.* packed by zstd'),
        ('a.ZST', _TEXT, 'packed by zstd'),
        ('a.7z', b"7z\xbc\xaf'\x1c" + _TEXT, '7-Zip.*7z x'),
        ('a.rar', b'Rar!\x1a\x07\x01' + _TEXT, 'RAR'),
        ('a.lz4', b'\x04\x22\x4d\x18' + _TEXT, 'lz4 -d'),
        ('a.Z', b'\x1f\x9d' + _TEXT, 'uncompress'),
        ('a.GZ', _TEXT, r'a\.GZ.* cannot be unpacked'),
        ('a.bz2', _TEXT, 'cannot be unpacked'),
        ('a.bz2', bz2.compress(_TEXT)[:-5], 'cannot be unpacked'),
        ('a.tar', _TEXT, 'cannot be unpacked'),
        ('a.tar', _tarred({'t': _TEXT})[:700], 'cannot be unpacked'),
        ('a.tgz', gzip.compress(_tarred({'t': _TEXT})[:700]), 'cannot be unpacked'),
        ('a.tar', _tarred({'.t': _TEXT}), 'holds no bytes'),
        ('a', gzip.compress(b'\x28\xb5\x2f\xfd' + _TEXT), 'packed by zstd'),
        ('a', b'\x5e*M\x18' + _TEXT, 'packed by zstd'),
        ('a', b'PK\x07\x08' + _zipped({'a': _TEXT})[:200], 'cannot be unpacked'),
        ('a.tzst', _TEXT, 'packed by zstd'),
        ('a.txt', b'LZIP\x01' + _TEXT, r'a\.txt.* packed by lzip: .*lzip -d'),
        ('a', b'\x89LZO\x00\r\n\x1a\n' + _TEXT, 'packed by lzop'),
        ('a', b'\x02\x21\x4c\x18' + _TEXT, 'packed by lz4'),
        ('a.sz', b'\xff\x06\x00\x00sNaPpY' + _TEXT, 'packed by snappy'),
        ('a.txt.BR', _TEXT, 'packed by brotli'),
        ('a.cab', b'MSCF\x00\x00\x00\x00' + _TEXT, 'packed by cabinet'),
        ('a', zlib.compress(_TEXT), 'packed by zlib: .*pigz -dz'),
        ('a.gzip', _TEXT, 'cannot be unpacked'),
        ('a.tbz', _TEXT, 'cannot be unpacked'),
        ('a.docx', _zipped({'[Content_Types].xml': b'<a/>'}), r'a\.docx.* to text'),
        ('a.epub', _zipped({'mimetype': b'a', 't.html': _TEXT}), 'convert it to text'),
        ('a.npz', _zipped({'train.npy': _TEXT}), 'convert it to text'),
        ('a', _zipped({'a/data.pkl': _TEXT}), 'convert it to text'),
        ('a.tgz', _tarred({'a': _zipped({'a.npy': b''})}, 'w:gz'), "'a.npy' in it"),
    ],
    ids=_name_alone,
)
def test_what_cannot_be_unpacked_is_refused_by_name(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        corpus.read(tmp_path / name)


def test_what_only_begins_like_one_is_a_text(tmp_path):
    for text in (b'BZh is bzip2', b'PK', b'7z', b'Rar! he said', b'x^2', b'LZIP'):
        (tmp_path / 'a').write_bytes(text)
        assert corpus.read(tmp_path / 'a').tobytes() == text


@pytest.mark.parametrize('place', [0, 1536, 6144])
def test_a_tar_is_read_to_its_end(tmp_path, place):
    """Python takes a damaged header, and what follows the first end, for the end."""
    content = bytearray(_tarred(_HALVES)[:6144] + _tarred(_HALVES))
    if place < 6144:
        content = content[:6144]
        content[place] ^= 1
    (tmp_path / 'a').write_bytes(bytes(content))
    with pytest.raises(ValueError, match='cannot be unpacked'):
        corpus.read(tmp_path / 'a')


def test_many_members_together_are_too_much(tmp_path, monkeypatch):
    monkeypatch.setattr(packing, '_ALWAYS', 50_000)
    zeros = gzip.compress(bytes(40_000))
    for pack in (_tarred, _zipped):
        (tmp_path / 'a').write_bytes(pack({'1': zeros}))
        assert corpus.read(tmp_path / 'a').size == 40_000
        monkeypatch.setattr(packing, '_TIMES', 1)
        (tmp_path / 'a').write_bytes(pack({'1': zeros, '2': zeros}))
        with pytest.raises(ValueError, match='unpacks to more than 50,000, as no text'):
            corpus.read(tmp_path / 'a')


def test_no_more_than_four_times(tmp_path):
    content = _TEXT
    for _ in range(4):
        content = gzip.compress(content)
    (tmp_path / 'a').write_bytes(content)
    assert corpus.read(tmp_path / 'a').tobytes() == _TEXT
    (tmp_path / 'a').write_bytes(gzip.compress(content))
    with pytest.raises(ValueError, match='more than four times: unpack it'):
        corpus.read(tmp_path / 'a')
