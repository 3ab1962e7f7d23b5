"""Tests of reading labelled rows: files, splits, tfds, errors."""

import bz2
import csv
import gzip
import http.server
import io
import json
import lzma
import os
import pathlib
import re
import threading
import zipfile

import numpy as np
import pytest
import tensorflow_datasets as tfds

from reformer_jax import data
from reformer_jax.data import corpus
from reformer_jax.data.tasks import cells
from reformer_jax.data.tasks import tables

SPLITS = ('train', 'validation', 'test')


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, 'utf-8', newline='')
    return str(path)


def write_json(path, rows):
    return write(path, ''.join(json.dumps(row) + '\n' for row in rows))


def numbered(count, start=0):
    return [{'n': n} for n in range(start, start + count)]


def values(source, split, **fields):
    return [row['n'] for row in tables.read(source, split, **fields).rows]


def _whole(source):
    return tables._read_file(pathlib.Path(source))


# Kinds of files.


def test_reads_json_lines(tmp_path):
    rows = [
        {'text': 'a\u2028é', 'label': n, 'more': [1, {'x': None}]} for n in range(3)
    ]
    lines = '\n\n'.join(json.dumps(row, ensure_ascii=False) for row in rows)
    write(tmp_path / 'a' / 'train.jsonl', lines)
    write(tmp_path / 'b' / 'train.json', '\ufeff' + lines + '\r\n')
    (tmp_path / 'c').mkdir()
    packed = gzip.compress(lines.encode())
    (tmp_path / 'c' / 'train.jsonl.gz').write_bytes(packed)
    for folder in 'abc':
        write_json(tmp_path / folder / 'dev.jsonl', rows[:1])
        assert tables.read(str(tmp_path / folder), 'train').rows == rows
        assert tables.read(str(tmp_path / folder), 'validation').rows == rows[:1]


def test_reads_csv_and_tsv(tmp_path):
    long = 'x' * 200_000
    csv = f'text,label\r\n"a, ""b""\r\nc",1\r\n\r\n{long},é\r\n'
    tsv = f'text\tlabel\n"a, b\t1\n{long}\té\n'
    write(tmp_path / 'a' / 'train.csv', csv)
    write(tmp_path / 'b' / 'train.tsv', tsv)
    write(tmp_path / 'a' / 'valid.csv', 'text,label\nx,y\n')
    write(tmp_path / 'b' / 'dev.tsv', 'text\tlabel\nx\ty\n')
    last = {'text': long, 'label': 'é'}
    first = {'text': 'a, "b"\r\nc', 'label': '1'}
    assert tables.read(str(tmp_path / 'a'), 'train').rows == [first, last]
    first = {'text': '"a, b', 'label': '1'}  # quotes mean nothing in .tsv
    assert tables.read(str(tmp_path / 'b'), 'train').rows == [first, last]
    for folder in 'ab':
        rows = tables.read(str(tmp_path / folder), 'validation').rows
        assert rows == [{'text': 'x', 'label': 'y'}]
    assert tables.read(str(tmp_path / 'a'), 'train').where(0).startswith('line 2 of ')
    assert tables.read(str(tmp_path / 'a'), 'train').where(1).startswith('line 5 of ')


# Splits.


