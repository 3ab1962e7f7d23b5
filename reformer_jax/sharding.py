"""Device mesh and the placement of parameters, optimizer state and batches.

Axes: 'data' splits the batch; 'fsdp' splits the batch and every large parameter (which
is gathered layer by layer); 'model' splits heads, feed-forward units and vocabulary;
'sequence' splits the positions of each sequence, and in the attention core heads
instead: an all-to-all before it and one after it change the one for the other, so that
all else is local and attention is that of one device (Jacobs et al. 2023, DeepSpeed
Ulysses). 'ring' splits the positions in the attention core too, for more devices than
heads: see attention/ring.py. Devices with parts of one sequence divide the parameters
as those of 'fsdp' do: each would have the same copy.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import AxisType
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ('data', 'fsdp', 'model', 'ring', 'sequence')
BATCH_AXES = ('data', 'fsdp')
HEAD_AXES = ('model', 'sequence')  # in the attention core
# In this order the positions of a device in the core lie together.
POSITION_AXES = ('ring', 'sequence')
POSITIONS = P(BATCH_AXES, POSITION_AXES)  # of [B, L, ...] but in the attention core
PARAMETER_AXES = ('fsdp', 'ring', 'sequence')

# Regular expressions of parameters' names, and for each dimension mesh axes or None.
Rules = Sequence[tuple[str, Sequence[Any]]]

# First match wins; specs are for a single layer and get a leading None when stacked.
_RULES = (
    (r'attention\.(query|key|value|query_key)$', P(PARAMETER_AXES, 'model', None)),
    (r'attention\.output$', P('model', None, PARAMETER_AXES)),
    (r'feed_forward\.(hidden)$', P(PARAMETER_AXES, 'model')),
    (r'feed_forward\.(output)$', P('model', PARAMETER_AXES)),
    (r'feed_forward\.hidden_bias$', P('model')),
    (r'(^|\.)embedding$', P('model', PARAMETER_AXES)),
    (r'^head\.(tie_projection|hidden)$', P(PARAMETER_AXES, None)),
    (r'^head\.output$', P(PARAMETER_AXES, 'model')),
    (r'^head\.output_bias$', P('model')),
)


def make_mesh(shape: Mapping[str, int] | None = None) -> jax.sharding.Mesh:
    """Mesh over all devices with the axes AXES.

    Args:
      shape: devices along each axis, each 1 if absent; -1 (for one axis) takes the
        devices that are left. Without any setting all devices are on 'data'.

    Raises:
      ValueError: unknown axis, or a product that is not the number of devices.
    """
    if shape is not None and not isinstance(shape, Mapping):
        raise ValueError(f'mesh {shape!r} must be a mapping of {AXES} to devices.')
    shape = dict(shape or {'data': -1})
    unknown = sorted(set(shape) - set(AXES))
    if unknown:
        raise ValueError(f'mesh axes {unknown} are none of {AXES}.')
    sizes = [shape.get(axis, 1) for axis in AXES]
    if not all(isinstance(size, int) and not isinstance(size, bool) for size in sizes):
        raise ValueError(f'mesh {shape} must have whole numbers of devices.')
    devices = jax.device_count()
    others = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) == 1 and others > 0 and devices % others == 0:
        sizes[sizes.index(-1)] = devices // others
    if math.prod(sizes) != devices or min(sizes) < 1:
        raise ValueError(
            f'mesh {dict(zip(AXES, sizes, strict=True))} does not make up the '
            f'{devices} devices there are: the product of its axes must, or let one '
            'axis be -1.'
        )
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def check(mesh: jax.sharding.Mesh, *, batch_size: int, heads: int, length: int) -> None:
    """Raises a ValueError if batch, heads or positions can't be split over the mesh."""
    over = mesh.shape['data'] * mesh.shape['fsdp']
    if batch_size % over:
        raise ValueError(
            f'a batch of {batch_size} sequences (per accumulation step) does not split '
            f'over data * fsdp = {over} devices: use a multiple of {over}, or put more '
            "devices on 'model'."
        )
    of_heads = math.prod(mesh.shape.get(axis, 1) for axis in HEAD_AXES)
    if heads % of_heads:
        raise ValueError(
            f'{heads} heads (at a time) do not split over model * sequence = '
            f"{of_heads} devices: use a divisor of the heads, and 'ring' for more."
        )
    parts = math.prod(mesh.shape.get(axis, 1) for axis in POSITION_AXES)
    if length % parts:
        raise ValueError(
            f'{length} positions do not split over ring * sequence = {parts} devices: '
            'use a divisor of the length.'
        )


