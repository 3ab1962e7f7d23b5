"""Exact attention by cuDNN, on NVIDIA GPUs, where it has what is asked for."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

_DTYPES = (jnp.bfloat16, jnp.float16)
_MOST_HEAD_SIZE = 128
_HEAD_SIZE_STEP = 8

# Triton needs tensor cores that take bfloat16: Ampere and later.
_LEAST_COMPUTE_CAPABILITY = 8.0


def takes(q_BLHK: jax.Array, *, causal: bool, shared_qk: bool) -> bool:
    """Whether attention without mask and dropout can be had from cuDNN, here.

    Its masks are slow and take memory quadratic in the length, so that it is not for
    padding; its dropout is not the paper's; and only causal attention can leave out the
    query itself.
    """
    head_size = q_BLHK.shape[-1]
    return (
        q_BLHK.dtype in _DTYPES
        and head_size % _HEAD_SIZE_STEP == 0
        and head_size <= _MOST_HEAD_SIZE
        and (causal or not shared_qk)
        and jax.default_backend() == 'gpu'
        and is_ampere_or_later(jax.local_devices()[0])
        and _is_installed()
    )


def attend(
    q_BLHK: jax.Array,
    k_BLHK: jax.Array,
    v_BLHK: jax.Array,
    *,
    causal: bool,
    shared_qk: bool,
    implementation: str = 'cudnn',
) -> jax.Array:
    """Exact attention, [B, L, H, K]; with shared_qk keys have unit length already.

    A shared-QK query sees the keys before it, but not its own, unless it is the first.
    As the query of the position before it would, if that saw its own: so with queries
    moved back by one that is plain causal attention.
    """
    exact = functools.partial(
        jax.nn.dot_product_attention, is_causal=causal, implementation=implementation
    )
    if not shared_qk:
        return exact(q_BLHK, k_BLHK, v_BLHK)
    out_BLHK = exact(jnp.roll(q_BLHK, -1, axis=1), k_BLHK, v_BLHK, scale=1.0)
    return jnp.concatenate([v_BLHK[:, :1], out_BLHK[:, :-1]], axis=1)


@functools.cache
def _is_installed() -> bool:
    """Whether JAX finds a cuDNN that it can use; it says so when it traces a call."""
    x_BLHK = jax.ShapeDtypeStruct((1, 64, 1, 64), jnp.bfloat16)
    exact = functools.partial(
        attend, causal=True, shared_qk=False, implementation='cudnn'
    )
    try:
        jax.eval_shape(exact, x_BLHK, x_BLHK, x_BLHK)
    except (RuntimeError, NotImplementedError):  # none or too old: XLA's path instead
        return False
    return True


def is_ampere_or_later(device: Any) -> bool:
    """Whether a device is an NVIDIA GPU from Ampere on."""
    capability = str(getattr(device, 'compute_capability', ''))
    if not capability[:1].isdigit():  # AMD's are names
        return False
    return float(capability) >= _LEAST_COMPUTE_CAPABILITY
