"""Tests of reading a corpus: files, folders, globs, archives, Python's own source."""

import gzip
import lzma
import os
import pathlib
import re
import sysconfig
import zipfile

import numpy as np
import pytest

from reformer_jax import data
from reformer_jax.data import corpus
from reformer_jax.data import packing

CONTENT = np.random.default_rng(0).bytes(4000)


def write_zip(file, members):
    with zipfile.ZipFile(file, 'w', zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def read(path):
    return corpus.read(str(path)).tobytes()


def test_reads_plain_and_packed_files(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path / 'plain').write_bytes(CONTENT)
    (tmp_path / 'a.gz').write_bytes(gzip.compress(CONTENT))
    (tmp_path / 'a.xz').write_bytes(lzma.compress(CONTENT))
    members = {'b': CONTENT[100:], 'a/': b'', 'a/c': CONTENT[:100], 'a/.junk': b'!'}
    write_zip(tmp_path / 'a.zip', members)
    for name in ('plain', 'a.gz', 'a.xz', 'a.zip'):
        assert read(tmp_path / name) == CONTENT, name
        assert read(f'~/{name}') == CONTENT, name


def test_reads_folders_and_globs_in_sorted_order(tmp_path):
    (tmp_path / 'b' / '.hidden').mkdir(parents=True)
    (tmp_path / 'c.txt').write_bytes(b'3')
    (tmp_path / 'a.gz').write_bytes(gzip.compress(b'1'))
    (tmp_path / 'b' / 'x.txt').write_bytes(b'2')
    (tmp_path / 'b' / '.hidden' / 'x.txt').write_bytes(b'!')
    (tmp_path / '.x.txt').write_bytes(b'!')
    assert read(tmp_path) == b'123'
    assert read(tmp_path / '*.txt') == b'3'
    assert read(tmp_path / '**' / '*.txt') == b'23'
    (tmp_path / '[x]').write_bytes(b'4')  # a name, though it looks like a glob
    assert read(tmp_path / '[x]') == b'4'


def test_links_to_folders_are_followed_once(tmp_path):
    for folder, text in (('root/b', b'1'), ('other/c', b'2'), ('root/.d', b'3')):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / 'x.txt').write_bytes(text)
    root = tmp_path / 'root'
    for link, target in (
        ('a', 'root/b'),  # read as b/x.txt
        ('b/loop', 'root'),
        ('b/up', ''),
        ('b/far', 'other'),
        ('e', 'root/.d'),
        ('f', 'nowhere'),
        ('.g', 'other'),
    ):
        (root / link).symlink_to(tmp_path / target)
    (tmp_path / 'other' / 'back').symlink_to(root / 'b')
    names = [file.relative_to(root).as_posix() for file in corpus.files_below(root)]
    assert names == ['b/far/c/x.txt', 'b/x.txt', 'e/x.txt']
    assert read(root) == b'213'
    assert read(tmp_path / 'root' / 'a') == b'21'


