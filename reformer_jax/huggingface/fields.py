"""config.json of Hugging Face's Reformer and ModelConfig, either way.

Their model is rule 'trax' with separate output weights and without a start token.
Field names and defaults are those of transformers 5.23.0, models/reformer/
configuration_reformer.py.
"""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from reformer_jax.model import config as model_config

MODEL_TYPE = 'reformer'

# Class of transformers -> head.
_HEADS = {
    'ReformerModelWithLMHead': 'lm',
    'ReformerForMaskedLM': 'masked_lm',
    'ReformerForSequenceClassification': 'classification',
    'ReformerForQuestionAnswering': 'question_answering',
    'ReformerModel': 'none',
}

# hidden_act -> activation.
_ACTIVATIONS = {
    'relu': 'relu',
    'gelu': 'gelu_erf',
    'gelu_new': 'gelu',
    'gelu_pytorch_tanh': 'gelu',
    'gelu_fast': 'gelu',
    'gelu_python': 'gelu_erf',
    'silu': 'swish',
    'swish': 'swish',
}

# Theirs -> ours where the value is the same; the defaults of transformers.
_SAME: dict[str, tuple[str, Any]] = {
    'vocab_size': ('vocab_size', 320),
    'hidden_size': ('d_model', 256),
    'feed_forward_size': ('d_ff', 512),
    'num_attention_heads': ('heads', 12),
    'attention_head_size': ('head_size', 64),
    'max_position_embeddings': ('length', 4096),
    'is_decoder': ('causal', False),
    'local_attn_chunk_length': ('local_chunk_length', 64),
    'local_num_chunks_before': ('local_chunks_before', 1),
    'local_num_chunks_after': ('local_chunks_after', 0),
    'lsh_attn_chunk_length': ('lsh_chunk_length', 64),
    'lsh_num_chunks_before': ('lsh_chunks_before', 1),
    'lsh_num_chunks_after': ('lsh_chunks_after', 0),
    'num_hashes': ('rounds', 1),
    'layer_norm_eps': ('norm_epsilon', 1e-12),
    'hidden_dropout_prob': ('dropout', 0.05),
    'lsh_attention_probs_dropout_prob': ('attention_dropout', 0.0),
    'local_attention_probs_dropout_prob': ('local_attention_dropout', 0.05),
    'chunk_size_feed_forward': ('feed_forward_chunk_length', 0),
    'chunk_size_lm_head': ('loss_chunk_length', 0),
}
# Attention -> what the fields begin with that no other uses.
_OF_KINDS = {'local': 'local_', 'lsh': 'lsh_'}
# Of ours, which config.json has no field for: kept under this key.
_OWN = 'reformer_jax'

_DEFAULTS: dict[str, Any] = {
    theirs: default for theirs, (_, default) in _SAME.items()
} | {
    'architectures': None,
    'attn_layers': ('local', 'lsh') * 3,
    'axial_pos_embds': True,
    'axial_pos_shape': (64, 64),
    'axial_pos_embds_dim': (64, 192),
    'hidden_act': 'relu',
    'id2label': None,
    'num_buckets': None,
    'num_labels': 2,
    _OWN: {},
}


def to_model_config(
    fields: Mapping[str, Any], source: str = 'config.json'
) -> model_config.ModelConfig:
    """The model that a config.json describes; errors name it as `source`.

    Raises:
      ValueError: it is of another model, or has a value that this code cannot do.
    """
    if fields.get('model_type') != MODEL_TYPE:
        raise ValueError(
            f'{source} is of a model of type {fields.get("model_type")!r}, not of a '
            f'Reformer (model_type {MODEL_TYPE!r}): give the folder of one.'
        )
    try:
        return _to_model_config(fields, source)
    except TypeError as error:  # null or a number where there should be a list
        raise ValueError(f'{source} has a value of a wrong type: {error}') from error


