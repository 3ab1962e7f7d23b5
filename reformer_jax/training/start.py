"""One way into a run: a config and a run folder to all that a run is made of.

Only this file reads a ConfigDict. What the config leaves open is found elsewhere: in
the run's own folder, in that of init_from, in the data. A config with init_from takes
from there all that gives the parameters their meaning (model.architecture_fields), and
keeps its own head, dropout, rounds, dtype, stack and the like, and its own pattern
where that has LSH for full attention with shared queries and keys, or the reverse.
"""

import contextlib
import copy
import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import grain
import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from reformer_jax import data
from reformer_jax import huggingface
from reformer_jax import model as model_lib
from reformer_jax import sharding
from reformer_jax.model import config as model_config
from reformer_jax.runs import folder as run_folder
from reformer_jax.runs import metrics
from reformer_jax.runs import processes
from reformer_jax.training import config as training_config
from reformer_jax.training import exchange
from reformer_jax.training import memory
from reformer_jax.training import optimizer as optimizer_lib
from reformer_jax.training import state as state_lib

# Taken from a source whose head is of the same kind, besides the architecture.
_OF_HEAD = ('pooling', 'classes')
_VOCABULARY_AXES = {'embedding': 0, 'head.output': 1, 'head.output_bias': 0}


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """What training, evaluation and sampling need of a run; holds no arrays."""

    workdir: str  # its folder, which need not exist
    fields: dict[str, Any]  # its config as the folder records it
    config: training_config.RunConfig  # the same, checked
    mesh: jax.sharding.Mesh
    optimizer: optax.GradientTransformation
    state: state_lib.TrainState  # jax.ShapeDtypeStruct leaves with shardings
    # Of every shape, that of the longest sequences last.
    batches: tuple[dict[str, jax.ShapeDtypeStruct], ...]

    @property
    def batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The batch of the longest sequences."""
        return self.batches[-1]

    def read(self, split: str) -> grain.DatasetIterator:
        """The data's batches of a split, the rows of this process of each."""
        rows = functools.partial(sharding.rows_here, mesh=self.mesh)
        return self.config.data.batches(split, rows)

    def init_state(self) -> state_lib.TrainState:
        """Fresh parameters and optimizer state; to be jitted."""
        return state_lib.init_state(self.config.model, self.optimizer, self.config.seed)

    @property
    def lsh(self) -> str:
        """How LSH layers compute the data's sequences, in words; '' without such."""
        sides = {'': ('tokens', self.config.model)}
        if self.config.model.encoder is not None:
            sides["the encoder's "] = 'source', self.config.model.encoder
        told = {
            whose: model_config.describe_lsh(config, self.batch[name].shape[1])
            for whose, (name, config) in sides.items()
        }
        return '; '.join(whose + words for whose, words in told.items() if words)

    @property
    def tokenizer(self) -> str | None:
        """The file of the data's tokenizer, if it has one."""
        name = getattr(self.config.data, 'tokenizer', run_folder.NO_TOKENIZER)
        return None if name == run_folder.NO_TOKENIZER else name

    def restore_model(
        self, step: int | str | None = None
    ) -> tuple[model_lib.Reformer, int]:
        """The model of a checkpoint, as the config says, and its step."""
        return state_lib.restore_model(
            self.workdir, self.mesh, config=self.config.model, step=step
        )


