"""Pairs of a source and a target, such as a sentence and its translation."""

import array
import dataclasses
import functools
import itertools
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from reformer_jax import progress
from reformer_jax.data import batching
from reformer_jax.data import buckets
from reformer_jax.data import dataset
from reformer_jax.data import parallel
from reformer_jax.data import tokenizers
from reformer_jax.data import translation_scores
from reformer_jax.data.tasks import tables

_TOO_LONG = ('skip', 'error')
# Lines of each side that a tokenizer is made of at most: its trainer holds all of them
# in memory, several times over.
_TOKENIZER_LINES = 2_000_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairs(dataset.Dataset):
    """Texts as sources and targets, in batches of about the same length.

    Both sides end with the tokenizer's token for the end of a text. Training never
    ends; in validation and test every pair comes once. Pairs that no bucket holds are
    left out, and in training those of which a side is empty (`told` has their numbers);
    all sources of a split are translated.

    batch_size is that of the longest bucket: of a bucket half as long a batch has twice
    as many pairs. Batches have 'source' [B, S], 'source_mask', True at tokens, 'tokens'
    [B, T] and 'weights', 1 at tokens.

    Attributes:
      source: see `parallel`.
      source_column, target_column: what stands for '{column}' in a path, or the columns
        of a table.
      split_names: for each split what stands for '{split}' in a path: a name, or
        several, read one after the other; of tables they are known.
      data_dir: folder of prepared tfds datasets; empty means that of tfds.
      tokenizer: of both sides: 'bytes', the path of a SentencePiece model or a
        tokenizer.json, or 'train:SIZE', a model of so many tokens made of the training
        pairs (of more than 2 million, of so many at even places), that the run keeps.
      lengths: of the buckets, ascending: tokens with the end, of either side or as
        pairs (source, target).
      too_long: 'skip' pairs that no bucket holds, or say that it is an 'error'.
    """

    source: str
    source_column: str
    target_column: str
    lengths: Any
    split_names: Any = (
        ('train', ('train',)),
        ('validation', ('validation',)),
        ('test', ('test',)),
    )
    data_dir: str = ''
    tokenizer: str = tokenizers.BYTES
    too_long: str = 'skip'

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, 'lengths', buckets.check(self.lengths))
        object.__setattr__(self, 'split_names', _split_names(self.split_names))
        if self.too_long not in _TOO_LONG:
            raise ValueError(
                f'too_long={self.too_long!r}: give one of {", ".join(_TOO_LONG)}'
            )
        tokenizers.size_to_train(self.tokenizer)
        _ = self._files  # checked when made

    @property
    def vocab_size(self) -> int:
        size = tokenizers.size_to_train(self.tokenizer)
        return size or tokenizers.load(self.tokenizer).vocab_size

    @property
    def end_id(self) -> int:
        """The token at the end of a source and of a target."""
        return tokenizers.load(self.tokenizer).separator_id

    @property
    def splits(self) -> tuple[str, ...]:
        return self._files.names

    @property
    def specs(self) -> tuple[batching.Spec, ...]:
        return tuple(
            batching.pairs_spec(rows, *pair)
            for rows, pair in zip(self._rows, self.lengths, strict=True)
        )

    @property
    def spec(self) -> batching.Spec:
        return self.specs[-1]

    @property
    def told(self) -> str:
        found, members = self._found('train')
        real = sum(int(found.sizes_N2[pairs, 1].sum()) for pairs in members)
        filled = sum(
            -(-pairs.size // rows) * rows * target
            for pairs, rows, (_, target) in zip(
                members, self._rows, self.lengths, strict=True
            )
        )
        kept = sum(pairs.size for pairs in members)
        left_out = []
        if too_long := self.left_out('train'):
            left_out.append(f'{too_long:,} longer than {self.lengths[-1]} left out')
        if found.empty:
            left_out.append(f'{found.empty:,} with an empty side left out')
        return '; '.join(
            [f'{kept:,} pairs, {real / filled:.0%} of their batches tokens', *left_out]
        )

    @property
    def files(self) -> Sequence[pathlib.Path]:
        if not self._files.aligned_by_lines:
            return tables.files(self.source)
        read = ('train', 'validation')
        parts = [part for split in read for part in self._files.paths(split)]
        return [path for part in parts for path in part]

    def with_tokenizer(self, kept: str | None) -> 'Pairs':
        """With the file of a tokenizer, where one is to be made of the training pairs:
        `kept` of an earlier start, or else trained now.

        Raises:
          ValueError: the one that is kept has another size; there is too little text.
        """
        size = tokenizers.size_to_train(self.tokenizer)
        if not size:
            return self
        file = kept or _trained(self._unbatched)
        if (found := tokenizers.load(file).vocab_size) != size:
            raise ValueError(
                f'data.tokenizer={self.tokenizer!r}, and {file} that was kept has '
                f'{found} tokens: set it to train:{found}, or start a new run'
            )
        return dataclasses.replace(self, tokenizer=file)

    def tokens(self, text: str) -> np.ndarray:
        """The tokens of a source or a target, with the end, int32 [n]."""
        tokenizer = tokenizers.load(self.tokenizer)
        end = np.array([tokenizer.separator_id], np.int32)
        return np.concatenate([tokenizer.encode(text), end])

    def texts(self, split: str) -> parallel.Texts:
        """All pairs of a split, as they are."""
        return parallel.read(self._files, split)

    def left_out(self, split: str) -> int:
        """Pairs of a split that no bucket holds."""
        found, members = self._found(split)
        return len(found.sizes_N2) - sum(pairs.size for pairs in members)

    def judged(
        self, split: str, hypotheses: Sequence[str]
    ) -> tuple[dict[str, float], dict[str, str]]:
        """Scores of translations of a split's sources in their order, and the signature
        of each, see `translation_scores`."""
        targets = self.texts(split).targets
        if len(hypotheses) != len(targets):
            raise ValueError(
                f'{len(hypotheses)} translations and {len(targets)} pairs in {split}: '
                'give one for each'
            )
        return translation_scores.scores(hypotheses, targets, self.target_column)

    def encode(self, text: bytes) -> np.ndarray:
        return tokenizers.load(self.tokenizer).encode(text)

    def decode(self, tokens: np.ndarray) -> bytes:
        return tokenizers.load(self.tokenizer).decode(tokens)

    @property
    def _files(self) -> parallel.Files:
        columns = self.source_column, self.target_column
        return parallel.Files(
            source=self.source,
            columns=columns,
            splits=self.split_names,
            data_dir=self.data_dir,
        )

    @property
    def _unbatched(self) -> 'Pairs':
        """One value for all datasets of the same tokens."""
        return dataclasses.replace(
            self, lengths=1, batch_size=1, seed=0, too_long='skip'
        )

    @property
    def _rows(self) -> list[int]:
        return buckets.rows(self.lengths, self.batch_size)

    def _stream(self, split: str) -> dataset.Stream:
        found, members = self._found(split)
        self._check(split, found)
        pad_id = tokenizers.load(self.tokenizer).pad_id

        def assemble(pairs: np.ndarray, spec: batching.Spec) -> batching.Batch:
            sources, targets = (
                [side.row(pair) for pair in pairs] for side in found.sides
            )
            return batching.pad_pairs(sources, targets, spec, pad_id)

        if split == 'train':
            counts = [pairs.size for pairs in members]
            batch_of = buckets.training_batches(counts, self._rows, self.seed)

            def chosen(number: int) -> tuple[batching.Spec, np.ndarray]:
                bucket, places = batch_of(number)
                return self.specs[bucket], members[bucket][places]

            return dataset.Stream(chosen, assemble, None)
        parts = [
            (bucket, pairs[start : start + rows])
            for bucket, (pairs, rows) in enumerate(
                zip(members, self._rows, strict=True)
            )
            for start in range(0, pairs.size, rows)
        ]
        # All lengths among the first: a part of a split may stand for it.
        order = np.random.default_rng(0).permutation(len(parts))

        def chosen_in_order(number: int) -> tuple[batching.Spec, np.ndarray]:
            bucket, pairs = parts[order[number]]
            return self.specs[bucket], pairs

        return dataset.Stream(chosen_in_order, assemble, len(parts))

    def _found(self, split: str) -> tuple['_Encoded', list[np.ndarray]]:
        """The pairs of a split, and which of them each bucket has."""
        found = _encode(self._unbatched, split)
        return found, buckets.members(self.lengths, found.sizes_N2)

    def _check(self, split: str, found: '_Encoded') -> None:
        too_long = self.left_out(split)
        if self.too_long == 'error' and too_long:
            longest = tuple(int(size) for size in found.sizes_N2.max(axis=0))
            raise ValueError(
                f'{too_long} pairs of the {split} split do not fit '
                f'lengths={self.lengths[-1]}: the longest sides have {longest} tokens; '
                "enlarge the last of config.data.lengths, or set too_long='skip'"
            )
        if too_long == len(found.sizes_N2):
            raise ValueError(
                f'no pair of the {split} split fits lengths={self.lengths}: of its '
                f'{len(found.sizes_N2)} all are longer; enlarge config.data.lengths'
            )


class _Side(NamedTuple):
    """Token ids of many texts in one array: an array each would take more memory."""

    tokens: np.ndarray
    starts: np.ndarray  # one more than there are texts

    def row(self, index: int) -> np.ndarray:
        return self.tokens[self.starts[index] : self.starts[index + 1]]


class _Encoded(NamedTuple):
    """The pairs of a split as tokens, and how many of them were left out as empty."""

    sides: tuple[_Side, _Side]
    empty: int

    @property
    def sizes_N2(self) -> np.ndarray:
        return np.stack([np.diff(side.starts) for side in self.sides], axis=1)


@functools.lru_cache(maxsize=4)
def _encode(pairs: Pairs, split: str) -> _Encoded:
    texts = pairs.texts(split)
    count = len(texts.sources)
    dtype = np.uint16 if pairs.vocab_size <= 2**16 else np.int32
    # Of millions of texts an array each would take several times what they hold.
    sides = [(bytearray(), array.array('i')) for _ in texts]
    lines = progress.track(zip(*texts, strict=True), f'tokenizing {split}', count)
    for line in lines:
        if split == 'train' and not all(text.strip() for text in line):
            continue
        for (tokens, sizes), text in zip(sides, line, strict=True):
            ids = pairs.tokens(text)
            tokens += ids.astype(dtype).tobytes()
            sizes.append(ids.size)
    first, second = (
        _Side(np.frombuffer(tokens, dtype), np.cumsum([0, *sizes]))
        for tokens, sizes in sides
    )
    kept = first.starts.size - 1
    if not kept:
        raise ValueError(
            f'the {split} split of {pairs.source!r} has no pair of two texts: give '
            'another as config.data.source'
        )
    if split == 'train':
        parallel.forget()
    return _Encoded((first, second), count - kept)


# Folders of tokenizers trained for runs of this process, which keep copies.
_folders: list[tempfile.TemporaryDirectory] = []


@functools.lru_cache(maxsize=4)
def _trained(pairs: Pairs) -> str:
    """The file of a tokenizer made of the training pairs, or of many of them."""
    _folders.append(tempfile.TemporaryDirectory(prefix='tokenizer_'))
    file = pathlib.Path(_folders[-1].name) / 'spiece.model'
    size = tokenizers.size_to_train(pairs.tokenizer)
    texts = itertools.chain.from_iterable(map(_sample, pairs.texts('train')))
    try:
        tokenizers.train(texts, file, vocab_size=size)
    except ValueError as error:
        raise ValueError(f'data.tokenizer={pairs.tokenizer!r}: {error}') from error
    return str(file)


def _sample(texts: Sequence[str]) -> list[str]:
    """At most `_TOKENIZER_LINES` of the texts, at even places."""
    count = min(len(texts), _TOKENIZER_LINES)
    return [texts[i * len(texts) // count] for i in range(count)]


def _split_names(given: Any) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Names of each split, hashable; a mapping, or pairs as JSON keeps them."""
    names = dict(given)
    unknown = sorted(set(names) - set(batching.SPLITS))
    if unknown or not isinstance(given, Mapping | tuple | list):
        raise ValueError(
            f'split_names={given!r}: give names for {", ".join(batching.SPLITS)}'
        )
    several = {
        split: (name,) if isinstance(name, str) else tuple(name)
        for split, name in names.items()
    }
    return tuple((s, several[s]) for s in batching.SPLITS if several.get(s))
