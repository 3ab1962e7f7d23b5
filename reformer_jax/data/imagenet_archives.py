"""The two published sets of 64x64 ImageNet, downloaded and prepared by tfds.

tfds' own builders encode images with TensorFlow; this one stores their pixels.
"""

import itertools
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from reformer_jax.data import downloads


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


def load(source: str, split: str, data_dir: str | None = None) -> Any:
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
        downloads.prepare(builder, urls)
    except downloads.ERRORS as error:
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
