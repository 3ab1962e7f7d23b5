"""The files of a model's weights: one, or shards with an index; safetensors or, when
asked for, pickles that torch reads."""

import json
import pathlib
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import safetensors

SAFETENSORS = 'model.safetensors'
PYTORCH = 'pytorch_model.bin'
_INDEX = '.index.json'
_FLOATS = ('F64', 'F32', 'F16', 'BF16')
_LFS = b'version https://git-lfs'  # begins what git has of a file without its LFS
_LISTED = 8  # names an error message has at most


class Weights(NamedTuple):
    """The tensors of a folder.

    Attributes:
      source: the file, or the index of several.
      shapes: by name.
      read: from a name to the tensor, float32.
    """

    source: pathlib.Path
    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str], np.ndarray]


def find(folder: pathlib.Path, *, pytorch: bool = False) -> Weights:
    """Opens the weights of a folder, safetensors if there are any.

    Raises:
      FileNotFoundError: there are none, or shards are missing.
      ValueError: there are only pickles and `pytorch` is False; a file is damaged; a
        shard lacks what the index says is in it. `read` too: of a tensor that holds
        no numbers, or some that are not finite.
    """
    for name, opened in ((SAFETENSORS, _safetensors), (PYTORCH, _pickle)):
        whole, index = folder / name, folder / f'{name}{_INDEX}'
        if not (whole.is_file() or index.is_file()):
            continue
        if name == PYTORCH and not pytorch:
            raise ValueError(
                f'{folder} has only {PYTORCH}, a pickle, which is not loaded unless '
                'asked for: import it once with --pytorch (pytorch=True), which takes '
                'torch.'
            )
        if whole.is_file():
            return opened(whole)
        return _joined(index, opened)
    raise FileNotFoundError(
        f'no {SAFETENSORS} in {folder}: copy it there, or all its shards with their '
        f'{SAFETENSORS}{_INDEX}.'
    )


def listed(lines: list[str]) -> str:
    """Lines of an error message, the first few and how many more there are."""
    more = [f'and {len(lines) - _LISTED} more'] * (len(lines) > _LISTED)
    return '\n'.join(f'  {line}' for line in lines[:_LISTED] + more)


def _joined(index: pathlib.Path, opened: Callable[[pathlib.Path], Weights]) -> Weights:
    """All shards as one; of a tensor that two have, the one in the index."""
    places = _places(index)
    missing = [n for n in dict.fromkeys(places.values()) if not _beside(index, n)]
    if missing:
        raise FileNotFoundError(
            f'{index} lists {", ".join(missing[:_LISTED])}, not there '
            f'({len(missing)} of its {len(set(places.values()))} shards): copy all.'
        )
    shards = {n: opened(index.with_name(n)) for n in dict.fromkeys(places.values())}
    lost = [
        f'{tensor} is not in {shard}'
        for tensor, shard in places.items()
        if tensor not in shards[shard].shapes
    ]
    if lost:
        raise ValueError(
            f'{index} is of other shards than those beside it:\n{listed(lost)}\n'
            'Copy index and shards again.'
        )
    of_shard = {n: shard for shard, opened in shards.items() for n in opened.shapes}
    of_shard |= places
    shapes = {n: shards[shard].shapes[n] for n, shard in of_shard.items()}
    return Weights(index, shapes, lambda name: shards[of_shard[name]].read(name))


def _places(index: pathlib.Path) -> dict[str, str]:
    """Which shard has a tensor, as an index tells."""
    try:
        content = json.loads(index.read_text(encoding='utf-8-sig'))
        places = content['weight_map']
        known = bool(places) and all(isinstance(n, str) for n in places.values())
    except (ValueError, KeyError, TypeError, AttributeError):
        known = False
    if not known:
        raise ValueError(
            f'{index} does not tell in its weight_map which shard has a tensor: copy '
            'it again.'
        )
    return places


def _beside(index: pathlib.Path, name: str) -> bool:
    """Whether a shard is a file in the folder of its index, and nowhere else."""
    return pathlib.PurePath(name).name == name and index.with_name(name).is_file()


def _safetensors(file: pathlib.Path) -> Weights:
    def read(name: str) -> np.ndarray:
        # The file is mapped: opened once for all, its pages would count as ours.
        try:
            with safetensors.safe_open(file, framework='numpy') as opened:
                dtype = opened.get_slice(name).get_dtype()
                if dtype not in _FLOATS:
                    raise _no_numbers(file, name, dtype)
                return finite(file, name, opened.get_tensor(name))
        except safetensors.SafetensorError as error:
            raise _damaged(file, error) from error

    try:
        with safetensors.safe_open(file, framework='numpy') as opened:
            names = opened.keys()
            shapes = {n: tuple(opened.get_slice(n).get_shape()) for n in names}
    except safetensors.SafetensorError as error:
        raise _damaged(file, error) from error
    return Weights(file, shapes, read)


def _pickle(file: pathlib.Path) -> Weights:
    try:
        import torch
    except ImportError as error:
        raise ValueError(
            f'{file} can only be read with torch, which is not installed: install it, '
            f'or save the model as {SAFETENSORS}.'
        ) from error
    # torch before 1.6 saved no zip archive, which alone can be mapped.
    mapped = zipfile.is_zipfile(file)
    try:
        state = torch.load(file, map_location='cpu', weights_only=True, mmap=mapped)
    except Exception as error:  # whatever the unpickler says
        raise ValueError(f'{file} cannot be read by torch ({error}).') from error
    if not isinstance(state, dict) or not all(map(torch.is_tensor, state.values())):
        raise ValueError(
            f'{file} holds something else than the tensors of a model by their names: '
            'save its state_dict().'
        )

    def read(name: str) -> np.ndarray:
        tensor = state[name].detach()
        if not tensor.is_floating_point():
            raise _no_numbers(file, name, tensor.dtype)
        return finite(file, name, tensor.float().numpy())

    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    return Weights(file, shapes, read)


def finite(source: Any, name: str, array: np.ndarray) -> np.ndarray:
    """A tensor as float32; a ValueError unless all its numbers are finite."""
    with np.errstate(over='ignore'):  # float64 beyond float32: not finite either
        array = array.astype(jnp.float32, copy=False)
    bad = array.size - np.count_nonzero(np.isfinite(array))
    if bad:
        raise ValueError(
            f'{source}: {bad:,} of the {array.size:,} numbers of {name} are NaN or '
            'infinite, or beyond float32: it has diverged, or a file is damaged. Take '
            'an earlier one.'
        )
    return array


def _no_numbers(file: pathlib.Path, name: str, dtype: Any) -> ValueError:
    return ValueError(
        f'{file}: {name} is of dtype {dtype}, as quantized models are: save the model '
        'as float32, float16 or bfloat16.'
    )


def _damaged(file: pathlib.Path, error: Exception) -> ValueError:
    with open(file, 'rb') as stream:
        if stream.read(len(_LFS)) == _LFS:
            return ValueError(f'{file} is only where git LFS left it: git lfs pull.')
    return ValueError(f'{file} is truncated or damaged ({error}): copy it again.')
