"""From pretraining to a task: init_from, frozen parts, tokenizers kept, evaluation."""

import dataclasses
import json
import pathlib
import random
import shutil

import jax
import numpy as np
import pytest
import small_models as models

import convert
from configs import classification
from configs import masked_text
from configs import named_entities
from configs import question_answering
from reformer_jax import data
from reformer_jax import huggingface
from reformer_jax import sharding
from reformer_jax.data import tokenizers
from reformer_jax.huggingface import fields
from reformer_jax.runs import folder as run_folder
from reformer_jax.training import config as training_config
from reformer_jax.training import evaluation
from reformer_jax.training import loop
from reformer_jax.training import optimizer as optimizer_lib
from reformer_jax.training import start as start_lib
from reformer_jax.training import state as state_lib

_GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
_CAUSAL = {
    'init_from': str(_GOLDEN / 'causal_local_lsh'),
    'data.tokenizer': 'bytes',
}
_TOPICS = {
    'sea': 'salt wave fish coral reef tide whale foam shell kelp'.split(),
    'sky': 'cloud bird wind star moon rain hawk storm comet dawn'.split(),
}
_SHAPE = {
    'length': 64,
    'd_model': 32,
    'd_ff': 64,
    'layers': 2,
    'heads': 2,
    'head_size': 16,
    'local_chunk_length': 16,
    'lsh_chunk_length': 16,
    'axial_shape': (8, 8),
    'axial_sizes': (8, 24),
    'dropout': 0.0,
}


def _sentence(topic, rng):
    words = rng.choices(_TOPICS[topic], k=5) + rng.choices(['the', 'a', 'and'], k=3)
    rng.shuffle(words)
    return ' '.join(words)


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """A text, and a table of its sentences: two of three are of the sea."""
    folder = tmp_path_factory.mktemp('data')
    rng = random.Random(0)
    topics = [rng.choice(['sea', 'sea', 'sky']) for _ in range(2000)]
    rows = [{'text': _sentence(topic, rng), 'label': topic} for topic in topics]
    table = folder / 'rows.jsonl'
    table.write_text('\n'.join(map(json.dumps, rows)), 'utf-8')
    text = folder / 'text.txt'
    text.write_text('\n'.join(row['text'] for row in rows), 'utf-8')
    return text, table


def _masked_config(text):
    config = masked_text.get_config('tiny')
    config.data.update({'path': str(text), 'length': 64, 'batch_size': 16})
    config.model.update(_SHAPE)
    config.update({'steps': 500, 'log_every': 100, 'eval_every': 0, 'seed': 1})
    config.optimizer.update({'warmup_steps': 20, 'learning_rate': 5e-3})
    return config


@pytest.fixture(scope='module')
def pretrained(files, tmp_path_factory):
    workdir = tmp_path_factory.mktemp('runs') / 'masked'
    return str(workdir), loop.train(_masked_config(files[0]), str(workdir))


def _fine_tuning(table, source, **changes):
    config = classification.get_config()
    config.init_from = source
    config.data.update({'source': str(table), 'length': 64, 'batch_size': 16})
    config.model.dropout = 0.0
    config.update({'steps': 150, 'log_every': 50, 'eval_every': 50, 'seed': 2})
    config.optimizer.update({'warmup_steps': 10, **changes})
    return config


def _parameters(workdir):
    model, _ = state_lib.restore_model(workdir, sharding.make_mesh())
    leaves = jax.tree_util.tree_leaves_with_path(model)
    return {sharding.leaf_name(path): np.asarray(leaf) for path, leaf in leaves}


@pytest.mark.slow
def test_pretraining_learns_more_than_how_often_letters_are(files, pretrained):
    counts = np.bincount(np.frombuffer(files[0].read_bytes(), np.uint8))
    shares = counts[counts > 0] / counts.sum()
    entropy = -(shares * np.log2(shares)).sum()
    assert pretrained[1]['bits_per_dim'] < entropy - 0.4


