"""A reversible stack around two functions of your own; its memory against depth."""

from typing import Any

import jax
import jax.numpy as jnp

from reformer_jax import stack

BATCH, LENGTH, WIDTH = 4, 1024, 64


def mix(heads, key, extra, shared, group, saved):
    """Mixes positions and has no parameters: here the mean of all tokens so far."""
    return jnp.cumsum(heads, axis=1) / jnp.arange(1, LENGTH + 1)[:, None], None


def think(params, x, key):
    return jnp.tanh(x @ params['inner']) @ params['outer']


LAYER = stack.Block(
    project=lambda params, x, group: x @ params['inner'],
    attend=mix,
    combine=lambda params, out, key, group: out @ params['outer'],
    head_groups=1,
    feed_forward=think,
    chunk_length=256,
)


def gradient_of_loss(params, x, scan):
    def loss(params):
        key = jax.random.key(0)
        streams = scan((LAYER,), (params,), (x, x), key, (None,), None, 14)
        return sum(jnp.square(stream).mean() for stream in streams)

    return jax.grad(loss)(params)


def main(depths: tuple[int, ...] = (2, 8, 32)) -> list[tuple[float, float]]:
    memory: list[tuple[float, float]] = []
    x = jax.random.normal(jax.random.key(1), (BATCH, LENGTH, WIDTH))
    for depth in depths:
        kernel = 0.1 * jax.random.normal(jax.random.key(2), (depth, WIDTH, WIDTH))
        branch = {'inner': kernel, 'outer': kernel}
        used = []
        for scan in (stack.reversible_scan, stack.residual_scan):
            step = jax.jit(gradient_of_loss, static_argnums=2)
            stats: Any = step.lower((branch, branch), x, scan).compile()
            used.append(stats.memory_analysis().temp_size_in_bytes / 2**20)
        print(f'{depth:3} layers: reversible {used[0]:5.1f} MiB, saved {used[1]:6.1f}')
        memory.append((used[0], used[1]))
    return memory


if __name__ == '__main__':
    main()