def split(shape: Sequence[int]) -> P:
    """How the current mesh splits [B, L, ...] of such a shape; P() on one device."""
    mesh = jax.sharding.get_abstract_mesh()
    spec = P() if mesh.empty else _fitting(POSITIONS, tuple(shape[:2]), mesh)
    names = [name for axes in spec for name in _names(axes)]
    return spec if math.prod(mesh.shape[name] for name in names) > 1 else P()


def batch_part() -> tuple[jax.Array | int, int]:
    """Within shard_map: which part of the batch is here, and how many there are."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(axis for axis in BATCH_AXES if axis in mesh.manual_axes)
    count = math.prod(mesh.shape[axis] for axis in axes)
    return (lax.axis_index(axes) if count > 1 else 0), count


def ring() -> str:
    """The axis of the current mesh that splits positions in attention, '' for none."""
    mesh = jax.sharding.get_abstract_mesh()
    return 'ring' if mesh.shape.get('ring', 1) > 1 else ''


def parameter_specs(tree: Any, mesh: jax.sharding.Mesh, rules: Rules = ()) -> Any:
    """NamedSharding for each leaf of a model, optimizer state or train state.

    Matched by the end of the leaf's path, so that optimizer moments follow their
    parameter; an axis that does not divide a dimension is left out, and those after it.

    Args:
      tree: arrays or their shapes.
      mesh: the devices.
      rules: go before _RULES, see check_rules.
    """
    own = [(rule, P(*map(_axes, axes))) for rule, axes in rules]

    def place(path: Any, leaf: Any) -> NamedSharding:
        name = leaf_name(path)
        spec = next((s for rule, s in (*own, *_RULES) if re.search(rule, name)), P())
        if len(spec) < leaf.ndim and re.search(r'layers\.', name):
            spec = P(None, *spec)
        if len(spec) != leaf.ndim:
            return NamedSharding(mesh, P())
        return NamedSharding(mesh, _fitting(spec, leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(place, tree)


def check_rules(rules: Rules, model: Any) -> None:
    """Raises a ValueError unless each rule is a regular expression that is found in the
    name of a parameter, and for each dimension of that (without the one of stacked
    layers) None, a mesh axis or several."""
    named = {leaf_name(path): x for path, x in jax.tree.leaves_with_path(model)}
    for given in rules:
        pair = isinstance(given, list | tuple) and len(given) == 2
        if not pair or not isinstance(given[1], list | tuple):
            raise ValueError(
                f'placement {given!r} must be a pair of a regular expression and the '
                "axes of each dimension, such as ('^head.output$', (None, 'model'))."
            )
        rule, axes = given
        try:
            found = {name: x for name, x in named.items() if re.search(rule, name)}
        except (re.error, TypeError) as error:
            raise ValueError(f'placement {rule!r} is no regular expression.') from error
        if not found:
            raise ValueError(
                f'placement {rule!r} is found in no parameter. There are: '
                f'{", ".join(named)}.'
            )
        used = [name for x in map(_axes, axes) for name in _names(x)]
        if set(used) - set(AXES) or len(used) > len(set(used)):
            raise ValueError(
                f'placement {rule!r} is over {used}: each mesh axis can stand once, of '
                f'{AXES}.'
            )
        for name, x in found.items():
            if len(axes) != x.ndim - ('layers.' in name):
                raise ValueError(
                    f'placement {rule!r} has {len(axes)} dimensions, and {name} has '
                    f'the shape {x.shape}'
                    + ', layers first' * ('layers.' in name)
                    + ': give an axis or None for each.'
                )


def _axes(given: Any) -> Any:
    """Axes of a dimension as a PartitionSpec takes them; JSON has lists."""
    return tuple(given) if isinstance(given, list | tuple) else given


def _names(axes: Any) -> tuple[str, ...]:
    return axes if isinstance(axes, tuple) else (axes,) if axes else ()


def leaf_name(path: Any) -> str:
    """Dotted name of a parameter from its tree path, without wrappers before it.

    The optimizer's moments of a parameter have the parameter's own name.
    """
    names = [
        str(getattr(step, 'name', getattr(step, 'key', getattr(step, 'idx', step))))
        for step in path
    ]
    if names[-1] == 'value':  # the nnx.Param around an array
        names.pop()
    for start in ('model', 'mu', 'nu', 'v', 'v_row', 'v_col', 'trace', 'acc_grads'):
        if start in names:
            names = names[len(names) - names[::-1].index(start) :]
    return '.'.join(names)


def constrain(x: jax.Array, spec: P) -> jax.Array:
    """with_sharding_constraint on the current mesh, on the axes that divide x.

    Parameters are gathered over 'fsdp' where they are used, and activations stay split
    over the batch; left to itself the partitioner gathers activations instead. Axes
    that are split by shard_map already are left out.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return lax.with_sharding_constraint(x, _fitting(spec, x.shape, mesh))