@pytest.mark.slow
def test_fine_tuning_with_frozen_parts(files, pretrained, tmp_path, capsys):
    source, workdir = pretrained[0], str(tmp_path / 'run')
    frozen = 'embedding|position_tables|norm'
    config = _fine_tuning(files[1], source, frozen=frozen)
    final = loop.train(config, workdir)
    assert final['accuracy'] > 0.95 and final['f1'] > 0.95  # majority: two of three
    assert 'fresh: head.hidden, head.hidden_bias' in capsys.readouterr().out

    saved = run_folder.load_config(workdir)
    assert saved['data']['labels'] == ['sea', 'sky']
    assert saved['model']['classes'] == 2 and saved['model']['d_model'] == 32
    before, after = _parameters(source), _parameters(workdir)
    for name, values in after.items():
        if name.startswith('head.'):
            continue
        if any(part in name for part in frozen.split('|')):
            np.testing.assert_array_equal(values, before[name], err_msg=name)
        else:
            assert np.any(values != before[name]), name

    results = evaluation.evaluate(None, workdir)
    assert set(results) == {'validation', 'test'}
    assert results['validation']['accuracy'] == pytest.approx(final['accuracy'])
    assert results['test']['f1'] > 0.9


def _words(rng):
    """A sentence with one name of two words, and where it stands."""
    words = rng.choices(_TOPICS['sea'], k=6)
    place = rng.randrange(5)
    words[place : place + 2] = ['Ann', rng.choice(['Lee', 'Ray'])]
    return words, place


@pytest.mark.slow
def test_named_entities(pretrained, tmp_path):
    rng = random.Random(0)
    rows = []
    for _ in range(600):
        words, place = _words(rng)
        tags = ['O'] * 6
        tags[place : place + 2] = ['B-PER', 'I-PER']
        rows.append({'tokens': words, 'tags': tags})
    config = named_entities.get_config()
    final = _train_on(rows, config, pretrained, tmp_path)
    assert final['f1'] > 0.9 and final['accuracy'] > 0.9
    assert final['examples'] == 30  # sentences, a twentieth of 600


@pytest.mark.slow
def test_question_answering(pretrained, tmp_path):
    rng = random.Random(0)
    rows = []
    for _ in range(600):
        words, place = _words(rng)
        answer = ' '.join(words[place : place + 2])
        rows.append(
            {'question': 'who?', 'context': ' '.join(words), 'answers': [answer]}
        )
    config = question_answering.get_config()
    final = _train_on(rows, config, pretrained, tmp_path)
    assert final['exact_match'] > 0.9 and final['f1'] > 0.9


def _train_on(rows, config, pretrained, tmp_path):
    table = tmp_path / 'rows.jsonl'
    table.write_text('\n'.join(map(json.dumps, rows)), 'utf-8')
    settings = _fine_tuning(table, pretrained[0])
    config.init_from = pretrained[0]
    config.data.update({'source': str(table), 'length': 64, 'batch_size': 16})
    config.model.dropout = 0.0
    config.update({'steps': 300, 'log_every': 100, 'eval_every': 0})
    config.optimizer.update(settings.optimizer)
    return loop.train(config, str(tmp_path / 'run'))


@pytest.mark.slow
def test_a_started_run_needs_its_source_no_more(files, pretrained, tmp_path):
    source, workdir = str(tmp_path / 'source'), str(tmp_path / 'run')
    shutil.copytree(pretrained[0], source)
    config = _fine_tuning(files[1], source)
    config.steps = 4
    loop.train(config, workdir)
    before = _parameters(workdir)
    shutil.rmtree(source)
    loop.train(config, workdir)
    for name, values in _parameters(workdir).items():
        np.testing.assert_array_equal(values, before[name])
    config.steps = 6
    loop.train(config, workdir)
    assert np.any(_parameters(workdir)['head.output'] != before['head.output'])


def test_a_hugging_face_folder_is_no_run():
    with pytest.raises(ValueError, match='is a folder of Hugging Face .* import it'):
        run_folder.load_config(_GOLDEN / 'masked_lm_padded')


def test_parameters_of_hugging_face_models():
    """All but the head of another kind; and the head of the same kind too."""
    mesh = sharding.make_mesh()
    for case, head in (
        ('masked_lm_padded', 'question_answering'),
        ('question_answering', 'question_answering'),
    ):
        config = _run_config(_GOLDEN / case, head)
        parameters = start_lib.load_parameters(config, mesh)
        state = _fresh_state(config)
        model, fresh = start_lib.put(state.model, parameters)
        theirs = jax.tree.leaves(huggingface.load(_GOLDEN / case)[1])
        ours = jax.tree.leaves(model)
        np.testing.assert_array_equal(ours[0], theirs[0])
        assert bool(fresh) == (case != f'{head}')


