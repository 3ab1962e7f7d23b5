"""Attention of the Reformer: full, local and LSH (paper section 2), as pure functions.

Shape letters, used in names throughout the package:
  B batch, L length, H heads, K head size, D model size, F feed-forward size,
  V vocabulary, R hash rounds, N rows (B * H) or buckets, C chunk length, M chunks,
  W keys in a chunk's window, S rotation width.

All take and return [B, L, H, K] like jax.nn.dot_product_attention; masks are boolean
[B, L], True for a real token. Softmax and log-sum-exp are float32 whatever the dtype.
Attention dropout follows the paper's code: one mask per hash round, shared over the
batch, the heads and the chunks; without a key there is none.

What there is to set travels as a kind: Full, Local or LSH (see kinds.py).
"""

from reformer_jax.attention import choice
from reformer_jax.attention import fields
from reformer_jax.attention import hashing
from reformer_jax.attention import kernels
from reformer_jax.attention import kinds
from reformer_jax.attention import numerics
from reformer_jax.attention import ring
from reformer_jax.attention import windows
from reformer_jax.attention.full import full_attention
from reformer_jax.attention.kinds import LSH
from reformer_jax.attention.kinds import Full
from reformer_jax.attention.kinds import Kind
from reformer_jax.attention.kinds import Local
from reformer_jax.attention.local import local_attention
from reformer_jax.attention.lsh import lsh_attention
from reformer_jax.attention.lsh import sorted_order

__all__ = (
    'Full',
    'Kind',
    'LSH',
    'Local',
    'choice',
    'fields',
    'full_attention',
    'hashing',
    'kernels',
    'kinds',
    'local_attention',
    'lsh_attention',
    'numerics',
    'ring',
    'sorted_order',
    'windows',
)
