"""Reversible residual stack (paper section 3): activations that do not grow with depth.

A layer maps the streams (x1, x2) to
    y1 = x1 + attention(x2),    y2 = x2 + feed_forward(y1)
so that its inputs can be computed back from its outputs. reversible_scan keeps only the
last streams and what attention asks to save (the LSH buckets, so that both passes
attend alike); residual_scan computes the same values with saved activations, as its
oracle and as the paper's non-reversible baseline.

Attention comes in groups of heads, and all that acts on single positions in chunks of
the sequence. The backward pass takes one at a time: its output is subtracted from one
stream, its gradient added to the other's. Beside the two streams and their gradients
only the tensors of one group or chunk exist, and each is evaluated once.

With grid_bits, streams live on multiples of 2**-grid_bits: the initial streams and all
that is added to them are rounded to it (gradients pass straight through). Sums of such
float32 numbers are exact while they stay under 2**(24 - grid_bits), so that the
inversion has no error at all, whatever the precision within the branches.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from reformer_jax.stack import chunking

Streams = tuple[jax.Array, jax.Array]


class Block(NamedTuple):
    """The two branches of a layer, as functions.

    attention(x) = sum over groups of heads of combine(attend(project(x))), where only
    attend mixes positions, and it has no parameters.

    Attributes:
      project: (params, x, group) -> heads, queries, keys and values as a pytree of
        [B, L, ...].
      attend: (heads, key, extra, shared, group, saved) -> (out, saved). `saved` is None
        in the forward pass; in the backward pass it is what the forward pass returned.
      combine: (params, out, key, group) -> y.
      head_groups: number of groups.
      feed_forward: (params, x, key) -> y.
      chunk_length: positions at a time in all but attend; 0 for all.
    """

    project: Callable[..., Any]
    attend: Callable[..., tuple[Any, Any]]
    combine: Callable[..., jax.Array]
    head_groups: int
    feed_forward: Callable[..., jax.Array]
    chunk_length: int


def reversible_scan(
    blocks: tuple[Block, ...],
    params: tuple[tuple[Any, Any], ...],
    streams: Streams,
    key: jax.Array,
    extra: tuple[Any, ...],
    shared: Any,
    grid_bits: int,
) -> Streams:
    """Runs the blocks, repeated as often as the parameters are stacked.

    Args:
      blocks: the layers of one repeat.
      params: for each block (attention, feed-forward) parameters, with a leading axis
        over the repeats.
      streams: (x1, x2), [B, L, D] float32.
      key: random key, from which each branch gets its own.
      extra: for each block a pytree for its attention with a leading axis over the
        repeats; no gradient.
      shared: pytree that all attentions get; no gradient.
      grid_bits: see the module's docstring; 0 for streams as they come.

    Returns:
      The last streams (y1, y2).
    """
    return _reversible(blocks, grid_bits, params, streams, key, extra, shared)


def residual_scan(
    blocks: tuple[Block, ...],
    params: tuple[tuple[Any, Any], ...],
    streams: Streams,
    key: jax.Array,
    extra: tuple[Any, ...],
    shared: Any,
    grid_bits: int,
    checkpoint: bool = False,
    single: bool = False,
) -> Streams:
    """The same values as reversible_scan, by plain autodiff.

    With checkpoint, each repeat is recomputed in the backward pass from its saved
    inputs (jax.checkpoint). With single, the streams, which are to be equal, are one,
    the Transformer's: x + attention(x), then x + feed_forward(x).
    """

    def repeat(streams, inputs):
        return _repeat(blocks, grid_bits, key, shared, single, streams, inputs)[0], None

    if checkpoint:
        repeat = jax.checkpoint(repeat)
    return lax.scan(repeat, _snap(streams, grid_bits), _inputs(params, extra))[0]


def forward_scan(
    blocks: tuple[Block, ...],
    params: tuple[tuple[Any, Any], ...],
    streams: Streams,
    key: jax.Array,
    extra: tuple[Any, ...],
    shared: Any,
    grid_bits: int,
    single: bool = False,
) -> tuple[Streams, Any]:
    """The values of residual_scan, and what the attentions save.

    The second is one entry per block, stacked over repeats and groups of heads.
    """

    def repeat(streams, inputs):
        return _repeat(blocks, grid_bits, key, shared, single, streams, inputs)

    return lax.scan(repeat, _snap(streams, grid_bits), _inputs(params, extra))


def layer_keys(key: jax.Array, layer: jax.Array | int) -> jax.Array:
    """Keys of the attention, its output and the feed-forward of a layer of a stack."""
    return jax.random.split(jax.random.fold_in(key, layer), 3)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _reversible(blocks, grid_bits, params, streams, key, extra, shared):
    return _forward(blocks, grid_bits, params, streams, key, extra, shared)[0]


def _forward(blocks, grid_bits, params, streams, key, extra, shared):
    streams, saved = forward_scan(
        blocks, params, streams, key, extra, shared, grid_bits
    )
    return streams, (_inputs(params, extra), streams, key, shared, saved)


def _backward(blocks, grid_bits, residuals, gradients):
    inputs, streams, key, shared, saved = residuals

    def repeat(carry, inputs_and_saved):
        (params, extra, index), saved = inputs_and_saved
        (y1, y2), (dy1, dy2) = carry
        param_gradients: list[Any] = []
        for place in reversed(range(len(blocks))):
            layer = _layer(blocks, place, grid_bits, key, index, extra[place], shared)
            attention_params, feed_forward_params = params[place]
            y2, dy1, feed_forward_gradient = _undo_chunks(
                layer.feed_forward, layer, feed_forward_params, (y1, dy1), (y2, dy2)
            )
            y1, dy2, attention_gradient = _undo_attention(
                layer, attention_params, (y2, dy2), (y1, dy1), saved[place]
            )
            param_gradients.insert(0, (attention_gradient, feed_forward_gradient))
        return ((y1, y2), (dy1, dy2)), tuple(param_gradients)

    (_, gradients), param_gradients = lax.scan(
        repeat, (streams, gradients), (inputs, saved), reverse=True
    )
    return param_gradients, gradients, None, None, None


_reversible.defvjp(_forward, _backward)


def _inputs(params, extra):
    repeats = jax.tree.leaves(params)[0].shape[0]
    return params, extra, jnp.arange(repeats)


class _Layer(NamedTuple):
    """A block with its keys and other inputs bound; functions of params and x."""

    project: Callable[..., Any]
    attend: Callable[..., tuple[Any, Any]]
    combine: Callable[..., jax.Array]
    feed_forward: Callable[..., jax.Array]
    head_groups: int
    chunk_length: int
    grid_bits: int


def _layer(blocks, place, grid_bits, key, index, extra, shared) -> _Layer:
    block = blocks[place]
    keys = layer_keys(key, index * len(blocks) + place)
    return _Layer(
        project=block.project,
        attend=lambda heads, group, saved: block.attend(
            heads, keys[0], extra, shared, group, saved
        ),
        combine=lambda params, out, group: block.combine(params, out, keys[1], group),
        feed_forward=lambda params, x: block.feed_forward(params, x, keys[2]),
        head_groups=block.head_groups,
        chunk_length=block.chunk_length,
        grid_bits=grid_bits,
    )


def _repeat(blocks, grid_bits, key, shared, single, streams, inputs):
    """One repeat of the blocks: the streams and what each attention saves."""
    params, extra, index = inputs
    x1, x2 = streams
    saved = []
    for place in range(len(blocks)):
        layer = _layer(blocks, place, grid_bits, key, index, extra[place], shared)
        attention_params, feed_forward_params = params[place]
        x1, kept = _add_attention(layer, attention_params, x2, x1)
        feed_forward = functools.partial(layer.feed_forward, feed_forward_params)
        added = _snap(_map(layer, feed_forward, x1), grid_bits)
        x1, x2 = (x1 + added,) * 2 if single else (x1, x2 + added)
        saved.append(kept)
    return (x1, x2), tuple(saved)


def _map(layer, function, x):
    """A position-wise function, fused with nothing around it."""
    out = chunking.map_chunks(function, _apart(x), chunk_length=layer.chunk_length)
    return _apart(out)


def _add_attention(layer, params, x, target):
    """target + attention(x), and what the groups of heads save, stacked."""

    def add(target, group):
        heads = _map(layer, lambda x: layer.project(params, x, group), x)
        out, saved = layer.attend(heads, group, None)
        out = _map(layer, lambda out: layer.combine(params, out, group), out)
        return target + _snap(out, layer.grid_bits), saved

    return lax.scan(add, target, jnp.arange(layer.head_groups))


def _undo_attention(layer, params, x_and_dx, y_and_dy, saved):
    """y - attention(x), dx with the gradient of x added, and the gradient of params."""
    (x, dx), (y, dy) = x_and_dx, y_and_dy

    def undo(carry, inputs):
        y, dx, gradient = carry
        group, saved = inputs

        def project(params, x):
            return layer.project(params, x, group)

        def combine(params, out):
            return layer.combine(params, out, group)

        heads = _map(layer, functools.partial(project, params), x)
        out, pullback = jax.vjp(
            lambda heads: layer.attend(heads, group, saved)[0], heads
        )
        nothing = jax.tree.map(jnp.zeros_like, out)
        y, dout, combine_gradient = _undo_chunks(
            combine, layer, params, (out, nothing), (y, dy)
        )
        (dheads,) = pullback(dout)
        _, dx, project_gradient = _undo_chunks(
            project, layer, params, (x, dx), (None, dheads)
        )
        gradient = jax.tree.map(
            lambda *parts: sum(parts), gradient, combine_gradient, project_gradient
        )
        return (y, dx, gradient), None

    carry = y, dx, jax.tree.map(jnp.zeros_like, params)
    return lax.scan(undo, carry, (jnp.arange(layer.head_groups), saved))[0]


def _undo_chunks(function, layer, params, x_and_dx, y_and_dy):
    """y - function(params, x), dx plus the gradient of x, and that of params.

    Chunk by chunk, in place: a chunk's value inverts the sum, its pullback gives the
    gradients. Without y (None) only the gradients.
    """
    (x, dx), (y, dy) = x_and_dx, y_and_dy
    length = jax.tree.leaves(x)[0].shape[1]
    size = min(layer.chunk_length, length) or length

    def undo(carry, start, size):
        y, dx, gradient = carry
        x_now, dx_now, y_now, dy_now = jax.tree.map(
            lambda a: lax.dynamic_slice_in_dim(a, start, size, axis=1), (x, dx, y, dy)
        )
        out, pullback = jax.vjp(function, params, _apart(x_now))
        dy_now = jax.tree.map(lambda d, o: d.astype(o.dtype), dy_now, out)
        more_gradient, more_dx = pullback(dy_now)
        if y is not None:
            y_now = y_now - _snap(_apart(out), layer.grid_bits)
        dx_now = jax.tree.map(jnp.add, dx_now, more_dx)
        y, dx = jax.tree.map(
            lambda a, now: lax.dynamic_update_slice_in_dim(a, now, start, axis=1),
            (y, dx),
            (y_now, dx_now),
        )
        return y, dx, jax.tree.map(jnp.add, gradient, more_gradient)

    carry = y, dx, jax.tree.map(jnp.zeros_like, params)
    chunks, rest = divmod(length, size)
    carry = lax.fori_loop(0, chunks, lambda i, c: undo(c, i * size, size), carry)
    return undo(carry, length - rest, rest) if rest else carry


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
