"""Checks of the arguments of attention; each error names value, limit and remedy."""

import jax

RULES = ('reformer', 'trax', 'strict')


def check_shapes(first: jax.Array, *others: jax.Array) -> None:
    """Raises a ValueError if queries, keys and values are not alike."""
    if any(other.shape != first.shape for other in others):
        raise ValueError(
            f'queries, keys and values have shapes {first.shape} and '
            f'{", ".join(str(other.shape) for other in others)}: they must be alike.'
        )


def check_chunks(
    length: int, chunk_length: int, chunks_before: int, chunks_after: int, causal: bool
) -> None:
    """Raises a ValueError if such chunks can't be made of such a sequence."""
    if chunk_length < 1:
        raise ValueError(f'chunk_length={chunk_length} must be at least 1.')
    if length > chunk_length and length % chunk_length:
        lower = length - length % chunk_length
        raise ValueError(
            f'length {length} is no multiple of chunk_length={chunk_length}: use '
            f'length {lower} or {lower + chunk_length}, or another chunk_length.'
        )
    if chunks_before < 0 or chunks_after < 0:
        raise ValueError(
            f'chunks_before={chunks_before}, chunks_after={chunks_after}: neither may '
            'be negative.'
        )
    if causal and chunks_after:
        raise ValueError(
            f'chunks_after={chunks_after} is of no use to causal attention: set it to '
            '0, or causal=False.'
        )


def check_rule(
    rule: str, within_bucket: bool, chunks_before: int, chunks_after: int, causal: bool
) -> None:
    """Raises a ValueError if the rule is unknown or does not go with the others."""
    if rule not in RULES:
        raise ValueError(f'rule={rule!r} is none of {RULES}.')
    if within_bucket and rule != 'reformer':
        raise ValueError(
            f'within_bucket=True belongs to the reformer rule, not to rule={rule!r}.'
        )
    if rule == 'strict' and (chunks_before, chunks_after, causal) != (1, 0, True):
        raise ValueError(
            'the strict rule is causal with chunks_before=1 and chunks_after=0, not '
            f'causal={causal}, chunks_before={chunks_before}, '
            f'chunks_after={chunks_after}: change them or the rule.'
        )


def dense_crossover(rounds: int, window: int) -> int:
    """The length up to which exact attention is no slower than LSH attention.

    Where the windows of all rounds hold as many keys as the sequence: there both
    compute as many logits. Measured so on a CPU, forward and backward, chunks of 64
    (benchmarks/attention.py).

    Args:
      rounds: hash rounds.
      window: keys that a query sees in a round.
    """
    return rounds * window
