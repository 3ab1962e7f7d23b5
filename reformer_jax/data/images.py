"""ImageNet at 64x64 as sequences of 12,288 tokens (section 5 of the paper).

A token is the value, 0 to 255, of one channel of a pixel: row by row, channels fastest,
so that axial positions have the shape (64, 64, 3). A source is
- 'downsampled_imagenet/64x64' (van den Oord et al. 2016): what published bits/dim are
  of, the paper's too as its code reads these files; 1,281,149 and 49,999 images, no
  test split. Downloaded and prepared once (see imagenet64), if they can be: they may be
  gone from image-net.org (github.com/tensorflow/datasets/issues/4662);
- a local .npz with arrays 'train', 'validation' and, if wanted, 'test', all uint8
  [n, 64, 64, 3];
- a folder of images in any format of Pillow: with folders train, validation (or val,
  valid, dev) and, if wanted, test; or without, split 90 / 5 / 5 % in the order of their
  relative paths.
"""

import contextlib
import dataclasses
import functools
import math
import pathlib
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image
from PIL import ImageOps

from reformer_jax import progress
from reformer_jax.data import batching
from reformer_jax.data import corpus
from reformer_jax.data import dataset
from reformer_jax.data import imagenet64
from reformer_jax.data import packing

SIDE = 64
_SHRINKS = (1, 2, 4, 8, 16, 32, 64)


