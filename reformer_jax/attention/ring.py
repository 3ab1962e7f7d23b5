"""Sequences whose positions are split over a mesh axis, a ring of devices.

Each device has as many positions as the others, in the order of the axis. Functions are
for shard_map; '' is no ring but one device with all positions. Blocks are passed from
each device to the next, so that a row gets to wherever it is wanted in memory for two
blocks, by static shapes, whatever the order.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from reformer_jax.attention import numerics


def size(axis: str) -> int:
    """Devices of the ring."""
    return lax.axis_size(axis) if axis else 1


def index(axis: str) -> Any:
    """Which of them this is."""
    return lax.axis_index(axis) if axis else 0


def gather(axis: str, x: jax.Array, *, dim: int = 0) -> jax.Array:
    """The parts of all devices, one behind the other in a dimension."""
    return lax.all_gather(x, axis, axis=dim, tiled=True) if axis else x


def part(axis: str, x: jax.Array, *, dim: int, beside: int = 0) -> jax.Array:
    """This device's part of a dimension, with so many entries of the parts beside it.

    `x` has all parts and, at its ends, the entries beside the first and the last.
    """
    if not axis:
        return x
    own = (x.shape[dim] - beside) // size(axis)
    return lax.dynamic_slice_in_dim(x, index(axis) * own, own + beside, axis=dim)


def take(axis: str, arrays: Any, places: jax.Array, *, own: slice | None = None) -> Any:
    """Rows of a sequence by their places in it.

    Args:
      axis: the ring.
      arrays: pytree of this device's part each of arrays [L, ...].
      places: [M] in [0, L), other on each device.
      own: which rows of the arrays are the device's part, where there are others.
    """
    leaves, tree = jax.tree.flatten(arrays)
    blocks = [numerics.bits(x) for x in leaves]
    start, end, _ = (own or slice(None)).indices(blocks[0].shape[0])
    if not axis:
        return jax.tree.map(lambda x: numerics.at(x, places + start), arrays)
    devices, here = size(axis), index(axis)
    onward = [(device, (device + 1) % devices) for device in range(devices)]

    def pick(found, blocks, step):
        local = places - (here - step) % devices * (end - start)
        inside = (local >= 0) & (local < end - start)
        local = start + jnp.where(inside, local, 0)

        def pick_of(so_far, block):
            there = inside.reshape(-1, *(1,) * (block.ndim - 1))
            return jnp.where(there, numerics.at(block, local), so_far)

        return list(map(pick_of, found, blocks))

    def pass_on(carry, step):
        found, blocks = carry
        blocks = [lax.ppermute(block, axis, onward) for block in blocks]
        return (pick(found, blocks, step), blocks), None

    found = [jnp.zeros((*places.shape, *x.shape[1:]), x.dtype) for x in blocks]
    carry = pick(found, blocks, 0), blocks
    (found, _), _ = lax.scan(pass_on, carry, jnp.arange(1, devices))
    return jax.tree.unflatten(tree, list(map(_floats, found, leaves)))


def add(axis: str, x: jax.Array, places: jax.Array, rows: jax.Array) -> jax.Array:
    """This device's part [l, ...] with rows added that all devices have, [M, ...]."""
    local = places - index(axis) * x.shape[0]
    inside = (local >= 0) & (local < x.shape[0])
    return x.at[jnp.where(inside, local, x.shape[0])].add(rows, mode='drop')


def beside(axis: str, x: jax.Array, *, before: int, after: int, dim: int) -> jax.Array:
    """A part between the last entries of the one before and the first of the one after.

    Around the ends. Its gradient goes back where the entries came from.
    """
    devices = size(axis)
    onward = [(device, (device + 1) % devices) for device in range(devices)]
    back = [(device, source) for source, device in onward]
    length = x.shape[dim]
    parts = [x]
    if before:
        last = lax.slice_in_dim(x, length - before, length, axis=dim)
        parts.insert(0, lax.ppermute(last, axis, onward))
    if after:
        first = lax.slice_in_dim(x, 0, after, axis=dim)
        parts.append(lax.ppermute(first, axis, back))
    return jnp.concatenate(parts, axis=dim)


def _floats(bits: jax.Array, like: jax.Array) -> jax.Array:
    """What numerics.bits made integers of."""
    return lax.bitcast_convert_type(bits, like.dtype)