def open(config: ml_collections.ConfigDict | None, workdir: str) -> Run:
    """Checks a config and lays its run out on the devices; computes no array.

    Args:
      config: the config; None for that of the run in `workdir`.
      workdir: the run folder, which is not touched.

    Raises:
      FileNotFoundError: init_from is no folder of a model; there is no run to take the
        config of.
      ValueError: a field is unknown or impossible, or does not fit another, or the
        parameters do not fit into memory.
    """
    if config is None:
        config = ml_collections.ConfigDict(run_folder.load_config(workdir))
        with run_folder.naming_config(workdir):
            fields, checked = read(config, workdir)
    else:
        fields, checked = read(config, workdir)
    processes.check_same(workdir, fields)
    if isinstance(checked.data, data.pairs.Pairs):
        kept = _kept_tokenizer(workdir, checked.init_from)
        name = checked.data.tokenizer
        if checked.init_from and not kept and data.tokenizers.size_to_train(name):
            raise ValueError(
                f'{checked.init_from} has no tokenizer.model, and data.tokenizer='
                f'{name!r} would make other tokens than it was trained with: give the '
                'file of its own, or bytes.'
            )
        of_run = checked.data.with_tokenizer(kept)
        checked = dataclasses.replace(checked, data=of_run)
    mesh = sharding.make_mesh(checked.mesh)
    optimizer = optimizer_lib.build(checked.optimizer, checked.steps)
    init = functools.partial(
        state_lib.init_state, checked.model, optimizer, checked.seed
    )
    if checked.placement:
        sharding.check_rules(checked.placement, jax.eval_shape(init).model)
    state = state_lib.abstract(init, mesh, checked.placement)
    memory.check_arrays(state.model, 'the parameters')
    optimizer_lib.check_frozen(checked.optimizer, state.model)
    rows = NamedSharding(mesh, P(sharding.BATCH_AXES))
    batches = tuple(
        {
            name: jax.ShapeDtypeStruct(shape, dtype, sharding=rows)
            for name, (shape, dtype) in spec.items()
        }
        for spec in checked.data.specs
    )
    run = Run(workdir, fields, checked, mesh, optimizer, state, batches)
    if run.tokenizer:
        run_folder.check_tokenizer(workdir, run.tokenizer)
    return run


def check_batches(run: Run) -> None:
    """Raises a ValueError if the devices do not divide the batches, or have no room for
    one."""
    training_config.check_devices(run.config, run.mesh)
    for batch in run.batches:
        memory.check_batch(batch)


def read(
    config: ml_collections.ConfigDict, workdir: str
) -> tuple[dict[str, Any], training_config.RunConfig]:
    """A config as the run folder records it, and checked.

    Raises:
      FileNotFoundError, ValueError: as `open`.
    """
    fields = config.to_dict()
    if isinstance(fields.get('data'), dict) and isinstance(fields.get('model'), dict):
        fields = resolve(fields, workdir)
    checked = training_config.run_config(fields)
    training_config.check(checked)
    return fields, checked


def resolve(config: Mapping[str, Any], workdir: str) -> dict[str, Any]:
    """The fields of a config with all that is found elsewhere filled in: architecture
    of init_from (of the run itself, if it has been started), the tokenizer there for
    data.tokenizer='', labels of the run or of the same head there or else found in the
    data, and the number of classes. What replaces a setting is printed.

    Raises:
      FileNotFoundError: init_from is no folder of a model.
      ValueError: what is there is damaged or has no tokenizer that can be read.
    """
    fields = copy.deepcopy(dict(config))
    fields['data'] = data.defaults(fields['data'].get('dataset')) | fields['data']
    source = fields.get('init_from')
    own: dict[str, Any] = {}  # of the run, if it has been started
    with contextlib.suppress(FileNotFoundError):
        own = run_folder.load_config(workdir)
    given: Mapping[str, Any] = {}
    if source:
        given = own if own.get('init_from') == source else _source_fields(source)
    if fields['data'].get('tokenizer') == '':
        fields['data']['tokenizer'] = _tokenizer(workdir, source, given)
    same_head = given.get('model', {}).get('head') == fields['model'].get('head')
    if 'labels' in fields['data'] and not fields['data']['labels']:
        known = own or (given if same_head else {})
        fields['data']['labels'] = known.get('data', {}).get('labels', ())
    dataset = data.open(fields['data']).resolved()
    fields['data'] = dataclasses.asdict(dataset)
    if source:
        names = model_config.architecture_fields() + (_OF_HEAD if same_head else ())
        taken = {name: given['model'][name] for name in names if name in given['model']}
        patterns = taken['pattern'], fields['model'].get('pattern', ())
        if taken.get('shared_qk') and len({*map(_lsh_for_full, patterns)}) == 1:
            del taken['pattern']
        # One token more where the source's vocabulary is that of the data but the mask.
        if taken.get('encoder'):
            taken['encoder'] = _encoder(names, taken['encoder'], fields['model'])
        all_but_mask = dataset.vocab_size - 1
        if dataset.head == 'masked_lm' and taken['vocab_size'] == all_but_mask:
            taken['vocab_size'] += 1
        _say_what_is_replaced(fields['model'], taken, source)
        fields['model'] |= taken
    if dataset.head.endswith('classification'):
        fields['model']['classes'] = fields['model'].get('classes') or dataset.classes
    if own:
        with run_folder.naming_config(workdir):
            fields['model'] |= _still_exact(own['model'], fields['model'])
    else:
        if not same_head:
            _check_sees_the_text(fields['model'])
        if source:
            fields['model'] |= _still_exact(given['model'], fields['model'])
    return fields


