"""Files are known again, and what training reads is among them."""

import os
import pathlib
import time

import numpy as np
import pytest

from reformer_jax import data
from reformer_jax.data import fingerprint


@pytest.fixture
def files(tmp_path):
    for folder in ('a', 'b'):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / 'x.txt').write_bytes(folder.encode() * 300_000)
    return [tmp_path / 'a' / 'x.txt', tmp_path / 'b' / 'x.txt']


def test_either_end_and_the_size_of_each_file_count(files):
    before = fingerprint.of(files)
    assert list(before) == ['a/x.txt', 'b/x.txt']
    assert before['a/x.txt']['bytes'] == 300_000
    content = files[1].read_bytes()
    for changed in (b'c' + content[1:], content[:-1] + b'c', content + b'b'):
        files[1].write_bytes(changed)
        after = fingerprint.of(files)
        assert after['a/x.txt'] == before['a/x.txt']
        assert after['b/x.txt'] != before['b/x.txt']
    files[1].write_bytes(content)
    os.utime(files[1], (0, 0))  # a copy is the same
    assert fingerprint.of(files) == before


def test_of_many_files_any_name_size_and_beginning_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprint, '_OPENED', 120)
    files = [tmp_path / f'{n:03}' for n in range(130)]
    for file in files:
        file.write_text('content')
    before = fingerprint.of(files)
    assert before['all files'] == {**before['all files'], 'files': 130, 'bytes': 910}
    others = []
    for number, content in ((129, 'longer content'), (0, 'Content')):
        files[number].write_text(content)
        others.append(fingerprint.of(files))
    others.append(fingerprint.of([*files[:-1], files[-1].rename(tmp_path / 'a')]))
    ends = [found['all files']['ends'] for found in (before, *others)]
    assert len(set(ends)) == len(ends)


def test_a_hundred_gigabytes_take_no_time(tmp_path):
    with open(tmp_path / 'large', 'wb') as file:
        file.truncate(100 * 2**30)
    began = time.perf_counter()
    assert fingerprint.of([tmp_path / 'large'])['large']['bytes'] == 100 * 2**30
    assert time.perf_counter() - began < 1


def test_a_pipe_is_left_alone(tmp_path, files):
    os.mkfifo(tmp_path / 'pipe')
    assert fingerprint.of([tmp_path / 'pipe']) == {}
    assert list(fingerprint.of([tmp_path / 'pipe', files[0]])) == ['x.txt']


_EACH = {'batch_size': 2, 'seed': 0}
_TEXT = {'dataset': 'text', 'length': 8, **_EACH}
_MARKED = {'source_length': 9, 'target_length': 9, 'marks': 1, 'eval_examples': 1}
_PAIRS = {'source_column': 'de', 'target_column': 'en', 'lengths': 8, **_EACH}
_COLUMNS = {f'{name}_column': name for name in ('question', 'context', 'answers')}
_ROWS = {'dataset': 'question_answering', 'length': 8, **_COLUMNS, **_EACH}


def _names(config):
    return [file.name for file in data.open(config).files]


def test_what_each_dataset_reads(tmp_path):
    names = ('train.jsonl', 'dev.jsonl', 'test.jsonl', 'train.de', 'train.en')
    for name in (*names, 'validation.de', 'validation.en.gz', 'x.png', 'text.txt'):
        (tmp_path / name).write_text('{}')
    folder, text = str(tmp_path), str(tmp_path / 'text.txt')
    aligned = str(tmp_path / '{split}.{column}')
    np.savez(tmp_path / 'images.npz', train=np.zeros(3))
    for config, wanted in (
        (_TEXT | {'path': text}, ['text.txt']),
        (_TEXT | {'path': str(tmp_path / '*.en*')}, ['train.en', 'validation.en.gz']),
        (_TEXT | {'dataset': 'enwik8', 'path': text}, ['text.txt']),
        (_TEXT | {'dataset': 'enwik8', 'path': ''}, []),
        ({'dataset': 'marked', 'path': text, **_MARKED, **_EACH}, ['text.txt']),
        ({'dataset': 'imagenet64', 'source': folder, **_EACH}, ['x.png']),
        (
            {'dataset': 'imagenet64', 'source': f'{folder}/images.npz', **_EACH},
            ['images.npz'],
        ),
        (
            {'dataset': 'imagenet64', 'source': 'downsampled_imagenet/64x64', **_EACH},
            [],
        ),
        (
            {'dataset': 'pairs', 'source': aligned, **_PAIRS},
            ['train.de', 'train.en', 'validation.de', 'validation.en.gz'],
        ),
        (
            {'dataset': 'pairs', 'source': folder, **_PAIRS},
            ['train.jsonl', 'dev.jsonl'],
        ),
        (_ROWS | {'source': folder}, ['train.jsonl', 'dev.jsonl']),
        (_ROWS | {'source': text}, ['text.txt']),
        (_ROWS | {'source': 'tfds:squad'}, []),
    ):
        assert _names(config) == wanted, config


def test_the_standard_library_is_files_too():
    files = data.open(_TEXT | {'path': ''}).files
    assert pathlib.Path(os.__file__) in files and len(fingerprint.of(files)) == 1
