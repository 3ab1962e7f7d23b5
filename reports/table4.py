"""The paper's Table 4: BLEU on newstest2014, English to German, beside ours.

  python train.py --config=configs/wmt14.py --workdir=runs/wmt14
  python eval.py --workdir=runs/wmt14 --splits=test
  python reports/table4.py runs/wmt14 --output=reports/results/table4

Reads the folders of runs and what eval.py left there: of each run the newest scores of
its own test split, however they were decoded. Runs of configs/multi30k.py get a table
of their own. --output also writes PREFIX.md, PREFIX.csv and, of the second table,
PREFIX_multi30k.csv.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from reformer_jax.runs import folder as run_folder
from reformer_jax.training import command_line
from reformer_jax.training import config as training_config
from reports import run_folders
from reports import tables

_WMT14, _MULTI30K = 'wmt14_translate', 'test_2016_flickr'
# In which an evaluation may differ from its run: where the run's tokenizer lies, and
# how the same is computed. (Decoding, too: it is shown.)
_MAY_DIFFER = {'data.tokenizer', *run_folder.SAVES_MEMORY}
# What names the data of a run.
_NAMING = ('data.dataset', 'data.source', 'data.source_column', 'data.target_column')
_ORIGIN = tuple(name for name in run_folders.ORIGIN if name != 'steps')


@dataclasses.dataclass(frozen=True)
class Published:
    """A row of the paper's table.

    Attributes:
      model: its name.
      bleu: tokenized, with compounds split, which we do not compute.
      uncased, cased: sacreBLEU, of international tokens.
      fields: what the config of such a run has; {} for a model that is not the paper's.
    """

    model: str
    bleu: float
    uncased: float | None = None
    cased: float | None = None
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)


def _reversible(width: int, steps: int, *, shared: bool, dropout: float) -> dict:
    return {
        'steps': steps,
        'model.d_model': width,
        'model.d_ff': 4 * width,
        'model.heads': width // 64,
        'model.layers': 6,
        'model.encoder.layers': 6,
        'model.pattern': ['full'],
        'model.share_embedding': shared,
        'model.tie_output': shared,
        'model.dropout': dropout,
    }


# Paper section 5, Table 4.
PAPER = (
    Published('Vaswani et al. 2017, base', 27.3),
    Published('Vaswani et al. 2017, big', 28.4),
    Published('Ott et al. 2018, big', 29.3),
    Published(
        'reversible, base, 100,000 steps',
        27.6,
        27.4,
        26.9,
        _reversible(512, 100_000, shared=True, dropout=0.1),
    ),
    Published(
        'reversible, base, 500,000 steps, no weight sharing',
        28.0,
        27.9,
        27.4,
        _reversible(512, 500_000, shared=False, dropout=0.1),
    ),
    Published(
        'reversible, big, 300,000 steps, no weight sharing',
        29.1,
        28.9,
        28.4,
        _reversible(1024, 300_000, shared=False, dropout=0.3),
    ),
)

Rows = list[dict[str, Any]]


def report(folders: Sequence[str]) -> tuple[str, Rows, Rows]:
    """The tables as Markdown; the rows of Table 4, and those of Multi30k.

    Raises:
      ValueError: a run is of other data.
    """
    collection = run_folders.collect(folders)
    data = [_data(run) for run in collection.runs]
    of_wmt14, of_multi30k = (
        [run for run, name in zip(collection.runs, data, strict=True) if name == wanted]
        for wanted in (_WMT14, _MULTI30K)
    )
    rows: Rows = []
    for published in PAPER:
        alike = [run for run in of_wmt14 if _is_of(run, published)]
        rows += [_row(published, run) for run in alike] or [_row(published, None)]
    ours = [r for r in of_wmt14 if not any(_is_of(r, published) for published in PAPER)]
    rows += [_row(None, run) for run in ours]
    others = [
        _scores(run, {name: name for name in ('bleu', 'bleu_lowercase', 'chrf')})
        for run in of_multi30k
    ]
    text = (
        '# Table 4: translation\n\n'
        'newstest2014, English to German. BLEU, of tokens with compounds split, is the '
        "paper's alone. Of sacreBLEU, with international tokens, uncased is "
        'bleu_intl_lowercase of eval.py and cased bleu_intl.\n\n'
        f'{tables.markdown(rows)}{tables.gaps(collection.missing)}'
    )
    if others:
        text += (
            '\n# Multi30k\n\n'
            'Captions, English to German, test_2016_flickr. BLEU as of mteval-v13a.\n\n'
            f'{tables.markdown(others)}'
        )
    return text, rows, others


def _data(run: run_folders.Run) -> str:
    """Which of the two test sets a run has."""
    fields = run.fields
    columns = [fields.get(f'data.{side}_column') for side in ('source', 'target')]
    names = [str(v) for n, v in fields.items() if n.startswith('data.split_names')]
    if columns == ['en', 'de']:
        if _WMT14 in fields['data.source']:
            return _WMT14
        if any(_MULTI30K in name for name in names):
            return _MULTI30K
    told = {n: v for n, v in fields.items() if n in _NAMING}
    raise ValueError(
        f'{run.name} is a run on other data, {told}: Table 4 is of English to German '
        f"on 'tfds:{_WMT14}/de-en', a second table on {_MULTI30K} of Multi30k. Leave "
        'it out.'
    )


def _is_of(run: run_folders.Run, published: Published) -> bool:
    wanted = published.fields
    return bool(wanted) and all(run.fields.get(n) == v for n, v in wanted.items())


def _row(published: Published | None, run: run_folders.Run | None) -> dict[str, Any]:
    scores = _scores(
        run, {'bleu_intl_lowercase': 'sacreBLEU uncased', 'bleu_intl': 'cased'}
    )
    if published is None:
        assert run is not None
        name = (
            f'{run.fields.get("model.encoder.layers")} + {run.fields["model.layers"]} '
            f'layers, d_model {run.fields["model.d_model"]}, '
            f'{run.fields["steps"]:,} steps'
        )
        theirs = dict.fromkeys(('BLEU (paper)', 'uncased (paper)', 'cased (paper)'))
        return {'model': name, **theirs, **scores}
    return {
        'model': published.model,
        'BLEU (paper)': published.bleu,
        'uncased (paper)': published.uncased,
        'cased (paper)': published.cased,
        **scores,
    }


def _scores(run: run_folders.Run | None, columns: dict[str, str]) -> dict[str, Any]:
    """Cells on a run and its newest scores; '-' where there are none.

    Args:
      run: the run; None for a row that has none.
      columns: score -> name of its column.
    """
    cells: dict[str, Any] = {'run': run.name if run else None}
    cells |= dict.fromkeys(columns.values(), '-')
    names = ('step', 'checkpoint', 'beams', 'length penalty', 'signature', *_ORIGIN)
    cells |= dict.fromkeys(names)
    if run is None:
        return cells
    origin = run_folders.origin([run])
    cells |= {name: origin[name] for name in _ORIGIN}
    found = _evaluation(run)
    if found is None:
        return cells
    test, planned = found['results']['test'], run.fields['steps']
    missing = f' of {planned}' if test['step'] < planned else ''
    decoding = training_config.decoding_defaults()
    decoding |= found['config'].get('decoding') or {}
    signatures = (found['signatures'][name] for name in columns if 'bleu' in name)
    return cells | {
        **{column: f'{test[name]:.2f}' for name, column in columns.items()},
        'step': f'{test["step"]}{missing}',
        'checkpoint': found.get('checkpoint'),
        'beams': decoding['beams'],
        'length penalty': decoding['length_penalty'],
        'signature': '; '.join(signatures),
    }


def _evaluation(run: run_folders.Run) -> dict[str, Any] | None:
    """The newest with scores of the test split, of what the run was trained as."""
    for evaluation in reversed(run.evaluations):
        config = evaluation['config']
        absent = run_folder.flat(training_config.absent(config))
        fields = absent | run_folder.flat(config)
        evaluated = dataclasses.replace(run, fields=fields)
        differing = run_folders.differing([run, evaluated])
        scored = 'bleu' in evaluation['results'].get('test', {})
        if scored and set(differing) <= _MAY_DIFFER:
            return evaluation
    return None


def main(arguments: list[str]) -> None:
    options = tables.parse(arguments, __doc__)
    text, rows, others = report(options.folders)
    print(text)
    if options.output:
        tables.write(options.output, text, rows)
        if others:
            tables.write_csv(f'{options.output}_multi30k.csv', others)


if __name__ == '__main__':
    command_line.script(main, sys.argv[1:])
