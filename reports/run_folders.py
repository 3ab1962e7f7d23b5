"""Reads what runs left in their folders; all reports start from this, and only this."""

import contextlib
import dataclasses
import json
import pathlib
import shlex
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from reformer_jax.runs import folder as run_folder
from reformer_jax.runs import metrics
from reformer_jax.training import config as training_config

# Fields in which the runs of one row of a table may differ.
_SEEDS = ('seed', 'data.seed')
# Fields that `attention` names.
ATTENTION = ('model.pattern', 'model.rounds')
# Columns of `origin`.
ORIGIN = ('steps', 'seeds', 'hardware', 'commit', 'command')
# How long a run is: shown, and no experiment of its own.
_LENGTHS = ('steps', 'minutes')
# Fields that say how a run is watched, not what it computes.
_WATCHING = tuple(name for name in run_folder.CHANGEABLE if name not in _LENGTHS)


@dataclasses.dataclass(frozen=True)
class Run:
    """What one run folder holds.

    Attributes:
      name: of the folder.
      fields: the config, by dotted names.
      starts: the lines of runs.jsonl, oldest first.
      records: the lines of metrics.jsonl, of two of one step and split the later.
      result: what the run came to; None if it is not complete.
      evaluations: what eval.py wrote, oldest first.
    """

    name: str
    fields: dict[str, Any]
    starts: list[dict[str, Any]]
    records: list[dict[str, Any]]
    result: dict[str, Any] | None
    evaluations: list[dict[str, Any]]

    @property
    def last(self) -> dict[str, Any]:
        """The last evaluation on the validation split, {} if there is none."""
        if self.result is not None:
            return {'step': self.result['step'], **self.result['validation']}
        return next(iter(reversed(self.curve())), {})

    @property
    def is_complete(self) -> bool:
        """Whether it has run as long as its config says."""
        return self.result is not None and all(
            self.result.get(name) == self.fields[name] for name in _LENGTHS
        )

    def curve(self) -> list[dict[str, Any]]:
        """The evaluations on the validation split while training, by step."""
        return [r for r in self.records if r['split'] == 'validation']


@dataclasses.dataclass(frozen=True)
class Collection:
    """The runs of a report.

    Attributes:
      configs: the config files of the sweeps that they belong to.
      runs: those that have been started.
      missing: names of points of the sweeps that have not.
    """

    configs: tuple[str, ...]
    runs: tuple[Run, ...]
    missing: tuple[str, ...]


def collect(folders: Sequence[str]) -> Collection:
    """Reads folders of sweeps and of single runs.

    Raises:
      FileNotFoundError: a folder is neither.
      ValueError: a file in it is damaged, the sweeps are of different config files, or
        two runs are the same.
    """
    configs: list[str] = []
    runs: list[Run] = []
    missing: list[str] = []
    for folder in map(pathlib.Path, folders):
        if _has_started(folder):
            runs.append(_read(folder))
            continue
        plan = folder / 'sweep.json'
        if not plan.is_file():
            raise FileNotFoundError(
                f'{folder} is neither a run folder (runs.jsonl) nor that of a sweep '
                '(sweep.json): give one that train.py or sweep.py was started with.'
            )
        sweep = json.loads(plan.read_text('utf-8'))
        configs.append(sweep['config'])
        for name in sweep['points']:
            if _has_started(folder / name):
                runs.append(_read(folder / name))
            else:
                missing.append(name)
    if len(set(configs)) > 1:
        raise ValueError(
            f'the folders are sweeps of different experiments, {", ".join(configs)}: '
            'make a report of each.'
        )
    _check_repeats(runs)
    return Collection(tuple(configs), tuple(runs), tuple(missing))


def check_alike(runs: Iterable[Run], allowed: Callable[[str], bool]) -> None:
    """Raises a ValueError if configs differ in a field that is not allowed to.

    Seeds, and what says how long a run is and how it is watched, always may.
    """
    for field, values in differing(runs).items():
        if field not in _LENGTHS and not allowed(field):
            shown = ' and '.join(sorted(map(str, values)))
            raise ValueError(
                f'the runs are different experiments, they differ in {field}: {shown}. '
                'Make a report of each.'
            )


