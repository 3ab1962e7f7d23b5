"""enwik8: the first 100 million bytes of the English Wikipedia of March 2006.

Split 90 / 5 / 5 million bytes as usual. Prepared once by tensorflow_datasets as
array_record files, which needs no TensorFlow; or read from a local copy.
"""

import dataclasses
import functools
import pathlib
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from reformer_jax.data import batching
from reformer_jax.data import corpus
from reformer_jax.data import text

ARCHIVE = corpus.Archive(
    'http://mattmahoney.net/dc/enwik8.zip',
    36_445_475,
    '547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc',
)
BLOCK_BYTES = 1_000_000
_REMEDY = (
    'fetch that file on a machine that can, and give it with '
    '--config.data.path=/path/to/enwik8 (.zip or unpacked)'
)


class Builder(tfds.core.GeneratorBasedBuilder):
    """tfds builder of enwik8: numbered blocks of bytes, in array_record files."""

    name = 'enwik8'
    VERSION = tfds.core.Version('1.0.0')

    @tfds.core.utils.classproperty
    @classmethod
    def url_infos(cls) -> dict[str, tfds.download.checksums.UrlInfo]:
        return ARCHIVE.info

    def _info(self) -> tfds.core.DatasetInfo:
        block = tfds.features.Tensor(shape=(None,), dtype=np.uint8, encoding='bytes')
        features = {'number': np.int64, 'bytes': block}
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            homepage='http://mattmahoney.net/dc/textdata.html',
            features=tfds.features.FeaturesDict(features),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        # Unpacked here: tfds' own unpacking writes another 100 MB to disk.
        with zipfile.ZipFile(dl_manager.download(ARCHIVE.url)) as archive:
            text = np.frombuffer(archive.read('enwik8'), np.uint8)
        return {
            split: self._generate_examples(batching.take_split(text, split))
            for split in batching.SPLITS
        }

    def _generate_examples(self, text: np.ndarray) -> Iterator[tuple[int, Any]]:
        for number, start in enumerate(range(0, text.size, BLOCK_BYTES)):
            yield number, {'number': number, 'bytes': text[start : start + BLOCK_BYTES]}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Enwik8(text.Text):
    """enwik8 in windows, as `text.Text`.

    Attributes:
      path: a local copy (enwik8, enwik8.zip, ...); empty means the prepared dataset in
        `data_dir`, which is downloaded (36 MB) and prepared (100 MB) if missing.
      data_dir: folder of prepared datasets; empty means that of tfds, $TFDS_DATA_DIR or
        ~/tensorflow_datasets.
    """

    data_dir: str = ''

    @property
    def files(self) -> Sequence[pathlib.Path]:
        return super().files if self.path else ()

    def read(self, split: str) -> np.ndarray:
        return super().read(split) if self.path else load(split, self.data_dir)


@functools.lru_cache(maxsize=3)
def load(split: str, data_dir: str = '') -> np.ndarray:
    """Returns the bytes of a split, uint8 [n], preparing the dataset if missing.

    Raises:
      FileNotFoundError: if the dataset has to be downloaded and cannot be.
    """
    builder = corpus.prepare(Builder, 'enwik8', data_dir, _REMEDY)
    # tfds stores examples in the order of their hashed keys.
    blocks = sorted(builder.as_data_source(split), key=lambda block: block['number'])
    return np.concatenate([block['bytes'] for block in blocks])
