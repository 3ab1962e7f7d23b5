"""Tests of ImageNet 64x64: token order, local sources, saved state, errors."""

import itertools
import json
import os
import pathlib
import struct
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from reformer_jax import data
from reformer_jax.data import images as images_lib
from reformer_jax.data import packing

IMAGES = np.random.default_rng(0).integers(0, 256, (30, 64, 64, 3), np.uint8)
SPLITS = {'train': IMAGES[:11], 'validation': IMAGES[11:16], 'test': IMAGES[16:19]}


def config(source, **changes):
    fields = {'dataset': 'imagenet64', 'source': str(source)}
    return {**fields, 'batch_size': 4, 'seed': 3, **changes}


def take(iterator, count):
    return list(itertools.islice(iterator, count))


def assert_same_batches(left, right):
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        np.testing.assert_array_equal(one['tokens'], other['tokens'])
        np.testing.assert_array_equal(one['weights'], other['weights'])


def images_of(settings, split):
    """All images of an evaluation split, without padding rows."""
    batches = list(data.open(settings).batches(split))
    tokens = np.concatenate([batch['tokens'] for batch in batches])
    weights = np.concatenate([batch['weights'] for batch in batches])
    assert (weights == weights[:, :1]).all() and set(weights[:, 0]) <= {0, 1}
    assert not tokens[weights == 0].any()
    return images_lib.to_images(tokens[weights[:, 0] > 0])


def as_set(images):
    return {image.tobytes() for image in images}


def write_image(file, image):
    pathlib.Path(file).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(file)


@pytest.fixture
def npz(tmp_path):
    file = tmp_path / 'images.npz'
    np.savez_compressed(file, **SPLITS)
    return str(file)


@pytest.fixture
def folder(tmp_path):
    """Images named 00 to 29 in two folders, so that they are sorted as IMAGES."""
    for number, image in enumerate(IMAGES):
        name = f'{"ab"[number // 20]}/{number:02d}.{("png", "BMP")[number % 2]}'
        write_image(tmp_path / 'images' / name, image)
    (tmp_path / 'images' / 'README.txt').write_text('no image')
    (tmp_path / 'images' / '.hidden.png').write_text('no image')
    return str(tmp_path / 'images')


# Tokens.


def test_tokens_are_row_by_row_with_channels_fastest():
    image = np.zeros((1, 2, 2, 3), np.uint8)
    image[0, 0, 0] = 1, 2, 3  # row, column
    image[0, 0, 1] = 4, 5, 6
    image[0, 1, 0] = 7, 8, 9
    image[0, 1, 1] = 10, 11, 255
    tokens = images_lib.to_tokens(image)
    assert tokens.dtype == np.int32
    assert tokens.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 255]]


def test_to_images_inverts_to_tokens():
    for side in (1, 5, 64):
        images = IMAGES[:2, :side, :side]
        back = images_lib.to_images(images_lib.to_tokens(images))
        assert back.dtype == np.uint8
        np.testing.assert_array_equal(back, images)


@pytest.mark.parametrize('token', [-1, 256])
def test_tokens_that_are_no_image_are_named(token):
    with pytest.raises(ValueError, match=r'13 tokens are no square image.*3 \* S \* S'):
        images_lib.to_images(np.zeros((1, 13), np.int32))
    tokens = np.zeros((2, 12), np.int32)
    tokens[1, 3] = token
    with pytest.raises(ValueError, match=f'token {token} is no channel.* 0 to 255'):
        images_lib.to_images(tokens)


@pytest.mark.parametrize(
    'images',
    [
        np.zeros((1, 2, 2, 3), np.float32),
        np.zeros((1, 2, 4, 3), np.uint8),
        np.zeros((1, 2, 2, 4), np.uint8),
        np.zeros((2, 2, 3), np.uint8),
    ],
)
def test_arrays_that_are_no_images_are_named(images):
    with pytest.raises(ValueError, match=r'of shape .* dtype .*uint8 \[N, S, S, 3\]'):
        images_lib.to_tokens(images)


