"""Reversible residual stack (paper section 3): activations that do not grow with depth.

A layer is a tuple of branches, for each of which a half-step adds what it makes of one
stream to the other, and the two change places:
    (target, source) -> (source, target + branch(source))
Attention and feed-forward are the paper's y1 = x1 + attention(x2), y2 = x2 +
feed_forward(y1). So a layer's inputs can be computed back from its outputs.
reversible_scan keeps only the last streams and what attention asks to save (the LSH
buckets, so that both passes attend alike); residual_scan computes the same values with
saved activations, as its oracle and as the paper's non-reversible baseline.

An attention may also read a memory that all layers share, such as the hidden states of
an encoder. It is the same in both passes, and its gradient is one array, to which each
layer adds in the backward pass.

Attention comes in groups of heads, and all that acts on single positions in chunks of
the sequence. The backward pass takes one at a time: its output is subtracted from one
stream, its gradient added to the other's. Beside the two streams and their gradients
only the tensors of one group or chunk exist, and each is evaluated once.

With grid_bits, streams live on multiples of 2**-grid_bits: the initial streams and all
that is added to them are rounded to it (gradients pass straight through). Sums of such
float32 numbers are exact while they stay under 2**(24 - grid_bits), so that the
inversion has no error at all, whatever the precision within the branches.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from reformer_jax.stack import chunking
from reformer_jax.stack import parts

Streams = tuple[jax.Array, jax.Array]

# For each layer of a repeat its branches, each PositionWise or an Attention.
Layers = tuple[tuple[Any, ...], ...]


class HeadGroup(NamedTuple):
    """One of `groups` equal groups of heads; `which` may be traced."""

    which: jax.Array | int = 0
    groups: int = 1

    def of(self, x: jax.Array, *, axis: int) -> jax.Array:
        """The slice of an array with an axis over heads that belongs to the group.

        Heads of a group are `groups` apart, so that a sharded axis stays sharded.
        """
        if self.groups == 1:
            return x
        shape = (*x.shape[:axis], -1, self.groups, *x.shape[axis + 1 :])
        return lax.dynamic_index_in_dim(
            x.reshape(shape), self.which, axis + 1, keepdims=False
        )


class PositionWise(Protocol):
    """A branch that acts on each position alone; a pytree of its parameters."""

    def __call__(self, x: jax.Array, key: jax.Array, *, train: bool) -> jax.Array:
        """What it adds, [B, c, D]."""


class Attention(Protocol):
    """A branch that mixes positions; a pytree of its parameters.

    It adds the sum over groups of heads of combine(attend(project(x))). Only attend
    mixes positions, and it may not depend on parameters. One that reads the memory has
    one more method, remember(memory, group), which like project acts on each of the
    memory's positions alone; it adds combine(attend((project(x), remember(memory)))).
    """

    def project(self, x: jax.Array, group: HeadGroup) -> Any:
        """Queries, keys and values as a pytree of [B, c, ...]."""

    def attend(self, heads: Any, inputs: 'Inputs', *, train: bool) -> tuple[Any, Any]:
        """What combine takes, [B, L, ...], and what the backward pass is given back."""

    def combine(
        self, out: Any, key: jax.Array, group: HeadGroup, *, train: bool
    ) -> jax.Array:
        """What the group adds, [B, c, D]."""


class Inputs(NamedTuple):
    """What attention gets beside its heads, without gradients.

    Attributes:
      key: random key.
      group: which heads.
      extra: of this layer (hash rotations).
      shared: of all layers (the mask).
      saved: None in the forward pass; in the backward pass what the forward returned.
    """

    key: jax.Array
    group: HeadGroup = HeadGroup()
    extra: Any = None
    shared: Any = None
    saved: Any = None


@dataclasses.dataclass(frozen=True)
class Pass:
    """How a stack is run.

    Attributes:
      train: whether branches apply dropout.
      grid_bits: see the module's docstring; 0 for streams as they come.
      head_groups: number of groups of heads.
      chunk_length: positions at a time in all but attend; 0 for all.
      split: how a mesh splits the streams, see parts.py.
      memory_split: the same of the memory.
      single: whether the two streams, which are to be equal, are one, the
        Transformer's: x + attention(x), then x + feed_forward(x). Cannot be inverted.
    """

    train: bool = False
    grid_bits: int = 0
    head_groups: int = 1
    chunk_length: int = 0
    split: P = P()
    memory_split: P = P()
    single: bool = False

    def __post_init__(self):
        chunking.check_chunk_length(self.chunk_length)
        if self.head_groups < 1:
            raise ValueError(f'head_groups={self.head_groups} must be at least 1.')
        if not isinstance(self.grid_bits, int) or not 0 <= self.grid_bits <= 22:
            raise ValueError(
                f'grid_bits={self.grid_bits} is no whole number in [0, 22]: float32 '
                'has 24 bits.'
            )
        for name in ('train', 'single'):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(
                    f'{name}={getattr(self, name)!r} must be True or False.'
                )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def reversible_scan(
    how: Pass,
    layers: Layers,
    streams: Streams,
    key: jax.Array,
    extra: Sequence[Any],
    shared: Any = None,
    watch: jax.Array | None = None,
    memory: Any = None,
) -> Streams:
    """Runs the layers, repeated as often as their parameters are stacked.

    Args:
      how: not single.
      layers: of one repeat; for each its branches, every parameter with a leading axis
        over the repeats.
      streams: (x1, x2), [B, L, D] float32.
      key: random key, from which each branch gets its own.
      extra: for each layer a pytree for its attention with a leading axis over the
        repeats, or None; no gradient.
      shared: pytree that all attentions get; no gradient.
      watch: a float32 number without influence whose gradient counts the numbers in
        which the streams that the backward pass comes back to differ: for streams that
        start alike, 0 says that it found them again.
      memory: pytree of [B, S, ...] that branches with a `remember` read.

    Returns:
      The last streams (y1, y2).
    """
    _check_reversible(how)
    return forward_scan(how, layers, streams, key, extra, shared, memory)[0]


def residual_scan(
    how: Pass,
    layers: Layers,
    streams: Streams,
    key: jax.Array,
    extra: Sequence[Any],
    shared: Any = None,
    checkpoint: bool = False,
    memory: Any = None,
) -> Streams:
    """The same values as reversible_scan, by plain autodiff.

    With checkpoint, each repeat is recomputed in the backward pass from its saved
    inputs (jax.checkpoint).
    """

    def repeat(streams, inputs):
        return _repeat(how, common, streams, inputs)[0], None

    _check(how, layers, streams, extra)
    common = _Common(key, shared, memory)

    if checkpoint:
        repeat = jax.checkpoint(repeat)
    return lax.scan(repeat, _snap(streams, how.grid_bits), _inputs(layers, extra))[0]


def forward_scan(
    how: Pass,
    layers: Layers,
    streams: Streams,
    key: jax.Array,
    extra: Sequence[Any],
    shared: Any = None,
    memory: Any = None,
) -> tuple[Streams, Any]:
    """The values of residual_scan, and what the attentions save.

    The second has an entry for each branch of each layer (None for those that act on
    positions alone), stacked over repeats and groups of heads.
    """
    _check(how, layers, streams, extra)
    repeat = functools.partial(_repeat, how, _Common(key, shared, memory))
    return lax.scan(repeat, _snap(streams, how.grid_bits), _inputs(layers, extra))


def half_step(streams: Streams, new: jax.Array, *, single: bool) -> Streams:
    """The streams after a branch was added to the first: `new` is that sum."""
    return (new, new) if single else (streams[1], new)


def is_attention(branch: Any) -> bool:
    """Whether a branch mixes positions."""
    return hasattr(branch, 'attend')


def reads_memory(branch: Any) -> bool:
    """Whether an attention reads the memory of the stack."""
    return hasattr(branch, 'remember')


def branch_keys(
    key: jax.Array, layer: jax.Array | int, branches: Sequence[Any]
) -> list[jax.Array]:
    """For each branch of a layer its keys: [2] for attend and combine, or [1]."""
    counts = [2 if is_attention(branch) else 1 for branch in branches]
    keys = jax.random.split(jax.random.fold_in(key, layer), sum(counts))
    return [keys[sum(counts[:i]) :][:count] for i, count in enumerate(counts)]


# --- Forward ----------------------------------------------------------------------


class _Common(NamedTuple):
    """What all layers get."""

    key: jax.Array
    shared: Any
    memory: Any


def _check_reversible(how: Pass) -> None:
    if isinstance(how, Pass) and how.single:
        raise ValueError(
            'a single stream cannot be inverted: call residual_scan, or set single='
            'False.'
        )


def _check(how: Pass, layers: Layers, streams: Any, extra: Sequence[Any]) -> None:
    if not isinstance(how, Pass):
        raise ValueError(f'how={how!r} must be a Pass.')
    shapes = [jnp.shape(stream) for stream in streams]
    if len(shapes) != 2 or shapes[0] != shapes[1] or len(shapes[0]) != 3:
        raise ValueError(f'streams of shapes {shapes} must be two, [B, L, D] alike.')
    kinds = [jnp.result_type(stream) for stream in streams]
    if not all(jnp.issubdtype(kind, jnp.floating) for kind in kinds):
        raise ValueError(f'streams are {kinds}: they must be floating-point numbers.')
    if len(layers) != len(extra) or not layers:
        raise ValueError(
            f'{len(layers)} layers and {len(extra)} entries of extra: there must be '
            'one for every layer, None for one that needs none.'
        )


def _forward(how, layers, streams, key, extra, shared, watch, memory):
    _check_reversible(how)
    streams, saved = forward_scan(how, layers, streams, key, extra, shared, memory)
    common = _Common(key, shared, memory)
    return streams, (_inputs(layers, extra), streams, common, watch, saved)


def _inputs(layers, extra):
    repeats = jax.tree.leaves(layers)[0].shape[0]
    return layers, tuple(extra), jnp.arange(repeats)


def _repeat(how: Pass, common: _Common, streams, inputs):
    """One repeat of the layers: the streams and what each attention saves."""
    layers, extra, index = inputs
    saved: list[tuple[Any, ...]] = []
    for place, branches in enumerate(layers):
        keys = branch_keys(common.key, index * len(layers) + place, branches)
        kept = [None] * len(branches)
        for number, branch in enumerate(branches):
            target, source = streams
            if is_attention(branch):
                given = Inputs(keys[number], extra=extra[place], shared=common.shared)
                read = source, common.memory
                new, kept[number] = _add_attention(how, branch, given, read, target)
            else:
                alone = _Given(branch, keys[number][0])
                added = _map(how, _apply, alone, source)
                new = target + _snap(added, how.grid_bits)
            streams = half_step(streams, new, single=how.single)
        saved.append(tuple(kept))
    return streams, tuple(saved)


class _Given(NamedTuple):
    """What the position-wise functions of a branch get beside x: its parameters, a key,
    and which group of heads."""

    branch: Any
    key: jax.Array
    which: jax.Array | int = 0


def _apply(how: Pass, given: _Given, x):
    return given.branch(x, given.key, train=how.train)


def _project(how: Pass, given: _Given, x):
    return given.branch.project(x, HeadGroup(given.which, how.head_groups))


def _remember(how: Pass, given: _Given, memory):
    return given.branch.remember(memory, HeadGroup(given.which, how.head_groups))


def _combine(how: Pass, given: _Given, out):
    group = HeadGroup(given.which, how.head_groups)
    return given.branch.combine(out, given.key, group, train=how.train)


def _map(how: Pass, function, given: _Given, x):
    """function(how, given, x) of each position, fused with nothing around it."""

    def map_part(given, x):
        part = functools.partial(function, how, given)
        return chunking.map_chunks(part, x, chunk_length=_chunk(how, length, x))

    length, spec = _length(x), _split(how, function)
    return _apart(parts.on_parts(map_part, spec, given, _apart(x)))


def _split(how: Pass, function) -> P:
    """How what a function is given is split."""
    return how.memory_split if function is _remember else how.split


def _length(x) -> int:
    """L of a pytree of [B, L, ...]."""
    return jax.tree.leaves(x)[0].shape[1]


def _chunk(how: Pass, length: int, part) -> int:
    """Positions at a time of a device that has a part of so many."""
    return chunking.of_part(how.chunk_length, length, _length(part))


def _heads(how: Pass, given: _Given, x, memory):
    """What attend gets of a group of heads."""
    heads = _map(how, _project, given, x)
    if not reads_memory(given.branch):
        return heads
    return heads, _map(how, _remember, given, memory)


def _add_attention(how: Pass, branch, inputs: Inputs, x_and_memory, target):
    """target + attention(x), and what the groups of heads save, stacked."""
    attend_key, combine_key = inputs.key

    def add(target, which):
        given = _Given(branch, combine_key, which)
        heads = _heads(how, given, *x_and_memory)
        group = HeadGroup(which, how.head_groups)
        here = inputs._replace(key=attend_key, group=group)
        out, saved = branch.attend(heads, here, train=how.train)
        out = _map(how, _combine, given, out)
        return target + _snap(out, how.grid_bits), saved

    return lax.scan(add, target, jnp.arange(how.head_groups))


# --- Backward ---------------------------------------------------------------------


def _backward(how, residuals, gradients):
    inputs, streams, common, watch, saved = residuals

    def repeat(carry, inputs_and_saved):
        (layers, extra, index), saved = inputs_and_saved
        gradient: list[Any] = []
        for place in reversed(range(len(layers))):
            branches = layers[place]
            keys = branch_keys(common.key, index * len(layers) + place, branches)
            of_layer: list[Any] = []
            for number in reversed(range(len(branches))):
                branch, kept = branches[number], saved[place][number]
                given = Inputs(
                    keys[number], HeadGroup(), extra[place], common.shared, kept
                )
                carry, of_branch = _undo(how, branch, given, common.memory, *carry)
                of_layer.insert(0, of_branch)
            gradient.insert(0, tuple(of_layer))
        return carry, tuple(gradient)

    dmemory = jax.tree.map(jnp.zeros_like, common.memory)
    (streams, gradients, dmemory), gradient = lax.scan(
        repeat, (streams, gradients, dmemory), (inputs, saved), reverse=True
    )
    if watch is not None:
        watch = jnp.sum(streams[0] != streams[1], dtype=watch.dtype)
    return gradient, gradients, None, None, None, watch, dmemory


reversible_scan.defvjp(_forward, _backward)


def _undo(
    how: Pass, branch, inputs: Inputs, memory, streams: Streams, gradients, dmemory
):
    """The streams before a half-step, their gradients and those of the memory; and the
    branch's."""
    (source, new), (dsource, dnew) = streams, gradients
    sums = parts.zeros_by_part(branch, how.split, after=source)
    if is_attention(branch):
        undo = functools.partial(
            _undo_attention, how, branch, inputs, (memory, dmemory)
        )
        target, dsource, dmemory, gradient = undo((source, dsource), (new, dnew), sums)
    else:
        given = _Given(branch, inputs.key[0])
        target, dsource, sums = _undo_chunks(
            how, _apply, given, (source, dsource), (new, dnew), sums
        )
        gradient = _total(sums)
    return ((target, source), (dnew, dsource), dmemory), gradient


