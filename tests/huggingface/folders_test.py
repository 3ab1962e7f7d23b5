"""Folders of transformers as people have them: configs of other versions, shards."""

import json
import pathlib
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import small_models as models

from reformer_jax import huggingface
from reformer_jax.huggingface import files

_GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'


@pytest.fixture
def folder(tmp_path):
    golden = _GOLDEN / 'causal_local_lsh'
    return pathlib.Path(shutil.copytree(golden, tmp_path / 'model'))


def _set(folder, **changes):
    """Changes fields of config.json; ... removes one."""
    file = folder / huggingface.CONFIG
    fields = json.loads(file.read_text('utf-8')) | changes
    kept = {name: value for name, value in fields.items() if value is not ...}
    file.write_text(json.dumps(kept), 'utf-8')


def _saved(folder, **changes):
    """Saves a model of rule trax."""
    model = models.build(rule='trax', **changes)
    huggingface.save(folder, model.config, model)
    return model


def _assert_same(model, folder):
    config, loaded = huggingface.load(folder)
    assert config == model.config
    for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(model), strict=True):
        np.testing.assert_array_equal(a, b)


def _tensors(folder):
    return safetensors.numpy.load_file(folder / huggingface.SAFETENSORS)


def _in_shards(folder, parts=3):
    """Weights as max_shard_size leaves them; the index, to be changed."""
    arrays = _tensors(folder)
    (folder / huggingface.SAFETENSORS).unlink()
    places = {}
    for part in range(parts):
        name = f'model-{part + 1:05d}-of-{parts:05d}.safetensors'
        of_part = {key: arrays[key] for key in sorted(arrays)[part::parts]}
        safetensors.numpy.save_file(of_part, folder / name)
        places |= dict.fromkeys(of_part, name)
    return _index(folder, places)


def _index(folder, places):
    content = {'metadata': {'total_size': 1}, 'weight_map': places}
    file = folder / 'model.safetensors.index.json'
    file.write_text(json.dumps(content), 'utf-8')
    return places


# --- config.json ------------------------------------------------------------------


@pytest.mark.parametrize(
    ('listed', 'layers'),
    [(['local'], 3), (['local', 'local'], 5), (['local'] * 4, 2)],
    ids=str,
)
def test_attn_layers_of_one_kind_is_for_all_layers(tmp_path, listed, layers):
    model = _saved(tmp_path, layers=layers, pattern=('local',))
    _set(tmp_path, attn_layers=listed)
    _assert_same(model, tmp_path)


def test_attn_layers_may_list_more_than_there_are(tmp_path):
    model = _saved(tmp_path, layers=3, pattern=('lsh', 'lsh', 'local'))
    _set(tmp_path, attn_layers=['lsh', 'lsh', 'local', 'lsh', 'local'])
    _assert_same(model, tmp_path)


_OF_LSH = {
    'lsh_attn_chunk_length': None,
    'lsh_num_chunks_before': None,
    'lsh_num_chunks_after': None,
    'lsh_attention_probs_dropout_prob': None,
    'num_hashes': 1,
}
_OF_LOCAL = {
    'local_attn_chunk_length': None,
    'local_num_chunks_before': None,
    'local_attention_probs_dropout_prob': None,
}


@pytest.mark.parametrize(('pattern', 'nulls'), [('local', _OF_LSH), ('lsh', _OF_LOCAL)])
def test_nulls_for_what_no_layer_has(tmp_path, pattern, nulls):
    _saved(tmp_path, pattern=(pattern,))
    tokens = np.arange(32)[None] % 11
    before = huggingface.load(tmp_path)[1](tokens)
    _set(tmp_path, **nulls)
    np.testing.assert_array_equal(huggingface.load(tmp_path)[1](tokens), before)


