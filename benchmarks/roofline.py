"""Our training step against the time of its matrix products alone; JSON lines.

  python benchmarks/roofline.py 16384 --runs 5

The products (dot_general) are those of the step's jaxpr but for results that nothing
uses. Each is compiled alone, as our programs are, and runs as often as in a step, on
operands that stay where they are: no copies, and caches as warm as can be. A run is all
of these and one step, in turns. `products_seconds` is the least total of a run, which
lasts about as long as a step; `of_products` how many times that the step takes.
"""

import collections
import dataclasses
import functools
import math
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
from jax import lax
from jax.interpreters import partial_eval

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks import attention
from benchmarks import timing
from benchmarks import training_step
from reformer_jax.training import command_line
from reformer_jax.training import optimizer as optimizer_lib
from reformer_jax.training import start
from reformer_jax.training import step as step_lib


@dataclasses.dataclass(frozen=True)
class Product:
    """A matrix product: its operands and the other arguments of lax.dot_general."""

    left: jax.ShapeDtypeStruct
    right: jax.ShapeDtypeStruct
    arguments: tuple[tuple[str, Any], ...]

    def __call__(self, left: jax.Array, right: jax.Array) -> jax.Array:
        return lax.dot_general(left, right, **dict(self.arguments))

    @property
    def dimension_numbers(self) -> Any:
        return dict(self.arguments)['dimension_numbers']

    @property
    def operations(self) -> int:
        """Floating-point operations, two for each multiplication with its addition."""
        (contracted, _), (batch, _) = self.dimension_numbers
        shared = math.prod(self.left.shape[axis] for axis in (*contracted, *batch))
        return 2 * self.left.size * self.right.size // shared


def step_products(config: ml_collections.ConfigDict) -> collections.Counter[Product]:
    """How often a training step, as memory.compile_step has it, runs each product."""
    run = start.open(config, 'no run folder')
    step = functools.partial(
        step_lib.train_step,
        optimizer=run.optimizer,
        schedule=optimizer_lib.schedule(run.config.optimizer, run.config.steps),
        accumulate=run.config.accumulate,
        config=run.config.optimizer,
    )
    with jax.set_mesh(run.mesh):
        return products(step, run.state, run.batch, jax.random.key(0))


def products(function: Callable, *arguments: Any) -> collections.Counter[Product]:
    """How often a function runs each matrix product whose result it uses.

    Raises:
      ValueError: a loop or a branch with products does not say how often it runs.
    """
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    used, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return _products(used)


def _products(jaxpr: Any) -> collections.Counter[Product]:
    counts: collections.Counter[Product] = collections.Counter()
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        inner: collections.Counter[Product] = collections.Counter()
        for part in jax.tree.leaves(parameters):
            if hasattr(part, 'eqns'):
                inner += _products(part)
        if name == 'dot_general':
            left, right = (
                jax.ShapeDtypeStruct(x.aval.shape, x.aval.dtype)
                for x in equation.invars
            )
            inner[Product(left, right, tuple(sorted(parameters.items())))] = 1
        if inner and name in ('while', 'cond'):
            raise ValueError(
                f'a {name!r} has {inner.total()} matrix products, and how often it '
                'runs is not known before: only scans, and loops with constant '
                'bounds, can be counted.'
            )
        times = parameters['length'] if name == 'scan' else 1
        for product, count in inner.items():
            counts[product] += times * count
    return counts


def repeated(product: Product, count: int) -> Callable[[], jax.Array]:
    """A compiled function that computes a product so often in a row."""

    def multiply(left, right):
        def again(_, carry):
            # Behind a barrier the operands, which are carried along, could be new in
            # each iteration: the product stays in the loop, and nothing is copied.
            left, right, _ = lax.optimization_barrier(carry)
            return left, right, product(left, right)

        carry = left, right, product(left, right)
        return lax.fori_loop(1, count, again, carry)[2]

    keys = jax.random.split(jax.random.key(0))
    left, right = (
        jax.random.normal(key, operand.shape, operand.dtype)
        for key, operand in zip(keys, (product.left, product.right), strict=True)
    )
    return attention.compiled(multiply, left, right)


def time_products(length: int, runs: int) -> None:
    """A point for each product, those that take longest first; then the step."""
    config = training_step.config(length)
    counts = step_products(config)
    steps: dict[Any, Callable] = {p: repeated(p, n) for p, n in counts.items()}
    seconds = timing.interleaved(steps | {'step': training_step.step(config)[0]}, runs)
    step_runs = seconds.pop('step')
    least = {product: min(of_runs) for product, of_runs in seconds.items()}
    for product in sorted(least, key=lambda p: -least[p]):
        each = least[product] / counts[product]
        timing.print_point(
            {
                'left': product.left.shape,
                'right': product.right.shape,
                'dimension_numbers': product.dimension_numbers,
                'dtype': product.left.dtype.name,
                'count': counts[product],
                'microseconds_each': 1e6 * each,
                'gigaflops': product.operations / each / 1e9,
                'seconds': least[product],
            }
        )
    totals = [sum(of_run) for of_run in zip(*seconds.values(), strict=True)]
    operations = sum(product.operations * n for product, n in counts.items())
    timing.print_point(
        {
            'length': length,
            'products_seconds': min(totals),
            'gigaflops': operations / min(totals) / 1e9,
            'step_seconds': min(step_runs),
            'of_products': min(step_runs) / min(totals),
            'products_runs': totals,
            'step_runs': step_runs,
        }
    )


def main(arguments: list[str]) -> None:
    parser = command_line.ArgumentParser(description='A step and its products alone.')
    parser.add_argument('length', nargs='?', type=int, default=2**14)
    parser.add_argument('--runs', type=int, default=5, help='of which the minimum')
    options = parser.parse_args(arguments)
    time_products(options.length, options.runs)


if __name__ == '__main__':
    command_line.script(main, sys.argv[1:])