def _check_sees_the_text(model: Mapping[str, Any]) -> None:
    """A causal head that transformers has is for who imports one, not to be made."""
    known = {**model_config.defaults(), **model}
    there = (known['head'], known['pooling']) in model_config.CAUSAL_THERE
    if there and known['rule'] == 'trax' and known['causal']:
        last = " or model.pooling='last'" * (known['head'] == 'classification')
        raise ValueError(
            f'model.head={known["head"]!r} with pooling={known["pooling"]!r} in a '
            'model with causal=True reads tokens that have not seen the text: set '
            f'model.causal=False{last}, or start from a bidirectional model.'
        )


def _still_exact(
    trained: Mapping[str, Any], model: Mapping[str, Any]
) -> dict[str, Any]:
    """For other rounds than those trained with, what these made exact by themselves."""
    known = {**model_config.defaults(), **model}
    was = model_config.ModelConfig(**trained)
    kept = _exact_length(known, was)
    encoder = known['encoder']
    if encoder and was.encoder is not None:
        of_encoder = _exact_length({**known, **encoder}, was.encoder)
        # Nor does it take over what its decoder was given.
        if of_encoder or (kept and 'dense_length' not in encoder):
            exact_length = {'dense_length': was.encoder.exact_length}
            kept['encoder'] = {**encoder, **exact_length}
    return kept


def _exact_length(
    known: Mapping[str, Any], was: model_config.ModelConfig
) -> dict[str, Any]:
    automatic = known['dense_length'] == model_config.AUTOMATIC
    if not automatic or known['rule'] == 'strict':  # which is never exact
        return {}
    same = was.rounds == known['rounds']
    return {} if same else {'dense_length': was.exact_length}


def _lsh_for_full(pattern: Sequence[str]) -> tuple[str, ...]:
    """What a pattern has in common with those that may start from its parameters: full
    attention with shared queries and keys has those of LSH, which approximates it."""
    return tuple('lsh' if kind == 'full' else kind for kind in pattern)


def _encoder(
    names: tuple[str, ...], given: Mapping[str, Any], model: Mapping[str, Any]
) -> dict[str, Any]:
    """The architecture of a source's encoder, all else as the config has it."""
    own = model.get('encoder') or {}
    kept = {name: value for name, value in own.items() if name not in names}
    return kept | {name: given[name] for name in names if name in given}


def _flat(model: Mapping[str, Any]) -> dict[str, Any]:
    """Fields by name, those of the encoder as encoder.name."""
    encoder = model.get('encoder') or {}
    flat = {f'encoder.{name}': value for name, value in encoder.items()}
    return {n: value for n, value in model.items() if n != 'encoder'} | flat


def _say_what_is_replaced(
    model: dict[str, Any], taken: dict[str, Any], source: str
) -> None:
    before, after = (
        _flat(run_folder.as_json(fields)) for fields in (model, dict(taken))
    )
    replaced = [
        f'{name}={value} (not {before[name]})'
        for name, value in after.items()
        if before.get(name, value) != value
    ]
    if replaced:
        metrics.say(f'model from {source}: {", ".join(replaced)}')


def _tokenizer(workdir: str, source: str | None, given: Mapping[str, Any]) -> str:
    """The file in the run folder or the source; bytes where these were meant."""
    own = _kept_tokenizer(workdir, '')
    if own is None and source and huggingface.is_model(source):
        return exchange.tokenizer_of(source, given['model']['vocab_size'])
    return own or _kept_tokenizer('', source or '') or run_folder.NO_TOKENIZER