@pytest.mark.parametrize('absent', [None, ...])
def test_axial_fields_absent_where_positions_are_learned(tmp_path, absent):
    learned = {'positions': 'learned', 'axial_shape': (), 'axial_sizes': ()}
    model = _saved(tmp_path, **learned)
    _set(tmp_path, axial_pos_shape=absent, axial_pos_embds_dim=absent)
    _assert_same(model, tmp_path)


def test_chunks_of_null_are_none(tmp_path):
    model = _saved(tmp_path)
    _set(tmp_path, chunk_size_lm_head=None, chunk_size_feed_forward=None)
    _assert_same(model, tmp_path)


def test_fields_of_other_versions_and_programs(tmp_path):
    model = _saved(tmp_path)
    _set(tmp_path, num_chunks_before=1, output_past=True, seed=None, torch_dtype=None)
    _set(tmp_path, quantization_config={}, my_own=[None], transformers_version='2.9.0')
    _assert_same(model, tmp_path)
    file = tmp_path / huggingface.CONFIG
    file.write_bytes(b'\xef\xbb\xbf' + file.read_bytes())  # as editors on Windows
    _assert_same(model, tmp_path)


@pytest.mark.parametrize('absent', [None, ..., []])
@pytest.mark.parametrize(
    'changes',
    [
        {},
        {'causal': False},
        {'causal': False, 'head': 'classification', 'classes': 2},
        {'causal': False, 'head': 'question_answering'},
        {'causal': False, 'head': 'none'},
    ],
    ids=str,
)
def test_the_class_is_told_by_the_tensors(tmp_path, changes, absent):
    model = _saved(tmp_path, **changes)
    _set(tmp_path, architectures=absent)
    _assert_same(model, tmp_path)
    assert huggingface.load_config(tmp_path) == model.config


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'num_hashes': None}, r'num_hashes=null, which the model needs: .* for 1\.'),
        ({'is_decoder': None}, r'is_decoder=null, .* remove the line for False\.'),
        ({'lsh_attn_chunk_length': None}, r'lsh_attn_chunk_length=null'),
        ({'axial_pos_shape': None}, r'axial_pos_shape=null'),
        ({'axial_pos_embds': None}, r'axial_pos_embds=null'),
        ({'axial_pos_embds': 'false'}, r"axial_pos_embds='false': it needs true or"),
        ({'num_hidden_layers': None}, r'num_hidden_layers=None: it needs a whole'),
        ({'attn_layers': 'local'}, r"attn_layers='local': it needs a list"),
        ({'attn_layers': ['local', 'lsh']}, r"=4 and attn_layers=\['local', 'lsh'\]"),
        ({'attn_layers': ['lsh'], 'num_hidden_layers': -1}, r'num_hidden_layers=-1'),
        ({'num_hashes': '2'}, r"model.rounds='2' must be .*\(rounds is num_hashes"),
        ({'num_buckets': [2, None]}, r'buckets=\(2, None\).*buckets is num_buckets'),
        ({'is_decoder': ...}, r'causal=False.*\(causal is is_decoder there\)'),
    ],
    ids=str,
)
def test_fields_are_named(folder, changes, message):
    _set(folder, **changes)
    with pytest.raises(ValueError, match=f'config.json .*{message}'):
        huggingface.load(folder)


@pytest.mark.parametrize(
    'changes',
    [
        {'head': 'classification', 'classes': 3},
        {'head': 'classification', 'classes': 1},
        {'head': 'question_answering'},
    ],
    ids=str,
)
def test_classifiers_and_answers_of_decoders(tmp_path, changes, capsys):
    """They compute little, but transformers has them, and gives a warning too."""
    _assert_same(_saved(tmp_path, **changes), tmp_path)
    assert 'has is_decoder=true: as in transformers' in capsys.readouterr().err


def test_names_of_classes(folder):
    names = {str(number): f'class {number}' for number in range(12)}
    _set(folder, id2label=names)
    assert huggingface.labels(folder) == tuple(names.values())
    for absent in (None, ..., {}, {'0': 'LABEL_0', '1': 'LABEL_1'}):
        _set(folder, id2label=absent)
        assert huggingface.labels(folder) == ()


