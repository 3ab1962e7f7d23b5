"""The folder of a sweep: which of its runs and evaluations there are already.

Besides the run folders it has sweep.json, the points and what they have in common.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from reformer_jax import data
from reformer_jax import metrics
from reformer_jax import run_folder
from reformer_jax import sweeps

_PLAN = 'sweep.json'


def record(sweep: sweeps.Sweep) -> None:
    """Writes down in the sweep's folder what it has, for reports to know the gaps.

    Raises:
      ValueError: the folder has another sweep, or is no folder for one.
    """
    file = sweep.workdir / _PLAN
    if sweep.workdir.is_file() or (sweep.workdir / 'config.json').is_file():
        raise ValueError(
            f'{sweep.workdir} is a file or the folder of a single run: give --workdir '
            'a new folder for the sweep, which gets a folder for each run.'
        )
    names = [point.name for point in sweep.points]
    fields = run_folder.as_json(
        {'config': sweep.file, 'given': dict(sweep.given), 'points': names}
    )
    if file.is_file():
        earlier = json.loads(file.read_text('utf-8'))
        if _identity(earlier) != _identity(fields):
            raise ValueError(
                f'{sweep.workdir} holds another sweep, of {earlier["config"]} with '
                f'{earlier["given"]}: give this one, of {sweep.file} with '
                f'{fields["given"]}, another --workdir.'
            )
        # Points of an earlier state of the config file that have been run.
        old = [n for n in earlier['points'] if (sweep.workdir / n).is_dir()]
        fields['points'] = list(dict.fromkeys([*old, *names]))
    sweep.workdir.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f'.{_PLAN}.tmp')
    temporary.write_text(json.dumps(fields, indent=1), 'utf-8')
    temporary.rename(file)


def check_data(sweep: sweeps.Sweep) -> None:
    """Opens the data of what is to be run, downloading what is to be downloaded.

    Raises:
      FileNotFoundError: there are none.
      ValueError: they are damaged, or too few.
    """
    sections = {
        json.dumps(point.train.config['data']): point.train.config['data']
        for point in sweep.points
        if missing(point)
    }
    for section in sections.values():
        for split in ('train', 'validation'):
            data.build(section, split)


def is_trained(point: sweeps.Point) -> bool:
    """Whether a run is complete, as long as its config now says."""
    result = run_folder.load_result(point.folder)
    config = point.train.config
    return result is not None and all(
        result[name] == config[name] for name in ('steps', 'minutes')
    )


def missing(point: sweeps.Point) -> list[sweeps.Command]:
    """What is still to be called, in order."""
    if not is_trained(point):
        return [point.train, *point.evaluations]
    result = run_folder.load_result(point.folder)
    assert result is not None
    done = [
        _computed(record['config'])
        for record in run_folder.load_evaluations(point.folder)
        if all(split['step'] == result['step'] for split in record['results'].values())
    ]
    return [c for c in point.evaluations if _computed(c.config) not in done]


def status(point: sweeps.Point) -> str:
    """How far a run is, in words."""
    left = len(missing(point))
    if is_trained(point):
        result = run_folder.load_result(point.folder)
        assert result is not None
        told = metrics.summary('validation', result['step'], result['validation'])
        return told + (f'; {left} evaluations to go' if left else '')
    try:
        last = metrics.read(point.folder / 'metrics.jsonl')[-1]
    except (FileNotFoundError, ValueError, IndexError):
        return 'not started'
    return f'unfinished, at step {last["step"]} of {point.train.config["steps"]}'


def _identity(fields: Mapping[str, Any]) -> tuple[Any, Any]:
    given = {
        name: value
        for name, value in fields['given'].items()
        if name.split('.')[0] not in run_folder.CHANGEABLE
    }
    file, _, variant = fields['config'].partition('.py')
    return (pathlib.Path(file).resolve(), variant), given


def _computed(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without the path of its tokenizer, of which the run keeps a copy."""
    fields = run_folder.flat(config)
    fields.pop('data.tokenizer', None)
    return fields