_SOURCES = f'{imagenet64.SOURCE!r}, or the path of an .npz or of a folder of images'
# What folders of splits are called, in any case.
_FOLDERS = {
    **dict.fromkeys(('validation', 'val', 'valid', 'dev'), 'validation'),
    'train': 'train',
    'test': 'test',
}
# What Pillow makes RGB in one way only.
_MODES = ('RGB', 'L', 'P', '1')
_CORRUPT = (
    *(OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error),
    RuntimeError,  # an encrypted array, or compressed by an unknown method
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Images(dataset.Dataset):
    """Images as tokens.

    Of an .npz the split is held in memory; all else is read batch by batch, after all
    the files of a folder were read once to find those that are damaged. An image is
    turned as its EXIF orientation says; grey, black and white and palettes become RGB,
    of colours of 16 bits the upper 8 stay. One with alpha or a transparent colour, of
    CMYK or 16 bits of grey, or that moves is refused by name.

    Attributes:
      source: the published set, an .npz or a folder, see the module.
      shrink: images are averaged over blocks of shrink x shrink pixels, for small
        experiments; a divisor of 64. L = 3 * (64 // shrink)**2.
      data_dir: folder of prepared datasets; empty means that of tfds, $TFDS_DATA_DIR or
        ~/tensorflow_datasets.
    """

    source: str
    shrink: int = 1
    data_dir: str = ''

    def __post_init__(self):
        super().__post_init__()
        _side(self.shrink)

    @property
    def vocab_size(self) -> int:
        return 256  # the values of a channel

    @property
    def spec(self) -> batching.Spec:
        return batching.language_model_spec(self.batch_size, self._length)

    @property
    def splits(self) -> tuple[str, ...]:
        _, there = _parts_of(self.source)
        return tuple(split for split in batching.SPLITS if split in there)

    @property
    def files(self) -> Sequence[pathlib.Path]:
        if self.source == imagenet64.SOURCE:
            return ()
        location = _locate(self.source, _SOURCES)
        if not location.is_dir():
            return [location]
        folders = _folders(location).values() or [location]
        return [file for folder in folders for file in _files_below(folder)]

    @property
    def told(self) -> str:
        location = pathlib.Path(self.source).expanduser()
        if self.source == imagenet64.SOURCE or not location.is_dir():
            return ''
        everything = {*location.rglob('*'), *corpus.files_below(location)}
        left = sum(file.is_file() for file in everything.difference(self.files))
        names = ', '.join(folder.name for folder in _folders(location).values())
        images = f'images in {names}' if names else 'images'
        return f'{left:,} files in {self.source} are no {images}, left out' * (left > 0)

    def encode(self, text: bytes) -> np.ndarray:
        raise ValueError(
            f'the tokens are of images, not of the text {text[:20]!r}: use to_tokens'
        )

    def decode(self, tokens: np.ndarray) -> bytes:
        return batching.as_numbers(tokens)

    def read(self, path: str, count: int = 0) -> np.ndarray:
        """The images at `path` as tokens [N, L]; arguments as for `read_images`."""
        return to_tokens(average(read_images(path, count), self.shrink))

    @property
    def _length(self) -> int:
        return 3 * _side(self.shrink) ** 2

    def _stream(self, split: str) -> dataset.Stream:
        _check_split(self.source, split)
        count, read = _open(self.source, split, self.data_dir)

        def assemble(numbers: np.ndarray, _: batching.Spec) -> batching.Batch:
            shape = (self.batch_size, self._length)
            rows = to_tokens(average(read(numbers), self.shrink))
            tokens, mask = batching.pad(rows, shape)
            return {'tokens': tokens, 'weights': mask.astype(np.float32)}

        return self._epochs(split, count, assemble)


def to_tokens(images: np.ndarray) -> np.ndarray:
    """Returns images, uint8 [N, S, S, 3], as tokens, int32 [N, S * S * 3].

    Raises:
      ValueError: for another shape or dtype.
    """
    side = images.shape[1] if images.ndim == 4 else 0
    if images.dtype != np.uint8 or images.shape[1:] != (side, side, 3):
        raise ValueError(
            f'images of shape {images.shape} and dtype {images.dtype}: give uint8 '
            '[N, S, S, 3]'
        )
    return images.reshape(len(images), -1).astype(np.int32)


def to_images(tokens: np.ndarray) -> np.ndarray:
    """Returns tokens as images; inverts `to_tokens`.

    Raises:
      ValueError: for another length, or a token that is no channel value.
    """
    count, length = tokens.shape
    side = math.isqrt(length // 3)
    if length != 3 * side**2:
        raise ValueError(
            f'{length} tokens are no square image: give 3 * S * S, such as 12288'
        )
    wrong = tokens[(tokens < 0) | (tokens > 255)]
    if wrong.size:
        raise ValueError(f'token {wrong[0]} is no channel value: give 0 to 255')
    return tokens.astype(np.uint8).reshape(count, side, side, 3)


def average(images: np.ndarray, shrink: int) -> np.ndarray:
    """Shrinks images, uint8 [N, 64, 64, 3], by averages of shrink x shrink pixels.

    Returns:
      uint8 [N, 64 // shrink, 64 // shrink, 3], rounded to nearest, halves up.

    Raises:
      ValueError: if `shrink` does not divide 64.
    """
    side = _side(shrink)
    blocks = images.reshape(-1, side, shrink, side, shrink, 3)
    sums = blocks.sum(axis=(2, 4), dtype=np.uint32)
    return ((sums + shrink**2 // 2) // shrink**2).astype(np.uint8)


def _side(shrink: int) -> int:
    if shrink not in _SHRINKS:
        raise ValueError(
            f'shrink={shrink!r} does not divide {SIDE}: give one of '
            f'{", ".join(map(str, _SHRINKS))}'
        )
    return SIDE // shrink


def read_images(path: str, count: int = 0) -> np.ndarray:
    """Returns the images a user gives to be completed.

    Args:
      path: an image file, a folder (all images below it, in the order of their relative
        paths) or an .npz, of which it is the array 'validation'.
      count: only so many, the first ones; 0 for all.

    Returns:
      uint8 [N, 64, 64, 3].

    Raises:
      FileNotFoundError: if nothing is at `path`.
      ValueError: for no image, or one that is not of 64x64 RGB pixels; a corrupt file.
    """
    location = _locate(path, 'an image, a folder of images or an .npz')
    if location.suffix.lower() == '.npz':
        _check_split(path, 'validation')
        return _array(location, 'validation')[: count or None]
    files = _files_below(location) if location.is_dir() else [location]
    if not files:
        raise ValueError(f'{path!r} has no image: give a folder that has some')
    return _read(files[: count or None])


def _parts_of(source: str) -> tuple[str, tuple[str, ...]]:
    """What kind of things a source is divided into, and the names of all of them."""
    if source == imagenet64.SOURCE:
        return 'splits', tuple(imagenet64.ARCHIVES)
    location = _locate(source, _SOURCES)
    if not location.is_dir():
        with _npz(location) as arrays:
            return 'arrays', tuple(arrays.files)
    return 'folders', tuple(_folders(location)) or batching.SPLITS


def _folders(location: pathlib.Path) -> dict[str, pathlib.Path]:
    """The folders of splits, where there are any."""
    found: dict[str, pathlib.Path] = {}
    for folder in sorted(location.iterdir()):
        split = _FOLDERS.get(folder.name.lower())
        if split and folder.is_dir():
            if split in found:
                raise ValueError(
                    f'{str(location)!r} has several folders for the {split} split, '
                    f'{found[split].name} and {folder.name}: leave one of them'
                )
            found[split] = folder
    return found


def _check_split(source: str, split: str) -> None:
    kind, there = _parts_of(source)
    if split not in there:
        raise ValueError(
            f'{source!r} has no split {split!r}, only the {kind} '
            f'{", ".join(there) or "(none)"}: use one that there is, or name {kind} '
            f'{", ".join(batching.SPLITS)}'
        )


def _open(
    source: str, split: str, data_dir: str
) -> tuple[int, Callable[[np.ndarray], np.ndarray]]:
    """Number of images, and what reads those at int64 [n] as uint8 [n, 64, 64, 3]."""
    if source == imagenet64.SOURCE:
        prepared = imagenet64.load(split, data_dir)

        def read(numbers: np.ndarray) -> np.ndarray:
            rows = prepared.__getitems__(numbers.tolist())
            return np.stack([row['image'] for row in rows])

        return len(prepared), read
    location = _locate(source, _SOURCES)
    if not location.is_dir():
        array = _array(location, split)
        return len(array), array.__getitem__
    files = _checked_files(location, split)
    return len(files), lambda numbers: _read([files[n] for n in numbers])


def _locate(path: str, choices: str) -> pathlib.Path:
    location = pathlib.Path(path).expanduser()
    if not path or not location.exists():
        raise FileNotFoundError(f'nothing is at {path!r}: give {choices}')
    if not (location.is_file() or location.is_dir()):
        raise ValueError(f'{path!r} is a pipe or a device: give {choices}')
    return location


@contextlib.contextmanager
def _npz(file: pathlib.Path) -> Iterator[Any]:
    """Opens an .npz file; only reading it belongs into the block."""
    if not zipfile.is_zipfile(file):
        raise ValueError(
            f'{str(file)!r} is no .npz file, or not all of it: write it again with '
            f'np.savez, or give {_SOURCES}'
        )
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            unpacked = sum(info.file_size for info in archive.infolist())
        if not any(name.endswith('.npy') for name in names):
            raise ValueError('it has no arrays: unpack it, if it is one of images')
        if unpacked > packing.most_unpacked(file.stat().st_size):
            raise ValueError(f'it unpacks to {unpacked:,} bytes, as no photographs do')
        with np.load(file, allow_pickle=False) as arrays:
            yield arrays
    except _CORRUPT as error:
        raise ValueError(
            f'{str(file)!r} cannot be read ({error}): write it again with np.savez'
        ) from error


@functools.lru_cache(maxsize=2)
def _array(file: pathlib.Path, name: str) -> np.ndarray:
    """A split of an .npz, kept: each evaluation asks for it again."""
    with _npz(file) as arrays:
        array = arrays[name]
    if array.dtype != np.uint8 or array.shape[1:] != (SIDE, SIDE, 3) or not array.size:
        raise ValueError(
            f'array {name!r} of {str(file)!r} is {array.dtype} {list(array.shape)}: '
            f'give uint8 [n, {SIDE}, {SIDE}, 3] with n of at least 1'
        )
    array.setflags(write=False)
    return array


@functools.lru_cache(maxsize=len(batching.SPLITS))
def _checked_files(folder: pathlib.Path, split: str) -> list[pathlib.Path]:
    """The images of a split of a folder, kept: each evaluation asks for them again."""
    if split in (folders := _folders(folder)):
        files = all_files = _files_below(folders[split])
    else:
        all_files = _files_below(folder)
        files = batching.take_split(np.array(all_files, object), split).tolist()
    if not files:
        raise ValueError(
            f'the {split} split of {str(folder)!r} has no image, of {len(all_files)} '
            'found in all: give at least 1 in each of the folders train and '
            'validation, or 20 images without such folders'
        )
    for file in progress.track(files, f'checking the images of {split}'):
        _pixels(file)
    return files


def _files_below(folder: pathlib.Path) -> list[pathlib.Path]:
    """The files that Pillow reads."""
    kinds = Image.registered_extensions().items()
    suffixes = {suffix for suffix, kind in kinds if kind in Image.OPEN}
    files = corpus.files_below(folder)
    return [file for file in files if file.suffix.lower() in suffixes]


def _read(files: list[pathlib.Path]) -> np.ndarray:
    return np.stack([_pixels(file) for file in files])


def _pixels(file: pathlib.Path) -> np.ndarray:
    """An image as it stands, uint8 [64, 64, 3]."""
    try:
        with Image.open(file) as image:
            if image.format == 'PNG':
                image.verify()  # the sums of its parts, which reading does not look at
        with Image.open(file) as image:
            # Before its pixels are read, of which there may be any number.
            if not (refusal := _refusal(image)):
                return np.asarray(ImageOps.exif_transpose(image).convert('RGB'))
    except Exception as error:  # readers of damaged files raise all kinds
        raise ValueError(
            f'{str(file)!r} cannot be read as an image ({error}): replace or remove it'
        ) from error
    raise ValueError(f'image {str(file)!r} {refusal}')


def _refusal(image: Image.Image) -> str:
    """Why an image is none of ours, '' if it is one."""
    if image.size != (SIDE, SIDE) or image.mode not in _MODES:
        width, height = image.size
        # Pillow cuts numbers off at 255: a photograph of 16 bits would be white.
        first = 'scale its numbers to 0 to 255 and ' * image.mode.startswith(('I', 'F'))
        return (
            f'has {width}x{height} pixels of mode {image.mode!r} and needs {SIDE}x'
            f'{SIDE} of mode RGB: {first}convert it, with Pillow by image.convert'
            f"('RGB').resize(({SIDE}, {SIDE}))"
        )
    if image.has_transparency_data:
        return "is transparent in part: convert it, with Pillow by image.convert('RGB')"
    if getattr(image, 'is_animated', False):
        return 'has several frames: keep one of them'
    return ''
