"""Tests of reformer_jax.run_folder."""

import json
import os
import subprocess

import pytest

from reformer_jax.runs import folder as run_folder

CONFIG = {
    'steps': 10,
    'model': {'layers': 6, 'pattern': ('local', 'lsh'), 'rate': 0.1, 'extra': {}},
    'data': {'name': 'enwik8', 'path': None},
    'mesh': {'data': 1},
}


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_a_new_folder(tmp_path):
    folder = run_folder.open_workdir(tmp_path / 'a' / 'b', CONFIG)
    assert folder == tmp_path / 'a' / 'b'
    assert names(folder) == {'config.json', 'runs.jsonl'}
    assert run_folder.load_config(folder) == json.loads(json.dumps(CONFIG))


def test_an_empty_folder_and_what_a_killed_start_left(tmp_path):
    (tmp_path / '.config.json.tmp').write_text('{"st')
    run_folder.open_workdir(tmp_path, CONFIG)
    assert names(tmp_path) == {'config.json', 'runs.jsonl'}


def test_relative_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_folder.open_workdir('run', CONFIG) == tmp_path / 'run'


def test_resuming_with_the_same_config_changes_nothing(tmp_path):
    run_folder.open_workdir(tmp_path, CONFIG)
    before = (tmp_path / 'config.json').read_bytes()
    run_folder.open_workdir(tmp_path, json.loads(json.dumps(CONFIG)))
    assert (tmp_path / 'config.json').read_bytes() == before
    assert names(tmp_path) == {'config.json', 'runs.jsonl'}


def test_allowed_changes_are_kept_beside_the_earlier_config(tmp_path):
    run_folder.open_workdir(tmp_path, CONFIG)
    before = (tmp_path / 'config.json').read_bytes()
    longer = CONFIG | {'steps': 20, 'mesh': {'data': 8, 'model': 2}}
    run_folder.open_workdir(tmp_path, longer)
    run_folder.open_workdir(tmp_path, longer)
    run_folder.open_workdir(tmp_path, longer | {'minutes': 5})
    assert (tmp_path / 'config.json').read_bytes() == before
    assert names(tmp_path) == {
        'config.json',
        'config.1.json',
        'config.2.json',
        'runs.jsonl',
    }
    assert json.loads((tmp_path / 'config.1.json').read_text())['steps'] == 20
    newest = run_folder.load_config(tmp_path)
    assert newest['minutes'] == 5 and newest['mesh'] == {'data': 8, 'model': 2}


def test_what_only_saves_memory_may_change(tmp_path):
    model = CONFIG['model'] | {'stack': 'reversible', 'heads_at_once': 0}
    run_folder.open_workdir(tmp_path, CONFIG | {'accumulate': 1, 'model': model})
    model |= {'stack': 'checkpoint', 'heads_at_once': 1}
    run_folder.open_workdir(tmp_path, CONFIG | {'accumulate': 4, 'model': model})
    assert run_folder.load_config(tmp_path)['model']['stack'] == 'checkpoint'


@pytest.mark.parametrize(
    ('change', 'line'),
    [
        (
            {'model': CONFIG['model'] | {'layers': 12}},
            'model.layers: 6 in the folder, 12 now',
        ),
        (
            {'model': CONFIG['model'] | {'heads': 2}},
            'model.heads: (absent) in the folder, 2 now',
        ),
        (
            {'model': CONFIG['model'] | {'pattern': ('lsh', 'local')}},
            "model.pattern: ['local', 'lsh'] in the folder, ['lsh', 'local'] now",
        ),
        ({'model': {}}, 'model: (absent) in the folder, {} now'),
        ({'data': {'name': 'enwik8'}}, 'data.path: None in the folder, (absent) now'),
        ({'seed': {'steps': 1}}, 'seed.steps: (absent) in the folder, 1 now'),
    ],
)
def test_other_changes_are_refused_by_name(tmp_path, change, line):
    run_folder.open_workdir(tmp_path, CONFIG)
    runs = (tmp_path / 'runs.jsonl').read_bytes()
    with pytest.raises(ValueError) as error:
        run_folder.open_workdir(tmp_path, CONFIG | change | {'steps': 30})
    message = str(error.value)
    assert f'\n  {line}\n' in message
    assert 'steps: 10' not in message
    assert 'another --workdir' in message
    assert names(tmp_path) == {'config.json', 'runs.jsonl'}
    assert (tmp_path / 'runs.jsonl').read_bytes() == runs


def test_at_most_eight_differences_are_listed(tmp_path):
    run_folder.open_workdir(tmp_path, CONFIG | {f'x{i}': 0 for i in range(10)})
    with pytest.raises(ValueError, match='x7: 0 .*\n  and 2 more\n') as error:
        run_folder.open_workdir(tmp_path, CONFIG | {f'x{i}': 1 for i in range(10)})
    assert 'x8' not in str(error.value)