def _to_model_config(fields, source: str) -> model_config.ModelConfig:
    fields = _DEFAULTS | dict(fields)
    kinds = _attention_kinds(fields, source)
    fields |= _instead_of_null(fields, kinds)
    classes = fields['architectures'] or ()
    told = classes if isinstance(classes, str) else ', '.join(map(str, classes))
    head = _choice('architectures', told, _HEADS, source)
    activation = _choice('hidden_act', fields['hidden_act'], _ACTIVATIONS, source)
    ours = {name: fields[theirs] for theirs, (name, _) in _SAME.items()}
    ours |= {
        'layers': len(kinds),
        'pattern': _shortest_pattern(kinds),
        'buckets': () if fields['num_buckets'] is None else fields['num_buckets'],
        'rule': 'trax',
        'dense_length': 0,
        'activation': activation,
        'head': head,
        'start_token': -1,
        'positions': 'learned',
    }
    if fields['axial_pos_embds']:
        shape = tuple(fields['axial_pos_shape'])
        ours |= {
            'positions': 'axial',
            'axial_shape': shape,
            'axial_sizes': tuple(fields['axial_pos_embds_dim']),
            'length': min(ours['length'], math.prod(shape)),
        }
    if head == 'classification':
        ours['classes'] = len(fields['id2label'] or ()) or fields['num_labels']
    try:
        return model_config.ModelConfig(**(ours | fields[_OWN]))
    except (TypeError, ValueError) as error:
        named = [
            f'{name} is {theirs} there'
            for theirs, (name, _) in (
                _SAME | {'num_buckets': ('buckets', None)}
            ).items()
            if re.search(rf'\b{name}\b', str(error)) and name != theirs
        ]
        told = f'{error} ({", ".join(named)})' if named else str(error)
        raise ValueError(f'{source} describes an impossible model: {told}') from error


def architectures(names: Collection[str], fields: Mapping[str, Any]) -> list[str]:
    """The class of a model whose config.json does not tell it, by its tensors."""
    causal = fields.get('is_decoder', _DEFAULTS['is_decoder'])
    of_head = {
        'classifier.': 'ReformerForSequenceClassification',
        'qa_outputs.': 'ReformerForQuestionAnswering',
        'lm_head.': 'ReformerModelWithLMHead' if causal else 'ReformerForMaskedLM',
    }
    found = [of_head[p] for p in of_head if any(n.startswith(p) for n in names)]
    return found or ['ReformerModel']


