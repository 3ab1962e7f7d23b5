"""Functions of single positions, on each device for those that it has.

Left to itself XLA's partitioner adds sums over positions up over all devices whenever
something is added to them: gradients of parameters after every chunk. Here each device
has its own, for the caller to add up at the end.

How [B, L, ...] is split over the current mesh is said by a PartitionSpec of two
dimensions, P() where it is not. Axes of the mesh that are not in it are left to the
partitioner.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P


def on_parts(function: Callable[..., Any], spec: P, whole: Any, split: Any) -> Any:
    """function(whole, split) of each part.

    Args:
      function: returns a pytree of [B, L, ...].
      spec: how it is split.
      whole: pytree of arrays that each part gets whole.
      split: pytree of arrays [B, L, ...], of which a part gets its own.
    """

    def and_nothing(whole: Any, split: Any, sums: Any) -> tuple[Any, Any]:
        return function(whole, split), sums

    return on_parts_with_sums(and_nothing, spec, whole, split, ())[0]


def on_parts_with_sums(
    function: Callable[..., Any], spec: P, whole: Any, split: Any, sums: Any
) -> tuple[Any, Any]:
    """The same of function(whole, split, sums), which returns the sums of its part too.

    sums: pytree of [parts, ...], to begin with zeros_by_part; a part gets [...].
    """

    def on_part(whole: Any, split: Any, sums: Any) -> tuple[Any, Any]:
        out, sums = function(whole, split, jax.tree.map(lambda x: x[0], sums))
        return out, jax.tree.map(lambda x: x[None], sums)

    axes = _axes(spec)
    if not axes:
        return on_part(whole, split, sums)
    return jax.shard_map(
        on_part,
        in_specs=(P(), spec, P(axes)),
        out_specs=(spec, P(axes)),
        axis_names=set(axes),
        check_vma=False,
    )(whole, split, sums)


def zeros_by_part(tree: Any, spec: P, *, after: Any) -> Any:
    """Zeros [parts, ...] for each leaf [...] of a tree, when `after` is known, a pytree
    of [B, L, ...].

    XLA would make those of several layers at once, long before they are added to.
    """

    def on_part(after: Any) -> Any:
        first = jax.tree.leaves(after)[0].ravel()[0]
        unknown = jnp.where(first > jnp.inf, 1, 0)  # to XLA; it is 0
        return jax.tree.map(
            lambda x: jnp.broadcast_to(unknown.astype(x.dtype), (1, *x.shape)), tree
        )

    axes = _axes(spec)
    if not axes:
        return on_part(after)
    return jax.shard_map(
        on_part,
        in_specs=(spec,),
        out_specs=P(axes),
        axis_names=set(axes),
        check_vma=False,
    )(after)


def _axes(spec: P) -> tuple[str, ...]:
    """All axes of the mesh that are in it."""
    return tuple(
        name
        for axes in spec
        if axes
        for name in (axes if isinstance(axes, tuple) else (axes,))
    )
