"""LSH attention in a Flax model of your own, which learns to repeat what it saw."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from reformer_jax import attention
from reformer_jax.attention import hashing

VOCABULARY, LENGTH, WIDTH, HEADS, SIZE = 16, 256, 64, 4, 16
LSH = attention.LSH(chunk_length=32, buckets=16, rounds=4)


class OwnModel(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.tokens = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.places = nnx.Embed(LENGTH, WIDTH, rngs=rngs)
        self.query_key = nnx.LinearGeneral(WIDTH, (HEADS, SIZE), rngs=rngs)
        self.value = nnx.LinearGeneral(WIDTH, (HEADS, SIZE), rngs=rngs)
        self.output = nnx.LinearGeneral((HEADS, SIZE), WIDTH, axis=(-2, -1), rngs=rngs)
        self.logits = nnx.Linear(WIDTH, VOCABULARY, rngs=rngs)

    def __call__(self, tokens, key):
        x = self.tokens(tokens) + self.places(jnp.arange(LENGTH) % (LENGTH // 2))
        qk, v = self.query_key(x), self.value(x)
        sizes = {'heads': HEADS, 'head_size': SIZE, 'rounds': LSH.rounds}
        rotations = hashing.random_rotations(key, **sizes, buckets=LSH.buckets)
        buckets = hashing.hash_vectors(qk, rotations, buckets=LSH.buckets)
        seen = attention.lsh_attention(LSH, qk, v, buckets)
        return self.logits(x + self.output(seen))


def loss(model, tokens, key):
    nll = optax.softmax_cross_entropy_with_integer_labels(model(tokens, key), tokens)
    return nll[:, LENGTH // 2 :].mean()


def main(steps: int = 100) -> tuple[float, float]:
    model, optimizer = OwnModel(nnx.Rngs(0)), optax.adam(1e-2)
    state, losses = optimizer.init(model), []

    @jax.jit
    def step(model, state, key):
        half = jax.random.randint(key, (8, LENGTH // 2), 0, VOCABULARY)
        tokens = jnp.concatenate([half, half], axis=1)
        value, gradient = jax.value_and_grad(loss)(model, tokens, key)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(model, updates), state, value

    for key in jax.random.split(jax.random.key(1), steps):
        model, state, value = step(model, state, key)
        losses.append(float(value))
    print(f'loss of the second half: {losses[0]:.3f} -> {losses[-1]:.3f} nats')
    return losses[0], losses[-1]


if __name__ == '__main__':
    main()
