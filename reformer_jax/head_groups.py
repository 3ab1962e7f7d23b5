"""Groups of attention heads, taken one after another to save memory."""

from typing import Any, NamedTuple

import jax
from jax import lax


class HeadGroup(NamedTuple):
    """One of `groups` equal groups of heads; `which` may be traced."""

    which: jax.Array | int
    groups: int


def take(group: HeadGroup, x: Any, *, axis: int) -> jax.Array:
    """The slice of an array that belongs to a group of heads.

    Heads of a group are `groups` apart, so that a sharded axis over heads stays
    sharded.
    """
    if group.groups == 1:
        return x[...]
    shape = (*x.shape[:axis], -1, group.groups, *x.shape[axis + 1 :])
    return lax.dynamic_index_in_dim(
        x[...].reshape(shape), group.which, axis + 1, keepdims=False
    )
