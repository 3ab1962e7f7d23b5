"""Hugging Face folders: read, written back unchanged, refused when damaged."""

import dataclasses
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import small_models as models

import convert
from benchmarks import huggingface_load
from reformer_jax import huggingface
from reformer_jax import model as model_lib
from reformer_jax.data import tokenizers
from reformer_jax.huggingface import fields as fields_lib
from reformer_jax.huggingface import files
from reformer_jax.huggingface import tensors
from reformer_jax.runs import checkpoint

_GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
_CASES = sorted(folder.name for folder in _GOLDEN.iterdir())


@pytest.fixture
def folder(tmp_path):
    """A copy of a model to damage."""
    return pathlib.Path(
        shutil.copytree(_GOLDEN / 'causal_local_lsh', tmp_path / 'model')
    )


def _rewrite(folder, change):
    """Applies a function to the tensors of a folder, a dict by name."""
    file = folder / huggingface.SAFETENSORS
    arrays = safetensors.numpy.load_file(file)
    change(arrays)
    safetensors.numpy.save_file(arrays, file)


def _set(folder, **changes):
    file = folder / huggingface.CONFIG
    fields = json.loads(file.read_text('utf-8'))
    file.write_text(json.dumps(fields | changes), 'utf-8')


# --- Round trips ------------------------------------------------------------------


@pytest.mark.parametrize('case', _CASES)
def test_export_of_an_import_gives_the_same_files(case, tmp_path):
    config, model = huggingface.load(_GOLDEN / case)
    like = huggingface.load_fields(_GOLDEN / case)
    huggingface.save(tmp_path / 'copy', config, model, like=like)
    for name in (huggingface.CONFIG, huggingface.SAFETENSORS):
        ours = (tmp_path / 'copy' / name).read_bytes()
        assert ours == (_GOLDEN / case / name).read_bytes(), name
    assert len(list((tmp_path / 'copy').iterdir())) == 2


@pytest.mark.parametrize('case', _CASES)
def test_a_model_saved_anew_is_the_same_model(case, tmp_path):
    config, model = huggingface.load(_GOLDEN / case)
    huggingface.save(tmp_path, config, model)
    again, copy = huggingface.load(tmp_path)
    assert again == config
    for a, b in zip(jax.tree.leaves(copy), jax.tree.leaves(model), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    'changes',
    [
        {'start_token': 3},
        {
            'positions': 'learned',
            'axial_shape': (),
            'axial_sizes': (),
            'buckets': (2, 4),
            'activation': 'gelu',
        },
        {'head': 'none', 'layers': 6},
        {'activation': 'gelu_erf', 'local_attention_dropout': 0.3, 'dropout': 0.1},
    ],
    ids=str,
)
def test_models_of_our_own(changes, tmp_path):
    model = models.build(**{'rule': 'trax', **changes})
    huggingface.save(tmp_path, model.config, model)
    config, copy = huggingface.load(tmp_path)
    assert config == model.config
    for a, b in zip(jax.tree.leaves(copy), jax.tree.leaves(model), strict=True):
        np.testing.assert_array_equal(a, b)


def test_automatic_buckets_are_written_out(tmp_path):
    """transformers would choose by the first sequence it meets, and keep that."""
    model = models.build(rule='trax', buckets=())
    huggingface.save(tmp_path, model.config, model)
    assert huggingface.load_fields(tmp_path)['num_buckets'] == 16
    assert huggingface.load_config(tmp_path).buckets == (16,)


def test_what_differs_is_written_over_the_fields_kept(tmp_path):
    config, model = huggingface.load(_GOLDEN / 'causal_local_lsh')
    like = huggingface.load_fields(_GOLDEN / 'causal_local_lsh')
    changed = dataclasses.replace(config, rounds=8)
    huggingface.save(tmp_path, changed, model, like=like | {'eos_token_id': 7})
    fields = huggingface.load_fields(tmp_path)
    assert fields['num_hashes'] == 8 and fields['eos_token_id'] == 7
    assert huggingface.load_config(tmp_path) == changed


@pytest.mark.parametrize(
    ('name', 'parameters', 'length'),
    [
        ('reformer-enwik8', 149_182_722, 65_536),
        ('reformer-crime-and-punishment', 2_748_224, 524_288),
    ],
)
def test_the_published_models(name, parameters, length):
    fields = huggingface_load.PUBLISHED[name] | {'intermediate_size': 3072}
    config = fields_lib.to_model_config(fields)
    model = tensors.abstract_model(config)
    assert model_lib.parameter_count(model) == parameters
    assert (config.length, config.rule, config.start_token) == (length, 'trax', -1)
    again = fields_lib.from_model_config(config)
    assert fields_lib.to_model_config(again) == config
    kept = set(fields) - {'intermediate_size'}
    assert {name: again[name] for name in kept} == {name: fields[name] for name in kept}