def test_one_file_is_divided_90_5_5_by_a_fixed_permutation(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    write_json(tmp_path / 'rows.jsonl', numbered(210))
    source = '~/rows.jsonl'
    assert tables.splits(source) == SPLITS
    parts = [values(source, split) for split in SPLITS]
    assert [len(part) for part in parts] == [189, 10, 11]
    assert sorted(sum(parts, [])) == list(range(210))
    for part in parts:
        assert part == sorted(part)
    # Published results depend on the division: a change of it must be on purpose.
    assert parts[1] == [7, 69, 76, 77, 104, 113, 127, 176, 191, 209]
    where = tables.read(source, 'validation').where(1)
    assert where == f'line 70 of {tmp_path / "rows.jsonl"}'


def test_a_file_per_split(tmp_path):
    write_json(tmp_path / 'train.jsonl', numbered(30))
    write_json(tmp_path / 'valid.jsonl.ignored', numbered(1))
    source = str(tmp_path)
    assert tables.splits(source) == ('train', 'validation')
    train, validation = values(source, 'train'), values(source, 'validation')
    assert len(train) == 28 and sorted(train + validation) == list(range(30))
    assert validation != [28, 29]
    pattern = str(tmp_path / 'x_{split}.jsonl')
    for offset, name in enumerate(('train', 'dev', 'test')):
        write_json(tmp_path / f'x_{name}.jsonl', numbered(3, 100 * offset))
    assert tables.splits(pattern) == SPLITS
    assert [values(pattern, split)[0] for split in SPLITS] == [0, 100, 200]


def test_splits_that_are_not_there(tmp_path):
    source = str(tmp_path)
    write_json(tmp_path / 'test.jsonl', numbered(3))
    with pytest.raises(
        ValueError, match='has no train split: it needs a file named tr'
    ):
        tables.splits(source)
    write_json(tmp_path / 'train.jsonl', numbered(1))
    with pytest.raises(ValueError, match='the train split of .* is empty: 1 rows'):
        tables.read(source, 'train')
    (tmp_path / 'test.jsonl').unlink()
    with pytest.raises(ValueError, match='has no test split, only train, validation'):
        tables.read(source, 'test')
    write(tmp_path / 'train.csv', 'n\n1\n')
    with pytest.raises(ValueError, match='several files for the train split, .*csv'):
        tables.splits(source)
    few = write_json(tmp_path / 'few.jsonl', numbered(10))
    with pytest.raises(ValueError, match=r'the validation split of .*give at least 20'):
        tables.read(few, 'validation')


# Errors.


@pytest.mark.parametrize(
    ('name', 'content', 'message'),
    [
        ('a.jsonl', '{"n": 1}\n\n{"n": \n', 'line 3 of .*a.jsonl is no JSON'),
        ('b.jsonl', '{"n": 1}\n[1]\n', 'line 2 of .*b.jsonl is no JSON object'),
        ('c.csv', 'a,b\n"x\ny",1\n1,2,3\n', r'line 4 .* 3 cells.* has 2 \(a, b\)'),
        ('d.tsv', 'a\tb\n1\n', r'line 2 of .*d.tsv has 1 cells, but the header has 2'),
        ('e.csv', 'a,b\n1,2\n"x,3\n', 'line 3 of .*e.csv cannot be read'),
        ('f.csv', 'a,a\n1,2\n', "first line of .*, each once, and has 'a', 'a'"),
        ('g.csv', 'a,\n1,2\n', "first line of .*g.csv must name .* has 'a', ''"),
        ('h.csv', '', 'h.csv. holds no rows'),
        ('i.csv', 'a,b\n', 'i.csv. holds no rows'),
        ('j.jsonl', ' \n', 'j.jsonl. holds no rows'),
        (
            'k.txt',
            'a',
            r'k.txt. is of no known kind: .* \.jsonl, \.ndjson, .*csv, \.tsv',
        ),
    ],
)
def test_malformed_files_are_named(tmp_path, name, content, message):
    source = write(tmp_path / name, content)
    with pytest.raises(ValueError, match=message):
        tables.read(source, 'train')


def test_unreadable_files_are_named(tmp_path):
    (tmp_path / 'cut.csv').write_bytes('a\n1\n'.encode('utf-16')[:-1])
    with pytest.raises(ValueError, match=r"cut\.csv' is not UTF-16-LE .*iconv"):
        tables.read(str(tmp_path / 'cut.csv'), 'train')
    (tmp_path / 'a.csv').write_bytes(b'a\n\xe9\n')
    with pytest.raises(ValueError, match=r"a\.csv' is not UTF-8.*iconv"):
        tables.read(str(tmp_path / 'a.csv'), 'train')
    packed = gzip.compress(b'a\n1\n' * 100)
    for name, content in {'b': packed[:-9], 'c': b'plain', 'd': b''}.items():
        (tmp_path / f'{name}.csv.gz').write_bytes(content)
        message = rf"{name}\.csv\.gz' (cannot be unpacked|holds no rows)"
        with pytest.raises(ValueError, match=message):
            tables.read(str(tmp_path / f'{name}.csv.gz'), 'train')


@pytest.mark.parametrize('name', ['', 'no/such.csv'])
def test_missing_sources_are_named(name):
    message = rf"nothing at {re.escape(repr(name))}: set config\.data\.source.*'tfds:N"
    with pytest.raises(FileNotFoundError, match=message):
        tables.read(name, 'train')
    with pytest.raises(FileNotFoundError, match=message):
        tables.splits(name)


def test_missing_columns_are_named():
    rows = [{'b': 1, 'a': 2}, {'a': 1}]
    table = tables.Table(rows, 'line', np.arange(2), 'x.csv')
    assert table.column('a') == [2, 1]
    with pytest.raises(ValueError, match="'x.csv' has no column 'c': it has a, b"):
        table.column('c')
    with pytest.raises(ValueError, match="line 1 of x.csv has no column 'b': it has a"):
        table.column('b')


# tensorflow_datasets, with builders that tfds finds by the names of their classes.


class SmallReviews(tfds.core.GeneratorBasedBuilder):
    """Rows of all kinds of values; no validation split and no download."""

    VERSION = tfds.core.Version('1.0.0')

    @tfds.core.utils.classproperty
    @classmethod
    def url_infos(cls):
        return None

    def _info(self):
        names = ('1', '2')  # as of yelp_polarity_reviews: names are no indices
        return tfds.core.DatasetInfo(
            builder=self,
            description='Test.',
            features=tfds.features.FeaturesDict(
                {
                    'n': np.int64,
                    'score': np.float32,
                    'text': tfds.features.Text(),
                    'label': tfds.features.ClassLabel(names=names),
                    'tags': tfds.features.Sequence(
                        tfds.features.ClassLabel(names=['O', 'B-X'])
                    ),
                    'words': tfds.features.Sequence(tfds.features.Text()),
                    'answers': tfds.features.Sequence(
                        {'text': tfds.features.Text(), 'answer_start': np.int32}
                    ),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {
            'train': self._generate_examples(40),
            'test': self._generate_examples(4),
        }

    def _generate_examples(self, count):
        for n in range(count):
            yield (
                n,
                {
                    'n': n,
                    'score': n / 2,
                    'text': f'review é {n}',
                    'label': n % 2 if count == 40 else -1,
                    'tags': [0, 1][: n % 3],
                    'words': ['a', 'é'][: n % 3],
                    'answers': {'text': ['é', 'r'], 'answer_start': [7, 0]},
                },
            )


class FarReviews(SmallReviews):
    """A dataset that has to be downloaded, from `url`."""

    url = ''

    @tfds.core.utils.classproperty
    @classmethod
    def url_infos(cls):
        return {cls.url: None, 'http://127.0.0.1:9/dead': None}

    def _split_generators(self, dl_manager):
        raise OSError(f'downloading from {self.url}')


def test_reads_tfds_as_plain_values(tmp_path):
    source, folder = 'tfds:small_reviews', str(tmp_path)
    assert tables.splits(source, folder) == SPLITS
    rows = {split: tables.read(source, split, folder).rows for split in SPLITS}
    assert [len(part) for part in rows.values()] == [38, 2, 4]
    both = sorted(rows['train'] + rows['validation'], key=lambda row: row['n'])
    assert [row['n'] for row in both] == list(range(40))
    assert both[5] == {
        'n': 5,
        'score': 2.5,
        'text': 'review é 5',
        'label': '2',
        'tags': ['O', 'B-X'],
        'words': ['a', 'é'],
        'answers': {'text': ['é', 'r'], 'answer_start': [7, 0]},
    }
    assert both[3]['tags'] == []
    assert {row['label'] for row in rows['test']} == {-1}
    json.dumps(rows)  # no numpy values
    assert tables.label_names(source, 'label', folder) == ('1', '2')
    assert tables.label_names(source, 'tags', folder) == ('O', 'B-X')
    assert tables.label_names(source, 'text', folder) == ()
    assert tables.label_names('x.csv', 'label') == ()
    where = tables.read(source, 'test', folder).where(3)
    assert where == 'example 3 of tfds:small_reviews, split test'
    numbers = [tables.read(source, 'validation', folder).where(i) for i in range(2)]
    assert len(set(numbers)) == 2 and 'split train' in numbers[0]


def test_labels_of_tfds_keep_their_names_and_order(tmp_path):
    config = {'source': 'tfds:small_reviews', 'data_dir': str(tmp_path), 'labels': ()}
    config |= {'tokenizer': 'bytes', 'length': 9, 'batch_size': 40, 'seed': 0}
    texts = {'text_columns': ['text'], 'label_column': 'label', 'kind': 'single'}
    one = {'dataset': 'classification', **config, **texts}
    assert data.open(one).resolved().labels == ('1', '2')
    batch = next(data.open({**one, 'length': 20}).batches('train'))
    for row, label in zip(batch['tokens'], batch['labels'], strict=True):
        assert int(data.open(one).decode(row).split()[-1]) % 2 == label
    words = {'words_column': 'words', 'tags_column': 'tags'}
    other = {'dataset': 'token_classification', **config, **words}
    assert data.open(other).resolved().labels == ('O', 'B-X')


def test_tfds_names_of_splits(monkeypatch):
    class Builder:
        class info:
            splits = {'train': 0, 'validation_matched': 0, 'test_matched': 0, 'more': 0}

    monkeypatch.setattr(tables, '_builder', lambda *_: Builder)
    assert tables._given_splits('tfds:mnli', '') == {
        'train': 'train',
        'validation': 'validation_matched',
        'test': 'test_matched',
    }


def test_tfds_knows_its_datasets_of_text(tmp_path, monkeypatch):
    """Without h5py, tfds on its own finds no GLUE, and no WMT."""
    monkeypatch.setattr(corpus, '_SECONDS_TO_ANSWER', 0.001)
    for name in ('glue/sst2', 'yelp_polarity_reviews', 'wmt14_translate/de-en'):
        # tfds 4.9.10 needs importlib_resources for these, without saying so.
        reason = 'cannot be downloaded|cannot be prepared without importlib_resources'
        message = f"'tfds:{name}'.*({reason}).*--config.data.data_dir=FOLDER"
        with pytest.raises((FileNotFoundError, ValueError), match=message):
            tables.read(f'tfds:{name}', 'train', data_dir=str(tmp_path))


def test_tfds_failures_are_named(tmp_path, monkeypatch):
    folder = str(tmp_path)
    with pytest.raises(ValueError, match="tfds knows no dataset 'no_such_reviews'"):
        tables.read('tfds:no_such_reviews', 'train', data_dir=folder)
    monkeypatch.setattr(FarReviews, 'url', 'http://127.0.0.1:9/far')
    message = "'tfds:far_reviews' is not prepared in .*refused"
    with pytest.raises(FileNotFoundError, match=message):
        tables.read('tfds:far_reviews', 'train', data_dir=folder)

    def lacking(*_, **__):
        raise ModuleNotFoundError('no module', name='h5py')

    monkeypatch.setattr(tfds, 'builder', lacking)
    with pytest.raises(ValueError, match='cannot be prepared without h5py: install'):
        tables.read('tfds:other_reviews', 'train', data_dir=folder)


def test_tfds_goes_on_where_a_host_answers(tmp_path, monkeypatch):
    """Whatever it answers: some refuse to be asked for the head alone."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_error(405)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    url = f'http://127.0.0.1:{server.server_port}/far'
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    monkeypatch.setattr(FarReviews, 'url', url)
    with pytest.raises(FileNotFoundError, match=f'downloading from {url}'):
        tables.read('tfds:far_reviews', 'train', data_dir=str(tmp_path))
    server.shutdown()
    server.server_close()


# Files as people have them.

_ROWS = [{'text': f'row {n}, "so"', 'label': 'ab'[n % 2]} for n in range(40)]


def _csv_bytes(end='\n', encoding='utf-8', index=False, **settings):
    stream = io.StringIO(newline='')
    names = ['', 'text', 'label'] if index else ['text', 'label']
    writer = csv.writer(stream, lineterminator=end, **settings)
    writer.writerow(names)
    for number, row in enumerate(_ROWS):
        writer.writerow([number] * index + list(row.values()))
    return stream.getvalue().encode(encoding)


def _json_bytes(document, encoding='utf-8', **settings):
    return json.dumps(document, **settings).encode(encoding)


_LINES = '\n'.join(map(json.dumps, _ROWS))
_COLUMNS = {
    name: {str(n): row[name] for n, row in enumerate(_ROWS)}
    for name in ('text', 'label')
}


@pytest.mark.parametrize(
    ('name', 'content'),
    [
        ('cr.csv', _csv_bytes('\r')),
        ('crlf.csv', _csv_bytes('\r\n')),
        ('bom.csv', _csv_bytes('\r\n', 'utf-8-sig')),
        ('utf16.csv', _csv_bytes('\r\n', 'utf-16')),
        ('utf32.csv', _csv_bytes('\n', 'utf-32')),
        ('index.csv', _csv_bytes(index=True)),
        ('UPPER.CSV', _csv_bytes()),
        ('packed.CSV.GZ', gzip.compress(_csv_bytes('\r'))),
        ('packed.csv.bz2', bz2.compress(_csv_bytes())),
        ('cr.jsonl', _LINES.replace('\n', '\r').encode()),
        ('crlf.jsonl', _LINES.replace('\n', '\r\n').encode('utf-8-sig')),
        ('utf16.jsonl', _LINES.encode('utf-16')),
        ('array.json', _json_bytes(_ROWS)),
        ('array.jsonl', _json_bytes(_ROWS, indent=1)),
        ('data.json', _json_bytes({'version': 1, 'data': _ROWS})),
        ('data.JSON.xz', lzma.compress(_json_bytes({'data': _ROWS}, indent=2))),
        ('no_mark.csv', _csv_bytes('\n', 'utf-16-le')),
        ('no_mark.jsonl', _LINES.encode('utf-16-be')),
        ('lines.ndjson', _LINES.encode()),
        ('decimal_comma.csv', _csv_bytes('\r\n', 'utf-8-sig', delimiter=';')),
        ('tabs.csv', _csv_bytes(delimiter='\t')),
        ('pandas.tsv', _csv_bytes(delimiter='\t')),
        ('pandas.TSV', _csv_bytes('\r', index=True, delimiter='\t')),
        ('quoted.tsv', _csv_bytes(delimiter='\t', quoting=csv.QUOTE_ALL)),
        ('columns.json', _json_bytes(_COLUMNS)),
        ('columns.jsonl', _json_bytes(_COLUMNS, indent=1)),
        ('index.json', _json_bytes(dict(enumerate(_ROWS)))),
        ('spaces.csv', _csv_bytes().replace(b'text,label', b'text , label', 1)),
        ('packed.csv.tar.gz', gzip.compress(_csv_bytes())),
        ('packed.Csv.Bz2', bz2.compress(_csv_bytes())),
    ],
    ids=lambda value: value if isinstance(value, str) else '',
)
def test_files_as_people_have_them(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    table = _whole(str(tmp_path / name))
    assert table.rows == _ROWS


@pytest.mark.parametrize('end', ['\r', '\n', '\r\n'])
def test_line_ends_of_tsv(tmp_path, end):
    lines = ['text\tlabel', *(f'a "b" \u2028 {n}\tx' for n in range(20)), '']
    (tmp_path / 'a.tsv').write_bytes(end.join(lines).encode())
    rows = _whole(str(tmp_path / 'a.tsv')).rows
    assert rows == [{'text': f'a "b" \u2028 {n}', 'label': 'x'} for n in range(20)]


def test_squad_as_it_is_published(tmp_path):
    answers = [{'text': 'Denver', 'answer_start': 3}]
    asked = [
        {'id': '1', 'question': 'Who?', 'answers': answers},
        {'id': '2', 'question': 'Why?', 'answers': [], 'is_impossible': True},
    ]
    paragraph = {'context': 'Is Denver', 'qas': asked}
    document = {'data': [{'title': 'T', 'paragraphs': [paragraph] * 2}], 'version': '2'}
    (tmp_path / 'a.json').write_text(json.dumps(document))
    table = _whole(str(tmp_path / 'a.json'))
    assert len(table.rows) == 4
    assert table.rows[2] == {
        'title': 'T',
        'context': 'Is Denver',
        'id': '1',
        'question': 'Who?',
        'answers': {'text': ['Denver'], 'answer_start': [3]},
    }
    assert table.rows[1]['answers'] == {'text': [], 'answer_start': []}
    assert table.where(1) == f'row 2 of {tmp_path}/a.json'


def test_quotes_of_tsv_mean_nothing_where_a_line_has_other_ones(tmp_path):
    """As in GLUE: one cell alone looks as if it were quoted."""
    lines = ['text\tlabel', '"so ""he"" said"\t1', '"open\t0', '"a" b\t1']
    source = write(tmp_path / 'a.tsv', '\n'.join(lines))
    found = [row['text'] for row in _whole(source).rows]
    assert found == ['"so ""he"" said"', '"open', '"a" b']


@pytest.mark.parametrize('cell', ['a\nb', 'a\tb', 'a, \r\n\r\n b\t'])
def test_quoted_cells_of_tsv_may_have_line_ends_and_tabs(tmp_path, cell):
    """As pandas writes them, which doubles no quotes where there are none."""
    rows = [{'text': text, 'label': '1'} for text in (cell, 'c', cell)]
    stream = io.StringIO(newline='')
    writer = csv.DictWriter(stream, ['text', 'label'], dialect='excel-tab')
    writer.writeheader()
    writer.writerows(rows)
    (tmp_path / 'a.tsv').write_bytes(stream.getvalue().encode())
    assert _whole(str(tmp_path / 'a.tsv')).rows == rows


@pytest.mark.parametrize(
    'names',
    [
        ('TRAIN.CSV', 'Dev.csv', 'test.Csv'),
        ('train.csv.GZ', 'val.csv.Gz', 'test.csv.gz'),
        ('train.csv.bz2', 'valid.csv.BZ2', 'Test.csv.tbz'),
        ('train.csv', 'dev_matched.csv', 'test_matched.csv'),
    ],
)
def test_names_of_splits_in_any_case(tmp_path, names):
    for split, name in zip(SPLITS, names, strict=True):
        pack = gzip.compress if 'gz' in name.lower() else bz2.compress
        content = f'text\n{split}\n'.encode()
        plain = name.lower().endswith('.csv')
        (tmp_path / name).write_bytes(content if plain else pack(content))
    found = [tables.read(str(tmp_path), split).rows[0]['text'] for split in SPLITS]
    assert found == list(SPLITS)


def test_a_pipe_is_no_table(tmp_path):
    for name in ('pipe', 'pipe.csv'):
        os.mkfifo(tmp_path / name)
        with pytest.raises(ValueError, match=f"{name}' is a pipe .* to a file, or"):
            tables.read(str(tmp_path / name), 'train')


def test_articles_of_squad_in_lines(tmp_path):
    asked = {'id': '1', 'question': 'Who?', 'answers': None}
    paragraph = {'context': 'Is Denver', 'qas': [asked, asked]}
    article = json.dumps({'title': 'T', 'paragraphs': [paragraph]})
    for content in (f'{article}\n{article}', article, f'[{article}, {article}]'):
        tables.forget()
        table = _whole(write(tmp_path / 'a.jsonl', content))
        assert len(table.rows) in (2, 4)
        for row in table.rows:
            assert (row['context'], row['question']) == ('Is Denver', 'Who?')
            assert row['answers'] == {'text': [], 'answer_start': []}
    source = write(tmp_path / 'b.jsonl', '{"a": 1}\n{"paragraphs": [{"qas": [{}]}]}')
    with pytest.raises(ValueError, match='line 2 of .*b.jsonl is no article as in SQu'):
        tables.read(source, 'train')
    rows = [{'paragraphs': ['one', 'qas']}, {'paragraphs': []}]  # of another task
    assert _whole(write_json(tmp_path / 'c.jsonl', rows)).rows == rows


@pytest.mark.parametrize(
    ('name', 'content', 'message'),
    [
        ('a.jsonl', '{"n": 1}\n' + '[' * 100_000, 'line 2 of .*a.jsonl is no JSON'),
        ('b.jsonl', '{"n": ' + '1' * 5000 + '}\n', 'line 1 of .*b.jsonl is no JSON'),
        ('c.csv', 'a,"b\n1,2\n', 'line 1 of .*c.csv cannot be read'),
        ('d.json', '[{"a": 1}, 2]', 'row 2 of .*d.json is no JSON object'),
        (
            'e.json',
            '{"data": [{"paragraphs": [{"qas": [{}]}]}]}',
            'row 1.*SQuAD.*contex',
        ),
        ('f.csv', 'a,,b\n1,2,3\n', 'first line of .*f.csv must name'),
        ('g.csv', ',\n1,2\n', 'first line of .*g.csv must name'),
        (
            'm.json',
            '{"a": {"0": 1}, "b": {"1": 2}}',
            'm.json. is empty: 1 rows are too',
        ),
        (
            'n.json',
            '{"a": {"x": 1}, "b": {"x": 2}}',
            'n.json. is empty: 1 rows are too',
        ),
        ('h.json', '[]', 'h.json. holds no rows'),
        ('i.json', '[[1], [2]]', 'row 1 of .*i.json is no JSON object'),
        ('o.json', '[\n {"a": 1},\n {"a": 2}\n {', r'o.json is no JSON .*line 4 col'),
        ('p.json', '{\n "data": [\n', r'p.json is no JSON .*line 3 column 1'),
        ('j.csv', 'ab\n\0x\n\0', "j.csv' has zeros around its line ends"),
        ('k.csv', 'a;b\n1;2;3\n', r'line 2 of .*k.csv has 3 cells, .* 2 \(a, b\)'),
        ('l.tsv', '"a"\t"b"\n"x\t1\n', 'line 2 of .*l.tsv cannot be read'),
    ],
)
def test_further_malformed_files_are_named(tmp_path, name, content, message):
    source = write(tmp_path / name, content)
    with pytest.raises(ValueError, match=message):
        tables.read(source, 'train')


def test_a_packed_table_is_one_file(tmp_path):
    with zipfile.ZipFile(tmp_path / 'a.csv.zip', 'w') as archive:
        archive.writestr('a.csv', _csv_bytes())
    assert _whole(str(tmp_path / 'a.csv.zip')).rows == _ROWS
    with zipfile.ZipFile(tmp_path / 'a.csv.zip', 'a') as archive:
        archive.writestr('b.csv', _csv_bytes())
    tables.forget()
    with pytest.raises(ValueError, match='holds 2 files, not one table'):
        _whole(str(tmp_path / 'a.csv.zip'))


@pytest.mark.parametrize(
    ('header', 'row', 'columns'),
    [
        ('id;text;score, mean', '1;a b;2', ['id', 'text', 'score, mean']),
        ('id;text;score, mean', '1;a, b;2', ['id', 'text', 'score, mean']),
        ('text;s, mean', '"a, ""b""\n";2', ['text', 's, mean']),
        ('text,label;name', 'a;b;c,2', ['text', 'label;name']),
        ('text\tlabel; name', 'a b\t2', ['text', 'label; name']),
    ],
)
def test_a_header_with_several_marks(tmp_path, header, row, columns):
    file = tmp_path / 'x.csv'
    file.write_text(f'{header}\n' + f'{row}\n' * 20, 'utf-8')
    assert list(_whole(str(file)).rows[0]) == columns


@pytest.mark.parametrize(
    ('cell', 'items'),
    [
        ('["EU", "rejects"]', ['EU', 'rejects']),
        ("['EU', 'rejects']", ['EU', 'rejects']),
        ("('EU', 'it''s')", None),
        ("['EU', \"it's\"]", ['EU', "it's"]),
        ('[3, 0]', [3, 0]),
        ('[]', []),
        ('[sic] he said', ['[sic]', 'he', 'said']),
        ('[ laughs ]', ['[', 'laughs', ']']),
        ('[1] As shown [2]', ['[1]', 'As', 'shown', '[2]']),
        ('(1) first', ['(1)', 'first']),
        ('a\u00a0b c\u3000d', ['a\u00a0b', 'c\u3000d']),
        ('  a  b ', ['a', 'b']),
        ("['EU' 'rejects']", None),
        ('[3 0]', None),
        ("['EU',\n 'rejects'", None),
        ('a\tb\n c', ['a', 'b', 'c']),
        ('( Reuters , London )', ['(', 'Reuters', ',', 'London', ')']),
        ('(Reuters, London)', ['(Reuters,', 'London)']),
        ('[ so , he said ]', ['[', 'so', ',', 'he', 'said', ']']),
        ('("so") he said', ['("so")', 'he', 'said']),
        ('U.S. (1) and {2}', ['U.S.', '(1)', 'and', '{2}']),
        ('(3, 0)', [3, 0]),
        ("[u'a', u'b']", ['a', 'b']),
        ('[B-ORG, O]', None),
        ('[EU,rejects]', None),
        ('{EU,rejects}', None),
        ("{'EU', 'rejects'}", None),
        ("array(['EU', 'rejects'], dtype=object)", ['EU', 'rejects']),
        ('array([nan, 1.0])', None),
        ('( 3 , 0 )', ['(', '3', ',', '0', ')']),
        ('[ 3 , 0 ]', ['[', '3', ',', '0', ']']),
        ('[ 3, 0 ]', [3, 0]),
        ('[ "EU" , "rejects" ]', ['EU', 'rejects']),
        ('[ 1. -1. ]', None),
        ('( 3,000 , 5 )', ['(', '3,000', ',', '5', ')']),
        ('{ a , b }', ['{', 'a', ',', 'b', '}']),
        ("{ it 's }", ['{', 'it', "'s", '}']),
        ("[ he 's ]", ['[', 'he', "'s", ']']),
        ("[it's so]", ["[it's", 'so]']),
        ('( " so " , he )', ['(', '"', 'so', '"', ',', 'he', ')']),
        ('[Smith, 2004], we show', ['[Smith,', '2004],', 'we', 'show']),
        ('[A, 1] and [B, 2]', ['[A,', '1]', 'and', '[B,', '2]']),
        ('tensor([3, 0])', None),
        ("[np.str_('EU'), np.str_('rejects')]", None),
        ('[np.int64(3)]', None),
        ("\"['EU', 'rejects']\"", None),
        ("dict_keys(['EU'])", None),
        ('[nan, 1.0]', None),
    ],
)
def test_cells_that_hold_a_list(cell, items):
    table = tables.Table([{'a': cell}], 'line', np.arange(1), 'x.csv')
    if items is not None:
        assert table.lists('a') == [items]
        return
    with pytest.raises(ValueError, match='line 0 of x.csv: .* notation other than'):
        table.lists('a')


@pytest.mark.parametrize(
    ('cell', 'value'),
    [
        ("{'text': ['x'], 'answer_start': [3]}", {'text': ['x'], 'answer_start': [3]}),
        ('{"text": []}', {'text': []}),
        ('{braces}', '{braces}'),
        (
            "{'text': array(['x'], dtype=object), 'answer_start': array([3])}",
            {'text': ['x'], 'answer_start': [3]},
        ),
        ('{f(x)}', '{f(x)}'),
        ('Denver', 'Denver'),
        ('("Denver")', '("Denver")'),
        ("('Denver', 'Boulder')", ['Denver', 'Boulder']),
    ],
)
def test_cells_that_hold_a_dict(cell, value):
    assert cells.printed(cell, 'here') == value
