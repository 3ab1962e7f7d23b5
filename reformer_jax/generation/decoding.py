"""Text from a model: generate and stream, beam_search, score.

Prompts are token ids [B, P], with a mask where they differ in length (prompts.pad makes
both). They get the token in front that training puts there (model.start_token); with
one a prompt may be empty. A model with an encoder gets a source for each prompt as
well, in the same form. What is wrong with the arguments is said before anything is
compiled. Models are causal.
"""

import dataclasses
import functools
import math
import numbers
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils

from reformer_jax import model as model_lib
from reformer_jax.attention import arguments
from reformer_jax.attention import fields
from reformer_jax.generation import beams as beams_lib
from reformer_jax.generation import prompts as prompts_lib
from reformer_jax.generation import steps as steps_lib
from reformer_jax.stack import chunking
from reformer_jax.stack import compilation
from reformer_jax.stack import memory

# Tokens that one call of the compiled loop adds: few enough to watch them appear, so
# many that the copy of the parameters at its start does not count.
_STEPS_PER_CALL = 32

# Stands for no stop token.
_NEVER = -1


def generate(
    model: model_lib.Reformer, prompt: Any = None, *, steps: int, **settings: Any
) -> np.ndarray:
    """Continues prompts; arguments and errors are those of `stream`.

    Returns:
      New tokens, int32 [B * samples, steps], the samples of a prompt one after another.
      A row that has met a stop token goes on with stop tokens.
    """
    parts = stream(model, prompt, steps=steps, **settings)
    tokens_BT = np.concatenate(list(parts), axis=1)
    # Fewer than `steps` only if the last column has nothing but stop tokens.
    missing = steps - tokens_BT.shape[1]
    return np.pad(tokens_BT, ((0, 0), (0, missing)), mode='edge')


def stream(
    model: model_lib.Reformer,
    prompt: Any = None,
    *,
    key: jax.Array,
    steps: int,
    samples: int = 1,
    stop_token: int | None = None,
    mask: Any = None,
    source: Any = None,
    **settings: Any,
) -> Iterator[np.ndarray]:
    """Yields continuations of prompts as they are made; ends early if all have stopped.

    Row i of the results depends on the key, on i and on its own prompt and source only
    (with the trax rule also on padding, which its look-around meets).

    Args:
      model: causal.
      prompt: token ids [B, P]; with a source None is the start token alone.
      key: random key; the same key gives the same tokens.
      steps: tokens to add, at least 1.
      samples: continuations of each prompt.
      stop_token: ends a row.
      mask: True for the real tokens of the prompt, which may stand anywhere in a row.
      source: for a model with an encoder token ids [B, S], or the pair of them and
        their mask that `pad` makes. A source of padding only is read as nothing.
      **settings: temperature, top_k and top_p of `sampling_of`.

    Yields:
      New tokens, int32 [B * samples, n] with n at least 1.

    Raises:
      ValueError: a prompt or a source is empty, too long for the model or has unknown
        tokens; there are not as many sources as prompts, or some for a model without
        an encoder, or none for one with it; an argument is out of its range, or the
        samples do not fit into memory. Raised by the call, before the first tokens.
    """
    sampling = sampling_of(model.config.vocab_size, **settings)
    if key is None:
        raise ValueError('key=None: sampling needs one, such as jax.random.key(0).')
    arguments.check_key(key)
    if key.dtype == jnp.uint32:  # of jax.random.PRNGKey
        key = jax.random.wrap_key_data(key)
    steps, samples = map(_pythons, (steps, samples))
    fields.check_whole(1, steps=steps)
    fields.check_whole(1, samples=samples)
    stop = _stop(model, stop_token)
    prompts = prompts_lib.prompts(model.config, prompt, mask, steps, source)
    _check_fits(model, prompts, samples=samples)
    rows_N = jnp.arange(prompts.lengths_B.size * samples)
    keys_N = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, rows_N)
    return _parts(model, prompts, keys_N, sampling, stop, steps)


