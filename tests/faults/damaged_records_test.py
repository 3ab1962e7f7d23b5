"""What is wrong with the records in a run folder is said of their files."""

import json

import pytest

from reformer_jax.runs import folder as run_folder
from reformer_jax.training import start


@pytest.fixture
def damaged(config, tmp_path):
    """A run folder whose config.json has another value of a field."""

    def damaged(section, name, value):
        fields, _ = start.read(config, str(tmp_path))
        run_folder.open_workdir(tmp_path, fields)
        recorded = json.loads((tmp_path / 'config.json').read_text())
        recorded[section][name] = value
        (tmp_path / 'config.json').write_text(json.dumps(recorded))
        return str(tmp_path)

    return damaged


@pytest.mark.parametrize(
    'section, name, value',
    [
        ('model', 'd_model', '32'),
        ('model', 'layers', None),
        ('model', 'dropout', float('nan')),
        ('model', 'd_mndel', 32),
        ('model', 'pattern', [None]),
        ('data', 'batch_size', 'four'),
    ],
)
def test_a_field_is_named_with_its_file(config, damaged, section, name, value):
    workdir = damaged(section, name, value)
    for given in (None, config):  # as eval.py and train.py
        if given is not None and section == 'data':
            continue  # train.py compares these, and has its own
        with pytest.raises(ValueError, match=f'in .*config.json: .*{name}'):
            start.open(given, workdir)


def test_another_value_is_another_run(config, damaged):
    workdir = damaged('data', 'batch_size', 8)
    fields, _ = start.read(config, workdir)
    with pytest.raises(ValueError, match='config.json says .* another config'):
        run_folder.open_workdir(workdir, fields)
