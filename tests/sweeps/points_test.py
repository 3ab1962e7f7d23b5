"""Sweeps: what a config file asks for, checked before anything runs."""

import copy
import importlib
import json
import pathlib
import shlex
import subprocess
import sys

import pytest
from absl import flags
from ml_collections import config_flags

from reformer_jax.runs import folder as run_folder
from reformer_jax.sweeps import points as points_lib

_CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'
_WITH_SWEEP = [
    'duplication.py',
    'duplication.py:tiny',
    'enwik8.py:cpu',
    *(
        f'{name}.py{variant}'
        for name in ('shared_qk', 'reversible', 'rounds', 'depth')
        for variant in ('', ':imagenet64', ':tiny', ':imagenet64_tiny')
    ),
    'length.py',
    'length.py:tiny',
]


def _config(file):
    name, _, variant = file.partition('.py')
    module = importlib.import_module(f'configs.{name}')
    return module.get_config(variant.removeprefix(':'))


def _load(file, workdir, **settings):
    settings = {'given': {}, **settings}
    return points_lib.load(
        str(_CONFIGS / file), _config(file), str(workdir), **settings
    )


@pytest.fixture
def expand(tmp_path):
    """Expands the sweep whose source is given, over configs/text.py."""

    def expand(body, evaluations='', **settings):
        file = tmp_path / 'experiment.py'
        lines = ['def sweep(add):', *(f'    {line}' for line in body.splitlines())]
        if evaluations:
            lines += ['def evaluations(add):', f'    {evaluations}']
        file.write_text('\n'.join(lines))
        settings = {'given': {}, **settings}
        config = _config('text.py:tiny')
        return points_lib.load(
            f'{file}:tiny', config, str(tmp_path / 'runs'), **settings
        )

    return expand


@pytest.mark.parametrize('file', _WITH_SWEEP)
def test_every_sweep_of_the_configs_expands(file, tmp_path):
    points = _load(file, tmp_path / 'runs').points
    assert len(points) >= 2
    assert not (tmp_path / 'runs').exists()


def test_every_config_with_a_sweep_is_listed_here():
    files = {
        path.name for path in _CONFIGS.glob('*.py') if 'def sweep(' in path.read_text()
    }
    assert files == {file.partition(':')[0] for file in _WITH_SWEEP}


def test_points_have_their_overrides_and_folders(expand, tmp_path):
    sweep = expand(
        "for rounds in (2, 4):\n    add({'model.rounds': rounds})\n"
        "add({'model.pattern': ('full', 'local'), 'data.path': '/a b/c'})\nadd({})"
    )
    assert [point.name for point in sweep.points] == [
        'model.rounds=2',
        'model.rounds=4',
        'model.pattern=full-local,data.path=a-b-c',
        'base',
    ]
    first, _, third, _ = sweep.points
    assert first.folder == tmp_path / 'runs' / 'model.rounds=2'
    assert first.train.config['model']['rounds'] == 2
    assert third.train.config['model']['pattern'] == ['full', 'local']


def test_a_point_does_not_change_the_next(expand):
    first, second = expand("add({'model.rounds': 2})\nadd({'seed': 5})").points
    assert first.train.config['model']['rounds'] == 2
    assert second.train.config['model']['rounds'] == 1


def test_evaluations_come_on_top_of_a_point(expand):
    (point,) = expand(
        "add({'model.rounds': 2, 'seed': 3})", "add({'model.rounds': 8})"
    ).points
    (evaluation,) = point.evaluations
    assert evaluation.overrides == {'model.rounds': 8, 'seed': 3}
    assert evaluation.config['model']['rounds'] == 8
    assert point.train.config['model']['rounds'] == 2


def test_seeds(expand):
    points = expand("add({})\nadd({'model.rounds': 2})", seeds=2).points
    # The config's own seed is the same run with --seeds and without.
    assert [point.name for point in points] == [
        'base',
        'seed=1',
        'model.rounds=2',
        'model.rounds=2,seed=1',
    ]
    assert [point.train.config['seed'] for point in points] == [0, 1, 0, 1]
    with pytest.raises(ValueError, match='seed is set by --seeds and by the sweep'):
        expand("add({'seed': 3})", seeds=2)
    with pytest.raises(ValueError, match='seed is set by --seeds and by the sweep'):
        expand('add({})', seeds=2, given={'seed': 3})


