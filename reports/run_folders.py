"""Reads what runs left in their folders; all reports start from this, and only this."""

import dataclasses
import json
import pathlib
import shlex
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from reformer_jax import metrics
from reformer_jax import run_folder

# Fields in which the runs of one row of a table may differ.
_SEEDS = ('seed', 'data.seed')
# Fields that say how a run is watched, not what it computes.
_WATCHING = tuple(name for name in run_folder.CHANGEABLE if name != 'steps')


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
      ValueError: a file in it is damaged, or the sweeps are of different config files.
    """
    configs: list[str] = []
    runs: list[Run] = []
    missing: list[str] = []
    for folder in map(pathlib.Path, folders):
        if (folder / 'config.json').is_file():
            runs.append(_read(folder))
            continue
        plan = folder / 'sweep.json'
        if not plan.is_file():
            raise FileNotFoundError(
                f'{folder} is neither a run folder (config.json) nor that of a sweep '
                '(sweep.json): give one that train.py or sweep.py was started with.'
            )
        sweep = json.loads(plan.read_text('utf-8'))
        configs.append(sweep['config'])
        for name in sweep['points']:
            if (folder / name / 'config.json').is_file():
                runs.append(_read(folder / name))
            else:
                missing.append(name)
    if len(set(configs)) > 1:
        raise ValueError(
            f'the folders are sweeps of different experiments, {", ".join(configs)}: '
            'make a report of each.'
        )
    return Collection(tuple(configs), tuple(runs), tuple(missing))


def check_alike(runs: Iterable[Run], allowed: Callable[[str], bool]) -> None:
    """Raises a ValueError if configs differ in a field that is not allowed to.

    Seeds, and what says how a run is watched, always may.
    """
    for field, values in differing(runs).items():
        if not allowed(field):
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


flat = run_folder.flat


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and standard deviation over several."""
    spread = statistics.stdev(values) if len(values) > 1 else None
    return statistics.fmean(values), spread


def origin(runs: Sequence[Run]) -> dict[str, Any]:
    """Columns on where the runs of a row come from, for a table."""
    starts = [run.starts[-1] for run in runs]
    steps = _distinct(run.last.get('step', 0) for run in runs)
    return {
        'steps': ', '.join(map(str, steps)) + _unfinished(runs),
        'seeds': ', '.join(str(run.fields['seed']) for run in runs),
        'hardware': '; '.join(_distinct(map(_hardware, starts))),
        'commit': ', '.join(_distinct(str(s['commit'])[:10] for s in starts)),
        'command': shlex.join(['python', *starts[0]['command']]),
    }


def _read(folder: pathlib.Path) -> Run:
    config = run_folder.load_config(folder)
    starts = (folder / 'runs.jsonl').read_text('utf-8').splitlines()
    try:
        records = metrics.read(folder / 'metrics.jsonl')
    except FileNotFoundError:
        records = []
    latest = {(record['step'], record['split']): record for record in records}
    return Run(
        folder.name,
        run_folder.flat(config),
        [json.loads(line) for line in starts],
        [latest[key] for key in sorted(latest)],
        run_folder.load_result(folder),
        run_folder.load_evaluations(folder),
    )


def _hardware(start: dict[str, Any]) -> str:
    host = f'{start.get("cpu_cores")} cores {start.get("processor")}'
    device = f'{start["devices"]} {start["device"]}'
    return host if start['device'] == 'cpu' else f'{device}, {host}'


def _unfinished(runs: Sequence[Run]) -> str:
    planned = max(run.fields['steps'] for run in runs)
    complete = all(run.last.get('step') == planned for run in runs)
    return '' if complete else f' of {planned}'


def _distinct(values: Iterable[Any]) -> list[Any]:
    return list({json.dumps(value): value for value in values}.values())
