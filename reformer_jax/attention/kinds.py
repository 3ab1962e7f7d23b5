"""The kinds of attention, with all their settings: Full, Local and LSH.

A kind is checked when it is made; each error names value, limit and remedy.
"""

import dataclasses

import jax

from reformer_jax.attention import arguments
from reformer_jax.attention import fields
from reformer_jax.attention import hashing

RULES = ('reformer', 'bucket', 'trax', 'strict')
IMPLEMENTATIONS = ('', 'xla', 'triton', 'mosaic_tpu')

_SEPARATE = ('query', 'key', 'value')
_SHARED = ('query_key', 'value')

# Bucket ids fit 16 bits where it is not known how many there are.
_MOST_BUCKETS = 2**16


@dataclasses.dataclass(frozen=True)
class Full:
    """Exact attention.

    Attributes:
      causal: whether a query sees only keys before it, and its own.
      shared_qk: whether queries are the keys too: keys then have unit length, logits
        are not scaled further, and a token attends to itself only when nothing else is
        left. It is the function that LSH attention approximates.
      dropout: rate for probabilities, where there is a random key.
    """

    causal: bool = True
    shared_qk: bool = False
    dropout: float = 0.0

    def __post_init__(self):
        fields.check(self, '')
        _check_rate(self.dropout)

    @property
    def projections(self) -> tuple[str, ...]:
        """What a layer makes of its input, in the order of the arguments."""
        return _SHARED if self.shared_qk else _SEPARATE


@dataclasses.dataclass(frozen=True)
class Local:
    """Attention within a chunk of the sequence and its neighbours.

    Attributes:
      causal: whether a query sees only keys before it, and its own.
      chunk_length: tokens of a chunk.
      chunks_before: chunks looked back at.
      chunks_after: chunks looked ahead at.
      circular: whether the first and the last chunk are neighbours, as in Hugging Face;
        a causal model does not notice.
      dropout: rate for probabilities, where there is a random key.
    """

    causal: bool = True
    chunk_length: int = 64
    chunks_before: int = 1
    chunks_after: int = 0
    circular: bool = False
    dropout: float = 0.0

    def __post_init__(self):
        fields.check(self, '')
        _check_chunks(self)

    @property
    def projections(self) -> tuple[str, ...]:
        """What a layer makes of its input, in the order of the arguments."""
        return _SEPARATE

    @property
    def window(self) -> int:
        """Keys that a query sees."""
        return self.chunk_length * (self.chunks_before + 1 + self.chunks_after)


@dataclasses.dataclass(frozen=True)
class LSH:
    """Attention among tokens that hash alike (paper section 2), queries being the keys.

    The tokens of every hash round are sorted by (bucket, position) and cut into chunks;
    the softmax runs over the keys of all rounds together. Padding is sorted behind all
    buckets and never seen.

    Attributes:
      causal: whether a query sees only keys before it.
      chunk_length: tokens of a chunk of the sorted order.
      chunks_before: chunks looked back at.
      chunks_after: chunks looked ahead at.
      buckets: number of buckets, or its even factors; () where ids come from elsewhere
        and are below 65,536.
      rounds: hash rounds.
      rule: which keys a query sees.
        'reformer': those in its chunk and the chunks before and after it; a key met in
          several rounds counts once (eq. 16).
        'bucket': of these only those of its own bucket.
        'trax': as 'reformer', but looking around the ends and from round to round, and
          a key met in m rounds counts m times (trax v2, Hugging Face).
        'strict': the last chunk_length tokens of its bucket before it; counts once.
          Depends on the past only, while with the others the sort moves with the
          future. Needs causal, chunks_before=1 and chunks_after=0.
      exact: exact attention instead, the function that the others approximate.
      implementation: 'xla', 'triton' (NVIDIA GPUs), 'mosaic_tpu', or '' for the fastest
        on the device that takes the arrays. CPUs interpret kernels, slowly.
      dropout: rate for probabilities, where there is a random key.
    """

    causal: bool = True
    chunk_length: int = 64
    chunks_before: int = 1
    chunks_after: int = 0
    buckets: hashing.Buckets = ()
    rounds: int = 2
    rule: str = 'reformer'
    exact: bool = False
    implementation: str = ''
    dropout: float = 0.0

    def __post_init__(self):
        fields.check(self, '')
        _check_chunks(self)
        if self.rounds < 1:
            raise ValueError(f'rounds={self.rounds} must be at least 1.')
        if self.buckets != ():
            factors = hashing.bucket_factors(self.buckets)
            if not isinstance(self.buckets, int):  # a list could not be hashed
                object.__setattr__(self, 'buckets', factors)
        for name, known in (('rule', RULES), ('implementation', IMPLEMENTATIONS)):
            if getattr(self, name) not in known:
                raise ValueError(f'{name}={getattr(self, name)!r} is none of {known}.')
        around = self.chunks_before, self.chunks_after, self.causal
        if self.rule == 'strict' and around != (1, 0, True):
            raise ValueError(
                'the strict rule is causal with chunks_before=1 and chunks_after=0, '
                f'not causal={self.causal}, chunks_before={self.chunks_before}, '
                f'chunks_after={self.chunks_after}: change them or the rule.'
            )
        if self.rule == 'strict' and self.exact:
            raise ValueError(
                'exact=True does not go with the strict rule, which is the same '
                "function of the past at every length: use rule='reformer'."
            )

    @property
    def projections(self) -> tuple[str, ...]:
        """What a layer makes of its input, in the order of the arguments."""
        return _SHARED

    @property
    def num_buckets(self) -> int:
        """Bound on the bucket ids; a small one keeps the sort key in 32 bits."""
        return hashing.bucket_count(self.buckets) if self.buckets else _MOST_BUCKETS

    @property
    def window(self) -> int:
        """Keys that a query sees in a round."""
        return self.chunk_length * (self.chunks_before + 1 + self.chunks_after)

    @property
    def full(self) -> Full:
        """The exact attention that this approximates."""
        return Full(self.causal, shared_qk=True, dropout=self.dropout)

    def is_exact(self, length: int) -> bool:
        """Whether a sequence gets exact attention: also where one chunk comes to it."""
        one_chunk = length <= self.chunk_length and self.rule in ('reformer', 'trax')
        return self.exact or one_chunk


