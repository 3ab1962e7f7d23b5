"""Attention of the Reformer: full, local and LSH (paper section 2), as pure functions.

Shape letters, used in names throughout the package:
  B batch, L length, H heads, K head size, D model size, F feed-forward size,
  V vocabulary, R hash rounds, N rows (B * H) or buckets, C chunk length, M chunks,
  W keys in a chunk's window, S rotation width.

All take and return [B, L, H, K] like jax.nn.dot_product_attention; masks are boolean
[B, L], True for a real token. Softmax and log-sum-exp are float32 whatever the dtype.
Attention dropout follows the paper's code: one mask per hash round, shared over the
batch, the heads and the chunks; without a key there is none.

LSH attention sorts the tokens of every hash round by (bucket, position) and cuts them
into chunks; the softmax runs over the keys of all rounds together. Which keys a query
sees is the rule:
  reformer: its chunk and the chunks before and after it, only of its own bucket if
    within_bucket; a key met in several rounds counts once (eq. 16).
  trax: the same across buckets, looking around the ends and from round to round, and a
    key met in m rounds counts m times (trax v2, Hugging Face).
  strict: the last chunk_length tokens of its bucket before it; counts once. Depends on
    the past only, while in the other two the sort moves with the future.
Padding is sorted behind all buckets and never seen.
"""

from reformer_jax.attention import choice
from reformer_jax.attention import hashing
from reformer_jax.attention import kernels
from reformer_jax.attention import kinds
from reformer_jax.attention import numerics
from reformer_jax.attention import windows
from reformer_jax.attention.full import full_attention
from reformer_jax.attention.kinds import dense_crossover
from reformer_jax.attention.local import local_attention
from reformer_jax.attention.lsh import IMPLEMENTATIONS
from reformer_jax.attention.lsh import lsh_attention
from reformer_jax.attention.lsh import sorted_order

__all__ = (
    'IMPLEMENTATIONS',
    'choice',
    'dense_crossover',
    'full_attention',
    'hashing',
    'kernels',
    'kinds',
    'local_attention',
    'lsh_attention',
    'numerics',
    'sorted_order',
    'windows',
)
