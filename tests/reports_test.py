"""Reports from run folders: figures, gaps, and folders that do not belong together."""

import csv
import importlib
import json

import pytest

from reformer_jax.runs import folder as run_folder
from reports import bits_per_dim
from reports import figure5
from reports import run_folders
from reports import table2
from reports import table4


@pytest.fixture
def make_run(tmp_path):
    """Writes a run folder as the loop does, without training."""

    def make(
        name,
        config_name='duplication',
        *,
        variant='tiny',
        done=True,
        bits=None,
        speed=500.0,
        **changes,
    ):
        module = importlib.import_module(f'configs.{config_name}')
        config = module.get_config(variant)
        config.update_from_flattened_dict(changes)
        folder = tmp_path / name
        run_folder.open_workdir(folder, config.to_dict())
        bits = bits or {2000: 1.0}
        with open(folder / 'metrics.jsonl', 'w') as file:
            for step, value in bits.items():
                for split in ('train', 'validation'):
                    line = {'step': step, 'split': split, 'bits_per_dim': value}
                    # Slower at first, as runs are.
                    now = speed * step / max(bits)
                    line |= {'tokens_per_second': now} if split == 'train' else {}
                    print(json.dumps(line), file=file)
        if done:
            final = {'bits_per_dim': list(bits.values())[-1]}
            run_folder.write_result(
                folder,
                {'step': config.steps, 'steps': config.steps}
                | {'minutes': config.minutes, 'validation': final},
            )
        return folder, config

    return make


def _evaluate(folder, config, accuracy, step=2000, **changes):
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(changes)
    record = {'results': {'test': {'step': step, 'accuracy': accuracy}}}
    run_folder.write_evaluation(folder, step, record | {'config': config.to_dict()})


def _plan(folder, config, points):
    plan = {'config': config, 'given': {}, 'points': dict.fromkeys(points, {})}
    (folder / 'sweep.json').write_text(json.dumps(plan))


def _lines(text):
    """The table's rows by their first cells."""
    rows = [
        [cell.strip() for cell in line.strip('|').split('|')]
        for line in text.splitlines()
        if line.startswith('|')
    ]
    return {row[0]: row[1:] for row in rows}


# --- Table 2 ----------------------------------------------------------------------


def test_table2_has_the_accuracies_beside_the_papers(make_run, tmp_path):
    full, config = make_run('full', **{'model.pattern': ('full',)})
    _evaluate(full, config, 0.9)
    _evaluate(full, config, 1.0)  # the newer counts
    _evaluate(full, config, 0.5, step=1000, **{'model.pattern': ('lsh',)})  # too old
    for seed, accuracy in ((0, 0.98), (1, 0.96)):
        lsh, config = make_run(f'lsh{seed}', **{'model.rounds': 2, 'seed': seed})
        _evaluate(lsh, config, accuracy, **{'model.rounds': 8})
    folders = [str(tmp_path / name) for name in ('full', 'lsh0', 'lsh1')]
    text, cells = table2.report(folders)
    rows = _lines(text)
    assert rows['full'][:5] == [
        '100.00 (100)',
        '- (94.8)',
        '- (92.5)',
        '- (76.9)',
        '- (52.5)',
    ]
    assert rows['LSH-2'][:2] == ['- (0.8)', '97.00 ± 1.41 (100)']
    assert rows['LSH-2'][5:7] == ['2000', '0, 1']
    assert rows['LSH-4'][0] == '- (0.8)' and rows['LSH-4'][5:] == [''] * 5
    assert rows['full'][-1].startswith('python ')
    assert len(cells) == 20
    assert cells[11]['accuracy %'] == 97.0 and cells[11]['paper %'] == 100.0


def test_table2_counts_evaluations_of_the_same_experiment_only(make_run):
    folder, config = make_run('lsh', **{'model.rounds': 4})
    _evaluate(folder, config, 0.99)
    _evaluate(folder, config, 0.33, **{'data.eval_examples': 3})
    _evaluate(folder, config, 0.44, **{'model.rule': 'strict'})
    assert _lines(table2.report([str(folder)])[0])['LSH-4'][2] == '99.00 (99.9)'


def test_table2_tells_what_its_runs_start_from(make_run):
    told = 'All start from the parameters of runs/duplication_short.'
    assert told in table2.report([str(make_run('a', variant='cpu')[0])])[0]
    assert 'All start' not in table2.report([str(make_run('b')[0])])[0]


