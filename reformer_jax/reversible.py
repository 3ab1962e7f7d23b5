"""Reversible residual stack (paper section 3): activations that do not grow with depth.

A layer maps the streams (x1, x2) to
    y1 = x1 + attention(x2),    y2 = x2 + feed_forward(y1)
so that its inputs can be computed back from its outputs. reversible_scan keeps only the
last streams and what attention asks to save (the LSH buckets, so that both passes
attend alike); residual_scan computes the same values with saved activations, as its
oracle and as the paper's non-reversible baseline.

Attention comes in groups of heads and feed-forward in chunks of the sequence. The
backward pass takes one at a time: its output is subtracted from one stream, its
gradient added to the other's, so that beside the two streams and their gradients only
the tensors of one group or chunk exist, and each is evaluated once.

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

from reformer_jax import chunking

Streams = tuple[jax.Array, jax.Array]


class Block(NamedTuple):
    """The two branches of a layer.

    Attributes:
      attention: (params, x, key, extra, shared, group, saved) -> (y, saved), what one
        group of heads adds. `saved` is None in the forward pass; in the backward pass
        it is what the forward pass returned.
      head_groups: number of groups.
      feed_forward: (params, x, key) -> y, position-wise.
      chunk_length: positions of the feed-forward at a time; 0 for all.
    """

    attention: Callable[..., tuple[jax.Array, Any]]
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
) -> Streams:
    """The same values as reversible_scan, by plain autodiff.

    With checkpoint, each repeat is recomputed in the backward pass from its saved
    inputs (jax.checkpoint).
    """

    def repeat(streams, inputs):
        return _repeat(blocks, grid_bits, key, shared, streams, inputs)[0], None

    if checkpoint:
        repeat = jax.checkpoint(repeat)
    return lax.scan(repeat, _snap(streams, grid_bits), _inputs(params, extra))[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _reversible(blocks, grid_bits, params, streams, key, extra, shared):
    return _forward(blocks, grid_bits, params, streams, key, extra, shared)[0]


def _forward(blocks, grid_bits, params, streams, key, extra, shared):
    def repeat(streams, inputs):
        return _repeat(blocks, grid_bits, key, shared, streams, inputs)

    inputs = _inputs(params, extra)
    streams, saved = lax.scan(repeat, _snap(streams, grid_bits), inputs)
    return streams, (inputs, streams, key, shared, saved)


def _backward(blocks, grid_bits, residuals, gradients):
    inputs, streams, key, shared, saved = residuals

    def repeat(carry, inputs_and_saved):
        (params, extra, index), saved = inputs_and_saved
        (y1, y2), (dy1, dy2) = carry
        param_gradients: list[Any] = []
        for place in reversed(range(len(blocks))):
            layer_key = _layer_key(blocks, key, index, place)
            attention, feed_forward = _branches(
                blocks[place], layer_key, extra[place], shared
            )
            attention_params, feed_forward_params = params[place]
            y2, dy1, feed_forward_gradient = _undo_feed_forward(
                feed_forward,
                blocks[place].chunk_length,
                grid_bits,
                feed_forward_params,
                (y1, dy1),
                (y2, dy2),
            )
            y1, dy2, attention_gradient = _undo_attention(
                attention,
                blocks[place].head_groups,
                grid_bits,
                attention_params,
                (y2, dy2),
                (y1, dy1),
                saved[place],
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


def _layer_key(blocks, key, index, place):
    return jax.random.fold_in(key, index * len(blocks) + place)


def _branches(block, layer_key, extra, shared):
    """attention(params, x, group, saved) and feed_forward(params, x) of one layer."""
    attention_key, feed_forward_key = jax.random.split(layer_key)

    def attention(params, x, group, saved):
        return block.attention(params, x, attention_key, extra, shared, group, saved)

    def feed_forward(params, x):
        return block.feed_forward(params, x, feed_forward_key)

    return attention, feed_forward


def _repeat(blocks, grid_bits, key, shared, streams, inputs):
    """One repeat of the blocks: the streams and what each attention saves."""
    params, extra, index = inputs
    x1, x2 = streams
    saved = []
    for place, block in enumerate(blocks):
        layer_key = _layer_key(blocks, key, index, place)
        attention, feed_forward = _branches(block, layer_key, extra[place], shared)
        attention_params, feed_forward_params = params[place]
        x1, kept = _add_attention(
            attention, block.head_groups, grid_bits, attention_params, x2, x1
        )
        out = chunking.map_chunks(
            functools.partial(feed_forward, feed_forward_params),
            _apart(x1),
            chunk_length=block.chunk_length,
        )
        x2 = x2 + _snap(_apart(out), grid_bits)
        saved.append(kept)
    return (x1, x2), tuple(saved)


def _add_attention(attention, head_groups, grid_bits, params, x, target):
    """target + attention(x), and what the groups of heads save, stacked."""

    def add(target, group):
        out, saved = attention(params, _apart(x), group, None)
        return target + _snap(_apart(out), grid_bits), saved

    return lax.scan(add, target, jnp.arange(head_groups))


def _undo_attention(
    attention, head_groups, grid_bits, params, x_and_dx, y_and_dy, saved
):
    """y - attention(x), dx with the gradient of x added, and the gradient of params.

    A group's value inverts the sum and its pullback gives the gradients.
    """
    (x, dx), (y, dy) = x_and_dx, y_and_dy

    def undo(carry, inputs):
        y, dx, gradient = carry
        group, saved = inputs

        def of_group(params, x):
            return attention(params, x, group, saved)[0]

        out, pullback = jax.vjp(of_group, params, _apart(x))
        param_gradient, more_dx = pullback(dy.astype(out.dtype))
        gradient = jax.tree.map(jnp.add, gradient, param_gradient)
        return (y - _snap(_apart(out), grid_bits), dx + more_dx, gradient), None

    carry = y, dx, jax.tree.map(jnp.zeros_like, params)
    return lax.scan(undo, carry, (jnp.arange(head_groups), saved))[0]


def _undo_feed_forward(
    feed_forward, chunk_length, grid_bits, params, x_and_dx, y_and_dy
):
    """y - feed_forward(x), dx with the gradient of x added, the gradient of params."""
    (x, dx), (y, dy) = x_and_dx, y_and_dy
    length = x.shape[1]
    size = min(chunk_length, length) or length

    def undo(carry, start, size):
        y, dx, gradient = carry
        x_now, dx_now, y_now, dy_now = (
            lax.dynamic_slice_in_dim(a, start, size, axis=1) for a in (x, dx, y, dy)
        )
        out, pullback = jax.vjp(feed_forward, params, _apart(x_now))
        param_gradient, more_dx = pullback(dy_now.astype(out.dtype))
        y_now = y_now - _snap(_apart(out), grid_bits)
        return (
            lax.dynamic_update_slice_in_dim(y, y_now, start, axis=1),
            lax.dynamic_update_slice_in_dim(dx, dx_now + more_dx, start, axis=1),
            jax.tree.map(jnp.add, gradient, param_gradient),
        )

    carry = y, dx, jax.tree.map(jnp.zeros_like, params)
    chunks, rest = divmod(length, size)
    carry = lax.fori_loop(0, chunks, lambda i, c: undo(c, i * size, size), carry)
    return undo(carry, length - rest, rest) if rest else carry


def _apart(x: jax.Array) -> jax.Array:
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
