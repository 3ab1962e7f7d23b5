"""The masks at the top of the README are the rules, told anew in numpy."""

import numpy as np
import pytest

from reports import overview

_C = overview._CHUNK


@pytest.fixture(scope='module')
def buckets():
    return overview.hashed_text()


def _seen_strict(buckets_L, query):
    earlier = np.flatnonzero(buckets_L[:query] == buckets_L[query])
    return set(earlier[-_C:].tolist())


def _seen_in_chunks(buckets_L, query):
    order = np.argsort(buckets_L, kind='stable')
    chunk = int(np.flatnonzero(order == query)[0]) // _C
    keys = order[max(0, chunk - 1) * _C : (chunk + 1) * _C]
    return {int(key) for key in keys if key < query}


@pytest.mark.parametrize(
    ('rule', 'seen'), [('strict', _seen_strict), ('reformer', _seen_in_chunks)]
)
def test_first_rounds(buckets, rule, seen):
    met = overview.first_rounds(rule, buckets)
    expected = np.zeros_like(met)
    for number, buckets_L in reversed(list(enumerate(np.asarray(buckets[0, 0]), 1))):
        for query in range(expected.shape[0]):
            expected[query, list(seen(buckets_L, query))] = number
    np.testing.assert_array_equal(met, expected)
    assert len(np.unique(met)) == overview._ROUNDS + 1


def test_trax_sees_round_the_ends_too(buckets):
    reformer = overview.first_rounds('reformer', buckets) > 0
    trax = overview.first_rounds('trax', buckets) > 0
    assert (trax | ~reformer).all() and trax.sum() > reformer.sum()
    assert not np.triu(trax).any()