def test_table2_has_rows_beyond_the_papers(make_run):
    local, config = make_run('local', **{'model.pattern': ('local',)})
    _evaluate(local, config, 0.2, **{'model.pattern': ('lsh',), 'model.rounds': 8})
    more, _ = make_run('more', **{'model.rounds': 16})
    rows = _lines(table2.report([str(local), str(more)])[0])
    assert rows['local'][1] == '20.00 (-)' and rows['LSH-16'][0] == '- (-)'
    assert rows['LSH-4'][0] == '- (0.8)'


def test_table2_of_runs_prolonged_in_part(make_run, tmp_path):
    make_run('a', **{'model.rounds': 4})
    make_run('b', done=False, **{'model.rounds': 2, 'steps': 4000})
    rows = _lines(table2.report([str(tmp_path / 'a'), str(tmp_path / 'b')])[0])
    assert rows['LSH-4'][5] == '2000' and rows['LSH-2'][5] == '2000 of 4000'


def test_table2_of_a_run_without_an_evaluation_while_training(make_run):
    folder, config = make_run('a', done=False)
    _evaluate(folder, config, 0.5)
    (folder / 'metrics.jsonl').unlink()
    assert _lines(table2.report([str(folder)])[0])['LSH-4'][2] == '- (99.9)'


def test_table2_of_another_task_is_refused(make_run):
    folder, _ = make_run('text', 'text')
    with pytest.raises(ValueError, match="text is a run on 'bytes', and Table 2"):
        table2.report([str(folder)])


def test_table2_of_different_models_is_refused(make_run):
    folders = [
        str(make_run(f'd{width}', **{'model.d_ff': width})[0]) for width in (128, 256)
    ]
    with pytest.raises(ValueError, match='they differ in model.d_ff: 128 and 256'):
        table2.report(folders)


# --- Table 4 ----------------------------------------------------------------------


def _wmt14(make_run, name, variant, **changes):
    return make_run(name, 'wmt14', variant=variant, **changes)


def _translate(folder, config, bleu, step, *, checkpoint=None, **changes):
    """Writes an evaluation as eval.py does; each score is another."""
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(changes)
    config.data.tokenizer = str(folder / 'tokenizer.model')
    names = ('bleu', 'bleu_lowercase', 'bleu_intl', 'bleu_intl_lowercase', 'chrf')
    scores = {name: bleu + place / 10 for place, name in enumerate(names)}
    record = {'results': {'test': {'step': step, 'loss': 1.0, **scores}}}
    record |= {'signatures': {name: f'nrefs:1|of:{name}' for name in names}}
    record |= {'config': config.to_dict(), 'checkpoint': checkpoint}
    run_folder.write_evaluation(folder, step, record)


def test_table4_has_the_scores_beside_the_papers(make_run):
    base, config = _wmt14(make_run, 'one', '')
    _translate(base, config, 20.0, 90_000)
    changes = {'decoding.beams': 1, 'accumulate': 8}
    _translate(base, config, 25.0, 100_000, checkpoint='average:20', **changes)
    big, config = _wmt14(make_run, 'two', 'big', done=False)
    _translate(big, config, 26.0, 7000)
    text, rows, others = table4.report([str(base), str(big)])
    lines = _lines(text)
    assert lines['Vaswani et al. 2017, big'][:6] == ['28.4', '', '', '', '-', '-']
    line = lines['reversible, base, 100,000 steps']
    assert line[:6] == ['27.6', '27.4', '26.9', 'one', '25.30', '25.20']
    assert line[6:10] == ['100000', 'average:20', '1', '0.6']
    assert 'of:bleu_intl_lowercase; nrefs:1' in text
    line = lines['reversible, big, 300,000 steps, no weight sharing']
    assert line[:7] == ['29.1', '28.9', '28.4', 'two', '26.30', '26.20'] + (
        ['7000 of 300000']
    )
    assert line[7:10] == ['', '4', '0.6'] and line[-1].startswith('python ')
    line = lines['reversible, base, 500,000 steps, no weight sharing']
    assert line[:6] == ['28.0', '27.9', '27.4', '', '-', '-'] and set(line[6:]) == {''}
    assert len(rows) == len(table4.PAPER) == 6 and not others
    assert 'Multi30k' not in text


def test_table4_rows_are_those_of_the_configs(make_run):
    """A run of each variant is found in its row, and only there."""
    named = ['', 'base_500k', 'big', 'small']
    folders = [str(_wmt14(make_run, f'run {v}', v)[0]) for v in named]
    _, rows, _ = table4.report(folders)
    assert [row['run'] for row in rows[3:]] == [f'run {v}' for v in named]
    assert [row['cased (paper)'] for row in rows[3:]] == [26.9, 27.4, 28.4, None]
    assert rows[-1]['model'] == '6 + 6 layers, d_model 512, 20,000 steps'