@pytest.mark.parametrize('names', [['0'], ['neg', 'pos'], 5, 'ab'])
def test_names_of_classes_are_an_object(folder, names):
    _set(folder, id2label=names)
    with pytest.raises(ValueError, match='has id2label=.*: write it as'):
        huggingface.labels(folder)


@pytest.mark.parametrize('keys', ['02', '12', 'ab', ['0', '00'], ['-1', '0']])
def test_classes_are_numbered_from_zero(folder, keys):
    _set(folder, id2label={key: f'class {key}' for key in keys})
    with pytest.raises(ValueError, match=f'id2label for {keys[0]}, {keys[1]}: number'):
        huggingface.labels(folder)


# --- Weights ----------------------------------------------------------------------


@pytest.mark.parametrize('parts', [1, 2, 7])
def test_shards(tmp_path, parts):
    model = _saved(tmp_path)
    _in_shards(tmp_path, parts)
    _assert_same(model, tmp_path)
    _set(tmp_path, architectures=...)
    _assert_same(model, tmp_path)


def test_missing_shards_are_named(tmp_path):
    _saved(tmp_path)
    _in_shards(tmp_path)
    (tmp_path / 'model-00002-of-00003.safetensors').unlink()
    message = (
        r'index.json lists model-00002-of-00003.safetensors, not there \(1 of its 3'
    )
    with pytest.raises(FileNotFoundError, match=message):
        huggingface.load(tmp_path)


def test_a_tensor_that_no_shard_has_is_named(tmp_path):
    _saved(tmp_path)
    places = _in_shards(tmp_path)
    _index(tmp_path, places | {'reformer.more': 'model-00001-of-00003.safetensors'})
    message = r'other shards than .*\n  reformer.more is not in model-00001-of-00003'
    with pytest.raises(ValueError, match=message):
        huggingface.load(tmp_path)
    name = 'lm_head.bias'
    others = [n for n in places.values() if n != places[name]]
    _index(tmp_path, places | {name: others[0]})
    with pytest.raises(ValueError, match=f'lm_head.bias is not in {others[0]}'):
        huggingface.load(tmp_path)


def test_of_a_tensor_in_two_shards_the_index_tells_which(tmp_path):
    model = _saved(tmp_path)
    places = _in_shards(tmp_path)
    name = 'lm_head.bias'
    for shard in set(places.values()) - {places[name]}:
        arrays = safetensors.numpy.load_file(tmp_path / shard)
        wrong = arrays | {name: np.ones(11, np.float32)}
        safetensors.numpy.save_file(wrong, tmp_path / shard)
    _assert_same(model, tmp_path)


@pytest.mark.parametrize(
    'content',
    [
        '',
        '[]',
        '{"weight_map": null}',
        '{"weight_map": {}}',
        '{"weight_map": {"lm_head.bias": 1}}',
        '{"metadata": {}}',
    ],
)
def test_a_damaged_index_is_named(tmp_path, content):
    _saved(tmp_path)
    _in_shards(tmp_path)
    (tmp_path / 'model.safetensors.index.json').write_text(content)
    with pytest.raises(ValueError, match='index.json does not tell in its weight_map'):
        huggingface.load(tmp_path)


def test_a_damaged_shard_is_named(tmp_path):
    _saved(tmp_path)
    _in_shards(tmp_path)
    shard = tmp_path / 'model-00003-of-00003.safetensors'
    shard.write_bytes(shard.read_bytes()[:-4])
    with pytest.raises(ValueError, match='00003-of-00003.safetensors is truncated'):
        huggingface.load(tmp_path)
    shard.write_text('version https://git-lfs.github.com/spec/v1\noid sha256:0\n')
    with pytest.raises(ValueError, match='00003-of-00003.safetensors .*git lfs pull'):
        huggingface.load(tmp_path)