def test_a_table_of_positions_that_is_shorter_than_the_longest_sequence(folder):
    _set(folder, max_position_embeddings=500)
    assert huggingface.load_config(folder).length == 128


def test_constants_of_older_versions_are_ignored(folder):
    def add(arrays):
        bias = arrays['lm_head.bias']
        arrays['lm_head.decoder.bias'] = bias
        name = 'reformer.encoder.layers.1.attention.self_attention.mask_value_float16'
        arrays[name] = np.array(-1e4, np.float16)

    before = huggingface.load(folder)[1]
    _rewrite(folder, add)
    after = huggingface.load(folder)[1]
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(a, b)


def test_half_precision_files_become_float32(folder):
    def halve(arrays):
        arrays.update({n: a.astype(jnp.bfloat16) for n, a in arrays.items()})

    _rewrite(folder, halve)
    _, model = huggingface.load(folder)
    assert {leaf.dtype for leaf in jax.tree.leaves(model)} == {jnp.dtype('float32')}


# --- Bad input --------------------------------------------------------------------

_BIAS = 'lm_head.bias'


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'model_type': 'bert'}, "config.json is of a model of type 'bert', not of a"),
        ({'architectures': ['ReformerForTokens']}, "architectures 'ReformerForTokens'"),
        ({'architectures': ['']}, "architectures '': it needs one of Reformer"),
        ({'hidden_act': 'mish'}, "hidden_act 'mish': it needs one of relu"),
        ({'attn_layers': ['local', 'full'] * 2}, 'attn_layers=.*full'),
        ({'num_hidden_layers': 9}, 'num_hidden_layers=9'),
        ({'num_hidden_layers': None}, 'config.json has a value of a wrong type'),
        ({'attn_layers': None}, 'config.json has a value of a wrong type'),
        ({'axial_pos_shape': None}, 'config.json has a value of a wrong type'),
        ({'vocab_size': 0}, 'vocab_size=0 must be at least 1'),
        ({'reformer_jax': {'width': 3}}, 'config.json describes .*width'),
        (
            {'architectures': ['ReformerForSequenceClassification']},
            'does not fit the config.json',
        ),
        ({'architectures': ['ReformerForMaskedLM']}, 'needs a bidirectional model'),
    ],
    ids=str,
)
def test_impossible_config(folder, changes, message):
    _set(folder, **changes)
    with pytest.raises(ValueError, match=message):
        huggingface.load(folder)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda a: a.pop(_BIAS), rf'safetensors does not fit .*\n  {_BIAS} is missing'),
        (lambda a: a.update(x=a[_BIAS]), r'x is unknown'),
        (
            lambda a: a.update({_BIAS: a[_BIAS][:-1]}),
            rf'{_BIAS} has shape \[63\] instead of \[64\]',
        ),
        (lambda a: a.clear(), r'and \d+ more'),
    ],
    ids=['missing', 'unknown', 'shape', 'empty'],
)
def test_other_tensors(folder, change, message):
    _rewrite(folder, change)
    with pytest.raises(ValueError, match=message):
        huggingface.load(folder)


@pytest.mark.parametrize('size', [0, 4, 1000, 140_000])
def test_a_truncated_file_is_named(folder, size):
    file = folder / huggingface.SAFETENSORS
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(ValueError, match=r'model.safetensors is truncated or damaged'):
        huggingface.load(folder)


def test_a_damaged_header_is_named(folder):
    file = folder / huggingface.SAFETENSORS
    content = bytearray(file.read_bytes())
    content[20:40] = b'\xff' * 20
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r'model.safetensors is truncated or damaged'):
        huggingface.load(folder)


def test_missing_and_broken_files(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match='no config.json in'):
        huggingface.load(tmp_path)
    (folder / huggingface.SAFETENSORS).unlink()
    with pytest.raises(FileNotFoundError, match='no model.safetensors in'):
        huggingface.load(folder)
    (folder / huggingface.CONFIG).write_text('{"model_type":', 'utf-8')
    with pytest.raises(ValueError, match='config.json is not JSON'):
        huggingface.load(folder)
    (folder / huggingface.CONFIG).write_text('[1]', 'utf-8')
    with pytest.raises(ValueError, match='holds no JSON object'):
        huggingface.load(folder)


