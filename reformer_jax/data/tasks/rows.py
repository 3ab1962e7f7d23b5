"""What the datasets of labelled rows share: where rows come from, padding, labels."""

import abc
import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from reformer_jax import progress
from reformer_jax.data import batching
from reformer_jax.data import dataset
from reformer_jax.data.tasks import labels as label_names
from reformer_jax.data.tasks import tables

_Encoded = TypeVar('_Encoded')
# What stands in a string of other things than labels with spaces between them: it is
# in brackets, or a comma follows a label. Tags may have one within: 'Case=Nom,Acc'.
IN_BRACKETS = r'^\s*\[.*\]\s*$'
_NO_TAGS = rf'\S[,;](\s|$)|{IN_BRACKETS}'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows(dataset.Tokenized):
    """Rows of a table, each a sequence of tokens with what is to be predicted.

    Training is endless, each epoch all rows once in a fresh order; validation and test
    are one pass in order. Batches have, besides 'tokens', 'labels' and 'weights', a
    'mask': bool [B, L], True at tokens.

    Attributes:
      source: file, folder or 'tfds:NAME', see `tables`.
      data_dir: folder of prepared tfds datasets; empty means that of tfds.
    """

    source: str
    data_dir: str = ''

    @property
    def head(self) -> str:
        return self.dataset

    @property
    def spec(self) -> batching.Spec:
        shape = (self.batch_size, self.length)
        return {'tokens': (shape, batching.INT), 'mask': (shape, batching.BOOL)}

    @property
    def splits(self) -> tuple[str, ...]:
        return tables.splits(self.source, self.data_dir)

    @property
    def files(self) -> Sequence[pathlib.Path]:
        return tables.files(self.source)

    def table(self, split: str) -> tables.Table:
        """The rows of a split."""
        return tables.read(self.source, split, self.data_dir)

    def encoded(
        self, split: str, columns: Sequence[list[Any]], encode: Callable[..., _Encoded]
    ) -> list[_Encoded]:
        """What `encode` makes of each row's name, for errors, and values of columns."""
        where, values = self.table(split).where, list(zip(*columns, strict=True))
        counted = enumerate(progress.track(values, f'tokenizing {split}'))
        return [encode(where(row), *parts) for row, parts in counted]

    def check_tokens(self, tokens: np.ndarray, text: object, where: str) -> None:
        """Raises a ValueError for a text without a token: it would pass for padding."""
        if not tokens.size:
            raise ValueError(
                f'{where}: {text!r} has no token for tokenizer {self.tokenizer!r}: '
                'remove the row'
            )

    def _pad_rows(
        self,
        split: str,
        tokens: Sequence[np.ndarray],
        fill: Callable[[batching.Batch, int, int], None],
    ) -> dataset.Stream:
        """The batches of rows of these tokens, int32 [<= L] each.

        `fill` writes what a batch has besides 'tokens' and 'mask', all of it 0 before,
        at a place of the batch for the row of an index.
        """

        def assemble(rows: np.ndarray, spec: batching.Spec) -> batching.Batch:
            batch = {name: np.zeros(*array) for name, array in spec.items()}
            batch['tokens'], batch['mask'] = self._pad([tokens[row] for row in rows])
            for place, row in enumerate(rows):
                fill(batch, place, row)
            return batch

        return self._epochs(split, len(tokens), assemble)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labelled(Rows):
    """Rows with labels that have names.

    A split whose labels are all hidden (-1, as GLUE's test splits) is none, nor is a
    test split that has no labels.

    Attributes:
      labels: names in the order of the classes; () means those of all splits ('0' to
        the greatest, or sorted names), or the classes of tfds.
    """

    labels: tuple[str, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, 'labels', label_names.given(self.labels))

    @property
    @abc.abstractmethod
    def labels_column(self) -> str:
        """The column where they stand."""

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(split for split in super().splits if not self._is_hidden(split))

    def _is_hidden(self, split: str) -> bool:
        column, hidden = self.labels_column, {'-1'}
        if split == 'test':
            hidden |= {'', 'None'}
        rows = self.table(split).rows
        return all(str(row.get(column, '')).strip() in hidden for row in rows)

    def label_lists(self, table: tables.Table) -> list[list[Any]]:
        """The labels of each row."""
        return table.lists(self.labels_column, _NO_TAGS)

    def label_classes(self, split: str) -> list[list[int]]:
        """The class of each label of each row."""
        table = self.table(split)
        return label_names.classes(self.label_lists(table), self.names, table.where)

    @property
    def names(self) -> tuple[str, ...]:
        """The labels given, or found."""
        return self.labels or _find(self)

    @property
    def classes(self) -> int:
        return len(self.names)

    def resolved(self) -> 'Labelled':
        return dataclasses.replace(self, labels=self.names)


@functools.lru_cache(maxsize=4)
def _find(rows: Labelled) -> tuple[str, ...]:
    column = rows.labels_column
    if known := tables.label_names(rows.source, column, rows.data_dir):
        return known
    found = [rows.table(split) for split in dict.fromkeys(('train', *rows.splits))]

    def where(index: int) -> str:
        places = ((table, row) for table in found for row in range(len(table.rows)))
        table, row = next(itertools.islice(places, index, None))
        return table.where(row)

    lists = [labels for table in found for labels in rows.label_lists(table)]
    return label_names.find(lists, column, where)
