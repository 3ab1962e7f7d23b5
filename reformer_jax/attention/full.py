"""Exact attention: by cuDNN where it has what is asked for, else in blocks by XLA."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from reformer_jax.attention import arguments
from reformer_jax.attention import blocks
from reformer_jax.attention import choice
from reformer_jax.attention import kinds
from reformer_jax.attention import numerics
from reformer_jax.attention.kernels import cudnn


def full_attention(
    kind: kinds.Full,
    q_BTHK: jax.Array,
    k_BSHK: jax.Array,
    v_BSHK: jax.Array,
    *,
    mask: jax.Array | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """Exact attention, [B, T, H, K] in the dtype of v, in memory linear in T and S.

    Logits are scaled by 1 / sqrt(K), unless queries and keys are shared. A query that
    sees no key gets zeros, or its own value where they are shared.

    Args:
      kind: settings.
      q_BTHK: queries.
      k_BSHK: keys; as many as queries if causal or shared.
      v_BSHK: values.
      mask: [B, S], True for a key that is no padding; or [B, T, S], True for a key
        that a query may see.
      key: random key of dropout.

    Raises:
      ValueError: the shapes do not go together.
    """
    _check(kind, q_BTHK, k_BSHK, v_BSHK, mask)
    arguments.check_key(key)
    if not kind.dropout:
        key = None
    if kind.shared_qk:
        k_BSHK = numerics.unit_keys(k_BSHK).astype(q_BTHK.dtype)

    def in_blocks(q_BTHK, k_BSHK, v_BSHK):
        if not kind.shared_qk:
            q_BTHK = q_BTHK * q_BTHK.shape[-1] ** -0.5
        return blocks.attend(kind, q_BTHK, k_BSHK, v_BSHK, mask, key)

    qkv = q_BTHK, k_BSHK, v_BSHK
    if choice.of_full(kind, qkv, key) != 'cudnn' or (
        mask is not None and mask.ndim == 3
    ):
        return in_blocks(*qkv)
    by_cudnn = functools.partial(cudnn.attend, kind)
    if mask is None:
        return by_cudnn(*qkv)
    lengths_B = mask.sum(1, dtype=jnp.int32)
    behind = jnp.arange(mask.shape[1]) < lengths_B[:, None]
    # Its masks are slow and quadratic in memory; a length behind which padding stands
    # is neither.
    is_length = jnp.all((mask == behind) & (lengths_B > 0)[:, None])
    return lax.cond(
        is_length,
        functools.partial(by_cudnn, lengths_B=lengths_B),
        in_blocks,
        *qkv,
    )


def _check(kind: kinds.Full, q, k, v, mask) -> None:
    arguments.check_class('kind', kind, kinds.Full, 'an attention.Full')
    for name, x in (('queries', q), ('keys', k), ('values', v)):
        arguments.check_floats(name, x, 'BLHK')
    any_length = not (kind.causal or kind.shared_qk)
    same_length = q.shape[1:2] == k.shape[1:2] or any_length
    alike = len({(x.shape[:1], x.shape[2:]) for x in (q, k, v)}) == 1
    if k.shape != v.shape or not (alike and same_length):
        raise ValueError(
            f'queries, keys and values have shapes {q.shape}, {k.shape} and {v.shape}: '
            'they must be [B, T, H, K], [B, S, H, K] and [B, S, H, K], with T = S '
            'if attention is causal or queries and keys are shared.'
        )
    arguments.check_mask(mask, k.shape[:2], (*q.shape[:2], *k.shape[1:2]))