def test_a_pickle_is_not_loaded_unless_asked_for(folder):
    (folder / huggingface.SAFETENSORS).rename(folder / files.PYTORCH)
    with pytest.raises(ValueError, match='a pickle, which is not loaded unless asked'):
        huggingface.load(folder)
    with pytest.raises(ValueError, match='with torch, which is not inst|read by torch'):
        huggingface.load(folder, pytorch=True)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'rule': 'reformer'}, r"rule='reformer', and it computes 'trax'"),
        ({'pattern': ('full',)}, r'full attention'),
        (
            {'causal': False, 'head': 'token_classification', 'classes': 3},
            r"head='token_classification'",
        ),
        (
            {
                'causal': False,
                'head': 'classification',
                'classes': 3,
                'pooling': 'mean',
            },
            r"pooling='mean'",
        ),
        ({'positions': 'sinusoidal'}, r"positions='sinusoidal'"),
        ({'axial_shape': (2, 4, 4), 'axial_sizes': (2, 2, 4)}, r'axial_shape=\(2, 4'),
        ({'combine': 'average'}, r"combine='average'"),
        ({'tie_output': True}, r'tie_output=True'),
        ({'dense_length': 16}, r'dense_length=16: exact attention beyond one chunk'),
        ({'dense_length': -1}, r'dense_length=-1: exact attention beyond one chunk'),
    ],
    ids=str,
)
def test_what_transformers_does_not_have(changes, message, tmp_path):
    model = models.build(**({'rule': 'trax'} | changes))
    with pytest.raises(ValueError, match=f'no Reformer with model.*{message}'):
        huggingface.save(tmp_path / 'new', model.config, model)
    assert not (tmp_path / 'new').exists()


def test_a_model_is_never_overwritten(folder):
    config, model = huggingface.load(folder)
    before = (folder / huggingface.SAFETENSORS).read_bytes()
    with pytest.raises(FileExistsError, match='config.json exists and is left as it'):
        huggingface.save(folder, config, model)
    assert (folder / huggingface.SAFETENSORS).read_bytes() == before


# --- Command line -----------------------------------------------------------------


def test_export_overwrites_no_tokenizer_and_tells_of_the_start_token(tmp_path, capsys):
    run, new = tmp_path / 'run', tmp_path / 'new'
    model = models.build(rule='reformer', vocab_size=258, dense_length=-1)
    trax = dataclasses.replace(model.config, rule='trax', dense_length=0)
    huggingface.save(tmp_path / 'model', trax, model)
    (tmp_path / 'model' / 'spiece.model').write_bytes(b'x')
    with pytest.raises(ValueError, match='spiece.model'):  # nothing is made
        convert.main(['import', str(tmp_path / 'model'), str(run)])
    (tmp_path / 'model' / 'spiece.model').unlink()
    convert.main(['import', str(tmp_path / 'model'), str(run)])
    tokenizers.train(['ab cd ' * 50], run / 'tokenizer.model', vocab_size=264)
    ours = (run / 'tokenizer.model').read_bytes()
    new.mkdir()
    (new / 'spiece.model').write_bytes(b'theirs')
    with pytest.raises(FileExistsError, match='spiece.model'):
        convert.main(['export', str(run), str(new)])
    assert (new / 'spiece.model').read_bytes() == b'theirs'
    assert len(list(new.iterdir())) == 1
    (new / 'spiece.model').unlink()
    convert.main(['export', str(run), str(new)])
    assert (new / 'spiece.model').read_bytes() == ours
    assert 'trained with token 0 before every text' in capsys.readouterr().out
    assert huggingface.load_fields(new)['bos_token_id'] == 0


def test_only_texts_have_a_tokenizer(tmp_path):
    model = models.build(rule='trax', vocab_size=258)
    huggingface.save(tmp_path / 'model', model.config, model)
    run = tmp_path / 'run'
    convert.main(['import', str(tmp_path / 'model'), str(run)])
    convert.main(['export', str(run), str(tmp_path / 'text')])
    assert (tmp_path / 'text' / 'tokenizer.json').is_file()
    fields = json.loads((run / 'config.json').read_text('utf-8'))
    numbers = {'dataset': 'duplication', 'symbols': 257, 'half_length': 8}
    fields['data'] = numbers | {'batch_size': 1, 'seed': 0, 'eval_examples': 1}
    (run / 'config.json').write_text(json.dumps(fields), 'utf-8')
    convert.main(['export', str(run), str(tmp_path / 'numbers')])
    names = {file.name for file in (tmp_path / 'numbers').iterdir()}
    assert names == {huggingface.CONFIG, huggingface.SAFETENSORS}


@pytest.mark.slow
@pytest.mark.parametrize(
    'changes', [{}, {'causal': False, 'head': 'classification', 'classes': 3}], ids=str
)
def test_import_and_export_commands(changes, tmp_path, capsys):
    run, copy, saved = str(tmp_path / 'run'), tmp_path / 'copy', tmp_path / 'saved'
    model = models.build(rule='trax', vocab_size=258, start_token=-1, **changes)
    huggingface.save(saved, model.config, model)
    convert.main(['import', str(saved), run])
    assert checkpoint.exists(run)
    convert.main(['export', run, str(copy)])
    for name in (huggingface.CONFIG, huggingface.SAFETENSORS):
        assert (copy / name).read_bytes() == (saved / name).read_bytes()
    for arguments, message in (
        (['import', str(saved), run], 'is a run already'),
        (['export', run, str(copy)], 'exists and is left as it is'),
        (['import', str(tmp_path / 'none'), run], 'no config.json'),
    ):
        with pytest.raises((OSError, ValueError), match=message):
            convert.main(arguments)
