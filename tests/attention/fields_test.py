"""Fields of every type, right and wrong."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from reformer_jax.attention import fields


@dataclasses.dataclass(frozen=True)
class _Config:
    whole: int = 1
    real: float = 1
    switch: bool = True
    names: tuple[str, ...] = ('a',)
    sizes: Mapping[str, int] = dataclasses.field(default_factory=lambda: {'a': 1})
    free: Any = None


@pytest.mark.parametrize(
    ('name', 'right', 'wrong'),
    [
        (
            'whole',
            (-3, np.int64(2), 2**32 - 1),
            (True, 2.0, '2', None, 2**32, -(2**40)),
        ),
        ('real', (0, 0.5, np.float32(0.5)), (False, np.nan, -np.inf, '0.5', None)),
        ('switch', (True, False), (1, 0.0, 'True', None)),
        ('names', ((), ('a', 'b'), ['a']), ((1,), ('a', None))),
        ('sizes', ({}, {'a': 2}), ({'a': 2.0}, {'a': True})),
        ('free', (None, np.nan, 'a', ()), ()),
    ],
)
def test_a_field_is_of_its_type(name, right, wrong):
    for value in right:
        fields.check(_Config(**{name: value}), 'config.')
    for value in wrong:
        with pytest.raises(ValueError, match=rf'config\.{name}=.* must be'):
            fields.check(_Config(**{name: value}), 'config.')