Kind = Full | Local | LSH


def check_shapes(first: jax.Array, *others: jax.Array) -> None:
    """Raises a ValueError if queries, keys and values are not alike, [B, L, H, K]."""
    for x in (first, *others):
        arguments.check_floats('queries, keys or values', x, 'BLHK')
    if any(other.shape != first.shape for other in others):
        raise ValueError(
            f'queries, keys and values have shapes {first.shape} and '
            f'{", ".join(str(other.shape) for other in others)}: they must be alike.'
        )


def check_length(kind: Local | LSH, length: int) -> None:
    """Raises a ValueError if such a sequence can't be cut into chunks."""
    size = kind.chunk_length
    if length > size and length % size:
        lower = length - length % size
        raise ValueError(
            f'length {length} is no multiple of chunk_length={size}: use length '
            f'{lower} or {lower + size}, or another chunk_length.'
        )


def check_part(kind: Kind, length: int) -> None:
    """Raises a ValueError if a kind can't attend over a ring of devices, each of which
    has so many positions."""
    if isinstance(kind, Full):
        if kind.causal or kind.shared_qk:
            raise ValueError(
                'exact attention of a sequence to itself does not go over a ring of '
                "devices: set mesh.ring=1, or give 'lsh' and 'local' layers alone and "
                'a dense_length below the length.'
            )
        if kind.dropout:
            raise ValueError(
                f'dropout={kind.dropout} of exact attention does not go over a ring of '
                'devices: set it to 0, or mesh.ring=1.'
            )
        return
    if length % kind.chunk_length:
        raise ValueError(
            f'chunk_length={kind.chunk_length} does not divide the {length} positions '
            'of each device of a ring: use a divisor, or another mesh.ring.'
        )
    if isinstance(kind, LSH):
        if kind.exact:
            check_part(kind.full, length)
        if kind.implementation not in ('', 'xla'):
            raise ValueError(
                f'implementation={kind.implementation!r} does not go over a ring of '
                "devices: set it to 'xla', or mesh.ring=1."
            )
        return
    around = kind.chunk_length * max(kind.chunks_before, kind.chunks_after)
    if around > length:
        raise ValueError(
            f'local attention looks around {around} positions, and each device of a '
            f'ring has {length}: look around fewer, or make mesh.ring smaller.'
        )


def _check_chunks(kind: Local | LSH) -> None:
    if kind.chunk_length < 1:
        raise ValueError(f'chunk_length={kind.chunk_length} must be at least 1.')
    if kind.chunks_before < 0 or kind.chunks_after < 0:
        raise ValueError(
            f'chunks_before={kind.chunks_before}, chunks_after={kind.chunks_after}: '
            'neither may be negative.'
        )
    if kind.causal and kind.chunks_after:
        raise ValueError(
            f'chunks_after={kind.chunks_after} is of no use to causal attention: set '
            'it to 0, or causal=False.'
        )
    _check_rate(kind.dropout)


def _check_rate(rate: float) -> None:
    if not 0 <= rate < 1:
        raise ValueError(f'dropout={rate} is no rate in [0, 1).')