def test_a_head_of_another_kind_is_not_taken_though_it_would_fit():
    config = _run_config(_GOLDEN / 'masked_lm_padded', 'masked_lm')
    model = dataclasses.replace(config.model, head='token_classification', classes=64)
    config = dataclasses.replace(config, model=model)
    parameters = start_lib.load_parameters(config, sharding.make_mesh())
    assert 'embedding' in parameters and 'head.output' not in parameters


def _fresh_state(config):
    optimizer = optimizer_lib.build(config.optimizer, config.steps)
    return state_lib.init_state(config.model, optimizer, 0)


def _run_config(source, head, **data_fields):
    config = masked_text.get_config('tiny')
    config.init_from = str(source)
    config.data.update({'tokenizer': 'bytes', **data_fields})
    resolved = start_lib.resolve(config.to_dict(), 'no/such/run')
    resolved['model']['head'] = head
    return training_config.run_config(resolved)


def test_the_tokenizer_of_a_hugging_face_model(files, tmp_path):
    """Its spiece.model: used by what starts from it, kept with what is imported."""
    folder, run = tmp_path / 'model', str(tmp_path / 'run')
    model = models.build(rule='trax', vocab_size=300)
    huggingface.save(folder, model.config, model)
    spiece = folder / 'spiece.model'
    tokenizers.train(files[0].read_text().splitlines(), spiece, vocab_size=300)
    config = masked_text.get_config('tiny')
    config.init_from = str(folder)
    assert start_lib.resolve(config.to_dict(), run)['data']['tokenizer'] == str(spiece)
    convert.main(['import', str(folder), run])
    spiece.unlink()
    imported = data.open(run_folder.load_config(run)['data'])
    assert imported.vocab_size == 300
    text = b'the salt wave'
    assert imported.decode(imported.encode(text)).strip() == text
    convert.main(['export', run, str(tmp_path / 'exported')])
    assert (tmp_path / 'exported' / 'spiece.model').is_file()


def test_the_tokenizer_json_of_a_hugging_face_model(tmp_path):
    library = pytest.importorskip('tokenizers')
    folder, run = tmp_path / 'model', str(tmp_path / 'run')
    model = models.build(rule='trax', vocab_size=300)
    huggingface.save(folder, model.config, model)
    words = {'<unk>': 0, 'salt': 1, 'wave': 2}
    made = library.Tokenizer(library.models.WordLevel(words, unk_token='<unk>'))
    made.pre_tokenizer = library.pre_tokenizers.Whitespace()
    file = folder / 'tokenizer.json'
    made.save(str(file))
    config = masked_text.get_config('tiny')
    config.init_from = str(folder)
    assert start_lib.resolve(config.to_dict(), run)['data']['tokenizer'] == str(file)
    convert.main(['import', str(folder), run])
    content = file.read_bytes()
    file.unlink()
    fields = run_folder.load_config(run)['data']
    assert data.open(fields).encode(b'wave salt').tolist() == [2, 1]
    config.init_from = run
    resolved = start_lib.resolve(config.to_dict(), str(tmp_path / 'new'))
    assert resolved['data']['tokenizer'] == fields['tokenizer']
    run_folder.check_tokenizer(run, fields['tokenizer'])
    file.write_bytes(content + b' ')
    with pytest.raises(ValueError, match='differs from the one that the run started'):
        run_folder.check_tokenizer(run, str(file))
    convert.main(['export', run, str(tmp_path / 'exported')])
    assert (tmp_path / 'exported' / 'tokenizer.json').read_bytes() == content


def test_a_source_without_its_tokenizer_is_an_error():
    """Byte ids would fit its vocabulary of 64 no less than garbage does."""
    with pytest.raises(ValueError, match=r'64 tokens and no spiece.model: copy it th'):
        _run_config(_GOLDEN / 'masked_lm_padded', 'masked_lm', tokenizer='')


@pytest.mark.parametrize('size', [258, 259, 320])
@pytest.mark.parametrize('left', ['vocab.json', 'vocab.txt', 'tokenizer_config.json'])
def test_what_has_another_tokenizer_is_not_read_as_bytes(tmp_path, capsys, size, left):
    folder, run = tmp_path / 'model', tmp_path / 'run'
    model = models.build(rule='trax', vocab_size=size)
    huggingface.save(folder, model.config, model)
    (folder / left).write_text('{}')
    config = masked_text.get_config('tiny')
    config.init_from = str(folder)
    message = rf'{size} tokens and no spiece.model: .*\({left} will not do\)'
    with pytest.raises(ValueError, match=message):
        start_lib.resolve(config.to_dict(), str(run))
    with pytest.raises(ValueError, match=message):
        convert.main(['import', str(folder), str(run)])
    assert not run.exists()


