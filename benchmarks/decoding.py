"""Prefill and decoding of one sequence, ours and the peers', on the CPU; JSON lines.

  python benchmarks/decoding.py 4096 16384 65536           ours
  python benchmarks/decoding.py 4096 16384 65536 --peers   beside them, in one process

Seconds to read a prompt of so many tokens, and milliseconds a token behind it. The
model has 6 layers, local and LSH in turns, otherwise the sizes of small_lm.py. Ours is
`strict` (exact) and `reformer` (approximate); the peers are `hugging_face`
(transformers' cached decoding) and `lucidrains` (reformer-pytorch has no cache and
recomputes all for each token; its layers are all LSH). Least of the runs, in which all
lengths and implementations take turns. The peers need pip install -e '.[peers]'.
"""

import functools
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks import peers
from benchmarks import small_lm
from benchmarks import timing
from reformer_jax import model as model_lib
from reformer_jax.generation import steps as steps_lib
from reformer_jax.model import config as model_config
from reformer_jax.stack import compilation
from reformer_jax.training import command_line

_PATTERN = ('local', 'lsh')
_LAYERS = 6
_RULES = ('strict', 'reformer')


class Decoder(NamedTuple):
    """An implementation: reads its prompt again, or adds tokens to it."""

    prefill: Callable[[], Any]
    decode: Callable[[], Any]
    tokens: int  # that one call of decode adds


def config(length: int, rule: str) -> model_config.ModelConfig:
    """The timed model with room for as many tokens again as the prompt has."""
    return model_config.ModelConfig(
        vocab_size=small_lm.VOCAB_SIZE,
        length=2 * length,
        d_model=small_lm.D_MODEL,
        d_ff=small_lm.D_FF,
        heads=small_lm.HEADS,
        head_size=small_lm.HEAD_SIZE,
        layers=_LAYERS,
        pattern=_PATTERN,
        local_chunk_length=small_lm.CHUNK_LENGTH,
        lsh_chunk_length=small_lm.CHUNK_LENGTH,
        rounds=small_lm.ROUNDS,
        rule=rule,
        axial_shape=small_lm.axial_shape(2 * length),
        axial_sizes=small_lm.AXIAL_SIZES,
        feed_forward_chunk_length=1024,  # faster on a CPU
    )


def ours(length: int, rule: str, tokens: int, runs: int) -> Decoder:
    """Our model; the likeliest token comes next, so that each step needs the last."""
    build = functools.partial(model_lib.build, config(length, rule))
    model = jax.jit(lambda: build(nnx.Rngs(0)))()
    prompt = jnp.asarray(_prompt(length))
    options = compilation.options()
    prefill = jax.jit(
        functools.partial(steps_lib.prefill, capacity=length + tokens * (runs + 1)),
        compiler_options=options,
    )
    decode = jax.jit(
        functools.partial(_decode, tokens=tokens),
        donate_argnums=1,
        compiler_options=options,
    )
    carry: list[Any] = []

    def read_prompt():
        carry[:] = []  # not two caches at a time
        logits, state = prefill(model, prompt, jnp.array([length]))
        carry[:] = jax.block_until_ready((state, logits.argmax(-1)))

    def add_tokens():
        carry[:] = jax.block_until_ready(decode(model, *carry))

    return Decoder(read_prompt, add_tokens, tokens)


def _decode(model, state, token, *, tokens):
    layers = model.unstacked()

    def step(carry, _):
        state, token = carry
        logits, state = steps_lib.decode_step(model, state, token, layers)
        return (state, logits.argmax(-1)), None

    return jax.lax.scan(step, (state, token), None, length=tokens)[0]


def hugging_face(length: int, tokens: int) -> Decoder:
    """transformers' cached decoding, with as many buckets as ours."""
    import torch

    from benchmarks import torch_models

    buckets = peers.buckets(2 * length)
    model, _ = torch_models.hugging_face(
        2 * length, buckets, layers=_PATTERN * (_LAYERS // len(_PATTERN))
    )
    model.eval()
    prompt = torch.from_numpy(_prompt(length))
    carry: list[Any] = []

    @torch.inference_mode()
    def read_prompt():
        carry[:] = []
        out = model(input_ids=prompt, use_cache=True)
        carry[:] = [out.logits[:, -1:].argmax(-1), out.past_buckets_states]

    @torch.inference_mode()
    def add_tokens():
        for _ in range(tokens):
            token, cache = carry
            out = model(input_ids=token, past_buckets_states=cache, use_cache=True)
            carry[:] = [out.logits[:, -1:].argmax(-1), out.past_buckets_states]

    return Decoder(read_prompt, add_tokens, tokens)


def lucidrains(length: int) -> Decoder:
    """reformer-pytorch, which reads everything again for each token."""
    import torch

    from benchmarks import torch_models

    model, _ = torch_models.lucidrains(2 * length, depth=_LAYERS)
    model.eval()
    prompt = torch.from_numpy(_prompt(length))

    @torch.inference_mode()
    def read_prompt():
        return model(prompt)[:, -1].argmax(-1)

    return Decoder(read_prompt, read_prompt, 1)


def _prompt(length: int) -> np.ndarray:
    return np.random.default_rng(0).integers(2, 258, (1, length))


def measure(
    lengths: Sequence[int], *, runs: int, tokens: int, with_peers: bool
) -> None:
    """Prints a line for each length and implementation, which all take turns."""
    decoders = {}
    for length in lengths:
        for rule in _RULES:
            decoders[length, rule] = ours(length, rule, tokens, runs)
        if with_peers:
            decoders[length, 'hugging_face'] = hugging_face(length, max(1, tokens // 8))
            decoders[length, 'lucidrains'] = lucidrains(length)
    for (_, name), decoder in decoders.items():
        if name in _RULES:
            decoder.prefill()  # compiles
            decoder.decode()
    names = {f'{name} {length}': (length, name) for length, name in decoders}
    prefills, decodes = (
        timing.interleaved(
            {text: getattr(decoders[key], which) for text, key in names.items()},
            runs,
            warm_up=False,
        )
        for which in ('prefill', 'decode')
    )
    for text, (length, name) in names.items():
        each = [1e3 * s / decoders[length, name].tokens for s in decodes[text]]
        timing.print_point(
            {
                'implementation': name,
                'length': length,
                'prefill_seconds': min(prefills[text]),
                'ms_per_token': min(each),
                'prefill_runs': prefills[text],
                'ms_per_token_runs': each,
            }
        )


def main(arguments: Sequence[str]) -> None:
    parser = command_line.ArgumentParser(description='Prefill and decoding.')
    parser.add_argument('lengths', nargs='+', type=int, help='powers of two, in tokens')
    parser.add_argument('--peers', action='store_true', help='transformers, lucidrains')
    parser.add_argument('--runs', type=int, default=3, help='of which the minimum')
    parser.add_argument('--tokens', type=int, default=64, help='added in a run')
    options = parser.parse_args(arguments)
    os.environ['JAX_PLATFORMS'] = 'cpu'
    if options.peers:
        peers.check_installed()
    measure(
        options.lengths,
        runs=options.runs,
        tokens=options.tokens,
        with_peers=options.peers,
    )


if __name__ == '__main__':
    command_line.script(main, sys.argv[1:])