def test_shards_are_files_of_the_folder(tmp_path):
    _saved(tmp_path / 'model')
    places = _in_shards(tmp_path / 'model')
    (tmp_path / 'x').write_bytes(b'')
    _index(tmp_path / 'model', places | {'lm_head.bias': '../x'})
    with pytest.raises(FileNotFoundError, match='lists ../x, not there'):
        huggingface.load(tmp_path / 'model')


def test_shards_of_pickles_are_not_loaded_unless_asked_for(tmp_path):
    _saved(tmp_path)
    (tmp_path / huggingface.SAFETENSORS).unlink()
    (tmp_path / f'{files.PYTORCH}.index.json').write_text('{"weight_map": {"a": "b"}}')
    with pytest.raises(ValueError, match='a pickle, which is not loaded unless asked'):
        huggingface.load(tmp_path)
    with pytest.raises(
        FileNotFoundError, match='pytorch_model.bin.index.json lists b,'
    ):
        huggingface.load(tmp_path, pytorch=True)


@pytest.mark.parametrize('dtype', [ml_dtypes.bfloat16, np.float16, np.float64])
def test_other_dtypes_in_shards_become_float32(tmp_path, dtype):
    model = _saved(tmp_path)
    arrays = {n: a.astype(dtype) for n, a in _tensors(tmp_path).items()}
    safetensors.numpy.save_file(arrays, tmp_path / huggingface.SAFETENSORS)
    _in_shards(tmp_path)
    loaded = jax.tree.leaves(huggingface.load(tmp_path)[1])
    for a, b in zip(loaded, jax.tree.leaves(model), strict=True):
        assert a.dtype == np.float32
        np.testing.assert_array_equal(a, np.asarray(b).astype(dtype).astype(np.float32))


@pytest.mark.parametrize(
    ('value', 'dtype'),
    [
        (np.nan, np.float32),
        (np.inf, np.float16),
        (-np.inf, ml_dtypes.bfloat16),
        (1e300, np.float64),
    ],
)
def test_numbers_that_are_not_finite_are_named(tmp_path, value, dtype):
    _saved(tmp_path)
    arrays = _tensors(tmp_path)
    name = 'reformer.encoder.layers.1.feed_forward.dense.dense.bias'
    arrays[name] = arrays[name].astype(dtype)
    arrays[name][3] = value
    safetensors.numpy.save_file(arrays, tmp_path / huggingface.SAFETENSORS)
    with pytest.raises(
        ValueError, match=rf'safetensors: 1 of the 12 numbers of {name}'
    ):
        huggingface.load(tmp_path)


@pytest.mark.parametrize('dtype', [np.int8, np.uint8, bool])
def test_quantized_weights_are_refused(tmp_path, dtype):
    _saved(tmp_path)
    arrays = _tensors(tmp_path)
    arrays['lm_head.bias'] = arrays['lm_head.bias'].astype(dtype)
    safetensors.numpy.save_file(arrays, tmp_path / huggingface.SAFETENSORS)
    with pytest.raises(ValueError, match='lm_head.bias is of dtype .*as quantized'):
        huggingface.load(tmp_path)


def test_a_model_that_has_diverged_is_not_saved(tmp_path):
    model = models.build(rule='trax')
    leaves, structure = jax.tree.flatten(model)
    leaves[0] = leaves[0].at[0].set(np.nan)
    diverged = jax.tree.unflatten(structure, leaves)
    with pytest.raises(ValueError, match=r'numbers of reformer\..* are NaN or inf'):
        huggingface.save(tmp_path / 'new', model.config, diverged)
    assert not (tmp_path / 'new').exists()


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('[' * 100_000, 'config.json is not JSON'),
        ('{"model": {}, "data": {}}', 'config.json is of a run'),
    ],
)
def test_what_is_no_config_of_transformers(tmp_path, content, message):
    (tmp_path / 'config.json').write_text(content)
    with pytest.raises(ValueError, match=message):
        huggingface.load_config(tmp_path)
