"""Exact attention by cuDNN, on NVIDIA GPUs, where it has what is asked for."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from reformer_jax.attention import kinds

_DTYPES = (jnp.bfloat16, jnp.float16)
_MOST_HEAD_SIZE = 128
_HEAD_SIZE_STEP = 8

# Triton needs tensor cores that take bfloat16: Ampere and later.
_LEAST_COMPUTE_CAPABILITY = 8.0


def takes(kind: kinds.Full, q_BTHK: jax.Array) -> bool:
    """Whether attention without dropout can be had from cuDNN, here.

    Its dropout is not the paper's, and only causal attention can leave out the query
    itself.
    """
    head_size = q_BTHK.shape[-1]
    return (
        q_BTHK.dtype in _DTYPES
        and head_size % _HEAD_SIZE_STEP == 0
        and head_size <= _MOST_HEAD_SIZE
        and (kind.causal or not kind.shared_qk)
        and jax.default_backend() == 'gpu'
        and is_ampere_or_later(jax.local_devices()[0])
        and _is_installed()
    )


def attend(
    kind: kinds.Full,
    q_BTHK: jax.Array,
    k_BSHK: jax.Array,
    v_BSHK: jax.Array,
    *,
    lengths_B: jax.Array | None = None,
    implementation: str = 'cudnn',
) -> jax.Array:
    """Exact attention, [B, T, H, K]; with shared_qk keys have unit length already.

    A shared-QK query sees the keys before it, but not its own, unless it is the first.
    As the query of the position before it would, if that saw its own: so with queries
    moved back by one that is plain causal attention.

    Args:
      kind: settings; dropout is left out.
      q_BTHK: queries.
      k_BSHK: keys.
      v_BSHK: values.
      lengths_B: keys of each batch element that are no padding, at least 1; None for
        all.
      implementation: that of jax.nn.dot_product_attention.
    """
    exact = functools.partial(
        jax.nn.dot_product_attention,
        is_causal=kind.causal,
        key_value_seq_lengths=lengths_B,
        implementation=implementation,
    )
    if not kind.shared_qk:
        return exact(q_BTHK, k_BSHK, v_BSHK)
    out_BTHK = exact(jnp.roll(q_BTHK, -1, axis=1), k_BSHK, v_BSHK, scale=1.0)
    return jnp.concatenate([v_BSHK[:, :1], out_BTHK[:, :-1]], axis=1)


@functools.cache
def _is_installed() -> bool:
    """Whether JAX finds a cuDNN that it can use; it says so when it traces a call."""
    x_BLHK = jax.ShapeDtypeStruct((1, 64, 1, 64), jnp.bfloat16)
    exact = functools.partial(attend, kinds.Full())
    try:
        jax.eval_shape(exact, x_BLHK, x_BLHK, x_BLHK)
    except (RuntimeError, NotImplementedError):
        # That is the answer: there is none, or it is too old to take the arrays.
        return False
    return True


def is_ampere_or_later(device: Any) -> bool:
    """Whether a device is an NVIDIA GPU from Ampere on."""
    capability = str(getattr(device, 'compute_capability', ''))
    if not capability[:1].isdigit():  # AMD's are names
        return False
    return float(capability) >= _LEAST_COMPUTE_CAPABILITY
