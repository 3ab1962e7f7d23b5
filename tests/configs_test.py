"""Every config in configs/ is one that the loop accepts; variants are checked."""

import importlib
import pathlib
import sys

import pytest
from absl import flags
from ml_collections import config_flags

from reformer_jax import data
from reformer_jax.model import config as model_config
from reformer_jax.training import config as training_config
from reformer_jax.training import start

_ABLATIONS = ['', 'imagenet64', 'tiny', 'imagenet64_tiny']
_VARIANTS = {
    'enwik8': ['', 'small', 'tiny', 'cpu', 'million'],
    'imagenet64': ['', 'small', 'tiny'],
    'duplication': ['', 'short', 'cpu', 'tiny'],
    'copy_reverse': ['', 'lsh', 'long'],
    'multi30k': ['', 'gpu'],
    'summarise': ['', 'marked'],
    'wmt14': ['', 'base', 'base_500k', 'big', 'small'],
    'text': ['', 'tiny'],
    'masked_text': ['', 'tiny'],
    'novel': ['', 'tiny'],
    'classification': ['', 'imdb', 'sst2'],
    'named_entities': ['', 'conll2003'],
    'question_answering': ['', 'squad'],
    'ablation': _ABLATIONS,
    'shared_qk': _ABLATIONS,
    'reversible': _ABLATIONS,
    'rounds': _ABLATIONS,
    'depth': _ABLATIONS,
    'length': ['', 'tiny'],
    'lra': ['listops', 'listops_short', 'listops_cpu', 'text', 'image'],
}
_EACH = [(name, variant) for name, found in _VARIANTS.items() for variant in found]


def _given(monkeypatch, file, *flags_of_fields):
    """A config as a door gets it."""
    folder = pathlib.Path(__file__).parents[1] / 'configs'
    given = ['train.py', f'--config={folder / file}', *flags_of_fields]
    monkeypatch.setattr(sys, 'argv', given)
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        'config', lock_config=False, accept_new_attributes=True, flag_values=values
    )
    values(sys.argv)
    return values.config


def _config(name, variant):
    return importlib.import_module(f'configs.{name}').get_config(variant)


def test_every_config_is_listed_here():
    folder = pathlib.Path(__file__).parents[1] / 'configs'
    assert {path.stem for path in folder.glob('*.py')} == set(_VARIANTS)


@pytest.mark.parametrize(('name', 'variant'), _EACH)
def test_config_is_valid(name, variant):
    config = _config(name, variant)
    if config.model.head.endswith('classification'):
        assert config.model.classes == 0  # found in the data when a run starts
        config.model.classes = 2 if 'labels' in config.data else 10
    run = training_config.run_config(config.to_dict())
    assert run.model.length >= 64
    assert not run.minutes  # what comes out must not depend on the machine
    if run.model.head == 'lm':
        length = run.data.spec['tokens'][0][1]
        # An encoder-decoder may be for longer texts than those of its data; what
        # duplication.py:short learns goes on with longer words.
        may = run.model.encoder is not None or (name, variant) == (
            'duplication',
            'short',
        )
        longer = may and length < run.model.length
        assert length == run.model.length or longer


@pytest.mark.parametrize('name', _VARIANTS)
def test_unknown_variant_is_named_with_the_known(name):
    known = _VARIANTS[name][-1]
    with pytest.raises(ValueError, match=rf"unknown variant 'tinny'.*{known}"):
        _config(name, 'tinny')


def test_enwik8_is_the_model_of_the_paper():
    model = training_config.run_config(_config('enwik8', '').to_dict()).model
    assert model.length == 65_536 and model.layers == 12
    assert (model.d_model, model.d_ff, model.heads, model.head_size) == (
        1024,
        4096,
        8,
        128,
    )
    assert model.pattern == ('local', 'local', 'lsh', 'local')
    assert (model.lsh_chunk_length, model.buckets, model.rounds) == (256, (512,), 2)
    assert (model.axial_shape, model.axial_sizes) == ((128, 512), (256, 768))


def test_duplication_is_the_model_of_the_paper():
    config = _config('duplication', '')
    model = training_config.run_config(config.to_dict()).model
    assert config.data.half_length == 511 and config.data.symbols == 127
    assert (model.layers, model.d_model, model.d_ff, model.heads) == (1, 256, 256, 4)
    assert model.length == 1024 and isinstance(model, model_config.ModelConfig)


