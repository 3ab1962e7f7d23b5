"""ImageNet at 64x64 as sequences of 12,288 tokens (section 5 of the paper).

A token is the value, 0 to 255, of one channel of a pixel: row by row, channels fastest,
so that axial positions have the shape (64, 64, 3). A source is
- 'downsampled_imagenet/64x64' (van den Oord et al. 2016): what published bits/dim are
  of, the paper's too as its code reads these files; 1,281,149 and 49,999 images. They
  may be gone from image-net.org (github.com/tensorflow/datasets/issues/4662);
- 'imagenet_resized/64x64' (Chrabaszcz et al. 2017): the same photographs resized with
  a box filter, which are easier to predict: their bits/dim compare with no others;
- a local .npz with arrays 'train', 'validation' and, if wanted, 'test', all uint8
  [n, 64, 64, 3];
- a folder of images in any format of Pillow: with folders train, validation and, if
  wanted, test; or without, split 90 / 5 / 5 % in the order of their relative paths.
The first two are downloaded and prepared once by tensorflow_datasets as array_record
files, which needs no TensorFlow, and have no test split.
"""

import contextlib
import functools
import itertools
import math
import pathlib
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import grain
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from reformer_jax.data import batching
from reformer_jax.data import corpus

SIDE = 64
_SHRINKS = (1, 2, 4, 8, 16, 32, 64)


class Archive(NamedTuple):
    """What has to be downloaded; size and sha256 are those of tfds' own lists."""

    url: str
    size: int
    sha256: str


_SMALL = 'http://image-net.org/small'
_RESIZED = 'http://www.image-net.org/data/downsample'
ARCHIVES: dict[str, dict[str, tuple[Archive, ...]]] = {
    'downsampled_imagenet/64x64': {
        'train': (
            Archive(
                f'{_SMALL}/train_64x64.tar',
                12_112_588_800,
                'e2a2c1947a748d0d256e98e6d82800d855441dc9e4de2e71a773f1324c4524d7',
            ),
        ),
        'validation': (
            Archive(
                f'{_SMALL}/valid_64x64.tar',
                477_255_680,
                'eeac03ec4f585baf871d2b4cb9c974bfe345e74878a74e5820fe6eb1041629cd',
            ),
        ),
    },
    'imagenet_resized/64x64': {
        'train': (
            Archive(
                f'{_RESIZED}/Imagenet64_train_part1_npz.zip',
                6_783_426_789,
                '9422dc1dc5d092e9814a70a1cb7fc74880d2db5d88a0cb8a34ee363b12bde3f1',
            ),
            Archive(
                f'{_RESIZED}/Imagenet64_train_part2_npz.zip',
                6_780_506_068,
                '9fafc115afb7e6c301e66dc16b2d737152b427bd5dab26e1293487a6819c7f30',
            ),
        ),
        'validation': (
            Archive(
                f'{_RESIZED}/Imagenet64_val_npz.zip',
                529_522_927,
                'e1e75133158a1924135a9c6f97a80d2d237b158945e0b34074e58e6c8430eeb8',
            ),
        ),
    },
}
# Without TensorFlow tfds sorts a split only in memory, and only up to 1,000 MiB: train
# (15.8 GB) is stored as splits of 65,536 images (0.8 GB), read as one.
PARTS = {'train': 20, 'validation': 1}
IMAGES_OF_A_PART = 65_536


_SOURCES = (
    f'{", ".join(map(repr, ARCHIVES))}, or the path of an .npz or of a folder of images'
)
_CORRUPT = (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error)


def vocab_size(**_: Any) -> int:
    """Number of token ids: the values of a channel."""
    return 256


def batch_spec(*, batch_size: int, shrink: int = 1, **_: Any) -> batching.Spec:
    """Shapes and dtypes of a batch.

    Raises:
      ValueError: if `shrink` does not divide 64.
    """
    return batching.language_model_spec(batch_size, 3 * _side(shrink) ** 2)


