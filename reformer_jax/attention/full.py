"""Exact attention: by cuDNN, or blocked over queries; memory linear in the length."""

import jax
import jax.numpy as jnp
from jax import lax

from reformer_jax.attention import choice
from reformer_jax.attention import kinds
from reformer_jax.attention import numerics
from reformer_jax.attention.kernels import cudnn

# Fewer queries than this at once would make thin matrix products.
_LEAST_QUERIES = 128


def full_attention(
    kind: kinds.Full,
    q_BLHK: jax.Array,
    k_BLHK: jax.Array,
    v_BLHK: jax.Array,
    *,
    mask: jax.Array | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """Exact attention, [B, L, H, K] in the dtype of v.

    Logits are scaled by 1 / sqrt(K), unless queries and keys are shared.
    """
    batch, length, heads, head_size = q_BLHK.shape
    shared_qk, causal = kind.shared_qk, kind.causal
    if shared_qk:
        k_BLHK = numerics.unit_keys(k_BLHK).astype(q_BLHK.dtype)
    if choice.of_full(kind, (q_BLHK, k_BLHK, v_BLHK), mask, key) == 'cudnn':
        return cudnn.attend(q_BLHK, k_BLHK, v_BLHK, causal=causal, shared_qk=shared_qk)
    if not shared_qk:
        q_BLHK = q_BLHK * head_size**-0.5
    queries = max(
        _LEAST_QUERIES, numerics.logits_per_step() // (batch * heads * length)
    )
    block = numerics.divisor_at_most(length, queries)
    positions_L = jnp.arange(length)

    @jax.checkpoint
    def attend(inputs):
        index, q_BCHK = inputs
        queries_C1 = index * block + jnp.arange(block)[:, None]
        logits_BHCL = numerics.contract('bchk,blhk->bhcl', q_BCHK, k_BLHK)
        self_CL = queries_C1 == positions_L if shared_qk else None
        allowed = queries_C1 >= positions_L if causal else jnp.ones((1, 1), bool)
        if self_CL is not None:
            allowed &= ~self_CL
        if mask is not None:
            allowed = allowed & mask[:, None, None, :]
        p_BHCL = numerics.softmax(logits_BHCL, allowed, self_CL)
        if kind.dropout and key is not None:
            block_key = jax.random.fold_in(key, index)
            p_BHCL *= numerics.dropout_mask(block_key, kind.dropout, (block, length))
        return jnp.einsum('bhcl,blhk->bchk', p_BHCL.astype(v_BLHK.dtype), v_BLHK)

    blocks = q_BLHK.reshape(batch, length // block, block, heads, head_size)
    out = lax.map(attend, (jnp.arange(length // block), jnp.moveaxis(blocks, 1, 0)))
    return jnp.moveaxis(out, 0, 1).reshape(v_BLHK.shape)
