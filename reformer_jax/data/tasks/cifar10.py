"""CIFAR-10 (Krizhevsky 2009) in grey as sequences, the image task of Long Range Arena.

A token is the grey of a pixel, 0 to 255, row by row, the class what is on the image.
The source is the folder of the published "binary version": tensorflow_datasets, where
Long Range Arena has it from, needs TensorFlow to prepare images.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence

import numpy as np

from reformer_jax.data import batching
from reformer_jax.data.tasks import sequences

_SIDE, _CHANNELS = 32, 3
_LENGTH = _SIDE**2
_CLASSES = 10
_RECORD = 1 + _CHANNELS * _LENGTH  # a class, then all red values, green, blue
_TRAIN = tuple(f'data_batch_{part}.bin' for part in range(1, 6))
_TEST = ('test_batch.bin',)
# Of tf.image.rgb_to_grayscale, which scales by 255.5 and cuts off.
_GREY = np.array([0.2989, 0.5870, 0.1140], np.float32)
_SCALE = np.float32(255.5 / 255)
_REMEDY = (
    'give as config.data.source the folder of '
    'www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz, unpacked'
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cifar10(sequences.Sequences):
    """Images of 1,024 grey pixels and their 10 classes.

    Validation is the last tenth of the files' training images; as Long Range Arena
    takes it in the order of tensorflow_datasets, those are other images.

    Attributes:
      source: the folder, see the module.
    """

    source: str

    @property
    def vocab_size(self) -> int:
        return 256

    @property
    def classes(self) -> int:
        return _CLASSES

    @property
    def files(self) -> Sequence[pathlib.Path]:
        return [_file(self.source, name) for name in _TRAIN]

    def encode(self, text: bytes) -> np.ndarray:
        raise ValueError(f'the tokens are of images, not of the text {text[:20]!r}')

    def decode(self, tokens: np.ndarray) -> bytes:
        return batching.as_numbers(tokens)

    @property
    def _length(self) -> int:
        return _LENGTH

    def _count(self, split: str) -> int:
        return len(_records(self.source, split))

    def _examples(
        self, split: str, numbers: np.ndarray
    ) -> tuple[Sequence[np.ndarray], np.ndarray]:
        records = _records(self.source, split)[numbers]
        return list(_grey(records[:, 1:])), records[:, 0]


def _grey(colours: np.ndarray) -> np.ndarray:
    """Channels, uint8 [n, 3 * 1024], as the grey of pixels, uint8 [n, 1024]."""
    channels = colours.reshape(-1, _CHANNELS, _LENGTH).astype(np.float32)
    return (np.einsum('ncp,c->np', channels, _GREY) * _SCALE).astype(np.uint8)


def _records(source: str, split: str) -> np.ndarray:
    """The records of a split, uint8 [n, 3073]."""
    if split == 'test':
        return _read(source, _TEST)
    records = _read(source, _TRAIN)
    first_held_out = len(records) * 9 // 10
    if split == 'train':
        return records[:first_held_out]
    return records[first_held_out:]


@functools.lru_cache(maxsize=2)
def _read(source: str, names: tuple[str, ...]) -> np.ndarray:
    """The records of files, kept: 154 MB of training."""
    return np.concatenate([_read_file(_file(source, name)) for name in names])


def _read_file(file: pathlib.Path) -> np.ndarray:
    values = np.fromfile(file, np.uint8)
    classes = values[::_RECORD]
    if not values.size or values.size % _RECORD or classes.max() >= _CLASSES:
        raise ValueError(
            f'{str(file)!r} of {values.size:,} bytes is none of the binary version of '
            f'CIFAR-10, records of {_RECORD:,} bytes that begin with a class: {_REMEDY}'
        )
    return values.reshape(-1, _RECORD)


def _file(source: str, name: str) -> pathlib.Path:
    file = pathlib.Path(source).expanduser() / name
    if not file.is_file():
        raise FileNotFoundError(f'no file {str(file)!r}: {_REMEDY}')
    return file
