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

import functools

import jax
import jax.numpy as jnp
from jax import lax

from reformer_jax import checks
from reformer_jax import hashing
from reformer_jax import lsh
from reformer_jax import windows
from reformer_jax.kernels import choice
from reformer_jax.kernels import cudnn

IMPLEMENTATIONS = (*choice.IMPLEMENTATIONS, 'dense')

# Bucket ids fit 16 bits unless lsh_attention is told otherwise.
_MOST_BUCKETS = 2**16

# Logits computed at once. 2**17 floats stay in a CPU core's cache between the mask,
# the maximum, the exponential and the sum (twice as fast as a whole round at once);
# an accelerator wants as much parallel work as its memory allows.
_LOGITS_PER_STEP_ON_CPU = 2**17
_LOGITS_PER_STEP = 2**26

# Fewer queries than this at once would make thin matrix products.
_LEAST_QUERIES = 128


def full_attention(
    q_BLHK: jax.Array,
    k_BLHK: jax.Array,
    v_BLHK: jax.Array,
    *,
    causal: bool,
    mask: jax.Array | None = None,
    shared_qk: bool = False,
    dropout_rate: float = 0.0,
    key: jax.Array | None = None,
) -> jax.Array:
    """Exact attention: by cuDNN, or blocked over queries; memory linear in the length.

    With shared_qk keys have unit length, logits are not scaled further, and a token
    attends to itself only when nothing else is left: the function that LSH attention
    approximates. Otherwise logits are scaled by 1 / sqrt(K).
    """
    batch, length, heads, head_size = q_BLHK.shape
    if shared_qk:
        k_BLHK = lsh.unit_keys(k_BLHK).astype(q_BLHK.dtype)
    dropout = bool(dropout_rate) and key is not None
    one_dtype = q_BLHK.dtype == k_BLHK.dtype == v_BLHK.dtype
    if one_dtype and cudnn.takes(
        q_BLHK, causal=causal, mask=mask, shared_qk=shared_qk, dropout=dropout
    ):
        return cudnn.attend(q_BLHK, k_BLHK, v_BLHK, causal=causal, shared_qk=shared_qk)
    if not shared_qk:
        q_BLHK = q_BLHK * head_size**-0.5
    queries = max(_LEAST_QUERIES, _logits_per_step() // (batch * heads * length))
    block = _divisor_at_most(length, queries)
    positions_L = jnp.arange(length)

    @jax.checkpoint
    def attend(inputs):
        index, q_BCHK = inputs
        queries_C1 = index * block + jnp.arange(block)[:, None]
        logits_BHCL = jnp.einsum(
            'bchk,blhk->bhcl', q_BCHK, k_BLHK, preferred_element_type=jnp.float32
        )
        self_CL = queries_C1 == positions_L if shared_qk else None
        allowed = queries_C1 >= positions_L if causal else jnp.ones((1, 1), bool)
        if self_CL is not None:
            allowed &= ~self_CL
        if mask is not None:
            allowed = allowed & mask[:, None, None, :]
        p_BHCL = _softmax(logits_BHCL, allowed, self_CL)
        if dropout_rate and key is not None:
            block_key = jax.random.fold_in(key, index)
            p_BHCL *= _dropout_mask(block_key, dropout_rate, (block, length))
        return jnp.einsum('bhcl,blhk->bchk', p_BHCL.astype(v_BLHK.dtype), v_BLHK)

    blocks = q_BLHK.reshape(batch, length // block, block, heads, head_size)
    out = lax.map(attend, (jnp.arange(length // block), jnp.moveaxis(blocks, 1, 0)))
    return jnp.moveaxis(out, 0, 1).reshape(v_BLHK.shape)


def local_attention(
    q_BLHK: jax.Array,
    k_BLHK: jax.Array,
    v_BLHK: jax.Array,
    *,
    chunk_length: int,
    chunks_before: int = 1,
    chunks_after: int = 0,
    causal: bool,
    circular: bool = False,
    mask: jax.Array | None = None,
    dropout_rate: float = 0.0,
    key: jax.Array | None = None,
) -> jax.Array:
    """Attention within a chunk and its neighbours.

    If circular the first and the last chunk are neighbours (Hugging Face), which a
    causal model does not notice. A sequence of at most one chunk gets full attention.
    Logits are scaled by 1 / sqrt(K).
    """
    batch, length, heads, head_size = q_BLHK.shape
    checks.check_shapes(q_BLHK, k_BLHK, v_BLHK)
    checks.check_chunks(length, chunk_length, chunks_before, chunks_after, causal)
    if length <= chunk_length:
        exact = functools.partial(full_attention, causal=causal, mask=mask)
        return exact(q_BLHK, k_BLHK, v_BLHK, dropout_rate=dropout_rate, key=key)
    window = chunk_length * (chunks_before + 1 + chunks_after)
    chunks = length // chunk_length
    group = _divisor_at_most(chunks, _logits_per_step() // (chunk_length * window))
    dropout_CW = _attention_dropout(key, dropout_rate, (chunk_length, window))
    at_once = max(1, _logits_per_step() // (group * chunk_length * window))
    steps_per_row = chunks // group

    @jax.checkpoint
    def attend(inputs):
        index, q_GCK, k_ECK, v_ECK = inputs
        row, step = jnp.divmod(index, steps_per_row)
        first = (step * group - chunks_before) * chunk_length
        positions_EC = first + jnp.arange(k_ECK[..., 0].size).reshape(-1, chunk_length)
        if circular and not causal:
            positions_EC %= length
        real_L = None if mask is None else jnp.asarray(mask)[row // heads]
        allowed_GCW = _allowed_in_windows(
            positions_EC, real_L, length, group, chunks_before, causal
        )
        return _attend_windows(q_GCK, k_ECK, v_ECK, allowed_GCW, dropout_CW)

    in_steps = functools.partial(_in_steps, chunk_length, group, circular)
    inputs = (
        jnp.arange(batch * heads * steps_per_row),
        in_steps(q_BLHK, 0, 0),
        in_steps(k_BLHK, chunks_before, chunks_after),
        in_steps(v_BLHK, chunks_before, chunks_after),
    )
    out = lax.map(attend, inputs, batch_size=at_once if at_once > 1 else None)
    return _unrows(out.reshape(-1, length, head_size), heads)


def _allowed_in_windows(positions_EC, real_L, length, chunks, before, causal):
    """Which keys of its window a query may see, [G, C or 1, W]: no padding, no ends."""
    real_EC = (positions_EC >= 0) & (positions_EC < length)
    if real_L is not None:
        real_EC &= real_L[jnp.clip(positions_EC, 0, length - 1)]
    allowed_GCW = windows.windows(real_EC, chunks)[:, None, :]
    if causal:
        queries_GC = positions_EC[before : before + chunks]
        keys_GW = windows.windows(positions_EC, chunks)
        allowed_GCW &= queries_GC[:, :, None] >= keys_GW[:, None, :]
    return allowed_GCW


def _in_steps(chunk_length, group, circular, x_BLHK, before, after):
    """[B, L, H, K] -> [N * M / group, before + group + after, C, K].

    Beyond the ends are zeros or, if circular, the chunks at the other end.
    """
    x_NLK = _rows(x_BLHK)
    x_NMCK = x_NLK.reshape(x_NLK.shape[0], -1, chunk_length, x_NLK.shape[-1])
    chunks = x_NMCK.shape[1]
    around = [(0, 0), (before, after), (0, 0), (0, 0)]
    x_NMCK = jnp.pad(x_NMCK, around, mode='wrap' if circular else 'constant')
    groups = x_NMCK[:, :chunks].reshape(-1, chunks // group, group, *x_NMCK.shape[2:])
    lasts = [
        x_NMCK[:, group + e :: group][:, : chunks // group, None]
        for e in range(before + after)
    ]
    return _merge_axes(jnp.concatenate([groups, *lasts], axis=2))


def _attend_windows(q_GCK, k_ECK, v_ECK, allowed_GCW, dropout_CW):
    chunks, _, head_size = q_GCK.shape
    logits_GCW = jnp.einsum(
        'gck,gwk->gcw',
        q_GCK * head_size**-0.5,
        windows.windows(k_ECK, chunks),
        preferred_element_type=jnp.float32,
    )
    p_GCW = _softmax(logits_GCW, allowed_GCW, None)
    if dropout_CW is not None:
        p_GCW *= dropout_CW
    values_GWK = windows.windows(v_ECK, chunks)
    return jnp.einsum('gcw,gwk->gck', p_GCW.astype(v_ECK.dtype), values_GWK)


def lsh_attention(
    qk_BLHK: jax.Array,
    v_BLHK: jax.Array,
    buckets_BHRL: jax.Array,
    *,
    chunk_length: int,
    chunks_before: int = 1,
    chunks_after: int = 0,
    causal: bool,
    mask: jax.Array | None = None,
    rule: str = 'reformer',
    within_bucket: bool = False,
    num_buckets: int = _MOST_BUCKETS,
    order_BHRL: jax.Array | None = None,
    dropout_rate: float = 0.0,
    key: jax.Array | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """Shared-QK attention among tokens that hash alike, [B, L, H, K] in the dtype of v.

    Args:
      qk_BLHK: shared queries and keys; keys are brought to unit length.
      v_BLHK: values.
      buckets_BHRL: ids from hashing.hash_vectors, in [0, num_buckets).
      chunk_length: divides L, unless L <= chunk_length (see implementation).
      chunks_before: chunks looked back at; strict needs 1.
      chunks_after: chunks looked ahead at; strict needs 0.
      causal: see no later token; strict needs True.
      mask: [B, L], True for a real token.
      rule: 'reformer', 'trax' or 'strict', see above.
      within_bucket: for the reformer rule, keys of the query's own bucket only.
      num_buckets: bound on the ids; a small one keeps the sort key in 32 bits.
      order_BHRL: sorted_order of the same arguments, where it is at hand.
      dropout_rate: dropout of attention probabilities, with a random `key`.
      implementation: 'xla', 'triton' (NVIDIA GPUs), 'mosaic_tpu', 'dense' (exact
        attention), or None: dense where one chunk makes it the same, else the kernel
        of the device if it takes the arrays, else xla. CPUs interpret kernels, slowly.
    """
    length, look_around = qk_BLHK.shape[1], (chunks_before, chunks_after)
    checks.check_shapes(qk_BLHK, v_BLHK)
    checks.check_chunks(length, chunk_length, *look_around, causal)
    checks.check_rule(rule, within_bucket, *look_around, causal)
    one_chunk = length <= chunk_length and rule != 'strict' and not within_bucket
    chunk_length = min(chunk_length, length)
    implementation = _implementation(implementation, qk_BLHK, chunk_length, one_chunk)
    if implementation == 'dense':
        exact = functools.partial(
            full_attention, causal=causal, mask=mask, shared_qk=True
        )
        return exact(qk_BLHK, qk_BLHK, v_BLHK, dropout_rate=dropout_rate, key=key)
    mask = None if mask is None else jnp.asarray(mask)
    buckets_BHRL, shape = buckets_BHRL.astype(jnp.int32), buckets_BHRL.shape
    if order_BHRL is None:
        order_BHRL = sorted_order(buckets_BHRL, mask, num_buckets)
    plan = _plan(shape, chunk_length, look_around, causal, rule, within_bucket)
    codes_BHRL = windows.codes(plan, buckets_BHRL, order_BHRL, mask, num_buckets)
    dropout_shape = shape[2], chunk_length, chunk_length * plan.window_chunks
    dropout_RCW = _attention_dropout(key, dropout_rate, dropout_shape)
    attend = choice.attend(implementation)
    return attend(plan, qk_BLHK, v_BLHK, order_BHRL, codes_BHRL, mask, dropout_RCW)


def _implementation(
    wanted: str | None, qk_BLHK: jax.Array, chunk_length: int, one_chunk: bool
) -> str:
    """What lsh_attention's implementation=wanted stands for; checked."""
    sizes = qk_BLHK.dtype, qk_BLHK.shape[-1], chunk_length
    if wanted is None:
        return 'dense' if one_chunk else choice.choose('', *sizes)
    if wanted not in IMPLEMENTATIONS:
        raise ValueError(f'implementation={wanted!r} is none of {IMPLEMENTATIONS}.')
    if wanted != 'dense':
        choice.check(wanted, *sizes)
    return wanted


def dense_crossover(rounds: int, window: int) -> int:
    """The length up to which exact attention is no slower than LSH attention.

    Where the windows of all rounds hold as many keys as the sequence: there both
    compute as many logits. Measured so on a CPU, forward and backward, chunks of 64
    (benchmarks/attention.py).

    Args:
      rounds: hash rounds.
      window: keys that a query sees in a round.
    """
    return rounds * window


def sorted_order(
    buckets_BHRL: jax.Array, mask: jax.Array | None, num_buckets: int
) -> jax.Array:
    """Positions [B, H, R, L] sorted by (bucket, position), padding last.

    Arguments are those of lsh_attention.
    """
    buckets_BHRL = windows.with_padding(buckets_BHRL, mask, num_buckets)
    return hashing.sort_order(buckets_BHRL, num_buckets=num_buckets + 1)


def _plan(shape_BHRL, chunk_length, look_around, causal, rule, within_bucket):
    batch, heads, rounds, length = shape_BHRL
    before, after = look_around
    band = None
    if rule == 'strict':
        band = (1, chunk_length)
    elif rule == 'reformer' and (rounds > 1 or within_bucket):
        band = (-after, before)
    chunk_logits = chunk_length**2 * (before + 1 + after)
    group = _divisor_at_most(length // chunk_length, _logits_per_step() // chunk_logits)
    rows = max(1, _logits_per_step() // (group * chunk_logits))
    heads_per_step = _divisor_at_most(heads, rows)
    return windows.Plan(
        chunk_length=chunk_length,
        chunks_before=before,
        chunks_after=after,
        causal=causal,
        circular=rule == 'trax',
        band=band,
        band_in_round=rule == 'strict' or within_bucket,
        chunks_per_step=group,
        rows_per_step=(_divisor_at_most(batch, rows // heads), heads_per_step),
        order_free=rule == 'strict',
    )


def _softmax(logits, allowed, is_self):
    """Softmax over allowed keys; over is_self where none is; zero where neither is."""
    logits = jnp.where(allowed, logits, lsh.MASKED)
    highest = lax.stop_gradient(logits.max(-1, keepdims=True))
    alone = highest < lsh.MASKED / 2
    p = jnp.exp(logits - jnp.where(alone, 0.0, highest))
    if is_self is not None:
        p = jnp.where(is_self & alone, 1.0, p)
    total = p.sum(-1, keepdims=True)
    return p / jnp.where(total == 0.0, 1.0, total)


def _attention_dropout(key, rate, shape):
    return _dropout_mask(key, rate, shape) if rate and key is not None else None


def _dropout_mask(key, rate, shape):
    return jax.random.bernoulli(key, 1 - rate, shape) / (1 - rate)


def _rows(x_BLHK: jax.Array) -> jax.Array:
    """[B, L, H, K] -> [B * H, L, K]."""
    return _merge_axes(jnp.moveaxis(x_BLHK, 2, 1))


def _unrows(x_NLK: jax.Array, heads: int) -> jax.Array:
    return jnp.moveaxis(x_NLK.reshape(-1, heads, *x_NLK.shape[1:]), 1, 2)


def _merge_axes(x: jax.Array) -> jax.Array:
    return x.reshape(-1, *x.shape[2:])


def _divisor_at_most(number: int, limit: int) -> int:
    return next(d for d in range(max(1, min(number, limit)), 0, -1) if number % d == 0)


def _logits_per_step() -> int:
    on_cpu = jax.default_backend() == 'cpu'
    return _LOGITS_PER_STEP_ON_CPU if on_cpu else _LOGITS_PER_STEP