def encode(text: bytes, **_: Any) -> np.ndarray:
    """Raises a ValueError: texts have no tokens here."""
    raise ValueError(
        f'the tokens of this dataset are of images, not of the text {text[:20]!r}: use '
        'to_tokens'
    )


def decode(tokens: np.ndarray, **_: Any) -> bytes:
    """Token ids [n] as a text, each with a space after it; see `to_images`."""
    return b''.join(b'%d ' % token for token in tokens)


def to_tokens(images: np.ndarray) -> np.ndarray:
    """Returns images as tokens: row by row, channels fastest.

    Args:
      images: uint8 [N, S, S, 3].

    Returns:
      int32 [N, S * S * 3].

    Raises:
      ValueError: for another shape or dtype.
    """
    side = images.shape[1] if images.ndim == 4 else 0
    if images.dtype != np.uint8 or images.shape[1:] != (side, side, 3):
        raise ValueError(
            f'images of shape {images.shape} and dtype {images.dtype}: give square '
            'ones, uint8 [N, S, S, 3]'
        )
    return images.reshape(len(images), -1).astype(np.int32)


def to_images(tokens: np.ndarray) -> np.ndarray:
    """Returns tokens as images; inverts `to_tokens`.

    Args:
      tokens: integers [N, S * S * 3], each in 0..255.

    Returns:
      uint8 [N, S, S, 3].

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
    """Shrinks images by the averages of blocks of shrink x shrink pixels.

    Args:
      images: uint8 [N, 64, 64, 3].
      shrink: divisor of 64.

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
    if location.suffix == '.npz':
        _check_split(path, 'validation')
        return _array(location, 'validation')[: count or None]
    files = _files_below(location) if location.is_dir() else [location]
    if not files:
        raise ValueError(f'{path!r} has no image: give a folder that has some')
    return np.stack([_read_image(file) for file in files[: count or None]])


def splits(*, source: str, **_: Any) -> tuple[str, ...]:
    """Returns those of 'train', 'validation' and 'test' that a source has.

    Raises:
      FileNotFoundError: if nothing is at `source`.
      ValueError: if it is no folder and no .npz.
    """
    there = _parts_of(source)
    return tuple(split for split in batching.SPLITS if split in there)


def build(
    split: str,
    *,
    source: str,
    batch_size: int,
    seed: int,
    shrink: int = 1,
    data_dir: str | None = None,
) -> grain.DatasetIterator:
    """Iterates over images: training endlessly, every epoch all in a fresh order.

    Validation and test are one pass in order, the last batch padded with rows of weight
    0; all other tokens count. Of an .npz the split is held in memory; all else is read
    batch by batch, after the headers of all the files of a folder were checked.

    Args:
      split: 'train', 'validation' or 'test', one of `splits`.
      source: 'downsampled_imagenet/64x64', 'imagenet_resized/64x64', an .npz or a
        folder, see the module.
      batch_size: B, images per batch.
      seed: of the training order, in [0, 2**32).
      shrink: images are averaged over blocks of shrink x shrink pixels, for small
        experiments; a divisor of 64. L = 3 * (64 // shrink)**2.
      data_dir: folder of prepared datasets; None or empty means that of tfds,
        $TFDS_DATA_DIR or ~/tensorflow_datasets.

    Returns:
      Iterator over {'tokens': int32 [B, L], 'weights': float32 [B, L]}.

    Raises:
      FileNotFoundError: if nothing is at `source`, or the download fails.
      ValueError: for a bad argument; a split that there is not, or is empty; images
        that are not of 64x64 RGB pixels; a corrupt file.
    """
    batching.check_arguments(split, seed=seed, batch_size=batch_size, shrink=shrink)
    length = 3 * _side(shrink) ** 2
    _check_split(source, split)
    count, read = _open(source, split, data_dir)

    def assemble(numbers: np.ndarray) -> dict[str, np.ndarray]:
        rows = list(to_tokens(average(read(numbers), shrink)))
        tokens, mask = batching.pad(rows, batch_size=batch_size, length=length)
        return {'tokens': tokens, 'weights': mask.astype(np.float32)}

    return batching.iterate_epochs(
        count, assemble, split, batch_size=batch_size, seed=seed
    )


