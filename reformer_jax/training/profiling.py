"""A trace of some steps of a run, for TensorBoard or Perfetto."""

import pathlib
import re
from typing import Any, Self

import jax


class Profile:
    """Traces the steps FIRST to LAST of a run; a context manager."""

    def __init__(self, steps: str, folder: pathlib.Path):
        """Writes `steps`, 'FIRST:LAST', into `folder`; '' for none.

        Raises:
          ValueError: `steps` are no two numbers in order.
        """
        match = re.fullmatch(r'(\d+):(\d+)', steps)
        self._steps = range(int(match[1]), int(match[2]) + 1) if match else range(0)
        self._folder = folder
        self._running = False
        if steps and (not self._steps or not self._steps[0]):
            raise ValueError(
                f'--profile={steps}: give the first and the last step to trace, '
                'counted from 1, as in --profile=11:15.'
            )

    def check(self, done: int, total: int) -> None:
        """Raises a ValueError if a run does not take these steps any more, or never."""
        if self._steps and not done < self._steps[0] <= self._steps[-1] <= total:
            raise ValueError(
                f'--profile={self._steps[0]}:{self._steps[-1]}: this run does steps '
                f'{done + 1} to {total}: trace some of these.'
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        if self._running:
            self._running = False
            jax.profiler.stop_trace()

    def before(self, step: int) -> None:
        """Called before each step, with its number."""
        if self._steps and step == self._steps[0]:
            jax.profiler.start_trace(self._folder)
            self._running = True

    def after(self, step: int, made: Any) -> None:
        """Called after each step, with the arrays it makes."""
        if self._steps and step == self._steps[-1]:
            jax.block_until_ready(made)
            self.__exit__()
