"""A reversible stack around two branches of your own; its memory against depth."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from reformer_jax import stack

BATCH, LENGTH, WIDTH = 4, 1024, 64


@struct.dataclass
class Mix:
    """Mixes positions: here by the mean of all tokens so far. Think does not."""

    kernel: jax.Array

    def project(self, x, group):
        return x @ self.kernel

    def attend(self, heads, inputs, *, train):
        return jnp.cumsum(heads, axis=1) / jnp.arange(1, LENGTH + 1)[:, None], None

    def combine(self, out, key, group, *, train):
        return out @ self.kernel


@struct.dataclass
class Think:
    kernel: jax.Array

    def __call__(self, x, key, *, train):
        return jnp.tanh(x @ self.kernel)


def loss(layer, x, scan):
    how = stack.Pass(train=True, grid_bits=14, chunk_length=256)
    streams = scan(how, (layer,), (x, x), jax.random.key(0), (None,))
    return sum(jnp.square(stream).mean() for stream in streams)


def main(depths: tuple[int, ...] = (2, 8, 32)) -> list[tuple[float, float]]:
    memory, x = [], jax.random.normal(jax.random.key(1), (BATCH, LENGTH, WIDTH))
    for depth in depths:
        kernel = 0.1 * jax.random.normal(jax.random.key(2), (depth, WIDTH, WIDTH))
        layer, used = (Mix(kernel), Think(kernel)), []
        for scan in (stack.reversible_scan, stack.residual_scan):
            step: Any = jax.jit(jax.grad(loss), static_argnums=2).lower(layer, x, scan)
            used.append(step.compile().memory_analysis().temp_size_in_bytes / 2**20)
        print(f'{depth:3} layers: reversible {used[0]:5.1f} MiB, saved {used[1]:6.1f}')
        memory.append((used[0], used[1]))
    return memory


if __name__ == '__main__':
    main()