def _parts_of(source: str) -> tuple[str, ...]:
    """Names of all that a source is divided into, splits or not."""
    if source in ARCHIVES:
        return tuple(ARCHIVES[source])
    location = _locate(source, _SOURCES)
    if not location.is_dir():
        with _npz(location) as arrays:
            return tuple(arrays.files)
    folders = {folder.name for folder in location.iterdir() if folder.is_dir()}
    return tuple(sorted(folders)) if folders & {*batching.SPLITS} else batching.SPLITS


def _check_split(source: str, split: str) -> None:
    there = _parts_of(source)
    if split in there:
        return
    if source in ARCHIVES:
        kind, remedy = 'splits', 'use one of them'
    else:
        kind = 'folders' if _locate(source, _SOURCES).is_dir() else 'arrays'
        remedy = f'use one that there is, or name {kind} {", ".join(batching.SPLITS)}'
    raise ValueError(
        f'{source!r} has no split {split!r}, only the {kind} '
        f'{", ".join(there) or "(none)"}: {remedy}'
    )


def _open(
    source: str, split: str, data_dir: str | None
) -> tuple[int, Callable[[np.ndarray], np.ndarray]]:
    """Number of images, and what reads those at int64 [n] as uint8 [n, 64, 64, 3]."""
    if source in ARCHIVES:
        prepared = load_archive(source, split, data_dir)

        def read(numbers: np.ndarray) -> np.ndarray:
            rows = prepared.__getitems__(numbers.tolist())
            return np.stack([row['image'] for row in rows])

        return len(prepared), read
    location = _locate(source, _SOURCES)
    if not location.is_dir():
        array = _array(location, split)
        return len(array), array.__getitem__
    files = _checked_files(location, split)
    return len(files), lambda numbers: np.stack(
        [_read_image(files[n]) for n in numbers]
    )


def _locate(path: str, choices: str) -> pathlib.Path:
    location = pathlib.Path(path).expanduser()
    if not path or not location.exists():
        raise FileNotFoundError(f'nothing is at {path!r}: give {choices}')
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
        with np.load(file) as arrays:
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
    if (folder / split).is_dir():
        files = all_files = _files_below(folder / split)
    else:
        all_files = _files_below(folder)
        files = batching.take_split(np.array(all_files, object), split).tolist()
    if not files:
        raise ValueError(
            f'the {split} split of {str(folder)!r} has no image, of {len(all_files)} '
            'found in all: give at least 1 in each of the folders train and '
            'validation, or 20 images without such folders'
        )
    for file in files:
        with _opened(file):
            pass
    return files


def _files_below(folder: pathlib.Path) -> list[pathlib.Path]:
    """The files that Pillow reads, hidden ones left out, by their relative paths."""
    kinds = Image.registered_extensions().items()
    suffixes = {suffix for suffix, kind in kinds if kind in Image.OPEN}
    names = {
        file.relative_to(folder).as_posix(): file
        for file in folder.rglob('*')
        if file.suffix.lower() in suffixes and file.is_file()
    }
    shown = (n for n in names if not any(p.startswith('.') for p in n.split('/')))
    return [names[name] for name in sorted(shown)]


@contextlib.contextmanager
def _opened(file: pathlib.Path) -> Iterator[Image.Image]:
    """Opens an image and checks its header; pixels are read when asked for."""
    try:
        with Image.open(file) as image:
            if image.size != (SIDE, SIDE) or image.mode != 'RGB':
                width, height = image.size
                raise ValueError(
                    f'image {str(file)!r} has {width}x{height} pixels of mode '
                    f'{image.mode!r} and needs {SIDE}x{SIDE} of mode RGB: convert it, '
                    "with Pillow by image.convert('RGB').resize((64, 64))"
                )
            yield image
    except (OSError, SyntaxError) as error:  # SyntaxError: of a broken PNG
        raise ValueError(
            f'{str(file)!r} cannot be read as an image ({error}): replace or remove it'
        ) from error