def differing(runs: Iterable[Run]) -> dict[str, list[Any]]:
    """The config fields in which runs differ, seeds aside, and their values."""
    runs = list(runs)
    names = dict.fromkeys(name for run in runs for name in run.fields)
    values = {
        name: _distinct(run.fields.get(name, run_folder.ABSENT) for run in runs)
        for name in names
        if name not in _SEEDS and name.split('.')[0] not in _WATCHING
    }
    return {name: found for name, found in values.items() if len(found) > 1}


def by_experiment(runs: Iterable[Run]) -> list[list[Run]]:
    """Runs grouped by their configs, seeds aside, in their order."""
    runs = list(runs)
    fields = list(differing(runs))
    groups: dict[str, list[Run]] = {}
    for run in runs:
        key = json.dumps([run.fields.get(field) for field in fields])
        groups.setdefault(key, []).append(run)
    return list(groups.values())


def attention(fields: dict[str, Any]) -> str:
    """The attention of a model as the paper names it: full, LSH-4; local/LSH-2."""
    names = {'lsh': f'LSH-{fields["model.rounds"]}'}
    return '/'.join(names.get(kind, kind) for kind in fields['model.pattern'])


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and standard deviation over several."""
    spread = statistics.stdev(values) if len(values) > 1 else None
    return statistics.fmean(values), spread


def origin(runs: Sequence[Run]) -> dict[str, Any]:
    """Columns on where the runs of a row come from, `ORIGIN`, for a table."""
    starts = [run.starts[-1] for run in runs]
    steps = _distinct(run.last.get('step', 0) for run in runs)
    return {
        'steps': ', '.join(map(str, steps)) + _unfinished(runs),
        'seeds': ', '.join(str(run.fields['seed']) for run in runs),
        'hardware': '; '.join(_distinct(map(_hardware, starts))),
        'commit': ', '.join(_distinct(_commit(start) for start in starts)),
        'command': shlex.join(['python', *starts[0]['command']]),
    }


def _has_started(folder: pathlib.Path) -> bool:
    starts = folder / 'runs.jsonl'
    return starts.is_file() and starts.stat().st_size > 0


def _check_repeats(runs: Sequence[Run]) -> None:
    seen: dict[str, str] = {}
    for run in runs:
        fields = json.dumps(
            {n: v for n, v in run.fields.items() if n.split('.')[0] not in _WATCHING}
        )
        if fields in seen:
            raise ValueError(
                f'{seen[fields]} and {run.name} are the same run with the same seed, '
                'which would count twice: leave one out.'
            )
        seen[fields] = run.name


def _read(folder: pathlib.Path) -> Run:
    config = run_folder.recorded_config(folder)
    starts = []
    for line in (folder / 'runs.jsonl').read_text('utf-8', 'replace').splitlines():
        with contextlib.suppress(ValueError):  # of a start that was killed
            starts.append(json.loads(line))
    starts = [start for start in starts if isinstance(start, dict)]
    if not starts:
        raise ValueError(f'{folder}/runs.jsonl has no line of a start: it is damaged.')
    try:
        records = metrics.read(folder / 'metrics.jsonl')
    except FileNotFoundError:
        records = []
    latest = {(record['step'], record['split']): record for record in records}
    return Run(
        folder.name,
        run_folder.flat(training_config.absent(config)) | run_folder.flat(config),
        starts,
        [latest[key] for key in sorted(latest)],
        run_folder.load_result(folder),
        run_folder.load_evaluations(folder),
    )


def _hardware(start: dict[str, Any]) -> str:
    host = f'{start.get("cpu_cores")} cores {start.get("processor")}'
    device = f'{start["devices"]} {start["device"]}'
    return host if start['device'] == 'cpu' else f'{device}, {host}'


def _commit(start: dict[str, Any]) -> str:
    """Ten digits of it, and whether the code had been changed since."""
    commit, dash, dirty = str(start['commit']).partition('-')
    return commit[:10] + dash + dirty


def _unfinished(runs: Sequence[Run]) -> str:
    planned = max(run.fields['steps'] for run in runs)
    return '' if all(run.is_complete for run in runs) else f' of {planned}'


def _distinct(values: Iterable[Any]) -> list[Any]:
    return list({json.dumps(value): value for value in values}.values())