def test_nan_is_equal_to_itself(tmp_path):
    for _ in range(2):
        run_folder.open_workdir(tmp_path, CONFIG | {'fill': float('nan')})
    assert names(tmp_path) == {'config.json', 'runs.jsonl'}


def test_files_of_others_are_left_alone(tmp_path):
    (tmp_path / 'thesis.tex').write_text('dear')
    with pytest.raises(FileExistsError, match='not empty .thesis.tex. .*--workdir'):
        run_folder.open_workdir(tmp_path, CONFIG)
    assert names(tmp_path) == {'thesis.tex'}
    with pytest.raises(FileExistsError, match='thesis.tex is a file'):
        run_folder.open_workdir(tmp_path / 'thesis.tex', CONFIG)
    assert (tmp_path / 'thesis.tex').read_text() == 'dear'


def test_folders_that_cannot_be_made_or_written(tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('')
    with pytest.raises(ValueError, match='file/run cannot be created .*--workdir'):
        run_folder.open_workdir(tmp_path / 'file' / 'run', CONFIG)
    with pytest.raises(ValueError, match='gs://b/run is a URL'):
        run_folder.open_workdir('gs://b/run', CONFIG)
    monkeypatch.setattr(os, 'access', lambda *arguments: False)
    with pytest.raises(ValueError, match='run cannot be written to. Give --workdir'):
        run_folder.open_workdir(tmp_path / 'run', CONFIG)


def test_a_config_that_is_not_json_is_named_before_anything_is_made(tmp_path):
    with pytest.raises(ValueError, match='model.rate=.* cannot be written as JSON'):
        run_folder.open_workdir(tmp_path / 'run', {'model': {'rate': object()}})
    assert not (tmp_path / 'run').exists()


def test_a_failed_write_leaves_no_config(tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError('disk full')

    monkeypatch.setattr(os, 'fsync', fail)
    with pytest.raises(OSError, match='disk full'):
        run_folder.open_workdir(tmp_path, CONFIG)
    assert not (tmp_path / 'config.json').exists()
    monkeypatch.undo()
    run_folder.open_workdir(tmp_path, CONFIG)


def test_load_config_teaches(tmp_path):
    for folder in (tmp_path, tmp_path / 'absent'):
        with pytest.raises(FileNotFoundError, match='no config.json in .*--workdir'):
            run_folder.load_config(folder)
    (tmp_path / 'config.json').write_text('{')
    with pytest.raises(ValueError, match='config.json is no JSON object'):
        run_folder.load_config(tmp_path)


def test_every_start_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr('sys.argv', ['train.py', '--steps=3'])
    run_folder.open_workdir(tmp_path, CONFIG)
    run_folder.open_workdir(tmp_path, CONFIG)
    lines = (tmp_path / 'runs.jsonl').read_text().splitlines()
    assert len(lines) == 2
    record = json.loads(lines[1])
    assert record['command'] == ['train.py', '--steps=3']
    assert record['devices'] >= 1 and record['processes'] == 1
    assert record['device'] and record['python'] and record['time'].endswith('+00:00')
    assert record['processor'] and record['cpu_cores'] >= 1
    for package in ('jax', 'flax', 'optax', 'orbax-checkpoint', 'grain'):
        assert record[package][0].isdigit()


def test_the_result_of_a_run_is_replaced_by_a_later_one(tmp_path):
    assert run_folder.load_result(tmp_path) is None
    for step in (3, 5):
        result = {'step': step, 'validation': {}}
        run_folder.write_result(tmp_path, result)
    assert run_folder.load_result(tmp_path) == result
    assert names(tmp_path) == {'result.json'}


def test_what_is_no_number_is_null(tmp_path):
    validation = {'loss': float('nan'), 'all': [float('inf')]}
    run_folder.write_result(tmp_path, {'step': 1, 'validation': validation})
    text = (tmp_path / 'result.json').read_text()
    strict = json.loads(text, parse_constant=pytest.fail)
    assert strict == run_folder.load_result(tmp_path)
    assert strict['validation'] == {'loss': None, 'all': [None]}


def test_evaluations_are_kept_in_their_order(tmp_path):
    assert run_folder.load_evaluations(tmp_path) == []
    for step in (30, 4, 100):
        run_folder.write_evaluation(tmp_path, step, {'at': step})
    found = run_folder.load_evaluations(tmp_path)
    assert [record['at'] for record in found] == [30, 4, 100]
    assert len(names(tmp_path / 'evaluations')) == 3


def test_evaluations_keep_their_order_when_copied(tmp_path):
    for step in (1, 2):
        file = run_folder.write_evaluation(tmp_path, step, {'at': step})
        os.utime(file, (1e9 - step, 1e9 - step))
    found = run_folder.load_evaluations(tmp_path)
    assert [record['at'] for record in found] == [1, 2]


def test_a_field_from_before_it_existed_has_its_default(tmp_path):
    run_folder.open_workdir(tmp_path, CONFIG)
    newer = CONFIG | {'model': CONFIG['model'] | {'streams': 2}}
    with pytest.raises(ValueError, match=r'model.streams: \(absent\) in the folder'):
        run_folder.open_workdir(tmp_path, newer)
    defaults = {'model': {'streams': 2, 'unused': 1}}
    run_folder.open_workdir(tmp_path, newer, defaults)
    other = CONFIG | {'model': CONFIG['model'] | {'streams': 1}}
    with pytest.raises(ValueError, match='model.streams: 2 in the folder, 1 now'):
        run_folder.open_workdir(tmp_path, other, defaults)


def test_the_default_folder_is_named_after_the_config():
    assert run_folder.default_workdir('configs/text.py:tiny') == 'runs/text_tiny'
    assert run_folder.default_workdir('/a/b.py', 'sweep_') == 'runs/sweep_b'


def test_the_commit_is_optional(tmp_path, monkeypatch):
    def no_git(*arguments, **options):
        raise FileNotFoundError('git')

    monkeypatch.setattr(subprocess, 'run', no_git)
    run_folder.open_workdir(tmp_path, CONFIG)
    assert json.loads((tmp_path / 'runs.jsonl').read_text())['commit'] is None


def test_the_commit_is_not_that_of_a_repository_around(tmp_path, monkeypatch):
    for command in ('init', 'commit --allow-empty -m first'):
        name = '-c user.name=a -c user.email=b'
        subprocess.run(
            f'git {name} {command}'.split(), cwd=tmp_path, check=True, stdout=-3
        )
    installed = tmp_path / 'site-packages' / 'reformer_jax' / 'runs'
    installed.mkdir(parents=True)
    monkeypatch.setattr(run_folder, '__file__', str(installed / 'folder.py'))
    assert run_folder._commit() is None
    monkeypatch.setattr(
        run_folder, '__file__', str(tmp_path / 'reformer_jax' / 'runs' / 'folder.py')
    )
    assert len(run_folder._commit()) == 40


def test_only_process_0_writes(tmp_path, monkeypatch):
    monkeypatch.setattr('jax.process_index', lambda: 1)
    assert run_folder.open_workdir(tmp_path / 'run', CONFIG) == tmp_path / 'run'
    assert not (tmp_path / 'run').exists()


def test_data_that_changed(tmp_path, capsys):
    began, now = ({'a.txt': {'bytes': size, 'ends': 'f0'}} for size in (7, 8))
    run_folder.open_workdir(tmp_path, CONFIG)  # of before: no record, no complaint
    run_folder.open_workdir(tmp_path, CONFIG, data=began)
    run_folder.open_workdir(tmp_path, CONFIG, data=began)
    recorded = names(tmp_path), (tmp_path / 'runs.jsonl').read_text()
    assert recorded[0] == {'config.json', 'runs.jsonl', 'data.json'}
    message = (
        r'have changed:\n  a.txt.bytes: was 7, is 8\nPut back .*data_may_change=True'
    )
    with pytest.raises(ValueError, match=message):
        run_folder.open_workdir(tmp_path, CONFIG, data=now)
    with pytest.raises(ValueError, match='another config'):
        run_folder.open_workdir(tmp_path, CONFIG | {'data': {}}, data=now)
    assert recorded == (names(tmp_path), (tmp_path / 'runs.jsonl').read_text())
    told = CONFIG | {'data_may_change': True}
    run_folder.open_workdir(tmp_path, told, data=now)
    assert 'WARNING: the data of the run' in capsys.readouterr().out
    # From now on these are the run's, and nothing is forgotten.
    run_folder.open_workdir(tmp_path, CONFIG, data=now)
    assert json.loads((tmp_path / 'data.json').read_text()) == began
    assert json.loads((tmp_path / 'data.1.json').read_text()) == now
    assert not capsys.readouterr().out


@pytest.mark.parametrize('section', ['data', 'model'])
@pytest.mark.parametrize('damage', [None, [1], 'x'])
def test_a_config_without_a_section_is_named(tmp_path, section, damage):
    run_folder.open_workdir(tmp_path, CONFIG)
    (tmp_path / 'config.json').write_text(json.dumps(CONFIG | {section: damage}))
    for read in (
        lambda: run_folder.load_config(tmp_path),
        lambda: run_folder.open_workdir(tmp_path, CONFIG),
    ):
        with pytest.raises(ValueError, match=f"config.json has no section '{section}'"):
            read()


def test_a_result_without_step_is_named(tmp_path):
    (tmp_path / 'result.json').write_text('{}')
    with pytest.raises(ValueError, match='result.json has no step'):
        run_folder.load_result(tmp_path)
