"""What all attention computes alike: unit keys, hidden logits, softmax, dropout.

Shape letters are explained in the package.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

# Logit of a key that may not be seen; finite, so that no row makes a NaN.
MASKED = -1e9

# Added to the mean square of a key before it is brought to unit length, as in trax.
EPSILON = 1e-6

# Logits computed at once. 2**17 floats stay in a CPU core's cache between the mask,
# the maximum, the exponential and the sum (twice as fast as a whole round at once);
# an accelerator wants as much parallel work as its memory allows.
_LOGITS_PER_STEP_ON_CPU = 2**17
_LOGITS_PER_STEP = 2**26

# On a CPU jax 0.10 takes one core for a batch of products, and several for a product
# only if it is large.
BATCHED_PRODUCTS_ON_ALL_CORES = jax.__version_info__ >= (0, 11)


def unit_keys(qk: jax.Array) -> jax.Array:
    """Keys of shared-QK attention, in float32: qk / ||qk||, safe at zero."""
    qk = qk.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(qk), axis=-1, keepdims=True)
    return qk * lax.rsqrt(mean_square + EPSILON) * (qk.shape[-1] ** -0.5)


# einsum of two arrays of any dtype, summed and returned in float32.
contract = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def product(left, right, left_axis: int, right_axis: int) -> jax.Array:
    """Product of two matrices over one axis of each, summed in float32, for kernels."""
    contracted = (left_axis,), (right_axis,)
    return lax.dot_general(
        left, right, (contracted, ((), ())), preferred_element_type=jnp.float32
    )


def softmax(logits, allowed, is_self):
    """Softmax over allowed keys; over is_self where none is; zero where neither is."""
    logits = jnp.where(allowed, logits, MASKED)
    highest = lax.stop_gradient(logits.max(-1, keepdims=True))
    alone = highest < MASKED / 2
    p = jnp.exp(logits - jnp.where(alone, 0.0, highest))
    if is_self is not None:
        p = jnp.where(is_self & alone, 1.0, p)
    total = p.sum(-1, keepdims=True)
    return p / jnp.where(total == 0.0, 1.0, total)


def attention_dropout(key, rate, shape):
    """Factors of probabilities of a shape; None without a rate or a key."""
    return dropout_mask(key, rate, shape) if rate and key is not None else None


def dropout_mask(key, rate, shape):
    """Factors of a shape: 0 for what is dropped, else 1 / (1 - rate)."""
    return jax.random.bernoulli(key, 1 - rate, shape) / (1 - rate)


def rows(x_BLHK: jax.Array) -> jax.Array:
    """[B, L, H, K] -> [B * H, L, K]."""
    x_BHLK = jnp.moveaxis(x_BLHK, 2, 1)
    return x_BHLK.reshape(-1, *x_BHLK.shape[2:])


def bits(x: jax.Array) -> jax.Array:
    """x for moving only: floats of 16 bits as integers, all else as it is.

    XLA makes all of a bfloat16 array float32 on a CPU before it takes rows of it.
    """
    if jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize == 2:
        return lax.bitcast_convert_type(x, jnp.uint16)
    return x


def at(x: jax.Array, positions: jax.Array) -> jax.Array:
    """x[positions] for positions that lie within x."""
    found = bits(x).at[positions].get(mode='promise_in_bounds')
    return lax.bitcast_convert_type(found, x.dtype)


def zeros(shape: tuple[int, ...], beside: jax.Array) -> jax.Array:
    """Float32 zeros to add to, which XLA can't know to be zeros.

    Those it makes once for all layers, keeps, and copies for each. Instead there is
    one number of a float array: whether it is greater than infinity.
    """
    return jnp.full(shape, beside[(0,) * beside.ndim] > jnp.inf, jnp.float32)


def divisor_at_most(number: int, limit: int) -> int:
    """The greatest divisor of a number that is no greater than the limit."""
    return next(d for d in range(max(1, min(number, limit)), 0, -1) if number % d == 0)


def logits_per_step() -> int:
    """Logits that a step of attention computes at once, on the device at hand."""
    on_cpu = jax.default_backend() == 'cpu'
    return _LOGITS_PER_STEP_ON_CPU if on_cpu else _LOGITS_PER_STEP
