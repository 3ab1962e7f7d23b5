"""Parameters and the tensors of Hugging Face's files: names, shapes, layout.

Their linear weights are [out, in]; ours are [in, out], with heads apart and the repeats
of a layer stacked. Names are those of transformers 5.23.0's state_dict.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from reformer_jax import model as model_lib
from reformer_jax import sharding
from reformer_jax.model import config as model_config

# What older versions saved beside the parameters: constants, and a bias twice.
_IGNORED = (
    'self_mask_value_float16',
    'self_mask_value_float32',
    'mask_value_float16',
    'mask_value_float32',
    'lm_head.decoder.bias',
)

_ATTENTION = 'attention.self_attention'
_OF_LAYER = {
    'attention.norm.scale': 'attention.layer_norm.weight',
    'attention.norm.bias': 'attention.layer_norm.bias',
    'attention.query_key': f'{_ATTENTION}.query_key.weight',
    'attention.query': f'{_ATTENTION}.query.weight',
    'attention.key': f'{_ATTENTION}.key.weight',
    'attention.value': f'{_ATTENTION}.value.weight',
    'attention.output': 'attention.output.dense.weight',
    'feed_forward.norm.scale': 'feed_forward.layer_norm.weight',
    'feed_forward.norm.bias': 'feed_forward.layer_norm.bias',
    'feed_forward.hidden': 'feed_forward.dense.dense.weight',
    'feed_forward.hidden_bias': 'feed_forward.dense.dense.bias',
    'feed_forward.output': 'feed_forward.output.dense.weight',
    'feed_forward.output_bias': 'feed_forward.output.dense.bias',
}
_POSITIONS = 'embeddings.position_embeddings'
_OF_ENCODER = {
    'embedding': 'embeddings.word_embeddings.weight',
    'norm.scale': 'encoder.layer_norm.weight',
    'norm.bias': 'encoder.layer_norm.bias',
}
_VOCABULARY = {
    'head.output': 'lm_head.decoder.weight',
    'head.output_bias': 'lm_head.bias',
}
_OF_HEAD = {
    'lm': _VOCABULARY,
    'masked_lm': _VOCABULARY,
    'classification': {
        'head.hidden': 'classifier.dense.weight',
        'head.hidden_bias': 'classifier.dense.bias',
        'head.output': 'classifier.out_proj.weight',
        'head.output_bias': 'classifier.out_proj.bias',
    },
    'question_answering': {
        'head.output': 'qa_outputs.weight',
        'head.output_bias': 'qa_outputs.bias',
    },
}
_KERNELS = ('query_key', 'query', 'key', 'value', 'hidden', 'output')


class Tensor(NamedTuple):
    """One tensor of a file and where it belongs.

    Attributes:
      name: in the file.
      shape: in the file.
      leaf: which parameter, by its number among the leaves of the model.
      repeat: which repeat of a stacked parameter; None for others.
      inputs: leading axes of the parameter that are inputs of a linear layer; 0 for
        what is laid out alike on both sides.
    """

    name: str
    shape: tuple[int, ...]
    leaf: int
    repeat: int | None
    inputs: int


def abstract_model(config: model_config.ModelConfig) -> model_lib.Reformer:
    """Shapes of a model's parameters."""
    return jax.eval_shape(lambda: model_lib.build(config, nnx.Rngs(0)))


def tensors(config: model_config.ModelConfig) -> Iterator[Tensor]:
    """All tensors of a model, in the order of its parameters."""
    leaves = jax.tree_util.tree_leaves_with_path(abstract_model(config))
    # The file of a bare ReformerModel has no prefix.
    prefix = '' if config.head == 'none' else 'reformer.'
    for number, (path, leaf) in enumerate(leaves):
        name = sharding.leaf_name(path)
        inputs = _inputs(name)
        part, _, place = name.partition('.')
        if part == 'layers':
            place, _, rest = place.partition('.')
            shape = _shape(leaf.shape[1:], inputs)
            for repeat in range(config.repeats):
                layer = repeat * len(config.pattern) + int(place)
                theirs = f'{prefix}encoder.layers.{layer}.{_OF_LAYER[rest]}'
                yield Tensor(theirs, shape, number, repeat, inputs)
        elif part == 'position_tables':
            theirs, shape = _positions(config, int(place), leaf.shape)
            yield Tensor(prefix + theirs, shape, number, None, inputs)
        else:
            of_head = _OF_HEAD.get(config.head, {})
            theirs = of_head.get(name) or prefix + _OF_ENCODER[name]
            yield Tensor(theirs, _shape(leaf.shape, inputs), number, None, inputs)


def is_ignored(name: str) -> bool:
    """Whether a tensor of a file holds no parameter of its own."""
    return name.endswith(_IGNORED)


def to_parameter(tensor: Tensor, array: np.ndarray, into: np.ndarray) -> None:
    """Writes what a file has into its place in a parameter."""
    if tensor.repeat is not None:
        into = into[tensor.repeat]
    into[...] = (array.T if tensor.inputs else array).reshape(into.shape)


def to_file(tensor: Tensor, parameter: Any) -> np.ndarray:
    """What a file has of a parameter, float32."""
    if tensor.repeat is not None:
        parameter = parameter[tensor.repeat]
    array = np.asarray(parameter, np.float32)
    if tensor.inputs:
        array = array.reshape(tensor.shape[::-1]).T
    return np.ascontiguousarray(array.reshape(tensor.shape))


def _inputs(name: str) -> int:
    if name.endswith('attention.output'):
        return 2  # heads and head size
    return 1 if name.split('.')[-1] in _KERNELS else 0


def _shape(ours: tuple[int, ...], inputs: int) -> tuple[int, ...]:
    if not inputs:
        return ours
    return math.prod(ours[inputs:]), math.prod(ours[:inputs])


def _positions(config, axis: int, ours: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    if config.positions == 'learned':
        return f'{_POSITIONS}.embedding.weight', ours
    around = [1] * len(config.axial_shape)
    around[axis] = ours[0]
    return f'{_POSITIONS}.weights.{axis}', (*around, ours[1])