def test_average_rounds_the_mean_of_blocks_to_nearest():
    images = np.zeros((1, 64, 64, 3), np.uint8)
    images[0, 2:4, 4:6, 1] = [[255, 255], [255, 254]]  # 254.75
    images[0, :2, 62:, 0] = [[1, 1], [0, 0]]  # 0.5
    images[0, :2, 60:62, 0] = [[1, 0], [0, 0]]  # 0.25
    small = images_lib.average(images, 2)
    assert small.dtype == np.uint8 and small.shape == (1, 32, 32, 3)
    expected = np.zeros((1, 32, 32, 3))
    expected[0, 1, 2, 1], expected[0, 0, 31, 0] = 255, 1
    np.testing.assert_array_equal(small, expected)
    for shrink in (1, 4, 64):
        blocks = IMAGES.reshape(30, 64 // shrink, shrink, 64 // shrink, shrink, 3)
        mean = np.floor(blocks.mean((2, 4)) + 0.5)
        np.testing.assert_array_equal(images_lib.average(IMAGES, shrink), mean)


def test_texts_are_no_prompts(npz):
    with pytest.raises(
        ValueError, match="of images, not of the text b'a cat': use to_tokens"
    ):
        data.open(config(npz)).encode(b'a cat')
    assert data.open(config(npz)).decode(np.array([0, 255])) == b'0 255 '


# Batches.


@pytest.mark.parametrize('shrink', [1, 4])
def test_spec_says_what_batches_hold(npz, shrink):
    settings = config(npz, shrink=shrink)
    shape = (4, 12288 // shrink**2)
    spec = data.open(settings).spec
    assert spec['tokens'] == (shape, np.int32)
    assert spec['weights'] == (shape, np.float32)
    for split in data.open(settings).splits:
        batch = next(data.open(settings).batches(split))
        assert {n: (a.shape, a.dtype) for n, a in batch.items()} == spec
    assert data.open(settings).vocab_size == 256
    assert data.open(settings).head == 'lm'
    assert data.open(settings).classes == 0


def test_an_epoch_is_every_image_once_in_a_fresh_order(npz):
    batches = take(data.open(config(npz)).batches('train'), 22)  # 8 epochs of 11 images
    assert all((batch['weights'] == 1).all() for batch in batches)
    rows = np.concatenate([batch['tokens'] for batch in batches])
    expected = {row.tobytes() for row in images_lib.to_tokens(SPLITS['train'])}
    epochs = [tuple(r.tobytes() for r in rows[e : e + 11]) for e in range(0, 88, 11)]
    assert all(set(epoch) == expected for epoch in epochs)
    assert len(set(epochs)) == 8
    again, other = config(npz), config(npz, seed=4)
    assert_same_batches(batches[:3], take(data.open(again).batches('train'), 3))
    assert not np.array_equal(
        batches[0]['tokens'], next(data.open(other).batches('train'))['tokens']
    )


def test_fewer_images_than_a_batch_come_several_times(npz):
    batch = next(data.open(config(npz, batch_size=22)).batches('train'))
    counts = np.unique(batch['tokens'], axis=0, return_counts=True)[1]
    assert counts.tolist() == [2] * 11 and (batch['weights'] == 1).all()


@pytest.mark.parametrize('split', ['validation', 'test'])
def test_evaluation_is_one_pass_in_order(npz, split):
    np.testing.assert_array_equal(images_of(config(npz), split), SPLITS[split])
    small = images_lib.average(SPLITS[split], 8)
    np.testing.assert_array_equal(images_of(config(npz, shrink=8), split), small)


@pytest.mark.parametrize('split', ['train', 'test'])
@pytest.mark.parametrize('kind', ['npz', 'folder'])
def test_restored_iterator_continues_exactly(request, kind, split):
    settings = config(request.getfixturevalue(kind), batch_size=1, shrink=8)
    iterator = data.open(settings).batches(split)
    next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    expected = take(iterator, 30)
    assert expected
    restored = data.open(settings).batches(split)
    restored.set_state(state)
    assert_same_batches(take(restored, 30), expected)


# Local sources.


def test_a_folder_is_split_in_sorted_order(folder):
    assert data.open(config(folder)).splits == ('train', 'validation', 'test')
    train = next(data.open(config(folder, batch_size=27)).batches('train'))
    assert as_set(images_lib.to_images(train['tokens'])) == as_set(IMAGES[:27])
    np.testing.assert_array_equal(
        images_of(config(folder), 'validation'), IMAGES[27:28]
    )
    np.testing.assert_array_equal(images_of(config(folder), 'test'), IMAGES[28:])


def test_a_folder_may_have_a_folder_per_split(tmp_path):
    for split in ('train', 'validation'):
        for number, image in enumerate(SPLITS[split]):
            write_image(tmp_path / split / 'n01' / f'{number:02d}.png', image)
    settings = config(tmp_path)
    assert data.open(settings).splits == ('train', 'validation')
    found = images_of(settings, 'validation')
    np.testing.assert_array_equal(found, SPLITS['validation'])
    train = next(data.open(config(tmp_path, batch_size=11)).batches('train'))
    assert as_set(images_lib.to_images(train['tokens'])) == as_set(SPLITS['train'])
    message = "no split 'test', only the folders train, validation: .* name folders"
    with pytest.raises(ValueError, match=message):
        data.open(settings).batches('test')


@pytest.mark.parametrize(
    'names', [('train', 'val'), ('Train', 'Val'), ('TRAIN', 'dev'), ('train', 'Valid')]
)
def test_folders_of_splits_as_others_call_them(tmp_path, names):
    for split, name in zip(('train', 'validation'), names, strict=True):
        for number, image in enumerate(SPLITS[split]):
            write_image(tmp_path / name / f'{number:02d}.png', image)
    settings = config(tmp_path, batch_size=11)
    assert data.open(settings).splits == ('train', 'validation')
    found = images_of(settings, 'validation')
    np.testing.assert_array_equal(found, SPLITS['validation'])
    train = next(data.open(settings).batches('train'))
    assert as_set(images_lib.to_images(train['tokens'])) == as_set(SPLITS['train'])
    (tmp_path / 'validation').mkdir()
    message = f'several folders for the validation split, .*{names[1]}'
    with pytest.raises(ValueError, match=message):
        _ = data.open(settings).splits


def test_a_zip_of_images_is_no_npz(tmp_path):
    write_image(tmp_path / 'x.png', IMAGES[0])
    with zipfile.ZipFile(tmp_path / 'images.zip', 'w') as archive:
        archive.write(tmp_path / 'x.png')
    with pytest.raises(
        ValueError, match=r"images.zip' .*\(it has no arrays: unpack it"
    ):
        data.open(config(tmp_path / 'images.zip')).batches('train')


def test_an_npz_need_not_have_all_splits(tmp_path):
    file = tmp_path / 'some.npz'
    np.savez(file, labels=np.arange(3), validation=IMAGES[:2])
    assert data.open(config(file)).splits == ('validation',)
    message = "no split 'train', only the arrays labels, validation: .* name arrays"
    with pytest.raises(ValueError, match=message):
        data.open(config(file)).batches('train')


def test_images_to_complete(folder, npz, tmp_path):
    np.testing.assert_array_equal(images_lib.read_images(folder), IMAGES)
    one = f'{folder}/a/03.BMP'
    np.testing.assert_array_equal(images_lib.read_images(one), IMAGES[3:4])
    np.testing.assert_array_equal(images_lib.read_images(npz), SPLITS['validation'])
    for path in (folder, npz):
        whole = images_lib.read_images(path)
        np.testing.assert_array_equal(images_lib.read_images(path, 1), whole[:1])
    pathlib.Path(npz).rename(tmp_path / 'images.NPZ')
    upper = images_lib.read_images(str(tmp_path / 'images.NPZ'))
    np.testing.assert_array_equal(upper, SPLITS['validation'])
    np.savez(tmp_path / 'arrays.npz', train=IMAGES)
    (tmp_path / 'empty').mkdir()
    write_image(tmp_path / 'small.png', IMAGES[0, :32])
    for path, message in (
        ('arrays.npz', "no split 'validation', only the arrays train"),
        ('empty', 'has no image'),
        ('small.png', r"small.png' has 64x32 pixels of mode 'RGB'"),
    ):
        with pytest.raises(ValueError, match=message):
            images_lib.read_images(str(tmp_path / path))
    with pytest.raises(FileNotFoundError, match="at 'nowhere.png': give an image, a"):
        images_lib.read_images('nowhere.png')


# Errors.


@pytest.mark.parametrize(
    ('image', 'found'),
    [
        (IMAGES[0, :, :32], "32x64 pixels of mode 'RGB'"),
        (IMAGES[0, :32, :, 0], "64x32 pixels of mode 'L'"),
        (np.zeros((64, 64, 4), np.uint8), "64x64 pixels of mode 'RGBA'"),
    ],
)
def test_images_of_another_kind_are_named_at_once(folder, image, found):
    write_image(f'{folder}/a/07x.png', image)
    message = rf"a/07x.png' has {found} and needs 64x64 of mode RGB: .*resize\(\(64, 64"
    with pytest.raises(ValueError, match=message):
        data.open(config(folder)).batches('train')


@pytest.mark.parametrize(('name', 'dtype'), [('a.png', 'uint16'), ('a.tif', 'float32')])
def test_what_convert_would_make_white_is_to_be_scaled(tmp_path, name, dtype):
    write_image(tmp_path / name, np.zeros((64, 64), dtype))
    with pytest.raises(ValueError, match='scale its numbers to 0 to 255 and convert'):
        images_lib.read_images(str(tmp_path / name))


@pytest.mark.parametrize('name', ['cut.jpg', 'cut.webp', 'cut.bmp', 'cut.tif'])
def test_an_image_that_is_cut_off_is_named_at_once(folder, name):
    file = pathlib.Path(folder, 'a', name)
    write_image(file, IMAGES[0])
    file.write_bytes(file.read_bytes()[:-600])
    with pytest.raises(ValueError, match=f"{name}' cannot be read .* remove it"):
        data.open(config(folder)).batches('train')


@pytest.mark.parametrize(
    ('mode', 'name'),
    [
        ('CMYK', 'x.jpg'),
        ('LA', 'x.png'),
        ('RGBA', 'x.png'),
        ('I;16', 'x.png'),
        ('F', 'x.tif'),
    ],
)
def test_images_of_other_modes_are_named(folder, mode, name):
    image = Image.fromarray(IMAGES[0])
    image = image.convert('L') if mode == 'I;16' else image
    image.convert(mode).save(pathlib.Path(folder, 'a', name))
    with pytest.raises(ValueError, match=f"{name}' has 64x64 pixels of mode '{mode}'"):
        data.open(config(folder)).batches('train')


@pytest.mark.parametrize(
    ('mode', 'name', 'colour'),
    [
        ('RGB', 'x.png', (1, 2, 3)),
        ('L', 'x.png', 7),
        ('P', 'x.png', 0),
        ('P', 'x.png', bytes(range(256))),
        ('P', 'x.gif', None),
    ],
)
def test_images_with_a_transparent_colour_are_named(folder, mode, name, colour):
    image = Image.fromarray(IMAGES[0]).convert(mode)
    colour = image.getpixel((0, 0)) if colour is None else colour
    image.save(pathlib.Path(folder, 'a', name), transparency=colour)
    with pytest.raises(ValueError, match=f"{name}' is transparent in part: convert"):
        data.open(config(folder)).batches('train')


@pytest.mark.parametrize(
    ('mode', 'name'),
    [
        ('L', 'x.png'),
        ('L', 'x.tif'),
        ('1', 'x.png'),
        ('P', 'x.png'),
        ('P', 'x.gif'),
        ('P', 'x.bmp'),
    ],
)
def test_grey_and_palettes_become_rgb(tmp_path, mode, name):
    image = Image.fromarray(IMAGES[0]).convert(mode)
    image.save(tmp_path / name)
    found = images_lib.read_images(str(tmp_path / name))
    np.testing.assert_array_equal(found[0], image.convert('RGB'))


def test_the_upper_half_of_16_bits_stays(tmp_path):
    values = np.random.default_rng(0).integers(0, 2**16, (64, 64, 3), np.uint16)
    header = b'P6 64 64 65535\n'
    (tmp_path / 'x.ppm').write_bytes(header + values.astype('>u2').tobytes())
    found = images_lib.read_images(str(tmp_path / 'x.ppm'))[0]
    assert abs(found.astype(int) - values / 257).max() <= 1
    found = images_lib.read_images(_png(tmp_path, 16, values.astype('>u2')))[0]
    np.testing.assert_array_equal(found, values >> 8)


def _png(folder, bits, pixels):
    """A PNG of RGB, which Pillow writes of 8 bits only."""

    def part(kind, content):
        sums = struct.pack('>I', zlib.crc32(kind + content))
        return struct.pack('>I', len(content)) + kind + content + sums

    rows = b''.join(b'\0' + row.tobytes() for row in pixels)
    header = struct.pack('>IIBBBBB', 64, 64, bits, 2, 0, 0, 0)
    parts = (
        part(b'IHDR', header),
        part(b'IDAT', zlib.compress(rows)),
        part(b'IEND', b''),
    )
    (folder / 'x.png').write_bytes(b'\x89PNG\r\n\x1a\n' + b''.join(parts))
    return str(folder / 'x.png')


def test_a_png_whose_sums_are_wrong_is_named(tmp_path):
    """Its pixels are read, but of other values than they were."""
    file = pathlib.Path(_png(tmp_path, 8, np.full((64, 64, 3), 7, np.uint8)))
    whole = file.read_bytes()
    for place in range(len(whole) - 16, 33, -1):  # of its pixels and their sum
        damaged = bytearray(whole)
        damaged[place] ^= 4
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match="x.png' cannot be read as an image"):
            images_lib.read_images(str(file))


@pytest.mark.parametrize(
    'content',
    [
        b'P6 64 6\x94 255\n',
        b'P6 64 64 99999\n',
        b'BM' + bytes(60),
        b'GIF89a@\0@\0\xf7\0\0',
        b'II*\0\xff\xff\xff\xff',
        b'\xff\xd8\xff\xe1\0\x10Exif\0\0' + bytes(8),
        b'',
    ],
)
def test_whatever_pillow_says_of_damage_the_file_is_named(folder, content):
    pathlib.Path(folder, 'a', '07x.ppm').write_bytes(content)
    with pytest.raises(ValueError, match="a/07x.ppm' cannot be read as an image"):
        data.open(config(folder)).batches('train')


@pytest.mark.parametrize('name', ['x.png', 'x.webp', 'x.tif', 'x.gif'])
def test_images_that_move_are_named(folder, name):
    frames = [Image.fromarray(image) for image in IMAGES[:2]]
    file = pathlib.Path(folder, 'a', name)
    frames[0].save(file, save_all=True, append_images=frames[1:], lossless=True)
    with pytest.raises(ValueError, match=f"{name}' has several frames"):
        data.open(config(folder)).batches('train')


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('name', ['x.png', 'x.tif'])
def test_images_stand_upright(tmp_path, orientation, name):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(IMAGES[0]).save(tmp_path / name, exif=exif)
    turned = {
        1: IMAGES[0],
        2: IMAGES[0][:, ::-1],
        3: IMAGES[0][::-1, ::-1],
        4: IMAGES[0][::-1],
        5: IMAGES[0].swapaxes(0, 1),
        6: np.rot90(IMAGES[0], -1),
        7: IMAGES[0][::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(IMAGES[0]),
    }[orientation]
    found = images_lib.read_images(str(tmp_path / name))
    np.testing.assert_array_equal(found[0], turned)


def test_what_is_no_image_is_left_out_and_counted(folder):
    assert data.open(config(folder)).told == (
        f'2 files in {folder} are no images, left out'
    )
    for name in ('Thumbs.db', 'list.csv', '._00.png', '.DS_Store', 'desktop.ini'):
        pathlib.Path(folder, 'a', name).write_bytes(b'x')
    assert data.open(config(folder)).told.startswith('7 files in')
    assert len(images_of(config(folder), 'validation')) == 1


def test_images_beside_the_folders_of_splits_are_counted(tmp_path):
    for name in ('train/a.png', 'val/b.png', 'c.png', 'more/d.png'):
        write_image(tmp_path / name, IMAGES[0])
    (tmp_path / 'train' / 'linked').symlink_to(tmp_path / 'more')
    (tmp_path / 'list.csv').write_bytes(b'x')
    opened = data.open(config(tmp_path))
    assert opened.told == f'3 files in {tmp_path} are no images in train, val, left out'
    assert [file.name for file in opened.files] == ['a.png', 'd.png', 'b.png']


def test_files_that_are_no_images_are_named(folder):
    file = pathlib.Path(folder, 'a', '07x.png')
    file.write_bytes(b'no image')
    with pytest.raises(ValueError, match="a/07x.png' cannot be read .* remove it"):
        data.open(config(folder)).batches('train')
    whole = pathlib.Path(folder, 'a', '00.png').read_bytes()
    for broken in (whole[: len(whole) // 2], whole[:60] + bytes(60) + whole[120:]):
        file.write_bytes(broken)  # its header is right
        with pytest.raises(ValueError, match="a/07x.png' cannot be read .* remove it"):
            data.open(config(folder)).batches('train')


@pytest.mark.parametrize(
    ('array', 'found'),
    [
        (IMAGES[:2].reshape(2, -1), r'uint8 \[2, 12288\]'),
        (IMAGES[:2, :32, :32], r'uint8 \[2, 32, 32, 3\]'),
        (IMAGES[:2, ..., 0], r'uint8 \[2, 64, 64\]'),
        (IMAGES[:2] / 255.0, r'float64 \[2, 64, 64, 3\]'),
        (IMAGES[:0], r'uint8 \[0, 64, 64, 3\]'),
    ],
)
def test_arrays_of_another_kind_are_named(tmp_path, array, found):
    file = tmp_path / 'arrays.npz'
    np.savez(file, train=array)
    message = rf"array 'train' of .*arrays.npz' is {found}: give uint8 \[n, 64, 64, 3\]"
    with pytest.raises(ValueError, match=message):
        data.open(config(file)).batches('train')


def test_a_corrupt_npz_is_named(npz, tmp_path):
    whole = pathlib.Path(npz).read_bytes()
    half = len(whole) // 2
    flipped = whole[:5000] + bytes(100) + whole[5100:]
    central = whole.index(b'PK\x01\x02')
    for bits in (1, 32):  # encrypted, of an unknown method
        locked = bytearray(whole)
        locked[6] = locked[central + 8] = bits
        (tmp_path / f'{bits}.npz').write_bytes(locked)
        with pytest.raises(
            ValueError, match=rf"{bits}.npz' cannot be read \(.*\): wri"
        ):
            data.open(config(tmp_path / f'{bits}.npz')).batches('train')
    cut, bad, array = (tmp_path / n for n in ('cut.npz', 'bad.npz', 'array.npy'))
    cut.write_bytes(whole[:half])
    bad.write_bytes(flipped)
    np.save(array, IMAGES[:1])
    for file, message in (
        (cut, 'is no .npz file, or not all of it: .*np.savez'),
        (array, 'is no .npz file'),
        (bad, r'cannot be read \(.*\): write it again'),
    ):
        with pytest.raises(ValueError, match=f"{file.name}' {message}"):
            data.open(config(file)).batches('train')


def test_an_npz_that_would_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(packing, '_ALWAYS', 50_000)
    file = tmp_path / 'black.npz'
    np.savez_compressed(file, train=np.zeros((100, 64, 64, 3), np.uint8))
    with pytest.raises(ValueError, match='unpacks to 1,228,928 bytes'):
        data.open(config(file)).batches('train')


def test_code_in_an_npz_is_not_run(tmp_path, capsys):
    class Code:
        def __reduce__(self):
            return print, ('code of the npz was run',)

    file = tmp_path / 'code.npz'
    np.savez(file, train=np.array([Code()], object), allow_pickle=True)
    with pytest.raises(ValueError, match='cannot be read .*allow_pickle=False'):
        data.open(config(file)).batches('train')
    assert 'was run' not in capsys.readouterr().out


def test_a_pipe_is_no_source_of_images(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    with pytest.raises(ValueError, match="pipe' is a pipe or a device: give"):
        data.open(config(tmp_path / 'pipe')).batches('train')
    with pytest.raises(ValueError, match="pipe' is a pipe or a device: give"):
        images_lib.read_images(str(tmp_path / 'pipe'))


def test_an_image_that_would_fill_the_memory(folder, monkeypatch):
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 64 * 64 // 3)
    with pytest.raises(ValueError, match='cannot be read as an image .*bomb'):
        data.open(config(folder)).batches('train')


def test_missing_and_empty_sources_are_named(tmp_path):
    for source in ('nowhere/x', ''):
        message = (
            f"nothing is at '{source}': give 'downsampled_.*', .* folder of images"
        )
        with pytest.raises(FileNotFoundError, match=message):
            data.open(config(source)).batches('train')
        with pytest.raises(FileNotFoundError, match=message):
            _ = data.open(config(source)).splits
    with pytest.raises(ValueError, match='train split .* no image, of 0 found'):
        data.open(config(tmp_path)).batches('train')
    for number in range(9):
        write_image(tmp_path / f'{number}.png', IMAGES[number])
    message = 'validation split .* no image, of 9 found in all: .* or 20 images'
    with pytest.raises(ValueError, match=message):
        data.open(config(tmp_path)).batches('validation')


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'split': 'eval'}, "unknown split 'eval'"),
        ({'batch_size': 0}, 'batch_size=0: give a positive integer'),
        ({'seed': -1}, 'seed=-1: give an integer'),
        ({'shrink': 0}, 'shrink=0 does not divide 64'),
        ({'shrink': 3}, 'shrink=3 does not divide 64: give one of 1, 2, 4'),
        ({'shrink': 128}, 'shrink=128 does not divide 64'),
    ],
)
def test_bad_arguments_are_named_before_anything_is_read(changes, message):
    split = changes.get('split', 'train')
    fields = {name: value for name, value in changes.items() if name != 'split'}
    with pytest.raises(ValueError, match=message):
        data.open(config('nowhere', **fields)).batches(split)


def test_the_spec_names_a_wrong_shrink():
    for shrink in (0, 3):
        with pytest.raises(ValueError, match=f'shrink={shrink} does not divide 64'):
            _ = data.open(config('', shrink=shrink)).spec