def _undo_attention(
    how: Pass, branch, inputs: Inputs, memory_and_gradient, x_and_dx, y_and_dy, sums
):
    """y - attention(x), dx plus the gradient of x, that of the memory with what it was,
    and that of the branch."""
    (x, dx), (y, dy) = x_and_dx, y_and_dy
    memory, dmemory = memory_and_gradient
    attend_key, combine_key = inputs.key
    reads = reads_memory(branch)

    def undo(carry, which_and_saved):
        y, dx, dmemory, (sums, of_memory) = carry
        which, saved = which_and_saved
        group = HeadGroup(which, how.head_groups)
        here = inputs._replace(key=attend_key, group=group, saved=saved)
        given = _Given(branch, combine_key, which)

        def attend(heads):
            return branch.attend(heads, here, train=how.train)[0]

        heads = _heads(how, given, x, memory)
        out, pullback = jax.vjp(attend, heads)
        # Zeros that XLA does not know as such: those it would keep for all layers.
        nothing = jax.tree.map(lambda x: jnp.where(x > jnp.inf, x, 0), out)
        y, dout, sums = _undo_chunks(
            how, _combine, given, (out, nothing), (y, dy), sums
        )
        (dheads,) = pullback(dout)
        if reads:
            dheads, dremembered = dheads
            _, dmemory, of_memory = _undo_chunks(
                how,
                _remember,
                given,
                (memory, dmemory),
                (None, dremembered),
                of_memory,
            )
        _, dx, sums = _undo_chunks(how, _project, given, (x, dx), (None, dheads), sums)
        return (y, dx, dmemory, (sums, of_memory)), None

    # The memory may be split over other devices.
    of_memory = None
    if reads:
        of_memory = parts.zeros_by_part(branch, how.memory_split, after=memory)
    carry = y, dx, dmemory, (sums, of_memory)
    groups = jnp.arange(how.head_groups)
    (y, dx, dmemory, sums), _ = lax.scan(undo, carry, (groups, inputs.saved))
    own, of_memory = map(_total, sums)
    return y, dx, dmemory, jax.tree.map(jnp.add, own, of_memory) if reads else own