@pytest.mark.parametrize(
    ('body', 'message'),
    [
        ("add({'model.round': 2})", "'model.round', which is no field.*model.rounds"),
        ("add({'model': 2})", "sets 'model', which is no field"),
        ("add({'model.rounds': 'two'})", "rounds='two', which is of another type"),
        ("add({'model.layers': 3})", r'point model.layers=3 .*layers=3 is no multiple'),
        (
            "add({'seed': 1})\nadd({'seed': 1})",
            'points seed=1 and seed=1 .* are the same',
        ),
        (
            "add({})\nadd({'model.rounds': 1})",
            'base and model.rounds=1 .* are the same',
        ),
        ("add({'data.path': 'a b'})\nadd({'data.path': 'a-b'})", 'only in characters'),
        ("add({'data.path': 'x' * 300})", 'the limit is 200'),
        ('pass', 'adds no point'),
        ("add({'data.length': 4096})", 'data.length=4096 of the sweep: a sequence of'),
        ("add({'accumulate': 3})", 'accumulate=3 of the sweep: data.batch_size=2'),
    ],
)
def test_bad_points_are_named(expand, body, message):
    with pytest.raises(ValueError, match=message):
        expand(body)


def test_bad_evaluations_are_named(expand):
    message = "evaluation model.round=8 of base sets 'model.round', which is no field"
    with pytest.raises(ValueError, match=message):
        expand('add({})', "add({'model.round': 8})")
    message = 'evaluations of point base model.rounds=8 and model.rounds=8 .* the same'
    with pytest.raises(ValueError, match=message):
        expand('add({})', "add({'model.rounds': 8}); add({'model.rounds': 8})")


def test_a_field_of_the_command_line_is_not_swept_too(expand):
    with pytest.raises(
        ValueError, match=r'seed is set on the command line and by point'
    ):
        expand("add({'seed': 1})", given={'seed': 0})
    with pytest.raises(ValueError, match=r'rounds is set .* and by evaluation'):
        expand('add({})', "add({'model.rounds': 8})", given={'model.rounds': 2})


def test_a_config_without_a_sweep(tmp_path):
    with pytest.raises(ValueError, match=r'has no sweep: define sweep\(add\)'):
        _load('text.py', tmp_path)


@pytest.mark.parametrize('file', ['duplication.py:tiny', 'depth.py:imagenet64'])
@pytest.mark.filterwarnings('ignore:the load_module:DeprecationWarning')
def test_a_command_line_gives_the_config_of_its_point(file, tmp_path, monkeypatch):
    sweep = _load(file, tmp_path, given={'steps': 7})
    for point in sweep.points:
        for command in (point.train, *point.evaluations):
            quoted = shlex.join(points_lib.arguments(sweep, point, command))
            monkeypatch.setattr(sys, 'argv', ['train.py', *shlex.split(quoted)])
            values = flags.FlagValues()
            config_flags.DEFINE_config_file('config', None, '', flag_values=values)
            flags.DEFINE_string('workdir', None, '', flag_values=values)
            values(sys.argv)
            parsed = json.loads(json.dumps(values['config'].value.to_dict()))
            assert parsed == command.config | {'steps': 7}
            assert values['workdir'].value == str(point.folder)


# --- What has been done -----------------------------------------------------------


def _finish(point, **changes):
    point.folder.mkdir(parents=True, exist_ok=True)
    config = point.train.config
    result = {'step': 9, 'steps': config['steps'], 'minutes': config['minutes']}
    values = {'loss': 1.0, 'bits_per_dim': 1.44, 'accuracy': 0.5, 'tokens': 10.0}
    run_folder.write_result(point.folder, result | {'validation': values} | changes)


def _evaluate(point, command, step=9):
    record = {'results': {'test': {'step': step}}, 'config': command.config}
    run_folder.write_evaluation(point.folder, step, record)


