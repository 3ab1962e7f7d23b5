"""Tests of enwik8: the real download and preparation, from a small local web server."""

import functools
import hashlib
import http.server
import itertools
import threading
import zipfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import downloader

from reformer_jax import data
from reformer_jax.data import corpus
from reformer_jax.data import enwik8

TEXT = np.random.default_rng(0).integers(0, 256, 4000, np.uint8)


@pytest.fixture
def path(tmp_path):
    file = tmp_path / 'text'
    file.write_bytes(TEXT.tobytes())
    return str(file)


def tokens(split, **fields):
    """Tokens and weights of the first 30 batches of a split."""
    config = {'length': 16, 'batch_size': 9, 'seed': 3, **fields}
    batches = list(itertools.islice(data.open(config).batches(split), 30))
    return np.stack([(batch['tokens'], batch['weights']) for batch in batches])


def write_zip(file, members):
    with zipfile.ZipFile(file, 'w', zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


@pytest.fixture
def enwik8_site(tmp_path, monkeypatch):
    """A small enwik8.zip behind a local web server; returns the folder it serves."""
    folder = tmp_path / 'site'
    folder.mkdir()
    write_zip(folder / 'enwik8.zip', {'enwik8': TEXT.tobytes()})

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Handler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    packed = (folder / 'enwik8.zip').read_bytes()
    url = f'http://127.0.0.1:{server.server_port}/enwik8.zip'
    sha256 = hashlib.sha256(packed).hexdigest()
    archive = corpus.Archive(url, len(packed), sha256)
    monkeypatch.setattr(enwik8, 'ARCHIVE', archive)
    monkeypatch.setattr(enwik8, 'BLOCK_BYTES', 90)
    monkeypatch.setattr(downloader, 'MAX_RETRIES', 0)
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    yield folder
    server.shutdown()
    server.server_close()


def test_enwik8_is_downloaded_prepared_once_and_read_in_order(
    path, tmp_path, enwik8_site
):
    folder = str(tmp_path / 'data')
    for split in ('train', 'validation', 'test'):
        prepared = tokens(split, dataset='enwik8', path='', data_dir=folder)
        local = tokens(split, dataset='bytes', path=path)
        np.testing.assert_array_equal(prepared, local)
        (enwik8_site / 'enwik8.zip').unlink(missing_ok=True)  # not needed any more
    splits = [enwik8.load(split, folder) for split in ('train', 'validation', 'test')]
    np.testing.assert_array_equal(np.concatenate(splits), TEXT)


def test_enwik8_is_unpacked_once_in_a_run(tmp_path, enwik8_site, monkeypatch):
    unpacked, as_data_source = [], tfds.core.DatasetBuilder.as_data_source

    def count(builder, split):
        unpacked.append(split)
        return as_data_source(builder, split)

    monkeypatch.setattr(tfds.core.DatasetBuilder, 'as_data_source', count)
    for split in ('train', 'validation', 'validation', 'train'):
        tokens(split, dataset='enwik8', path='', data_dir=str(tmp_path / 'data'))
    assert unpacked == ['train', 'validation']


def test_enwik8_reads_a_local_copy(path):
    local = tokens('train', dataset='enwik8', path=path)
    np.testing.assert_array_equal(local, tokens('train', dataset='bytes', path=path))


@pytest.mark.parametrize(
    ('failure', 'reason'),
    [('missing', '404'), ('changed', 'hecksum'), ('refused', 'Max retries|refused')],
)
def test_enwik8_failed_download_names_the_remedy(
    tmp_path, enwik8_site, monkeypatch, failure, reason
):
    if failure == 'missing':
        (enwik8_site / 'enwik8.zip').unlink()
    elif failure == 'changed':
        write_zip(enwik8_site / 'enwik8.zip', {'enwik8': b'something else'})
    else:
        refusing = enwik8.ARCHIVE._replace(url='http://127.0.0.1:9/enwik8.zip')
        monkeypatch.setattr(enwik8, 'ARCHIVE', refusing)
    with pytest.raises(FileNotFoundError, match=reason) as caught:
        enwik8.load('train', str(tmp_path / 'data'))
    assert enwik8.ARCHIVE.url in str(caught.value)
    assert '--config.data.path=/path/to/enwik8' in str(caught.value)


def test_enwik8_publishes_the_checksum_of_the_original():
    (url,), (info,) = zip(*enwik8.Builder.url_infos.items(), strict=True)
    assert url == 'http://mattmahoney.net/dc/enwik8.zip'
    assert int(info.size) == 36_445_475
    assert info.checksum.startswith('547994d9980ebed1') and len(info.checksum) == 64