def _read_image(file: pathlib.Path) -> np.ndarray:
    with _opened(file) as image:
        return np.asarray(image)


# --- The two published sets: our builder stores pixels, tfds' own need TensorFlow ---


class Imagenet64(tfds.core.GeneratorBasedBuilder):
    """tfds builder of both: pixels in array_record files, train in parts."""

    VERSION = tfds.core.Version('1.0.0')
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name=source.split('/')[0], description=source)
        for source in ARCHIVES
    ]

    @tfds.core.utils.classproperty
    @classmethod
    def url_infos(cls) -> dict[str, tfds.download.checksums.UrlInfo]:
        """Size and sha256 that the downloads must have (tfds would read a file)."""
        return {
            archive.url: tfds.download.checksums.UrlInfo(
                size=tfds.core.utils.Size(archive.size),
                checksum=archive.sha256,
                filename=archive.url.split('/')[-1],
            )
            for archives in ARCHIVES.values()
            for archive in itertools.chain(*archives.values())
        }

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Tensor(
            shape=(64, 64, 3), dtype=np.uint8, encoding='bytes'
        )
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            homepage='https://www.image-net.org/download.php',
            features=tfds.features.FeaturesDict({'image': image}),
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        source = self.builder_config.description
        files = dl_manager.download(
            {
                split: [archive.url for archive in archives]
                for split, archives in ARCHIVES[source].items()
            }
        )
        parts = {}
        for split, paths in files.items():
            images = itertools.chain.from_iterable(map(_READERS[source], paths))
            for name in _names(split):
                # The last one takes all that is left: no image is lost.
                last = name == _names(split)[-1]
                part = itertools.islice(images, None if last else IMAGES_OF_A_PART)
                parts[name] = self._generate_examples(part)
        return parts

    def _generate_examples(
        self, images: Iterable[np.ndarray]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, image in enumerate(images):
            yield number, {'image': image}


def load_archive(source: str, split: str, data_dir: str | None = None) -> Any:
    """Returns the images of a split, preparing the dataset if missing.

    Args:
      source: one of `ARCHIVES`.
      split: 'train' or 'validation'.
      data_dir: folder of prepared datasets; None or empty means that of tfds.

    Returns:
      tfds data source, read image by image: len() and [number] -> {'image': uint8
      [64, 64, 3]}, in an order without meaning that is always the same.

    Raises:
      FileNotFoundError: if the dataset has to be downloaded and cannot be.
    """
    urls = [archive.url for archive in itertools.chain(*ARCHIVES[source].values())]
    builder = Imagenet64(
        config=source.split('/')[0],
        data_dir=data_dir or None,
        file_format='array_record',
    )
    try:
        corpus.prepare(builder, urls)
    except corpus.ERRORS as error:
        raise FileNotFoundError(
            f'{source!r} is not prepared in {builder.data_dir!r} and '
            f'{" ".join(urls)} cannot be downloaded there ({error}): prepare it on a '
            'machine that can and give its folder with --config.data.data_dir=FOLDER, '
            'or give images as --config.data.source=FOLDER, or =FILE.npz'
        ) from error
    return builder.as_data_source('+'.join(_names(split)))


def _names(split: str) -> list[str]:
    return [f'{split}_{part:02d}' for part in range(PARTS[split])]


def _images_of_tar(path: Any) -> Iterator[np.ndarray]:
    with tarfile.open(path) as archive:
        for member in archive:
            if file := archive.extractfile(member):
                with Image.open(file) as image:
                    # As tfds, which decodes to three channels whatever was stored.
                    yield np.asarray(image.convert('RGB'))


def _images_of_zip(path: Any) -> Iterator[np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        for name in sorted(n for n in archive.namelist() if not n.endswith('/')):
            with archive.open(name) as file, np.load(file) as batch:
                images = batch['data'].reshape(-1, 3, 64, 64)  # channels slowest
            yield from images.transpose(0, 2, 3, 1)


_READERS = dict(zip(ARCHIVES, (_images_of_tar, _images_of_zip), strict=True))
