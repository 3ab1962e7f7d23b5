"""A sweep: the runs that a config file asks for, each with its folder and commands.

A config file says which in `sweep(add)`, and in `evaluations(add)`, if it has one, how
each of them is evaluated once it is trained:

    def sweep(add):
        for rounds in (1, 2, 4):
            add({'model.rounds': rounds})

Everything is checked before the first run: unknown fields, impossible values, points
that repeat each other.
"""

import contextlib
import copy
import dataclasses
import difflib
import json
import pathlib
import re
import runpy
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections

from reformer_jax import data
from reformer_jax.runs import folder as run_folder
from reformer_jax.runs import metrics
from reformer_jax.training import config as training_config
from reformer_jax.training import start

_LONGEST_NAME = 200  # file systems take 255 bytes
_PLAN = 'sweep.json'

Overrides = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Command:
    """One call of train.py or eval.py: the fields that it sets, by their dotted names,
    and the config that a run folder or an evaluation records of it."""

    program: str
    overrides: Overrides
    config: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Point:
    """One run of a sweep: its folder, how it is trained, how evaluated afterwards."""

    name: str
    folder: pathlib.Path
    train: Command
    evaluations: tuple[Command, ...]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The runs that one config file asks for.

    Attributes:
      file: the config file, with its variant, as config_flags takes it.
      workdir: the folder that has the run folders.
      given: fields that the command line sets, by their dotted names.
      points: the runs, in the order of the config file.
    """

    file: str
    workdir: pathlib.Path
    given: Overrides
    points: tuple[Point, ...]


def load(
    file: str,
    config: ml_collections.ConfigDict,
    workdir: str,
    *,
    given: Overrides,
    seeds: int = 1,
) -> Sweep:
    """Expands the sweep of a config file.

    Args:
      file, workdir, given: as in Sweep; nothing is written.
      config: what get_config of the file returned, with `given` set.
      seeds: runs of each point, with config.seed 0, 1, ...; 1 keeps the config's own.
        data.seed stays as it is: the same batches in the same order.

    Raises:
      ValueError: the file has no sweep; a point sets an unknown field, one that the
        command line sets too or an impossible value, or repeats another; its folder
        has another run.
    """
    defined = runpy.run_path(re.sub(r'\.py:.*$', '.py', file))
    if 'sweep' not in defined:
        raise ValueError(
            f'{file} has no sweep: define sweep(add) in it, with a call of '
            'add({field: value}) for each run, or train it once with train.py.'
        )
    listed = _listed(defined['sweep'], file)
    if not listed:
        raise ValueError(f'the sweep of {file} adds no point: call add at least once.')
    if seeds > 1:
        set_too = [point for point in listed if 'seed' in {**point, **given}]
        if set_too:
            raise ValueError(
                f'the seed is set by --seeds and by the sweep or the command line (in '
                f'{_name(set_too[0])}): leave it to one of them.'
            )
        # The config's own is the same run with --seeds and without.
        added = [{} if n == config.seed else {'seed': n} for n in range(seeds)]
        listed = [point | seed for point in listed for seed in added]
    evaluations = _listed(defined.get('evaluations', lambda add: None), file)
    folder = run_folder.absolute(workdir)
    points = tuple(
        _point(config, folder, given, overrides, evaluations) for overrides in listed
    )
    names = [point.name for point in points]
    _check_repeats('points', names, [point.train for point in points])
    for point in points:
        trained = point.train.config
        what = f'evaluations of point {point.name}'
        _check_repeats(what, list(map(_name, evaluations)), point.evaluations)
        if names.count(point.name) > 1:
            raise ValueError(
                f'two points of the sweep would have the folder {point.name}: their '
                'values differ only in characters that a folder name leaves out.'
            )
        if (point.folder / 'config.json').is_file():
            absent = training_config.absent(trained)
            run_folder.check_same_run(point.folder, trained, absent)
    return Sweep(file, folder, given, points)


def arguments(sweep: Sweep, point: Point, command: Command) -> list[str]:
    """The command line of a command after the program, to be quoted for a shell."""
    here, folder = pathlib.Path.cwd(), point.folder
    if folder.is_relative_to(here):
        folder = folder.relative_to(here)
    return [
        f'--config={sweep.file}',
        f'--workdir={folder}',
        *(f'--config.{f}={_text(value)}' for f, value in command.overrides.items()),
    ]


def _listed(define: Callable[..., None], file: str) -> list[dict[str, Any]]:
    """What `sweep` or `evaluations` of a config file adds."""
    listed: list[dict[str, Any]] = []

    def add(*given: Any) -> None:
        match given:
            case [dict(overrides)] if all(isinstance(name, str) for name in overrides):
                listed.append(dict(overrides))
            case _:
                raise ValueError(
                    f'{file} calls add{given}: give it a dict of fields, as in '
                    "add({'model.rounds': 2})."
                )

    try:
        define(add)
    except ValueError:
        raise
    except Exception as error:  # of code that is not ours
        kind = type(error).__name__
        raise ValueError(
            f'{define.__name__} of {file} raised {kind}: {error}'
        ) from error
    return listed


def _point(config, workdir, given, overrides, evaluations) -> Point:
    name = _name(overrides)

    def command(program: str, place: str, changes: Overrides) -> Command:
        if both := sorted(set(changes) & set(given)):
            raise ValueError(
                f'{", ".join(both)} is set on the command line and by {place}: leave '
                'it to one of them.'
            )
        checked = _checked(config, changes, place, str(workdir / name))
        return Command(program, {**given, **changes}, checked)

    train = command('train.py', f'point {name} of the sweep', overrides)
    evaluated = tuple(
        command('eval.py', f'evaluation {_name(e)} of {name}', {**overrides, **e})
        for e in evaluations
    )
    return Point(name, workdir / name, train, evaluated)


def _checked(config, overrides, place, folder) -> dict[str, Any]:
    """The config of a point as its run folder records it."""
    changed = copy.deepcopy(config)
    fields = run_folder.flat(config.to_dict())
    for field, value in overrides.items():
        if field not in fields:
            close = ' or '.join(difflib.get_close_matches(field, fields))
            raise ValueError(
                f'{place} sets {field!r}, which is no field of the config'
                + (f': did you mean {close}?' if close else '.')
            )
        try:
            changed.update_from_flattened_dict({field: value})
        except TypeError as error:
            raise ValueError(
                f'{place} sets {field}={value!r}, which is of another type than '
                f'{fields[field]!r} in the config ({error}).'
            ) from error
    try:
        # Standard output may be a script of commands.
        with contextlib.redirect_stdout(sys.stderr):
            recorded, _ = start.read(changed, folder)
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f'{place}: {error}') from error
    return run_folder.as_json(recorded)


def _check_repeats(what: str, names: list[str], commands: Sequence[Command]) -> None:
    seen: dict[str, str] = {}
    for name, command in zip(names, commands, strict=True):
        config = json.dumps(command.config, sort_keys=True)
        if config in seen:
            both = f'{seen[config]} and {name}'
            raise ValueError(f'{what} {both} of the sweep are the same: leave one out.')
        seen[config] = name


def _name(overrides: Overrides) -> str:
    """The folder of a point: its overrides, without what a shell would mind."""
    parts = []
    for field, value in overrides.items():
        several = value if isinstance(value, tuple) else (value,)
        text = re.sub(r'[^\w.+-]+', '-', '-'.join(map(str, several))).strip('-')
        parts.append(f'{field}={text}')
    name = ','.join(parts)
    if len(name) > _LONGEST_NAME:
        raise ValueError(
            f'the folder of a point would be named {name!r}, of {len(name)} '
            f'characters; the limit is {_LONGEST_NAME}: move what all points have in '
            'common to get_config.'
        )
    return name or 'base'


def _text(value: Any) -> str:
    """A value as config_flags reads it; a shell would mind single quotes."""
    if isinstance(value, tuple):
        return f'({"".join(json.dumps(part) + "," for part in value)})'
    return value if isinstance(value, str) else repr(value)


# --- What has been done -----------------------------------------------------------


def record(sweep: Sweep) -> None:
    """Writes down in the sweep's folder what it has, for reports to know the gaps.

    Raises:
      ValueError: the folder has another sweep, or is no folder for one.
    """
    file = sweep.workdir / _PLAN
    if sweep.workdir.is_file() or (sweep.workdir / 'config.json').is_file():
        raise ValueError(
            f'{sweep.workdir} is a file or the folder of a single run: give --workdir '
            'a new folder, which gets a folder for each run.'
        )
    names = [point.name for point in sweep.points]
    fields = run_folder.as_json(
        {'config': sweep.file, 'given': dict(sweep.given), 'points': names}
    )
    if file.is_file():
        earlier = run_folder.read_json(file)
        if set(earlier) != set(fields):
            raise ValueError(
                f'{file} has {sorted(earlier)} and not {sorted(fields)}: restore it, '
                'or give another --workdir.'
            )
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
    run_folder.write_json(file, fields)


def _identity(fields: Mapping[str, Any]) -> tuple[Any, Any]:
    given = {
        name: value
        for name, value in fields['given'].items()
        if not run_folder.is_changeable(name)
    }
    file, _, variant = fields['config'].partition('.py')
    return (pathlib.Path(file).resolve(), variant), given


def check_data(sweep: Sweep) -> None:
    """Opens the data of what is to be run, downloading what is to be downloaded.

    Raises:
      FileNotFoundError: there are none.
      ValueError: they are damaged, or too few.
    """
    unfinished = filter(missing, sweep.points)
    sections = [json.dumps(point.train.config['data']) for point in unfinished]
    for section in dict.fromkeys(sections):
        for split in ('train', 'validation'):
            data.open(json.loads(section)).batches(split)


def result(point: Point) -> dict[str, Any] | None:
    """What a run came to; None if it is not complete, as long as its config now is."""
    found, config = run_folder.load_result(point.folder), point.train.config
    lengths = {'steps': config['steps'], 'minutes': config.get('minutes', 0.0)}
    return found if found and lengths.items() <= found.items() else None


def missing(point: Point) -> list[Command]:
    """What is still to be called, in order."""
    trained = result(point)
    if trained is None:
        return [point.train, *point.evaluations]
    recorded = [
        record['config']
        for record in run_folder.load_evaluations(point.folder)
        if all(at['step'] == trained['step'] for at in record['results'].values())
    ]

    def is_done(command: Command) -> bool:
        asked = start.resolve(command.config, str(point.folder))
        differing = [
            run_folder.differing_fields(old, asked, training_config.absent(old))
            for old in recorded
        ]
        return any(all(map(run_folder.is_changeable, names)) for names in differing)

    return [command for command in point.evaluations if not is_done(command)]


def step(point: Point) -> int | None:
    """The last step that a run has noted; None if it has not noted any."""
    try:
        return metrics.read(point.folder / 'metrics.jsonl')[-1]['step']
    except (FileNotFoundError, ValueError, IndexError):
        return None


def status(point: Point) -> str:
    """How far a run is, in words."""
    if trained := result(point):
        left = len(missing(point))
        told = metrics.summary('validation', trained['step'], trained['validation'])
        return told + (f'; {left} evaluations to go' if left else '')
    if (at := step(point)) is None:
        return 'not started'
    return f'unfinished, at step {at} of {point.train.config["steps"]}'