def _fitting(spec: P, shape: tuple[int, ...], mesh: Any) -> P:
    """The spec with as many axes of each dimension as together divide it."""

    def fitting(axes: Any, size: int) -> Any:
        names = tuple(name for name in _names(axes) if name not in mesh.manual_axes)
        while size % math.prod(mesh.shape[name] for name in names):
            names = names[:-1]
        return (names if isinstance(axes, tuple) else axes) if names else None

    return P(*map(fitting, spec, shape))


def rows_here(rows: int, mesh: jax.sharding.Mesh) -> np.ndarray:
    """Which rows of a batch of so many this process has on its devices, ascending."""
    parts, count = _batch_parts(mesh)
    size = rows // count
    return (parts[:, None] * size + np.arange(size)).ravel()


def place_batch(batch: Mapping[str, np.ndarray], mesh: jax.sharding.Mesh) -> Any:
    """Rows of this process (`rows_here`) as global arrays split over the batch axes."""
    sharding = NamedSharding(mesh, P(BATCH_AXES))
    parts, count = _batch_parts(mesh)

    def place(value: np.ndarray) -> jax.Array:
        size = len(value) // len(parts)

        def shard(index: Any) -> np.ndarray:
            place = int(np.searchsorted(parts, (index[0].start or 0) // size))
            return value[place * size : (place + 1) * size]

        shape = size * count, *value.shape[1:]
        return jax.make_array_from_callback(shape, sharding, shard)

    return {name: place(value) for name, value in batch.items()}


def _batch_parts(mesh: jax.sharding.Mesh) -> tuple[np.ndarray, int]:
    """Which parts of a batch this process has, ascending, and how many there are."""
    owners = np.vectorize(lambda device: device.process_index)(mesh.devices)
    axes = [mesh.axis_names.index(axis) for axis in BATCH_AXES]
    here = np.moveaxis(owners == jax.process_index(), axes, range(len(axes)))
    count = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    return np.flatnonzero(here.reshape(count, -1).any(axis=1)), count


def missing_rows(batch: int) -> int:
    """How many rows a batch lacks to be split over the current mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return -batch % math.prod(mesh.shape.get(axis, 1) for axis in BATCH_AXES)


def over_batch_and_heads(
    function: Callable[..., Any], in_specs: tuple[P, ...], out_specs: Any
) -> Callable[..., Any]:
    """shard_map over the current mesh, so that each device sorts only its own rows.

    Without a mesh, or on one device, the function itself.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return function
    return jax.shard_map(
        function, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )
