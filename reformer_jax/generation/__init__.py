"""Tokens from a model, one after another: generate, stream, beam_search, score;
translation.translate, of texts.

prefill and decode_step, the two calls below them, are for loops of your own.
"""

from reformer_jax.generation import decoding
from reformer_jax.generation import prompts
from reformer_jax.generation import show
from reformer_jax.generation import steps
from reformer_jax.generation import translation
from reformer_jax.generation.decoding import beam_search
from reformer_jax.generation.decoding import generate
from reformer_jax.generation.decoding import score
from reformer_jax.generation.decoding import stream
from reformer_jax.generation.prompts import pad
from reformer_jax.generation.steps import decode_step
from reformer_jax.generation.steps import prefill

__all__ = (
    'beam_search',
    'decode_step',
    'decoding',
    'generate',
    'pad',
    'prefill',
    'prompts',
    'score',
    'show',
    'steps',
    'stream',
    'translation',
)
