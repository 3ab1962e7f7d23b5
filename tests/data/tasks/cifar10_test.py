"""Tests of CIFAR-10 from files of its binary version, made here of random pixels."""

import itertools

import numpy as np
import pytest

from reformer_jax import data
from reformer_jax.data.tasks import cifar10

_NAMES = [f'data_batch_{part}.bin' for part in range(1, 6)] + ['test_batch.bin']


@pytest.fixture
def folder(tmp_path):
    """20 images a file."""
    rng = np.random.default_rng(0)
    for name in _NAMES:
        records = rng.integers(0, 256, (20, 3073), np.uint8)
        records[:, 0] %= 10
        records.tofile(tmp_path / name)
    return tmp_path


def _open(source, **changes):
    fields = {'dataset': 'cifar10', 'source': str(source), 'batch_size': 4, 'seed': 3}
    return data.open({**fields, **changes})


def _records(folder, names):
    bytes_ = b''.join((folder / name).read_bytes() for name in names)
    return np.frombuffer(bytes_, np.uint8).reshape(-1, 3073)


@pytest.mark.parametrize(
    ('split', 'names', 'part'),
    [
        ('train', _NAMES[:5], slice(0, 90)),
        ('validation', _NAMES[:5], slice(90, 100)),
        ('test', _NAMES[5:], slice(0, 20)),
    ],
)
def test_splits(folder, split, names, part):
    dataset = _open(folder)
    records = _records(folder, names)[part]
    assert dataset._count(split) == len(records)
    rows, labels = dataset._examples(split, np.arange(len(records)))
    np.testing.assert_array_equal(labels, records[:, 0])
    # The pixel of row 2, column 5 of an image, of each of its channels.
    red, green, blue = (records[:, 1 + c * 1024 + 2 * 32 + 5] for c in range(3))
    grey = (0.2989 * red + 0.587 * green + 0.114 * blue) * 255.5 / 255
    np.testing.assert_array_equal(np.stack(rows)[:, 2 * 32 + 5], np.floor(grey))


def test_grey_of_colours():
    """White stays 255 and black 0; as tf.image.rgb_to_grayscale gives them."""
    colours = [[255] * 3, [0] * 3, [255, 0, 0], [0, 255, 0], [0, 0, 255], [10] * 3]
    channels = np.repeat(np.array(colours, np.uint8), 1024, axis=1)
    grey = cifar10._grey(channels)
    assert (grey == grey[:, :1]).all()
    assert grey[:, 0].tolist() == [255, 0, 76, 149, 29, 10]


def test_batches_and_scores(folder):
    dataset = _open(folder, batch_size=6)
    batches = list(dataset.batches('validation'))
    assert [batch['weights'].sum() for batch in batches] == [6, 4]
    for batch in batches:
        assert {n: (x.shape, x.dtype) for n, x in batch.items()} == dataset.spec
    assert batches[0]['mask'].all()  # black is a pixel too
    assert not batches[1]['mask'][4:].any()
    labels = np.concatenate([batch['labels'] for batch in batches])[:10]
    assert dataset.score('validation', np.eye(10)[labels])['accuracy'] == 1


def test_an_epoch_has_each_image_once_in_a_fresh_order(folder):
    dataset = _open(folder, batch_size=90)
    rows, _ = dataset._examples('train', np.arange(90))
    batches = list(itertools.islice(dataset.batches('train'), 2))
    for batch in batches:
        assert {row.astype(np.uint8).tobytes() for row in batch['tokens']} == {
            row.tobytes() for row in rows
        }
    assert (batches[0]['tokens'] != batches[1]['tokens']).any()


def test_the_files_that_training_reads(folder):
    assert [file.name for file in _open(folder).files] == _NAMES[:5]


def test_pixels_are_no_text(folder):
    assert _open(folder).decode(np.array([0, 255])) == b'0 255 '
    with pytest.raises(ValueError, match="are of images, not of the text b'a cat'"):
        _open(folder).encode(b'a cat')


def test_missing_files_are_named_with_where_they_are_to_be_had(folder):
    (folder / 'data_batch_3.bin').unlink()
    for source in (folder, ''):
        with pytest.raises(FileNotFoundError, match='no file .*cifar-10-binary.tar.gz'):
            next(_open(source).batches('train'))


@pytest.mark.parametrize('damage', ['short', 'empty', 'class'])
def test_damaged_files_are_named(folder, damage):
    file = folder / 'test_batch.bin'
    content = file.read_bytes()
    bad = {'short': content[:-1], 'empty': b'', 'class': b'\x0a' + content[1:]}
    file.write_bytes(bad[damage])
    with pytest.raises(ValueError, match="test_batch.bin' of .* is none of the binary"):
        list(_open(folder).batches('test'))
