"""Downsampled ImageNet at 64x64 (van den Oord et al. 2016), downloaded and prepared.

Our builder stores pixels in array_record files; tfds' own needs TensorFlow.
"""

import itertools
import tarfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from reformer_jax.data import corpus

SOURCE = 'downsampled_imagenet/64x64'


ARCHIVES = {
    'train': corpus.Archive(
        'http://image-net.org/small/train_64x64.tar',
        12_112_588_800,
        'e2a2c1947a748d0d256e98e6d82800d855441dc9e4de2e71a773f1324c4524d7',
    ),
    'validation': corpus.Archive(
        'http://image-net.org/small/valid_64x64.tar',
        477_255_680,
        'eeac03ec4f585baf871d2b4cb9c974bfe345e74878a74e5820fe6eb1041629cd',
    ),
}
# Without TensorFlow tfds sorts a split only in memory, and only up to 1,000 MiB: train
# (15.8 GB) is stored as splits of 65,536 images (0.8 GB), read as one.
PARTS = {'train': 20, 'validation': 1}
IMAGES_OF_A_PART = 65_536
_REMEDY = (
    'prepare it on a machine that can and give its folder with '
    '--config.data.data_dir=FOLDER, or give images as --config.data.source=FOLDER, or '
    '=FILE.npz'
)


class Imagenet64(tfds.core.GeneratorBasedBuilder):
    """tfds builder: pixels in array_record files, train in parts."""

    VERSION = tfds.core.Version('1.0.0')
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=SOURCE.split('/')[0])]

    @tfds.core.utils.classproperty
    @classmethod
    def url_infos(cls) -> dict[str, tfds.download.checksums.UrlInfo]:
        return ARCHIVES['train'].info | ARCHIVES['validation'].info

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

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        urls = {split: archive.url for split, archive in ARCHIVES.items()}
        parts = {}
        for split, path in dl_manager.download(urls).items():
            images = _images_of(path)
            *names, last = _names(split)
            for name in names:
                part = itertools.islice(images, IMAGES_OF_A_PART)
                parts[name] = self._generate_examples(part)
            # The last one takes all that is left: no image is lost.
            parts[last] = self._generate_examples(images)
        return parts

    def _generate_examples(self, images: Iterator[np.ndarray]) -> Iterator[Any]:
        return enumerate({'image': image} for image in images)


def load(split: str, data_dir: str = '') -> Any:
    """Returns the images of 'train' or 'validation', preparing the dataset if missing.

    Returns:
      tfds data source, read image by image: len() and [number] -> {'image': uint8
      [64, 64, 3]}, in an order without meaning that is always the same.

    Raises:
      FileNotFoundError: if the dataset has to be downloaded and cannot be.
    """
    builder = corpus.prepare(Imagenet64, SOURCE, data_dir, _REMEDY)
    return builder.as_data_source('+'.join(_names(split)))


def _names(split: str) -> list[str]:
    return [f'{split}_{part:02d}' for part in range(PARTS[split])]


def _images_of(path: Any) -> Iterator[np.ndarray]:
    with tarfile.open(path) as archive:
        for member in archive:
            if file := archive.extractfile(member):
                with Image.open(file) as image:
                    # As tfds, which decodes to three channels whatever was stored.
                    yield np.asarray(image.convert('RGB'))
