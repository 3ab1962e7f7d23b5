"""Cached decoding of a run against teacher forcing, on its test split.

  python reports/decoding.py runs/enwik8_tiny
  python reports/decoding.py runs/duplication_tiny --sequences 500 --rounds 8

Prints bits per token of the same sequences, read at once (as in evaluation) and token
by token through the caches, which differ by rounding with the strict rule and by the
approximation of lsh_caches.py with the others. On the duplication task also how many
words greedy decoding copies without an error.
"""

import itertools
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from reformer_jax import data
from reformer_jax import model as model_lib
from reformer_jax.generation import decoding
from reformer_jax.generation import steps as steps_lib
from reformer_jax.runs import folder as run_folder
from reformer_jax.runs import metrics
from reformer_jax.stack import compilation
from reformer_jax.training import command_line
from reformer_jax.training import start


def token_by_token(model: model_lib.Reformer, tokens_BL: np.ndarray) -> np.ndarray:
    """Log-probabilities [B, L] of tokens, each read alone."""
    batch, length = tokens_BL.shape
    shifted_BL = model_lib.shift_right(model.config, jnp.asarray(tokens_BL))

    def logp(logits_BV, tokens_B):
        return jax.nn.log_softmax(logits_BV)[jnp.arange(batch), tokens_B]

    def read(model, shifted_LB, tokens_LB):
        ones_B = jnp.ones((batch,), jnp.int32)
        first, state = steps_lib.prefill(
            model, shifted_LB[:1].T, ones_B, capacity=length
        )
        layers = model.unstacked()

        def step(state, inputs):
            read_B, next_B = inputs
            logits, state = steps_lib.decode_step(model, state, read_B, layers)
            return state, logp(logits, next_B)

        _, others = jax.lax.scan(step, state, (shifted_LB[1:], tokens_LB[1:]))
        return jnp.concatenate([logp(first, tokens_LB[0])[None], others])

    compiled = jax.jit(read, compiler_options=compilation.options())
    return np.asarray(compiled(model, shifted_BL.T, jnp.asarray(tokens_BL).T)).T


def compare(model: model_lib.Reformer, batch: dict[str, np.ndarray]) -> dict[str, Any]:
    """Bits per token both ways, and how far apart they are at single tokens."""
    weights = batch['weights'] > 0
    at_once = decoding.score(model, batch['tokens'])[weights] / -np.log(2)
    cached = token_by_token(model, batch['tokens'])[weights] / -np.log(2)
    return {
        'rule': model.config.rule,
        'tokens': int(weights.sum()),
        'teacher_forced_bits': float(at_once.mean()),
        'cached_bits': float(cached.mean()),
        'mean_difference': float(np.abs(cached - at_once).mean()),
        'largest_difference': float(np.abs(cached - at_once).max()),
    }


def copied(model: model_lib.Reformer, tokens_BL: np.ndarray) -> int:
    """How many words of sequences 0 w 0 w greedy decoding repeats exactly."""
    half = tokens_BL.shape[1] // 2
    made = decoding.generate(
        model,
        tokens_BL[:, : half + 1],
        key=jax.random.key(0),
        steps=half - 1,
        temperature=0,
    )
    return int((made == tokens_BL[:, half + 1 :]).all(axis=1).sum())


def sequences(config: ml_collections.ConfigDict, count: int) -> dict[str, np.ndarray]:
    """The first sequences of the test split, without its rows of padding."""
    batches = list(itertools.islice(data.open(config.data).batches('test'), count))
    joined = {
        name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]
    }
    real = joined['weights'].any(axis=1)
    return {name: array[real][:count] for name, array in joined.items()}


def main(arguments: list[str]) -> None:
    parser = command_line.ArgumentParser(description='Cached decoding of a run.')
    parser.add_argument('workdir', help='run folder')
    number = command_line.at_least_one
    parser.add_argument(
        '--sequences', type=number, default=32, help='of the test split'
    )
    parser.add_argument('--rounds', type=number, help="instead of the run's")
    options = parser.parse_args(arguments)
    config = ml_collections.ConfigDict(run_folder.load_config(options.workdir))
    if options.rounds:
        config.model.rounds = options.rounds
    run = start.open(config, options.workdir)
    if run.config.model.head != 'lm':
        raise ValueError(
            f'{options.workdir} is a run with model.head={run.config.model.head!r}: '
            'give that of a language model.'
        )
    with jax.set_mesh(run.mesh):
        model, step = run.restore_model()
        batch = sequences(config, options.sequences)
        row = {'step': step, **compare(model, batch)}
        if config.data.dataset == 'duplication':
            count = copied(model, batch['tokens'])
            row['copied'] = f'{count} of {len(batch["tokens"])}'
    print(metrics.table([row], tuple(row)))


if __name__ == '__main__':
    command_line.script(main, sys.argv[1:])