def from_model_config(
    config: model_config.ModelConfig, like: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The config.json of a model.

    Args:
      config: of rule 'trax' and a head that transformers has. A start token is noted
        as bos_token_id, but transformers does not put it before a text by itself.
      like: fields of another config.json whose further fields are kept, such as labels
        and special tokens; if it describes this very model, all are.

    Raises:
      ValueError: transformers has no such model.
    """
    _check_exists_there(config)
    if like is not None and _describes(like, config):
        return dict(like)
    buckets = np.ravel(config.lsh.buckets).tolist()
    theirs: dict[str, Any] = {
        'architectures': [_key_of(_HEADS, config.head)],
        'model_type': MODEL_TYPE,
        **{theirs: getattr(config, ours) for theirs, (ours, _) in _SAME.items()},
        'attn_layers': list(config.pattern) * config.repeats,
        'num_hidden_layers': config.layers,
        'num_buckets': buckets if len(buckets) > 1 else buckets[0],
        'hidden_act': _key_of(_ACTIVATIONS, config.activation),
        'axial_pos_embds': config.positions == 'axial',
        'tie_word_embeddings': False,
        'pad_token_id': 0,
        'dtype': 'float32',
    }
    if config.positions == 'axial':
        theirs['axial_pos_shape'] = list(config.axial_shape)
        theirs['axial_pos_embds_dim'] = list(config.axial_sizes)
    if config.head == 'classification':
        known = like and len(like.get('id2label') or ()) == config.classes
        if not known:
            theirs |= label_fields(numbered(config.classes))
    if config.start_token >= 0:
        if config.head == 'lm':
            theirs['bos_token_id'] = config.start_token
        theirs[_OWN] = {'start_token': config.start_token}
    return dict(like or {}) | theirs


def label_fields(names: Sequence[str]) -> dict[str, Any]:
    """The fields that name the classes, in order."""
    numbers = {name: number for number, name in enumerate(names)}
    named = {str(number): name for name, number in numbers.items()}
    return {'id2label': named, 'label2id': numbers}


def numbered(count: int) -> tuple[str, ...]:
    """What transformers calls classes that have no names."""
    return tuple(f'LABEL_{number}' for number in range(count))


def _describes(fields: Mapping[str, Any], config: model_config.ModelConfig) -> bool:
    try:
        return to_model_config(fields) == config
    except ValueError:
        return False


def _choice(name: str, value: str, choices: Mapping[str, str], source: str) -> str:
    if value not in choices:
        raise ValueError(
            f'{source} has {name} {value!r}: it needs one of {", ".join(choices)}.'
        )
    return choices[value]


def _attention_kinds(fields: Mapping[str, Any], source: str) -> list[str]:
    """The attention of each layer: like transformers, the first num_hidden_layers, or
    so many of one kind, if attn_layers lists no other."""
    kinds = fields['attn_layers']
    if not isinstance(kinds, (list, tuple)):
        raise TypeError(f'attn_layers={kinds!r}: it needs a list.')
    count = fields.get('num_hidden_layers', len(kinds))
    if type(count) is not int:
        raise TypeError(f'num_hidden_layers={count!r}: it needs a whole number.')
    if len(set(kinds)) == 1:
        kinds = list(kinds[:1]) * max(count, 0)
    if not 1 <= count <= len(kinds) or not set(kinds) <= set(_OF_KINDS):
        raise ValueError(
            f'{source} has num_hidden_layers={count} and attn_layers='
            f"{list(fields['attn_layers'])}: it needs 'local' or 'lsh' for each layer."
        )
    return list(kinds[:count])


def _instead_of_null(fields: Mapping[str, Any], kinds: list[str]) -> dict[str, Any]:
    """Defaults for the nulls in fields that the model does not use; a TypeError names
    one that it does use."""
    unused = [p for kind, p in _OF_KINDS.items() if kind not in kinds]
    if not isinstance(fields['axial_pos_embds'], bool | None):
        raise TypeError(
            f'axial_pos_embds={fields["axial_pos_embds"]!r}: it needs true or false.'
        )
    if fields['axial_pos_embds'] is False:
        unused += ['axial_pos_shape', 'axial_pos_embds_dim']
    # No chunks; and all that transformers itself has a null for.
    free = (
        _OWN,
        'chunk_size_',
        'num_buckets',
        'num_labels',
        'architectures',
        'id2label',
    )
    nulls = [name for name in _DEFAULTS if fields[name] is None]
    if needed := [name for name in nulls if not name.startswith((*free, *unused))]:
        raise TypeError(
            f'{needed[0]}=null, which the model needs: write there what it was trained '
            f'with, or remove the line for {_DEFAULTS[needed[0]]!r}.'
        )
    return {name: _DEFAULTS[name] for name in nulls}


def _shortest_pattern(kinds: list[str]) -> tuple[str, ...]:
    return next(
        tuple(kinds[:size])
        for size in range(1, len(kinds) + 1)
        if kinds[:size] * (len(kinds) // size) == kinds
    )


def _key_of(choices: Mapping[str, str], value: str) -> str:
    return next(key for key, found in choices.items() if found == value)


def _check_exists_there(config: model_config.ModelConfig) -> None:
    axial = config.positions == 'axial' and len(config.axial_shape) == 2
    problems = {
        f"rule={config.rule!r}, and it computes 'trax' (the parameters are the same: "
        "--rule_trax, or dataclasses.replace(config, rule='trax'), if that will do)": (
            config.rule != 'trax'
        ),
        f'dense_length={config.dense_length}: exact attention beyond one chunk '
        '(--rule_trax, or dataclasses.replace(config, dense_length=0), if LSH will '
        'do)': (
            'lsh' in config.pattern and config.exact_length > config.lsh_chunk_length
        ),
        f'pattern={config.pattern}: full attention': 'full' in config.pattern,
        f'head={config.head!r}': config.head not in _HEADS.values(),
        f'pooling={config.pooling!r}': (
            config.head == 'classification' and config.pooling != 'first'
        ),
        f'positions={config.positions!r}, axial_shape={config.axial_shape}': (
            not axial and config.positions != 'learned'
        ),
        f'streams={config.streams}': config.streams != 2,
        'encoder: an encoder-decoder': config.encoder is not None,
        f'combine={config.combine!r}': config.combine != 'concatenate',
        'tie_output=True': config.tie_output,
    }
    found = [problem for problem, there in problems.items() if there]
    if found:
        raise ValueError(
            f'Hugging Face has no Reformer with model.{"; model.".join(found)}.'
        )