def test_only_what_is_missing_is_called(expand):
    (point,) = expand('add({})', "add({'model.rounds': 2}); add({'seed': 4})").points
    assert points_lib.missing(point) == [point.train, *point.evaluations]
    assert points_lib.status(point) == 'not started'
    _finish(point)
    assert points_lib.missing(point) == list(point.evaluations)
    assert points_lib.status(point).endswith('2 evaluations to go')
    _evaluate(point, point.evaluations[1])
    assert points_lib.missing(point) == [point.evaluations[0]]
    _evaluate(point, point.evaluations[0], step=8)  # of an earlier checkpoint
    assert points_lib.missing(point) == [point.evaluations[0]]
    _evaluate(point, point.evaluations[0])
    assert not points_lib.missing(point)
    assert points_lib.status(point) == (
        'validation after 9 steps: 1.4400 bits/dim, accuracy 0.5000, 10 tokens'
    )


def test_an_evaluation_from_before_a_field_existed_is_done(expand):
    (point,) = expand('add({})', "add({'model.rounds': 2})").points
    _finish(point)
    config = copy.deepcopy(point.evaluations[0].config) | {'log_every': 3}
    del config['model']['grid_bits'], config['optimizer']['frozen']
    _evaluate(point, points_lib.Command('eval.py', {}, config))
    assert not points_lib.missing(point)


def test_a_run_that_is_to_go_on_is_not_finished(expand):
    (point,) = expand('add({})').points
    for changes in ({'steps': 5}, {'minutes': 1.0}):
        _finish(point, **changes)
        assert points_lib.missing(point) == [point.train]


def test_status_of_an_unfinished_run(expand):
    (point,) = expand('add({})').points
    point.folder.mkdir(parents=True)
    (point.folder / 'metrics.jsonl').write_text('{"step": 40, "split": "train"}\n')
    assert points_lib.status(point) == 'unfinished, at step 40 of 2800'


def test_the_folder_of_another_sweep_is_refused(expand, tmp_path):
    first = expand("add({'seed': 1}); add({'seed': 3})", given={'model.rounds': 2})
    points_lib.record(first)
    first.points[0].folder.mkdir()  # has been run, the other one has not
    points_lib.record(
        expand("add({'seed': 2})", given={'model.rounds': 2, 'log_every': 5})
    )
    recorded = json.loads((tmp_path / 'runs' / 'sweep.json').read_text())
    assert recorded['points'] == ['seed=1', 'seed=2']
    with pytest.raises(ValueError, match='holds another sweep.*--workdir'):
        points_lib.record(expand("add({'seed': 1})", given={'model.rounds': 4}))


def test_a_run_of_another_config_is_no_point(expand, tmp_path):
    (point,) = expand('add({})').points
    run_folder.open_workdir(point.folder, point.train.config)
    _finish(point)
    assert not points_lib.missing(expand('add({})').points[0])
    changed = point.train.config | {'seed': 7}
    (point.folder / 'config.json').write_text(json.dumps(changed))
    with pytest.raises(ValueError, match='another config:\n  seed: 7 in the folder'):
        expand('add({})')


@pytest.mark.parametrize('kind', ['file', 'run'])
def test_a_sweep_needs_a_folder_of_its_own(expand, tmp_path, kind):
    if kind == 'file':
        (tmp_path / 'runs').write_text('mine')
    else:
        (tmp_path / 'runs').mkdir()
        (tmp_path / 'runs' / 'config.json').write_text('{}')
    with pytest.raises(ValueError, match='a file or the folder of a single run'):
        points_lib.record(expand('add({})'))


def test_data_are_opened_before_the_first_run(expand):
    sweep = expand("add({'data.path': 'nowhere'})")
    with pytest.raises(FileNotFoundError, match='nowhere'):
        points_lib.check_data(sweep)


def test_dry_run_shows_the_points_and_touches_nothing(tmp_path):
    root = _CONFIGS.parent
    shown = subprocess.run(
        [
            sys.executable,
            str(root / 'sweep.py'),
            '--config=' + str(_CONFIGS / 'duplication.py:tiny'),
            f'--workdir={tmp_path / "runs"}',
            '--dry_run',
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert shown[:2] == [
        'model.pattern=full: not started',
        'model.rounds=4: not started',
    ]
    assert not (tmp_path / 'runs').exists()


def test_dry_run_looks_at_the_data(tmp_path):
    command = [
        sys.executable,
        str(_CONFIGS.parent / 'sweep.py'),
        '--config=' + str(_CONFIGS / 'rounds.py:tiny'),
        f'--workdir={tmp_path / "runs"}',
        '--config.data.path=/nope',
        '--dry_run',
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and 'not started' in done.stdout
    assert "sweep.py: no file found at '/nope'" in done.stderr