def _kept_tokenizer(workdir: str, source: str) -> str | None:
    """The tokenizer in the run folder, or else that of the source, if there is any."""
    folders = filter(None, (workdir, source))
    return next(filter(None, map(run_folder.find_tokenizer, folders)), None)


def _source_fields(source: str) -> dict[str, Any]:
    """The config of a run, or as much of one as a Hugging Face folder has."""
    if huggingface.is_model(source):
        model = dataclasses.asdict(huggingface.load_config(source))
        return {'model': model, 'data': {'labels': huggingface.labels(source)}}
    if not pathlib.Path(source).expanduser().is_dir():
        raise FileNotFoundError(
            f'config.init_from={source!r} is no folder: give one that transformers '
            'saved a Reformer in (config.json, model.safetensors), or a run folder.'
        )
    fields = run_folder.load_config(source)
    checked = training_config.run_config(fields)
    return fields | {'model': dataclasses.asdict(checked.model)}


def load_parameters(
    config: training_config.RunConfig, mesh: jax.sharding.Mesh
) -> dict[str, jax.Array]:
    """Parameters of init_from by their names, those of another kind of head left out.

    Raises:
      FileNotFoundError: init_from holds no model or no checkpoint.
      ValueError: a file is damaged or does not fit its config.
    """
    source = config.init_from
    if huggingface.is_model(source):
        _, model = huggingface.load(source)
    else:
        model, _ = state_lib.restore_model(source, mesh)
    leaves = jax.tree_util.tree_leaves_with_path(model)
    named = {sharding.leaf_name(path): leaf for path, leaf in leaves}
    if model.config.head == config.model.head:
        return named
    return {n: leaf for n, leaf in named.items() if not n.startswith('head.')}


def first_state(run: Run, parameters: dict[str, jax.Array]) -> state_lib.TrainState:
    """The state of step 0, with `parameters`, which are used up, for fresh ones."""
    shardings = jax.tree.map(lambda x: x.sharding, run.state)
    state = jax.jit(run.init_state, out_shardings=shardings)()
    if not parameters:
        return state
    model, fresh = put(state.model, parameters)
    metrics.say(
        f'started from {run.config.init_from}: {len(parameters)} parameters; fresh: '
        f'{", ".join(fresh) or "none"}'
    )
    parameters.clear()  # the caller's as well: their memory is needed
    return dataclasses.replace(state, model=model)


def put(
    model: model_lib.Reformer, parameters: dict[str, jax.Array]
) -> tuple[model_lib.Reformer, list[str]]:
    """The model with its parameters replaced; and the names of those that stay fresh.

    Only a head may stay fresh, also one for another number of classes; and the last
    token of a vocabulary that is larger by one.

    Raises:
      ValueError: a parameter is missing or has another shape.
    """
    fresh: list[str] = []

    def replace(path: Any, leaf: jax.Array) -> jax.Array:
        name = sharding.leaf_name(path)
        found = parameters.get(name)
        if found is not None and found.shape != leaf.shape:
            found = _with_one_more_token(name, found, leaf)
        if found is not None and found.shape == leaf.shape:
            return jax.device_put(found, leaf.sharding)
        if not name.startswith('head.'):
            there = 'none' if found is None else f'one of shape {found.shape}'
            raise ValueError(
                f'the model needs the parameter {name} of shape {leaf.shape}, and '
                f'init_from has {there}: let the config take its architecture there.'
            )
        fresh.append(name)
        return leaf

    return jax.tree_util.tree_map_with_path(replace, model), fresh


def _with_one_more_token(
    name: str, found: jax.Array, fresh: jax.Array
) -> jax.Array | None:
    """A parameter over the vocabulary, its last token from the fresh one."""
    axis = _VOCABULARY_AXES.get(name)
    if axis is None or found.shape[axis] + 1 != fresh.shape[axis]:
        return found
    last = jax.lax.slice_in_dim(fresh, found.shape[axis], fresh.shape[axis], axis=axis)
    return jnp.concatenate([found, jax.device_put(last, found.sharding)], axis=axis)
