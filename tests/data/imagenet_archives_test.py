"""Tests of the published set: real download and preparation, from a local server.

Its archives are tiny ones, written here as the original ones are.
"""

import functools
import hashlib
import http.server
import io
import json
import tarfile
import threading

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core import shuffle
from tensorflow_datasets.core.download import downloader

from reformer_jax import data
from reformer_jax.data import corpus
from reformer_jax.data import imagenet64
from reformer_jax.data import images as images_lib

DOWNSAMPLED = 'downsampled_imagenet/64x64'
IMAGES = np.random.default_rng(0).integers(0, 256, (16, 64, 64, 3), np.uint8)
IMAGES[3] = IMAGES[3, ..., :1]  # grey
SPLITS = {'train': IMAGES[:11], 'validation': IMAGES[11:]}
PUBLISHED = imagenet64.ARCHIVES


def config(source, **changes):
    fields = {'dataset': 'imagenet64', 'source': source, 'batch_size': 4, 'seed': 3}
    return {**fields, **changes}


def png(image):
    file = io.BytesIO()
    grey = (image == image[..., :1]).all()
    Image.fromarray(image[..., 0] if grey else image).save(file, 'PNG')
    return file.getvalue()


def write_tar(path, images):
    """Images as PNG files in a folder, one channel where they are grey."""
    with tarfile.open(path, 'w') as archive:
        folder = tarfile.TarInfo(path.stem)
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for number, image in enumerate(images):
            content = png(image)
            member = tarfile.TarInfo(f'{path.stem}/{number:07d}.png')
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Tiny archives behind a local web server; returns the folder it serves."""
    folder = tmp_path / 'site'
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Handler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

    archives = {}
    for split, original in PUBLISHED.items():
        file = folder / original.url.split('/')[-1]
        write_tar(file, SPLITS[split])
        packed = file.read_bytes()
        url = f'http://127.0.0.1:{server.server_port}/{file.name}'
        sha256 = hashlib.sha256(packed).hexdigest()
        archives[split] = corpus.Archive(url, len(packed), sha256)
    monkeypatch.setattr(imagenet64, 'ARCHIVES', archives)
    monkeypatch.setattr(imagenet64, 'IMAGES_OF_A_PART', 4)
    monkeypatch.setattr(imagenet64, 'PARTS', {'train': 2, 'validation': 1})
    monkeypatch.setattr(downloader, 'MAX_RETRIES', 0)
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    yield folder
    server.shutdown()
    server.server_close()


def as_list(images):
    return sorted(image.tobytes() for image in images)


def test_archives_are_downloaded_and_prepared_once(tmp_path, site):
    settings = config(DOWNSAMPLED, data_dir=str(tmp_path / 'data'), batch_size=11)
    assert data.open(settings).splits == ('train', 'validation')
    for _ in range(2):
        train = next(data.open(settings).batches('train'))
        found = images_lib.to_images(train['tokens'])
        assert as_list(found) == as_list(SPLITS['train'])
        (batch,) = data.open(settings).batches('validation')
        assert (batch['weights'] == [[1]] * 5 + [[0]] * 6).all()
        found = images_lib.to_images(batch['tokens'][:5])
        assert as_list(found) == as_list(SPLITS['validation'])
        for file in site.iterdir():  # not needed any more
            file.unlink()


def test_prepared_images_continue_exactly(tmp_path, site):
    settings = config(DOWNSAMPLED, data_dir=str(tmp_path / 'data'), shrink=8)
    iterator = data.open(settings).batches('train')
    next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    restored = data.open(settings).batches('train')
    restored.set_state(state)
    for _ in range(9):
        np.testing.assert_array_equal(
            next(restored)['tokens'], next(iterator)['tokens']
        )


def test_more_images_than_tfds_sorts_without_tensorflow(tmp_path, site, monkeypatch):
    """Beyond a limit tfds sorts a split in files, which it opens with TensorFlow."""
    monkeypatch.setattr(shuffle, 'MAX_MEM_BUFFER_SIZE', 8 * 13_000)  # 7 of 11 in a part
    images = imagenet64.load('train', str(tmp_path / 'data'))
    assert as_list(row['image'] for row in images) == as_list(SPLITS['train'])


def test_parts_of_the_published_sets_stay_below_that_limit():
    record = 64 * 64 * 3 + 100
    parts = imagenet64.PARTS['train'] - 1, imagenet64.PARTS['validation']
    assert parts == (19, 1)
    largest = imagenet64.IMAGES_OF_A_PART
    # The last part of train is what is left of 1,281,149 images, and not empty.
    rest = 1_281_149 - 19 * largest
    assert 0 < rest < largest and largest * record < shuffle.MAX_MEM_BUFFER_SIZE
    assert 50_000 * record < shuffle.MAX_MEM_BUFFER_SIZE


def test_a_test_split_is_missed_before_a_download():
    message = f"'{DOWNSAMPLED}' has no split 'test', only the splits train, validation"
    with pytest.raises(ValueError, match=message):
        data.open(config(DOWNSAMPLED)).batches('test')


@pytest.mark.parametrize(
    ('failure', 'reason'), [('missing', '404'), ('changed', 'hecksum')]
)
def test_a_failed_download_names_the_remedy(tmp_path, site, failure, reason):
    files = list(site.iterdir())
    assert len(files) == 2
    for file in files:
        if failure == 'missing':
            file.unlink()
        else:
            file.write_bytes(b'something else')
    with pytest.raises(FileNotFoundError, match=reason) as caught:
        data.open(config(DOWNSAMPLED, data_dir=str(tmp_path / 'data'))).batches('train')
    for said in ('train_64x64.tar', '--config.data.data_dir=FOLDER', '=FILE.npz'):
        assert said in str(caught.value)


def test_checksums_are_those_of_tfds():
    published = imagenet64.Imagenet64.url_infos
    assert len(published) == 2
    folder = tfds.core.tfds_path('datasets/downsampled_imagenet')
    for line in (folder / 'checksums.tsv').read_text().splitlines():
        url, size, checksum, _ = line.split('\t')
        info = published.pop(url, None)
        if info is not None:
            assert (int(info.size), info.checksum) == (int(size), checksum)
    assert not published
