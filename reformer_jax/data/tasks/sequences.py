"""What tasks share whose rows are no texts: numbered sequences with a class each."""

import abc
import dataclasses
from collections.abc import Sequence

import numpy as np

from reformer_jax.data import batching
from reformer_jax.data import dataset
from reformer_jax.data.tasks import scores


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sequences(dataset.Dataset):
    """Examples 0, 1, ... of each split, a sequence of tokens and its class.

    Training is endless, each epoch all examples once in an order that `seed` makes;
    validation and test are one pass in order. Batches have 'tokens' int32 [B, L],
    'mask' bool [B, L], True at tokens, 'labels' int32 [B] and 'weights' float32 [B].
    """

    @property
    def head(self) -> str:
        return 'classification'

    @property
    def spec(self) -> batching.Spec:
        shape, row = (self.batch_size, self._length), (self.batch_size,)
        return {
            'tokens': (shape, batching.INT),
            'mask': (shape, batching.BOOL),
            'labels': (row, batching.INT),
            'weights': (row, batching.FLOAT),
        }

    @property
    @abc.abstractmethod
    def _length(self) -> int:
        """L, tokens of a batch's rows."""

    @abc.abstractmethod
    def _count(self, split: str) -> int:
        """Examples of a split."""

    @abc.abstractmethod
    def _examples(
        self, split: str, numbers: np.ndarray
    ) -> tuple[Sequence[np.ndarray], np.ndarray]:
        """The tokens [<= L] and the classes, int [n], of examples [n]."""

    def score(self, split: str, predictions: np.ndarray) -> dict[str, float]:
        scores.check(predictions, self._count(split), (self.classes,))
        _, labels = self._examples(split, np.arange(len(predictions)))
        return scores.single(predictions, labels)

    def _stream(self, split: str) -> dataset.Stream:
        def assemble(numbers: np.ndarray, spec: batching.Spec) -> batching.Batch:
            batch = {name: np.zeros(*array) for name, array in spec.items()}
            rows, labels = self._examples(split, numbers)
            shape = (self.batch_size, self._length)
            batch['tokens'], batch['mask'] = batching.pad(rows, shape)
            batch['labels'][: len(rows)] = labels
            batch['weights'][: len(rows)] = 1
            return batch

        return self._epochs(split, self._count(split), assemble)
