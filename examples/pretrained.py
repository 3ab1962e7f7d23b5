"""A Reformer that Hugging Face transformers saved: loaded, asked, fine-tuned, saved.

  python examples/pretrained.py FOLDER NEW_FOLDER

FOLDER is a causal language model (config.json, model.safetensors), such as
google/reformer-enwik8; transformers reads what is written to NEW_FOLDER.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

from reformer_jax import generation
from reformer_jax import huggingface

TEXT = b'As for the hash rounds, four of them will do. ' * 8


def main(folder: str, new_folder: str, steps: int = 5) -> list[float]:
    config, model = huggingface.load(folder)
    print(f'{config.layers} layers, d_model {config.d_model}, rule {config.rule}')
    # Byte + 2, as google/reformer-enwik8 has it; a small vocabulary takes what fits.
    tokens = (np.frombuffer(TEXT, np.uint8)[None].astype(np.int32) + 2) % (
        config.vocab_size
    )
    length = min(config.length, tokens.shape[1])
    tokens = tokens[:, : length - length % config.lsh_chunk_length]

    continued = generation.generate(
        model, tokens[:, :16], key=jax.random.key(0), steps=8, top_k=5
    )
    print(f'continues with tokens {continued[0].tolist()}')
    print(f'log-probability {generation.score(model, tokens).sum():.1f} nats before')

    def loss(model, key):
        logits = model(tokens, key=key, train=True)[:, :-1]
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
        return jnp.mean(nll)

    optimizer = optax.adam(1e-3)
    state, losses = optimizer.init(model), []
    value_and_gradient = jax.jit(jax.value_and_grad(loss))
    for number in range(steps):
        value, gradient = value_and_gradient(model, jax.random.key(number))
        updates, state = optimizer.update(gradient, state)
        model = optax.apply_updates(model, updates)
        losses.append(float(value))
    print(f'loss {losses[0]:.3f} -> {losses[-1]:.3f} nats a token in {steps} steps')
    print(f'log-probability {generation.score(model, tokens).sum():.1f} nats after')
    huggingface.save(new_folder, config, model)
    print(f'wrote {new_folder}')
    return losses


if __name__ == '__main__':
    main(sys.argv[1], sys.argv[2])
