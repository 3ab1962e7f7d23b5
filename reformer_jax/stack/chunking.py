"""Position-wise functions over chunks of the sequence (paper section 3, "Chunking")."""

import numbers
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def map_chunks(
    function: Callable[[Any], Any], inputs: Any, *, chunk_length: int
) -> Any:
    """function(inputs) in the memory of one chunk, forward and backward.

    Args:
      function: maps a pytree of [B, c, ...] to a pytree of [B, c, ...], each position
        on its own. It is recomputed in the backward pass.
      inputs: pytree of arrays [B, L, ...].
      chunk_length: positions at a time, the last chunk takes the rest; 0 or at least L
        applies the function to all at once.
    """
    check_chunk_length(chunk_length)
    length = _length(inputs)
    if not 0 < chunk_length < length:
        return function(inputs)
    function = jax.checkpoint(function)
    whole = length - length % chunk_length

    def split(x):
        x = x[:, :whole].reshape(x.shape[0], -1, chunk_length, *x.shape[2:])
        return jnp.moveaxis(x, 1, 0)

    def join(x):
        x = jnp.moveaxis(x, 0, 1)
        return x.reshape(x.shape[0], whole, *x.shape[3:])

    outputs = jax.tree.map(join, lax.map(function, jax.tree.map(split, inputs)))
    if whole == length:
        return outputs
    rest = function(jax.tree.map(lambda x: x[:, whole:], inputs))
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b], 1), outputs, rest)


def of_part(chunk_length: int, length: int, local: int) -> int:
    """Its share of chunks of L positions for a device that has a part of them."""
    if not 0 < chunk_length < length:
        return 0
    return max(1, chunk_length * local // length)


def check_chunk_length(chunk_length: int) -> None:
    """Raises a ValueError unless it is a whole number of at least 0."""
    whole = isinstance(chunk_length, numbers.Integral)
    if not whole or isinstance(chunk_length, bool) or chunk_length < 0:
        raise ValueError(
            f'chunk_length={chunk_length!r} must be a whole number: positions at a '
            'time, or 0 for all.'
        )


@jax.custom_vjp
def known_first(x: jax.Array, others: Any) -> jax.Array:
    """x, the gradient of which begins when the others are known, and is NaN unless
    they are finite.

    They are made of what the backward pass goes back through. Left to itself XLA makes
    them behind it, and till then keeps a copy of the last streams; it would take a
    barrier out before it puts things in order.
    """
    del others
    return x


def _known_first_forward(x, others):
    return x, others


def _known_first_backward(others, dx):
    finite = jnp.stack([jnp.isfinite(x.sum()) for x in jax.tree.leaves(others)])
    return jnp.where(finite.all(), dx, jnp.nan), None


known_first.defvjp(_known_first_forward, _known_first_backward)


def _length(inputs: Any) -> int:
    """L of a pytree of [B, L, ...]."""
    shapes = [jnp.shape(x) for x in jax.tree.leaves(inputs)]
    if not shapes or min(map(len, shapes)) < 2:
        raise ValueError(
            f'inputs of shapes {shapes} must be [B, L, ...], at least one of them.'
        )
    if len({shape[:2] for shape in shapes}) > 1:
        raise ValueError(f'inputs of shapes {shapes} must be alike in [B, L].')
    return shapes[0][1]


def cross_entropy(
    logits: Callable[[Any], jax.Array],
    hidden: Any,
    targets_BL: jax.Array,
    *,
    chunk_length: int,
    label_smoothing: float = 0.0,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What training minimizes, negative log-likelihood, both in nats, and whether the
    target was the likeliest, [B, L] each.

    Args:
      logits: maps hidden, cut to c positions, to logits [B, c, V].
      hidden: pytree of [B, L, ...] that the logits are computed from.
      targets_BL: ids in [0, V); of others the first two are NaN.
      chunk_length: logits of so many positions exist at a time; 0 for all.
      label_smoothing: share of the target's probability that is spread evenly over the
        vocabulary (Szegedy et al. 2015, section 7); with 0 the first two are the same.
    """

    kind = jnp.result_type(targets_BL)
    if not jnp.issubdtype(kind, jnp.integer):
        raise ValueError(f'targets are {kind}: they must be integers.')
    real = isinstance(label_smoothing, numbers.Real)
    if not real or not 0 <= label_smoothing < 1:
        raise ValueError(f'label_smoothing={label_smoothing!r} is no share in [0, 1).')

    def per_token(inputs):
        hidden, targets = inputs
        logits_BLV = logits(hidden).astype(jnp.float32)
        picked = at_classes(logits_BLV, targets)
        log_sum = jax.nn.logsumexp(logits_BLV, axis=-1)
        loss = nll = log_sum - picked
        if label_smoothing:
            of_all = log_sum - logits_BLV.mean(axis=-1)
            loss = (1 - label_smoothing) * nll + label_smoothing * of_all
        return loss, nll, logits_BLV.argmax(-1) == targets

    return map_chunks(per_token, (hidden, targets_BL), chunk_length=chunk_length)


def at_classes(x: jax.Array, classes: jax.Array) -> jax.Array:
    """x [..., C] at one class each, [...]; NaN where there is no such class."""
    classes = jnp.asarray(classes, jnp.int32)
    beyond = jnp.where(classes < 0, x.shape[-1], classes)  # and not from the end
    return jnp.take_along_axis(x, beyond[..., None], axis=-1, mode='fill')[..., 0]
