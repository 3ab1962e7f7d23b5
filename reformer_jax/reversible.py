"""Reversible residual stack (paper section 3): activations that do not grow with depth.

A layer maps the streams (x1, x2) to
    y1 = x1 + attention(x2),    y2 = x2 + feed_forward(y1)
so that its inputs can be computed back from its outputs. reversible_scan keeps only the
last streams and what attention asks to save (the LSH buckets, so that both passes
attend alike); residual_scan computes the same values with saved activations, as its
oracle and as the paper's non-reversible baseline.

With grid_bits, streams live on multiples of 2**-grid_bits: both the branches' outputs
and the initial streams are rounded to it (gradients pass straight through). Sums of
such float32 numbers are exact while they stay under 2**(24 - grid_bits), so that the
inversion has no error at all, whatever the precision within the branches.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

Streams = tuple[jax.Array, jax.Array]


class Block(NamedTuple):
    """The two branches of a layer.

    Attributes:
      attention: (params, x, key, extra, shared, saved) -> (y, saved). `saved` is None
        in the forward pass; in the backward pass it is what the forward pass returned.
      feed_forward: (params, x, key) -> y.
    """

    attention: Callable[..., tuple[jax.Array, Any]]
    feed_forward: Callable[..., jax.Array]


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
        param_gradients: list[Any] = []
        for place in reversed(range(len(blocks))):
            layer_key = jax.random.fold_in(key, index * len(blocks) + place)
            layer = params[place], extra[place], shared, saved[place]
            carry, gradient = _invert(
                blocks[place], grid_bits, layer, layer_key, *carry
            )
            param_gradients.insert(0, gradient)
        return carry, tuple(param_gradients)

    (_, gradients), param_gradients = lax.scan(
        repeat, (streams, gradients), (inputs, saved), reverse=True
    )
    return param_gradients, gradients, None, None, None


_reversible.defvjp(_forward, _backward)


def _inputs(params, extra):
    repeats = jax.tree.leaves(params)[0].shape[0]
    return params, extra, jnp.arange(repeats)


def _repeat(blocks, grid_bits, key, shared, streams, inputs):
    """One repeat of the blocks: the streams and what each attention saves."""
    params, extra, index = inputs
    x1, x2 = streams
    saved = []
    for place, block in enumerate(blocks):
        layer_key = jax.random.fold_in(key, index * len(blocks) + place)
        attention_params, feed_forward_params = params[place]
        out, kept = block.attention(
            attention_params,
            _apart(x2),
            jax.random.fold_in(layer_key, 0),
            extra[place],
            shared,
            None,
        )
        x1 = x1 + _snap(_apart(out), grid_bits)
        out = block.feed_forward(
            feed_forward_params, _apart(x1), jax.random.fold_in(layer_key, 1)
        )
        x2 = x2 + _snap(_apart(out), grid_bits)
        saved.append(kept)
    return (x1, x2), tuple(saved)


def _invert(block, grid_bits, layer, layer_key, streams, gradients):
    """A layer's inputs from its outputs, and the gradients of inputs and parameters.

    Each branch is evaluated once: its value inverts the sum, its pullback gives the
    gradients.
    """
    (attention_params, feed_forward_params), extra, shared, saved = layer
    (y1, y2), (dy1, dy2) = streams, gradients

    def feed_forward(params, x):
        return block.feed_forward(params, x, jax.random.fold_in(layer_key, 1))

    def attention(params, x):
        attention_key = jax.random.fold_in(layer_key, 0)
        return block.attention(params, x, attention_key, extra, shared, saved)[0]

    out, pullback = jax.vjp(feed_forward, feed_forward_params, _apart(y1))
    x2 = y2 - _snap(_apart(out), grid_bits)
    feed_forward_gradient, dx = pullback(dy2.astype(out.dtype))
    dy1 = dy1 + dx
    out, pullback = jax.vjp(attention, attention_params, _apart(x2))
    x1 = y1 - _snap(_apart(out), grid_bits)
    attention_gradient, dx = pullback(dy1.astype(out.dtype))
    dx2 = dy2 + dx
    return ((x1, x2), (dy1, dx2)), (attention_gradient, feed_forward_gradient)


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