@pytest.mark.parametrize('size', [64, 300, 320])
def test_a_vocabulary_that_is_not_bytes_is_imported_with_a_named_tokenizer(
    tmp_path, capsys, size
):
    folder, run = tmp_path / 'model', tmp_path / 'run'
    model = models.build(rule='trax', vocab_size=size)
    huggingface.save(folder, model.config, model)
    with pytest.raises(ValueError, match=f'{size} tokens and no spiece.model'):
        convert.main(['import', str(folder), str(run)])
    arguments = ['import', str(folder), str(run), '--tokenizer=bytes']
    if size < 258:
        with pytest.raises(ValueError, match='bytes has 258 tokens, the model only'):
            convert.main(arguments)
        assert not run.exists()
    else:
        convert.main(arguments)
        assert run_folder.load_config(run)['data']['tokenizer'] == 'bytes'


def test_a_vocabulary_grows_by_the_mask(tmp_path, capsys):
    """What transformers has no token for; only if the data are of that vocabulary."""
    model = models.build(rule='trax', causal=False, vocab_size=258)
    huggingface.save(tmp_path / 'model', model.config, model)
    config = _run_config(tmp_path / 'model', 'masked_lm', tokenizer='')
    assert config.model.vocab_size == 259 and config.data.tokenizer == 'bytes'
    assert 'd_model=8 (not 128)' in capsys.readouterr().out
    parameters = start_lib.load_parameters(config, sharding.make_mesh())
    state = _fresh_state(config)
    grown, fresh = start_lib.put(state.model, parameters)
    assert not fresh
    np.testing.assert_array_equal(grown.embedding[:258], model.embedding)
    np.testing.assert_array_equal(grown.embedding[258], state.model.embedding[258])
    np.testing.assert_array_equal(grown.head.output[:, :258], model.head.output)
    np.testing.assert_array_equal(grown.head.output_bias[:258], model.head.output_bias)


@pytest.mark.slow
def test_the_head_of_a_hugging_face_classifier(files, tmp_path):
    """With its pooling, classes and their order."""
    classes = ('sky', 'x', 'sea')
    model = models.build(
        rule='trax', causal=False, vocab_size=258, head='classification', classes=3
    )
    like = fields.label_fields(classes)
    huggingface.save(tmp_path / 'model', model.config, model, like=like)
    config = _fine_tuning(files[1], str(tmp_path / 'model'))
    config.data.length = 32
    resolved = start_lib.resolve(config.to_dict(), str(tmp_path / 'run'))
    assert resolved['data']['labels'] == classes
    model = resolved['model']
    assert (model['pooling'], model['classes']) == ('first', 3)
    assert config.model.pooling == 'mean'
    config.steps = 2
    loop.train(config, str(tmp_path / 'run'))
    convert.main(['export', str(tmp_path / 'run'), str(tmp_path / 'exported')])
    assert huggingface.labels(tmp_path / 'exported') == classes
    assert huggingface.load_config(tmp_path / 'exported').classes == 3


@pytest.mark.slow
@pytest.mark.parametrize('from_scratch', [False, True])
def test_labels_are_those_of_the_run(files, pretrained, tmp_path, from_scratch):
    """Not those of the data that it is evaluated on, where classes may be missing."""
    config = _fine_tuning(files[1], '' if from_scratch else pretrained[0])
    config.model.update(_SHAPE)
    config.steps = 2
    loop.train(config, str(tmp_path / 'run'))
    rows = [{'text': 'a bird', 'label': 'sky'}, {'text': 'a fish', 'label': 'sand'}]
    table = tmp_path / 'other.jsonl'
    table.write_text('\n'.join(map(json.dumps, rows * 20)), 'utf-8')
    config.data.source = str(table)
    with pytest.raises(ValueError, match="label 'sand': the labels are sea, sky"):
        evaluation.evaluate(config, str(tmp_path / 'run'))