def test_table4_counts_evaluations_of_the_same_experiment_only(make_run):
    folder, config = _wmt14(make_run, 'one', '')
    _translate(folder, config, 25.0, 100_000)
    _translate(folder, config, 99.0, 100_000, **{'data.source': 'other.tsv'})
    _translate(folder, config, 98.0, 100_000, **{'model.combine': 'concatenate'})
    record = {'results': {'validation': {'step': 100_000}, 'test': {'step': 100_000}}}
    run_folder.write_evaluation(folder, 1, record | {'config': config.to_dict()})
    _, rows, _ = table4.report([str(folder)])
    assert rows[3]['cased'] == '25.20'


def test_table4_of_a_run_without_an_evaluation(make_run, tmp_path):
    runs = tmp_path / 'sweep'
    runs.mkdir()
    _wmt14(make_run, 'sweep/one', '')
    _plan(runs, 'configs/wmt14.py', ['one', 'two'])
    text, rows, _ = table4.report([str(runs)])
    assert rows[3]['run'] == 'one' and rows[3]['cased'] == '-' and not rows[3]['step']
    assert 'Not started yet: two.' in text
    table4.main([str(runs), f'--output={tmp_path / "table4"}'])
    assert {file.name for file in tmp_path.glob('table4*')} == {
        'table4.md',
        'table4.csv',
    }


def test_table4_has_multi30k_apart(make_run, tmp_path, capsys):
    folder, config = make_run(
        'm', 'multi30k', variant='', **{'data.source': '/my/{split}.{column}'}
    )
    _translate(folder, config, 30.0, 6500)
    prefix = tmp_path / 'new' / 'table4'
    table4.main([str(folder), f'--output={prefix}'])
    text = (tmp_path / 'new' / 'table4.md').read_text()
    assert text in capsys.readouterr().out
    line = _lines(text.partition('# Multi30k')[2])['m']
    assert line[:7] == ['30.00', '30.10', '30.40', '6500', '', '4', '0.6']
    with open(f'{prefix}.csv') as file:
        rows = list(csv.DictReader(file))
    assert [row['run'] for row in rows] == [''] * 6
    with open(f'{prefix}_multi30k.csv') as file:
        (row,) = csv.DictReader(file)
    assert row['chrf'] == '30.40' and row['signature'].startswith('nrefs:1|of:bleu; ')


@pytest.mark.parametrize(
    ('config_name', 'changes'),
    [
        ('text', {}),
        ('multi30k', {'data.split_names.test': 'test_2017_flickr'}),
        ('wmt14', {'data.source_column': 'de', 'data.target_column': 'en'}),
        ('wmt14', {'data.source': 'tfds:wmt16_translate/de-en'}),
    ],
)
def test_table4_of_other_data_is_refused(make_run, config_name, changes):
    folder, _ = make_run('a', config_name, variant='', **changes)
    message = "^a is a run on other data, {'data.dataset': .*}: Table 4 is of English"
    with pytest.raises(ValueError, match=message) as caught:
        table4.report([str(folder)])
    assert '\n' not in str(caught.value)


# --- Bits per dimension -----------------------------------------------------------


def _sweep_of_rounds(make_run, tmp_path):
    runs = tmp_path / 'sweep'
    runs.mkdir()
    for seed, bits in ((0, 2.0), (1, 2.2)):
        changes = {'model.rounds': 2, 'seed': seed, 'steps': 1000}
        make_run(f'sweep/two{seed}', 'rounds', bits={500: 3.0, 1000: bits}, **changes)
    changes = {'model.rounds': 8, 'steps': 1000}
    make_run('sweep/eight', 'rounds', done=False, bits={500: 2.9}, **changes)
    points = ['two0', 'two1', 'eight', 'sixteen']
    _plan(runs, 'configs/rounds.py:tiny', points)
    return str(runs)


def test_bits_per_dim_are_means_over_seeds_with_gaps(make_run, tmp_path):
    text, rows = bits_per_dim.report([_sweep_of_rounds(make_run, tmp_path)])
    lines = _lines(text)
    assert lines['LSH-2'][:2] == ['2.1000', '0.1414']
    assert lines['LSH-2'][3:5] == ['1000', '0, 1']
    assert lines['LSH-8'][:2] == ['2.9000 (unfinished)', '']
    assert lines['LSH-8'][3] == '500 of 1000'
    assert lines['sixteen'] == [''] * 8
    assert 'Figure 4' in lines['LSH-2'][2]
    assert 'Not started yet: sixteen.' in text
    assert len(rows) == 3


