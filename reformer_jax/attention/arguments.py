"""Checks of the arrays and random keys that public functions are given.

Shapes and dtypes are always checked, which costs nothing once a function is compiled;
numbers in arrays only where they are at hand, outside of compiled functions.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_NUMBERS: dict[str, Any] = {
    'floating-point numbers': jnp.floating,
    'integers': jnp.integer,
}


def check_floats(name: str, x: Any, axes: str) -> None:
    """Raises a ValueError unless it is an array of floats, [each letter of axes]."""
    _check_array(name, x, 'floating-point numbers', axes)


def check_integers(name: str, x: Any, axes: str = '') -> None:
    """Raises a ValueError unless it is an array of integers; without axes of any."""
    _check_array(name, x, 'integers', axes)


def _check_array(name: str, x: Any, numbers: str, axes: str) -> None:
    is_array = isinstance(x, jax.Array | np.ndarray)
    fits = is_array and jnp.issubdtype(x.dtype, _NUMBERS[numbers]) and x.size > 0
    if not fits or (axes and x.ndim != len(axes)):
        told = f'[{", ".join(axes)}]' if axes else 'of any shape'
        raise ValueError(
            f'{name} {_described(x)}: an array of {numbers}, {told} and not empty, is '
            'needed.'
        )


def check_mask(mask: Any, *shapes: tuple[int, ...]) -> None:
    """Raises a ValueError if there is a mask that is not bool of one of the shapes."""
    if mask is None:
        return
    is_array = isinstance(mask, jax.Array | np.ndarray)
    if not is_array or mask.shape not in shapes or mask.dtype != bool:
        raise ValueError(
            f'the mask {_described(mask)}: it must be bool of shape '
            f'{" or ".join(map(str, shapes))}, True for a real token.'
        )


def check_key(key: Any) -> None:
    """Raises a ValueError unless it is a random key, or None."""
    if key is None:
        return
    dtype = key.dtype if isinstance(key, jax.Array | np.ndarray) else np.dtype(bool)
    if not jnp.issubdtype(dtype, jax.dtypes.prng_key) and dtype != jnp.uint32:
        raise ValueError(f'key={_short(key)} is no random key: use jax.random.key(0).')


def check_range(name: str, x: Any, limit: int, remedy: str) -> None:
    """Raises a ValueError if an integer at hand is outside [0, limit)."""
    values = at_hand(x)
    if values is None:
        return
    bad = values[(values < 0) | (values >= limit)]
    if bad.size:
        raise ValueError(f'{name} {bad[0]} is outside [0, {limit}): {remedy}.')


def at_hand(x: Any) -> np.ndarray | None:
    """The values of an array; None where it is traced, or on other processes too."""
    if isinstance(x, jax.core.Tracer) or not getattr(x, 'is_fully_addressable', True):
        return None
    return np.asarray(x)


def check_class(name: str, value: Any, kind: type, remedy: str) -> None:
    """Raises a ValueError unless the value is of a class."""
    if not isinstance(value, kind):
        raise ValueError(
            f'{name}={_short(value)} is a {type(value).__name__}: it must be {remedy}.'
        )


def _described(x: Any) -> str:
    if isinstance(x, jax.Array | np.ndarray):
        return f'of shape {x.shape} and {x.dtype}'
    return f'= {_short(x)}'


def _short(value: Any) -> str:
    told = ' '.join(repr(value).split())
    return told if len(told) <= 60 else f'{told[:60]} ...'