@pytest.mark.parametrize(
    ('variant', 'steps', 'width', 'shared', 'dropout', 'peak'),
    [
        ('', 100_000, 512, True, 0.1, 9.8e-4),
        ('base_500k', 500_000, 512, False, 0.1, 9.8e-4),
        ('big', 300_000, 1024, False, 0.3, 7.0e-4),
    ],
)
def test_wmt14_is_the_model_of_the_paper(variant, steps, width, shared, dropout, peak):
    _, run = start.read(_config('wmt14', variant), 'none')
    for model in (run.model, run.model.encoder):
        assert (model.layers, model.pattern, model.combine) == (6, ('full',), 'average')
        assert (model.d_model, model.d_ff) == (width, 4 * width)
        assert (model.heads, model.head_size) == (width // 64, 64)
        assert (model.activation, model.positions) == ('relu', 'sinusoidal')
        assert (model.dropout, model.dtype) == (dropout, 'bfloat16')
        assert not model.shared_qk and model.stack == 'reversible'
    assert run.steps == steps and run.model.label_smoothing == 0.1
    assert run.model.share_embedding == run.model.tie_output == shared
    shapes = [spec['tokens'][0] for spec in run.data.specs]
    assert {rows * length for rows, length in shapes} == {65_536}
    assert (8 * 256, 32) in shapes  # 256 of 32 tokens on each of 8 devices
    optimizer = run.optimizer
    assert optimizer.learning_rate == pytest.approx(peak, rel=5e-3)
    assert (optimizer.b2, optimizer.warmup_steps, optimizer.decay) == (
        0.98,
        8000,
        'rsqrt',
    )
    assert run.decoding.beams == 4 and run.decoding.length_penalty == 0.6


def test_listops_has_the_size_of_long_range_arena():
    config = _config('lra', 'listops')
    config.model.classes = 10
    run = training_config.run_config(config.to_dict())
    model = run.model
    assert (model.layers, model.d_model, model.d_ff) == (6, 512, 2048)
    assert (model.heads, model.head_size) == (8, 64)
    assert (run.steps, run.data.batch_size, run.optimizer.warmup_steps) == (
        5000,
        32,
        1000,
    )
    assert run.optimizer.learning_rate == pytest.approx(0.05 / 1000**0.5, rel=0.02)
    assert (run.data.longer_than, run.data.shorter_than) == (500, 2000)
    # What short lists teach goes on with these.
    models = [_config('lra', name).model for name in ('listops_short', 'listops_cpu')]
    assert models[0] == models[1]


def test_summarise_has_an_encoder_with_lsh_and_data_that_fit_it():
    _, run = start.read(_config('summarise', 'marked'), 'none')
    encoder = run.model.encoder
    assert 'lsh' in encoder.pattern and not encoder.lsh.exact
    assert run.data.spec['source'][0][1] == encoder.length == 4096
    assert run.data.vocab_size == run.model.vocab_size == encoder.vocab_size


@pytest.mark.filterwarnings('ignore:the load_module')  # of ml_collections
@pytest.mark.parametrize(
    'file', ['imagenet64.py', 'enwik8.py', 'classification.py:imdb']
)
def test_the_folder_of_prepared_data_can_be_set_on_the_command_line(file, monkeypatch):
    """As the errors of downloads that fail advise."""
    config = _given(monkeypatch, file, '--config.data.data_dir=/my/folder')
    assert data.open(config.data).data_dir == '/my/folder'


@pytest.mark.filterwarnings('ignore:the load_module')  # of ml_collections
def test_any_field_of_an_encoder_can_be_set_on_the_command_line(monkeypatch):
    flags_ = '--config.model.encoder.pattern=("local",)', '--config.model.rounds=4'
    more = '--config.model.encoder.local_chunks_after=1', '--config.data.seed=3'
    config = _given(monkeypatch, 'copy_reverse.py:lsh', *flags_, *more)
    fields, run = start.read(config, 'none')
    encoder = run.model.encoder
    assert (encoder.pattern, encoder.rounds, encoder.d_ff) == (('local',), 4, 256)
    assert fields['model']['encoder'] == {
        'rule': 'reformer',
        'lsh_chunks_after': 1,
        'local_chunks_after': 1,
        'pattern': ('local',),
    }


@pytest.mark.parametrize(('name', 'variant'), _EACH)
def test_every_field_of_the_data_is_listed(name, variant):
    fields = _config(name, variant).data
    assert data.defaults(fields.dataset).keys() <= set(fields)