def test_curves_have_a_point_for_every_evaluation(make_run, tmp_path):
    points = bits_per_dim.curves([_sweep_of_rounds(make_run, tmp_path)])
    seen = [(p['run'], p['seed'], p['step'], p['bits/dim']) for p in points]
    assert seen == [
        ('LSH-2', 0, 500, 3.0),
        ('LSH-2', 0, 1000, 2.0),
        ('LSH-2', 1, 500, 3.0),
        ('LSH-2', 1, 1000, 2.2),
        ('LSH-8', 0, 500, 2.9),
    ]


def test_files_are_written(make_run, tmp_path, capsys):
    pytest.importorskip('matplotlib')
    prefix = str(tmp_path / 'new' / 'rounds')
    sweep = _sweep_of_rounds(make_run, tmp_path)
    bits_per_dim.main([sweep, f'--output={prefix}'])
    assert (tmp_path / 'new' / 'rounds.md').read_text() in capsys.readouterr().out
    with open(f'{prefix}.csv') as file:
        rows = list(csv.DictReader(file))
    assert [row['bits/dim'] for row in rows] == ['2.1000', '2.9000 (unfinished)', '']
    with open(f'{prefix}_curves.csv') as file:
        assert len(list(csv.DictReader(file))) == 5
    assert (tmp_path / 'new' / 'rounds.png').read_bytes().startswith(b'\x89PNG')


def test_a_resumed_runs_later_lines_count(make_run):
    folder, _ = make_run('one', 'rounds', done=False, bits={500: 3.0})
    with open(folder / 'metrics.jsonl', 'a') as file:
        file.write('{"step": 500, "split": "validation", "bits_per_dim": 2.5}\n{"st')
    (point,) = bits_per_dim.curves([str(folder)])
    assert point['bits/dim'] == 2.5


def test_different_data_are_different_experiments(make_run):
    one, _ = make_run('one', 'rounds')
    other, _ = make_run('other', 'rounds', **{'data.path': 'a text'})
    with pytest.raises(ValueError, match='differ in data.path:.*a text'):
        bits_per_dim.report([str(one), str(other)])


def test_sweeps_of_different_files_are_different_experiments(tmp_path):
    for name in ('a', 'b'):
        (tmp_path / name).mkdir()
        _plan(tmp_path / name, f'configs/{name}.py', [])
    with pytest.raises(ValueError, match='different experiments, configs/a.py, conf'):
        run_folders.collect([str(tmp_path / 'a'), str(tmp_path / 'b')])


def test_a_run_without_bits_is_named(make_run):
    folder, _ = make_run('one', **{'model.head': 'none'})
    with pytest.raises(ValueError, match="one has no bits .* model.head='none'"):
        bits_per_dim.report([str(folder)])


def test_other_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='neither a run folder .*nor that of'):
        run_folders.collect([str(tmp_path)])


@pytest.mark.parametrize('report', [bits_per_dim.report, figure5.report])
def test_a_sweep_of_which_nothing_has_been_started(report, tmp_path):
    _plan(tmp_path, 'configs/rounds.py:tiny', [])
    with pytest.raises(ValueError, match='has been started yet'):
        report([str(tmp_path)])


def _on_a_tpu(folder):
    record = json.loads((folder / 'runs.jsonl').read_text())
    record |= {'device': 'TPU v4', 'devices': 8, 'cpu_cores': 96, 'processor': 'X'}
    record['commit'] = '0123456789abcdef-dirty'
    (folder / 'runs.jsonl').write_text(json.dumps(record) + '\n')


def test_hardware_and_commit(make_run):
    folder, _ = make_run('one')
    _on_a_tpu(folder)
    collection = run_folders.collect([str(folder)])
    origin = run_folders.origin(collection.runs)
    assert origin['hardware'] == '8 TPU v4, 96 cores X'
    assert origin['commit'] == '0123456789-dirty'


def test_labels_name_what_differs(make_run, tmp_path):
    changes = {'model.pattern': ('local', 'lsh'), 'model.rounds': 2}
    make_run('a', 'rounds', **changes)
    make_run('b', 'rounds', **{**changes, 'model.d_ff': 64})
    make_run('c', 'rounds', **{'model.pattern': ('full',)})
    runs = run_folders.collect([str(tmp_path / name) for name in 'abc']).runs
    labels = [bits_per_dim.label(run, runs) for run in runs]
    assert labels == ['local/LSH-2, d_ff=512', 'local/LSH-2, d_ff=64', 'full, d_ff=512']