def beam_search(
    model: model_lib.Reformer,
    prompt: Any = None,
    *,
    steps: Any,
    beams: int = 4,
    length_penalty: float = 0.6,
    stop_token: int | None = None,
    mask: Any = None,
    source: Any = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The continuations of highest score that beam search finds.

    The score is the log-probability divided by ((5 + n) / 6) ** length_penalty (Wu et
    al. 2016, eq. 14), n the tokens up to and with the stop token.

    Row b of the results depends on its own prompt, source and steps only (but for the
    trax rule, as in `stream`).

    Args:
      model: causal.
      prompt: as in `stream`.
      steps: most tokens to add, at least 1: a number, or one for each prompt (the paper
        takes the length of the source + 50).
      beams: continuations followed at a time. Each has its own caches, which every step
        copies from those of the beam that it continues; those of a source it shares.
      length_penalty: 0 for the plain log-probability; more favours long ones.
      stop_token: ends a continuation; without one all have `steps` tokens.
      mask, source: as in `stream`.

    Returns:
      Tokens, int32 [B, beams, most steps], best first, filled up with stop tokens (0
      without one); and their scores, float32 [B, beams], -inf where there are no more
      continuations.

    Raises:
      ValueError: as `stream`.
    """
    check_beams(beams, length_penalty)
    stop = _stop(model, stop_token)
    prompts = prompts_lib.prompts(model.config, prompt, mask, steps, source)
    limits_B = prompts_lib.limits(steps, prompts.lengths_B.size, model.config.length)
    most = int(limits_B.max())
    _check_fits(model, prompts, beams=beams)
    tokens_BES, scores_BE = _compiled(beams_lib.search, static=('beams', 'steps'))(
        model,
        prompts,
        limits_B,
        jnp.float32(length_penalty),
        stop,
        beams=beams,
        # So that limits that differ little share one compiled function.
        steps=prompts_lib.rounded_up(model.config, most),
    )
    return _fetched(tokens_BES)[..., :most], _fetched(scores_BE)


def check_beams(beams: int, length_penalty: float) -> None:
    """Raises a ValueError for what beam_search does not take."""
    fields.check_whole(1, beams=beams)
    if not (_is_number(length_penalty) and 0 <= length_penalty < math.inf):
        raise ValueError(
            f'length_penalty={length_penalty} is not in [0, inf): 0 compares plain '
            'log-probabilities, 0.6 is usual.'
        )


def score(
    model: model_lib.Reformer, tokens: Any, *, mask: Any = None, source: Any = None
) -> np.ndarray:
    """Log-probability in nats of each token given those before it: one parallel pass.

    Hash buckets are those of the longest sequence that the model can read, as in
    generation, however short these are.

    Args:
      model: causal.
      tokens: ids [B, L].
      mask: True for real tokens, which may stand anywhere in a row.
      source: as in `stream`.

    Returns:
      float32 [B, L], 0 where the mask is False, and for the first token of a model
      without a start token.

    Raises:
      ValueError: as `stream`.
    """
    source = prompts_lib.sources(model.config, source)
    rows, mask_BL = prompts_lib.rows(model.config, tokens, mask)
    inputs = prompts_lib.filled_up(model.config, [row[:-1] for row in rows], source)
    targets = prompts_lib.filled_up(model.config, [row[1:] for row in rows])
    logp_BP = _fetched(_compiled(_score)(model, inputs, targets.tokens_BP))
    real_BP = np.arange(logp_BP.shape[1]) < targets.lengths_B[:, None]
    first = 0 if model.config.start_token >= 0 else 1
    scored_BL = mask_BL & (mask_BL.cumsum(axis=1) > first)
    result_BL = np.zeros(mask_BL.shape, np.float32)
    result_BL[scored_BL] = logp_BP[real_BP]
    return result_BL


# --- Compiled ---------------------------------------------------------------------


def _parts(model, prompts, keys_N, sampling, stop, steps):
    progress = _compiled(_start)(model, prompts, keys_N, sampling)
    yield _fetched(progress.tokens_N)[:, None]
    extend = _compiled(_extend, donate='progress')
    done = 1
    while done < steps and not bool(jnp.all(progress.tokens_N == stop)):
        progress, tokens_NT = extend(
            model, progress, keys_N, sampling, stop, jnp.int32(steps)
        )
        before, done = done, int(progress.done)
        yield _fetched(tokens_NT)[:, : done - before]


def _fetched(x: jax.Array) -> np.ndarray:
    """All of an array, on every process of a run."""
    if jax.process_count() > 1:
        x = multihost_utils.process_allgather(x, tiled=True)
    return np.asarray(x)


class _Progress(NamedTuple):
    """State after reading all but the latest tokens, and how many have been made."""

    state: steps_lib.State
    tokens_N: jax.Array
    done: jax.Array


@functools.cache
def _compiled(
    function: Callable[..., Any], *, static: tuple[str, ...] = (), donate: str = ''
) -> Any:
    """The jitted function; compiled once per process for each set of shapes."""
    return jax.jit(
        function,
        static_argnames=static,
        donate_argnames=donate or None,
        compiler_options=compilation.options(),
    )


_keys_at = jax.vmap(jax.random.fold_in, in_axes=(0, None))


def _start(model, prompts, keys_N, sampling):
    """Reads the prompts and draws the first token of each sample."""
    logits_BV, state = steps_lib.prefill(
        model,
        prompts.tokens_BP,
        prompts.lengths_B,
        capacity=prompts.capacity,
        source=prompts.source,
    )
    samples = keys_N.size // prompts.lengths_B.size
    if samples > 1:
        rows_N = jnp.repeat(jnp.arange(prompts.lengths_B.size), samples)
        logits_BV, state = logits_BV[rows_N], steps_lib.take_rows(state, rows_N)
    tokens_N = draw(sampling, _keys_at(keys_N, 0), logits_BV)
    return _Progress(state, tokens_N, jnp.int32(1))


def _extend(model, progress, keys_N, sampling, stop, steps):
    """Adds up to _STEPS_PER_CALL tokens; returns them as well, [N, T]."""
    layers = model.unstacked()
    first = progress.done

    def unfinished(carry):
        progress, _ = carry
        added = progress.done - first
        running = jnp.any(progress.tokens_N != stop)
        return (added < _STEPS_PER_CALL) & (progress.done < steps) & running

    def add(carry):
        (state, tokens_N, done), tokens_TN = carry
        logits_NV, state = steps_lib.decode_step(model, state, tokens_N, layers)
        drawn_N = draw(sampling, _keys_at(keys_N, done), logits_NV)
        tokens_N = jnp.where(tokens_N == stop, stop, drawn_N)
        tokens_TN = lax.dynamic_update_index_in_dim(
            tokens_TN, tokens_N, done - first, axis=0
        )
        return _Progress(state, tokens_N, done + 1), tokens_TN

    nothing_TN = jnp.zeros((_STEPS_PER_CALL, keys_N.shape[0]), jnp.int32)
    progress, tokens_TN = lax.while_loop(unfinished, add, (progress, nothing_TN))
    return progress, tokens_TN.T


def _score(model, inputs, targets_BP):
    streams, _ = steps_lib.read(model, inputs)
    length = model.config.loss_chunk_length
    _, nll_BP, _ = chunking.cross_entropy(
        model.logits, streams, targets_BP, chunk_length=length
    )
    return -nll_BP


def _check_fits(model, prompts: prompts_lib.Prompts, **copies: int) -> None:
    """Raises a ValueError if the caches of so many continuations of each prompt are too
    large for the device."""
    ((name, count),) = copies.items()
    limit = memory.of_device()
    if count == 1 or limit is None:
        return
    _, state = _compiled(steps_lib.prefill, static=('capacity',)).eval_shape(
        model,
        prompts.tokens_BP,
        prompts.lengths_B,
        capacity=prompts.capacity,
        source=prompts.source,
    )
    caches = jax.tree.leaves(state.caches)
    needed = count * sum(x.size * x.dtype.itemsize for x in caches)
    if needed > limit:
        raise ValueError(
            f'{name}={count} need {memory.shown(needed)} of caches, and the device '
            f'has {memory.shown(limit)}: ask for fewer at a time.'
        )


def _stop(model, stop_token: int | None) -> jax.Array:
    vocab_size = model.config.vocab_size
    whole = isinstance(stop_token, numbers.Integral) and stop_token is not True
    if stop_token is not None and not (whole and 0 <= stop_token < vocab_size):
        raise ValueError(
            f'stop_token={stop_token} is outside [0, {vocab_size}), the vocabulary of '
            'the model: it would never come.'
        )
    return jnp.int32(_NEVER if stop_token is None else stop_token)


# Below these float32 runs out; nothing changes by then.
_LEAST_TOP_P = 1e-6
_GREEDY = 1e-6


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are drawn: arrays, so that other numbers do not compile anew.

    Attributes:
      temperature: divides the logits; None takes the likeliest token.
      top_p: sample from the likeliest tokens that together have this probability; None
        for all.
      top_k: sample from so many likeliest tokens; None for all.
    """

    temperature: jax.Array | None
    top_p: jax.Array | None
    top_k: int | None = dataclasses.field(metadata={'static': True})


def _pythons(value: Any) -> Any:
    """A single number of an array as Python's own, else the value."""
    single = isinstance(value, jax.Array) and not value.ndim
    return value.item() if single else value


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def sampling_of(
    vocab_size: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Sampling:
    """The sampling from a vocabulary; a ValueError for what is out of its range."""
    temperature, top_k, top_p = map(_pythons, (temperature, top_k, top_p))
    if not (_is_number(temperature) and 0 <= temperature < math.inf):
        raise ValueError(
            f'temperature={temperature} must be at least 0: 0 takes the likeliest '
            'token, 1 samples from the model as it is.'
        )
    if top_p is not None and not (_is_number(top_p) and 0 < top_p <= 1):
        raise ValueError(
            f'top_p={top_p!r} is not in (0, 1]: it is the probability of the tokens to '
            'sample from; leave it out, or use 1, for all.'
        )
    whole = isinstance(top_k, numbers.Integral) and not isinstance(top_k, bool)
    if top_k is not None and not (whole and 1 <= top_k <= vocab_size):
        raise ValueError(
            f'top_k={top_k} is not in [1, {vocab_size}], the size of the vocabulary: '
            'leave it out to sample from all tokens.'
        )
    return Sampling(
        jnp.float32(temperature) if temperature > _GREEDY else None,
        # One token stays however small it is.
        None if top_p is None or top_p == 1 else jnp.float32(max(top_p, _LEAST_TOP_P)),
        top_k,
    )


def draw(sampling: Sampling, keys_B: jax.Array, logits_BV: jax.Array) -> jax.Array:
    """One token of each row, int32 [B], each drawn with its own key."""
    if sampling.temperature is None:
        return logits_BV.argmax(-1).astype(jnp.int32)
    logits_BV -= logits_BV.max(-1, keepdims=True)  # else low temperatures overflow
    logits_BV = restrict(sampling, logits_BV / sampling.temperature)
    return jax.vmap(jax.random.categorical)(keys_B, logits_BV).astype(jnp.int32)


def restrict(sampling: Sampling, logits_BV: jax.Array) -> jax.Array:
    """Logits with -inf for the tokens that top_k and then top_p leave out.

    Tokens as likely as the last one that stays stay too.
    """
    if sampling.top_k is not None:
        lowest_B1 = lax.top_k(logits_BV, sampling.top_k)[0][:, -1:]
        logits_BV = jnp.where(logits_BV < lowest_B1, -jnp.inf, logits_BV)
    if sampling.top_p is not None:
        sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
        p_BV = jax.nn.softmax(sorted_BV, axis=-1)
        # A token stays if those before it have less than top_p.
        stays_BV = jnp.cumsum(p_BV, axis=-1) - p_BV < sampling.top_p
        lowest_B1 = jnp.where(stays_BV, sorted_BV, jnp.inf).min(-1, keepdims=True)
        logits_BV = jnp.where(logits_BV < lowest_B1, -jnp.inf, logits_BV)
    return logits_BV