def _total(sums):
    """Of the sums of all parts."""
    return jax.tree.map(lambda x: x.sum(axis=0), sums)


def _undo_chunks(how: Pass, function, given, x_and_dx, y_and_dy, sums):
    """y - function(given, x), dx plus the gradient of x, and sums plus that of the
    branch.

    Chunk by chunk, in place: a chunk's value inverts the sum, its pullback gives the
    gradients. Without y (None) only the gradients.
    """

    def undo_part(given, split, sums):
        (x, dx), (y, dy) = split

        def undo(carry, start, size):
            y, dx, gradient = carry
            x_now, dx_now, y_now, dy_now = jax.tree.map(
                lambda a: lax.dynamic_slice_in_dim(a, start, size, axis=1),
                (x, dx, y, dy),
            )
            out, pullback = jax.vjp(
                lambda branch, x: function(how, given._replace(branch=branch), x),
                given.branch,
                _apart(x_now),
            )
            dy_now = jax.tree.map(lambda d, o: d.astype(o.dtype), dy_now, out)
            more_gradient, more_dx = pullback(dy_now)
            if y is not None:
                y_now = y_now - _snap(_apart(out), how.grid_bits)
            dx_now = jax.tree.map(jnp.add, dx_now, more_dx)
            y, dx = jax.tree.map(
                lambda a, now: lax.dynamic_update_slice_in_dim(a, now, start, axis=1),
                (y, dx),
                (y_now, dx_now),
            )
            return y, dx, jax.tree.map(jnp.add, gradient, more_gradient)

        local = _length(x)
        size = _chunk(how, length, x) or local
        carry = y, dx, sums
        chunks, rest = divmod(local, size)
        carry = lax.fori_loop(0, chunks, lambda i, c: undo(c, i * size, size), carry)
        if rest:
            carry = undo(carry, chunks * size, rest)
        y, dx, sums = carry
        return (y, dx), sums

    length, spec = _length(x_and_dx[0]), _split(how, function)
    split = x_and_dx, y_and_dy
    (y, dx), sums = parts.on_parts_with_sums(undo_part, spec, given, split, sums)
    return y, dx, sums


def _apart(x: Any) -> Any:
    """Keeps a branch from being fused with its surroundings, which differ between the
    two passes and could change its last bits."""
    return lax.optimization_barrier(x)


def _snap(x: Any, grid_bits: int) -> Any:
    """Float32 rounded to multiples of 2**-grid_bits, with the gradient of identity."""

    def snap(x):
        x = x.astype(jnp.float32)
        if not grid_bits:
            return x
        rounded = jnp.round(x * 2.0**grid_bits) * 2.0**-grid_bits
        return x + lax.stop_gradient(rounded - x)

    return jax.tree.map(snap, x)