def test_another_architecture_is_an_error(tmp_path):
    config = _run_config(_GOLDEN / 'masked_lm_padded', 'masked_lm')
    parameters = start_lib.load_parameters(config, sharding.make_mesh())
    parameters.pop('embedding')
    state = _fresh_state(config)
    with pytest.raises(ValueError, match=r'needs the parameter embedding .* has none'):
        start_lib.put(state.model, parameters)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (_CAUSAL, 'first token has seen no'),
        ({'init_from': '/no/such/folder'}, r"init_from='/no/such/folder' is no folder"),
        ({'init_from': str(_GOLDEN)}, 'no config.json in'),
        ({'data.source': 'no.jsonl'}, 'no.jsonl'),
        ({'data.labels': ('sea',)}, "'sky'"),
        ({'model.classes': 3}, 'the data have 2 classes and the model model.classes=3'),
        ({'model.head': 'masked_lm'}, "head='classification', not with .*'masked_lm'"),
        ({'data.tokenizer': 'no.model'}, 'no.model'),
    ],
    ids=str,
)
def test_bad_input_is_an_error_before_anything(files, tmp_path, changes, message):
    config = _fine_tuning(files[1], '')
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        loop.train(config, str(tmp_path / 'run'))
    assert not (tmp_path / 'run').exists()


@pytest.mark.slow
@pytest.mark.parametrize('file', [classification, question_answering])
@pytest.mark.parametrize('source', ['', _CAUSAL['init_from']], ids=['new', 'from lm'])
def test_a_causal_head_that_sees_nothing_is_only_imported(tmp_path, file, source):
    config = file.get_config()
    rows = [{'text': 'a', 'label': name} for name in ('sea', 'sky')]
    table = tmp_path / 'rows.jsonl'
    table.write_text('\n'.join(map(json.dumps, rows * 20)), 'utf-8')
    chunks = {'local_chunks_after': 0, 'lsh_chunks_after': 0}
    config.model.update({'rule': 'trax', 'causal': True, 'pooling': 'first', **chunks})
    config.data.update({'source': str(table), 'tokenizer': 'bytes'})
    config.init_from = source
    with pytest.raises(
        ValueError, match="pooling='first' .*causal=True .*causal=False"
    ):
        start_lib.read(config, str(tmp_path / 'run'))


def test_a_causal_classifier_of_transformers_is_trained_further(files, tmp_path):
    model = models.build(
        rule='trax', vocab_size=258, start_token=-1, head='classification', classes=2
    )
    like = fields.label_fields(('sky', 'sea'))
    huggingface.save(tmp_path / 'model', model.config, model, like=like)
    config = _fine_tuning(files[1], str(tmp_path / 'model'))
    config.data.length = 32
    _, checked = start_lib.read(config, str(tmp_path / 'run'))
    assert checked.model.causal and checked.model.pooling == 'first'


def test_the_tokenizer_is_kept_with_the_run(files, tmp_path):
    model = tmp_path / 'spiece.model'
    tokenizers.train(files[0].read_text().splitlines(), model, vocab_size=300)
    config = _masked_config(files[0])
    config.data.tokenizer = str(model)
    config.model.vocab_size = 301
    config.steps = 2
    workdir = str(tmp_path / 'run')
    loop.train(config, workdir)
    model.rename(tmp_path / 'moved.model')
    saved = run_folder.load_config(workdir)
    text = b'the salt wave'
    dataset = data.open(saved['data'])
    assert dataset.decode(dataset.encode(text)).strip() == text
    config.data.tokenizer = str(tmp_path / 'moved.model')
    loop.train(config, workdir)  # the same tokenizer elsewhere
    # What starts from the run has its tokenizer.
    new = _fine_tuning(files[1], workdir).to_dict()
    resolved = start_lib.resolve(new, str(tmp_path / 'new'))
    assert resolved['data']['tokenizer'] == saved['data']['tokenizer']
    other = tmp_path / 'other.model'
    tokenizers.train(files[0].read_text().splitlines(), other, vocab_size=290)
    config.data.tokenizer = str(other)
    with pytest.raises(ValueError, match='differs from the one that the run started'):
        loop.train(config, workdir)
    config.data.tokenizer = 'bytes'
    with pytest.raises(ValueError, match='another config:\n  data.tokenizer'):
        loop.train(config, workdir)
    config.data.tokenizer = str(tmp_path / 'moved.model')
    config.model.vocab_size = 200
    with pytest.raises(ValueError, match=r'token ids up to 300.*vocab_size=200'):
        loop.train(config, str(tmp_path / 'other'))