def test_the_same_run_twice_is_refused(make_run):
    folder, _ = make_run('one')
    again, _ = make_run('again')
    with pytest.raises(ValueError, match='one and again are the same run'):
        run_folders.collect([str(folder), str(again)])


def test_a_folder_whose_start_failed_is_a_gap(make_run, tmp_path):
    folder, _ = make_run('one')
    (folder / 'runs.jsonl').write_text('')
    _plan(tmp_path, 'configs/duplication.py:tiny', ['one'])
    assert run_folders.collect([str(tmp_path)]).missing == ('one',)


def test_only_complete_seeds_count(make_run, tmp_path):
    make_run('whole', 'rounds', bits={1500: 2.0})
    make_run('part', 'rounds', done=False, bits={100: 6.0}, seed=1)
    folders = [str(tmp_path / name) for name in ('whole', 'part')]
    ((_, values),) = list(_lines(bits_per_dim.report(folders)[0]).items())[2:]
    assert values[0] == '2.0000' and values[3:5] == ['1500', '0']


def test_the_papers_enwik8_model_has_the_papers_number(make_run, tmp_path):
    big = {'model.layers': 12, 'model.length': 65_536, 'data.length': 65_536}
    folder, _ = make_run('big', 'enwik8', **big)
    assert '1.05 on test' in bits_per_dim.report([str(folder)])[0]
    small, _ = make_run('small', 'enwik8')
    assert '1.05' not in bits_per_dim.report([str(small)])[0]


# --- Figure 5 ---------------------------------------------------------------------


def test_figure5_has_the_seconds_of_a_step(make_run, tmp_path):
    for length, rounds in ((1024, 2), (2048, 2), (1024, 4)):
        changes = {'data.length': length, 'data.batch_size': 32_768 // length}
        changes |= {'model.length': length, 'model.rounds': rounds}
        bits = {1: 2.0, 8: 1.0}
        make_run(f'{length}-{rounds}', 'length', bits=bits, **changes)
    names = ('1024-2', '2048-2', '1024-4')
    text, points = figure5.report([str(tmp_path / name) for name in names])
    lines = _lines(text.partition('\n\n| attention | length')[0])
    assert lines['attention'] == ['1,024', '2,048']
    assert lines['LSH-2'] == ['65.536', '65.536'] and lines['LSH-4'] == ['65.536', '']
    assert [point['length'] for point in points] == [1024, 2048, 1024]


def test_figure5_is_a_mean_over_seeds(make_run, tmp_path):
    for seed, speed in ((0, 1000.0), (1, 4000.0)):
        make_run(f's{seed}', 'length', speed=speed, seed=seed)
    _, points = figure5.report([str(tmp_path / name) for name in ('s0', 's1')])
    (point,) = points
    assert point['seconds'] == pytest.approx((32.768 + 8.192) / 2)
    assert point['seeds'] == '0, 1'


def test_figure5_is_of_one_machine(make_run, tmp_path):
    make_run('a', 'length')
    folder, _ = make_run('b', 'length', seed=1)
    _on_a_tpu(folder)
    with pytest.raises(ValueError, match='different hardware, .*TPU v4'):
        figure5.report([str(tmp_path / 'a'), str(tmp_path / 'b')])


def test_figure5_compares_equal_numbers_of_tokens_only(make_run, tmp_path):
    make_run('a', 'length', **{'data.batch_size': 2})
    make_run('b', 'length')
    with pytest.raises(ValueError, match='32768, 65536 tokens in a step'):
        figure5.report([str(tmp_path / 'a'), str(tmp_path / 'b')])


@pytest.mark.parametrize('damage', ['null\n', '[1]\n', '{"device": \n'])
def test_a_start_that_cannot_be_read_is_left_out_or_named(make_run, damage):
    folder, _ = make_run('one')
    good = (folder / 'runs.jsonl').read_text()
    (folder / 'runs.jsonl').write_text(good + damage)
    assert len(run_folders.collect([str(folder)]).runs[0].starts) == 1
    (folder / 'runs.jsonl').write_text(damage)
    with pytest.raises(ValueError, match='runs.jsonl has no line of a start'):
        run_folders.collect([str(folder)])


def test_lines_of_metrics_without_a_step_are_left_out(make_run):
    folder, _ = make_run('one')
    with open(folder / 'metrics.jsonl', 'a') as file:
        file.write('{}\n{"step": 3}\n')
    assert all('split' in r for r in run_folders.collect([str(folder)]).runs[0].records)