def test_empty_path_is_the_source_of_python_itself():
    text = corpus.read('').tobytes()
    assert 4_000_000 < len(text) <= 16_000_000
    text.decode('utf-8')
    root = pathlib.Path(sysconfig.get_path('stdlib'))
    first, second = (
        (root / 'json' / f'{n}.py').read_bytes() for n in ('decoder', 'encoder')
    )
    assert first + b'\n' + second in text
    config = {'dataset': 'bytes', 'path': '', 'length': 64, 'batch_size': 9, 'seed': 0}
    batch = next(data.open(config).batches('validation'))
    part = np.frombuffer(text, np.uint8)[len(text) * 90 // 100 :][: 9 * 64]
    np.testing.assert_array_equal(batch['tokens'].ravel() - 2, part)


def test_python_source_leaves_out_tests_and_machine_specific_files(
    tmp_path, monkeypatch
):
    for name in (
        'b/c.py',
        'a.py',
        'z.py',
        'a.txt',
        'b/tests/c.py',
        'test/c.py',
        'site-packages/c.py',
        'config-3/c.py',
        '_sysconfigdata_x.py',
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(f'<{name}>')
    monkeypatch.setattr(sysconfig, 'get_path', {'stdlib': str(tmp_path)}.get)
    assert corpus.python_source().tobytes() == b'<a.py>\n<b/c.py>\n<z.py>'
    monkeypatch.setattr(corpus, '_STDLIB_LIMIT', 20)
    assert corpus.python_source().tobytes() == b'<a.py>\n<b/c.py>'
    monkeypatch.setattr(sysconfig, 'get_path', {'stdlib': str(tmp_path / 'no')}.get)
    with pytest.raises(
        FileNotFoundError, match=r'no Python source.*config\.data\.path'
    ):
        corpus.python_source()


@pytest.mark.parametrize('name', ['no/such/file', '*.none', 'empty_folder'])
def test_missing_path_names_path_and_remedy(tmp_path, name):
    (tmp_path / 'empty_folder').mkdir()
    path = str(tmp_path / name)
    message = rf'no file found at {re.escape(repr(path))}.*--config\.data\.path=FILE'
    with pytest.raises(FileNotFoundError, match=message):
        corpus.read(path)


def test_empty_file_is_refused(tmp_path):
    (tmp_path / 'empty').write_bytes(b'')
    with pytest.raises(ValueError, match=r"empty' holds no bytes.*config\.data\.path"):
        corpus.read(str(tmp_path / 'empty'))


def test_archives_that_would_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(packing, '_ALWAYS', 50_000)
    content = bytes(10_000_000)
    (tmp_path / 'a.gz').write_bytes(gzip.compress(content))
    (tmp_path / 'a.xz').write_bytes(lzma.compress(content))
    write_zip(tmp_path / 'a.zip', {'a': content[:5_000_000], 'b': content[5_000_000:]})
    for name in ('a.gz', 'a.xz', 'a.zip'):
        with pytest.raises(ValueError, match=rf'{name}. of .* unpacks to more than'):
            read(tmp_path / name)
    (tmp_path / 'b.gz').write_bytes(gzip.compress(content[:50_000]))
    assert read(tmp_path / 'b.gz') == content[:50_000]


def test_a_pipe_is_no_text(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    with pytest.raises(ValueError, match='pipe.*a run that resumes cannot read again'):
        read(tmp_path / 'pipe')


@pytest.mark.parametrize('suffix', ['.gz', '.xz', '.zip'])
@pytest.mark.parametrize('damage', ['truncated', 'flipped', 'not_an_archive', 'empty'])
def test_corrupt_archives_are_named(tmp_path, suffix, damage):
    file = tmp_path / f'text{suffix}'
    if suffix == '.zip':
        write_zip(file, {'text': CONTENT})
    else:
        pack = {'.gz': gzip.compress, '.xz': lzma.compress}[suffix]
        file.write_bytes(pack(CONTENT))
    packed = bytearray(file.read_bytes())
    if damage == 'flipped':
        packed[len(packed) // 2] ^= 255
    damaged = {
        'truncated': packed[:-50],
        'flipped': packed,
        'not_an_archive': b'plain text',
        'empty': b'',
    }[damage]
    file.write_bytes(bytes(damaged))
    message = rf"text\{suffix}' (cannot be unpacked|holds no bytes).*config\.data\.path"
    with pytest.raises(ValueError, match=message):
        corpus.read(str(file))


def test_unreadable_kinds_of_archives_are_named(tmp_path):
    file = tmp_path / 'text.zip'
    write_zip(file, {'text': CONTENT})
    packed = file.read_bytes()
    central = packed.index(b'PK\x01\x02')  # its fields lie 2 bytes behind the local's

    def patched(offset, value):
        damaged = bytearray(packed)
        damaged[offset] = damaged[central + 2 + offset] = value
        return bytes(damaged)

    block = b'\x1f\x8b\x08' + bytes(7) + b'\xff' * 20
    for name, content, told in (
        ('encrypted.zip', patched(6, 1), 'is encrypted: unpack it'),
        ('method.zip', patched(8, 99), 'cannot be unpacked'),
        ('block.gz', block, 'cannot be unpacked'),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}' {told}"):
            corpus.read(str(tmp_path / name))
