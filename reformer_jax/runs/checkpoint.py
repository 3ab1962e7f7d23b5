"""Checkpoints of a run: its state, its place in the data and its metrics.

Only this file imports orbax. A state is saved as one flat dictionary of arrays with
readable names (`params/layers/up/kernel`), so that a checkpoint does not depend on
the classes that hold the arrays and can be inspected without them. orbax writes a
checkpoint under a temporary name and renames it when it is complete, with the digests
of its files: a killed run leaves no half checkpoint that a restore would pick, and
what is damaged later is found before it is used.
"""

import contextlib
import copy
import ctypes
import dataclasses
import itertools
import json
import logging
import math
import os
import pathlib
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from jax.experimental import multihost_utils

from reformer_jax.runs import folder as run_folder
from reformer_jax.runs import integrity
from reformer_jax.runs import metrics as metrics_lib
from reformer_jax.runs import processes
from reformer_jax.runs import writing

_METRICS = 'metrics/metrics'
_DAMAGED = 'damaged_'
_REMOVING = 'removing'
_MANIFEST = 'state/manifest.ocdbt'
_ZARRAY = b'/.zarray'  # behind the name of an array: its shape and dtype, as JSON
# orbax writes into it after the digests; nothing reads it.
_NOT_SEALED = '_CHECKPOINT_METADATA'

# orbax measures how long a save takes by the wall clock, which may be set on by a day:
# ten years, and nothing that waits for the folder's creation, for 300 s at most.
_SAVING = ocp.AsyncOptions(
    timeout_secs=10 * 365 * 24 * 3600, create_directories_asynchronously=False
)

# orbax asks it twice a save, for a log that nobody reads, and TensorStore never frees
# what it answers (0.1.86): 140 objects, and 50 kB of the process with all around them.
tensorstore.experimental_collect_matching_metrics = lambda *_, **__: []

# And for each array where the checkpoint's folder is, with the same answer each time,
# which is never freed either: 33 kB a save.
_to_json = tensorstore.KvStore.Spec.to_json
_answered: dict[str, Any] = {}  # the last only


def _to_json_once(spec: tensorstore.KvStore.Spec, *args: Any, **settings: Any) -> Any:
    question = f'{spec} {args} {settings}'
    answer = _answered.get(question)
    if answer is None:
        answer = _to_json(spec, *args, **settings)
        _answered.clear()
        _answered[question] = answer
    return copy.deepcopy(answer)  # which is the caller's to change


tensorstore.KvStore.Spec.to_json = _to_json_once  # type: ignore[method-assign,assignment]


def exists(workdir: str | os.PathLike[str]) -> bool:
    """Whether the run in a folder has saved a checkpoint, be it damaged since."""
    folder = _directory(workdir)
    return bool(_on_disk(folder)) or any(folder.glob(f'{_DAMAGED}*'))


class Checkpointer:
    """Saves and restores the checkpoints of one run folder.

    A context manager: leaving it waits for the save in progress. Opened with `keep`
    it saves, and removes what killed saves left behind; without, it only reads and
    changes nothing, so that a run can be evaluated while it trains. Every process of
    a run calls every method.
    """

    def __init__(self, workdir: str | os.PathLike[str], *, keep: int | None = None):
        """Opens `<workdir>/checkpoints`.

        Of the last checkpoints `keep` are kept, at least 1 (ValueError), and that of
        the lowest validation loss besides; None opens for reading only.
        """
        if keep is not None and keep < 1:
            raise ValueError(f'keep={keep} checkpoints: it must be at least 1.')
        self._directory = _directory(workdir)
        self._keep = keep
        self._saving = 0
        self._closing = contextlib.ExitStack()
        self._plain = self._closing.enter_context(_plainly_named(self._directory))
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager | None:
        if self._keep is None:
            return None
        if os.path.lexists(self._directory) and not self._directory.is_dir():
            raise ValueError(
                f'{self._directory} is no folder: move it away to save checkpoints.'
            )
        if jax.process_index() == 0:  # the others wait in orbax
            with writing.named(self._directory):
                self._directory.mkdir(parents=True, exist_ok=True)
        logging.getLogger('absl').addFilter(_not_raised_too)
        return ocp.CheckpointManager(
            self._plain,
            item_handlers={
                'state': ocp.StandardCheckpointHandler(),
                'data': grain.checkpoint.CheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(
                cleanup_tmp_directories=True,
                preservation_policy=_Kept(self._directory, self._keep),
                todelete_subdir=_REMOVING,  # or a kill would leave half of one
                async_options=dataclasses.replace(
                    _SAVING, post_finalization_callback=self._seal
                ),
                lightweight_initialize=True,  # reads no file that may be damaged
            ),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: Any, error: BaseException | None, __: Any) -> None:
        try:
            with self._closing, self._writing():
                if self._manager is not None:
                    self._settle(self._manager)
                    self._manager.close()
        except OSError as failure:
            if error is None:
                raise
            if str(failure) != str(error):
                error.add_note(str(failure))

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns what orbax raises where it cannot write into one error that says so."""
        try:
            yield
        except Exception as error:
            if not (problem := _of_disk(error)):
                raise
            failure = writing.failure(self._directory, problem)
            raise OSError(f'{failure} Earlier checkpoints are intact.') from None

    def save(
        self, step: int, state: Any, iterator: grain.DatasetIterator | None = None
    ) -> bool:
        """Saves a pytree of arrays as of `step`, and the place of the data's iterator.

        This goes on in the background. When it returns, the iterator may move on and
        the arrays may be donated: orbax has copied them to the host, or, where they are
        there already, holds them, and a donation then makes a copy. A failure to write
        is raised by the next `save` or at the end.

        Returns:
          False, with nothing written, when the step has a checkpoint already.

        Raises:
          OSError: there is no space, or no access, for this one or the one before.
          ValueError: opened for reading only.
        """
        if self._manager is None:
            raise ValueError(
                f'cannot save step {step}: the checkpoints of {self._directory.parent} '
                'are open for reading only. Give Checkpointer a number to keep.'
            )
        if step in self._steps():
            return False
        _trim()
        self._saving = step
        items = {
            'state': ocp.args.StandardSave(_named(state)[0]),
            'metrics': ocp.args.JsonSave({}),
        }
        if iterator is not None:
            items['data'] = grain.checkpoint.CheckpointSave(iterator)
        args = ocp.args.Composite(**items)
        with self._writing():
            return self._manager.save(step, args=args, force=True)

    def _seal(self) -> None:
        """Writes the digests; orbax calls this last before it renames the folder."""
        if jax.process_index() != 0:
            return
        folder = self._directory / f'{self._saving}.orbax-checkpoint-tmp'
        if not (folder / _MANIFEST).is_file():
            raise RuntimeError(
                f'checkpoint {self._saving} in {self._directory} cannot be restored: '
                f'orbax made no {_MANIFEST}. Give another --workdir.'
            )
        integrity.seal(folder, but=[_NOT_SEALED])

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds to a checkpoint, if the step has one, how its state was evaluated.

        A checkpoint without a finite 'loss' among its metrics is never the best one.
        """
        if step not in self._steps():
            return
        if jax.process_index() == 0:
            folder = self._directory / str(step)
            with writing.named(folder / _METRICS):
                (folder / _METRICS).parent.mkdir(exist_ok=True)
            with self._naming(step):
                integrity.replace_json(folder, _METRICS, metrics)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f'metrics of step {step}')

    def resume(
        self, template: Any, iterator: grain.DatasetIterator
    ) -> tuple[Any, int] | None:
        """Restores the newest checkpoint that is not damaged, to go on from there.

        Newer ones, which are damaged, are moved aside to `checkpoints/damaged_<step>`,
        and a line says so.

        Returns:
          The state and its step; None where the run has saved none yet.

        Raises:
          ValueError: all are damaged, and left as they are; or as `restore`.
        """
        damaged: dict[int, str] = {}
        for step in reversed(self._steps()):
            try:
                restored = self.restore(template, iterator, step)
            except integrity.DamagedError as error:
                damaged[step] = str(error)
            else:
                self._move_aside(damaged, step)
                return restored
        aside = sorted(path.name for path in self._directory.glob(f'{_DAMAGED}*'))
        if damaged or aside:
            told = [*damaged.values(), *(f'{name}: moved aside' for name in aside)]
            raise ValueError(
                f'no checkpoint in {self._directory} is intact, so nothing is trained:'
                f'\n{run_folder.listed(told)}\nRestore one from a copy, or give '
                'another --workdir.'
            )
        return None

    def _move_aside(self, damaged: Mapping[int, str], intact: int) -> None:
        for step, problem in damaged.items():
            numbered = (f'{_DAMAGED}{step}.{number}' for number in itertools.count(1))
            names = itertools.chain([f'{_DAMAGED}{step}'], numbered)
            name = next(n for n in names if not (self._directory / n).exists())
            if jax.process_index() == 0:
                (self._directory / str(step)).rename(self._directory / name)
            metrics_lib.say(
                f'WARNING: {problem}; moved to {name}, going on from step {intact}'
            )
        if damaged:
            if jax.process_count() > 1:
                multihost_utils.sync_global_devices('damaged checkpoints')
            assert self._manager is not None
            self._manager.close()  # orbax is to look again at what there is
            self._manager = self._open()

    def restore(
        self,
        template: Any,
        iterator: grain.DatasetIterator | None = None,
        step: int | str | None = None,
    ) -> tuple[Any, int]:
        """Restores a checkpoint straight into the shardings of a template.

        Args:
          template: a pytree like the saved one, of arrays or of `jax.ShapeDtypeStruct`s
            with shardings. Neither devices nor processes need be as many as those of
            the run that saved.
          iterator: set, in place, to where the saved one stood.
          step: which checkpoint, as a number or its digits; 'best' for that of the
            lowest loss, None for the latest.

        Returns:
          The state and its step.

        Raises:
          FileNotFoundError: there is no such checkpoint.
          DamagedError: a file of it, which this names, is not as it was written.
          ValueError: the checkpoint has other arrays than the template, or no iterator.
        """
        state, step = self.restore_part(template, step, whole=True)
        if iterator is not None:
            # The saved iterator's state: that of any process, for all read the same.
            folder = self._directory / str(step)
            files = (folder / 'data').glob('process_*.json')
            file = min(files, default=None)
            if file is None:
                workdir = self._directory.parent
                raise ValueError(
                    f'checkpoint {step} in {workdir} has no place in the data, as that '
                    'of an imported model: start another run with '
                    f'--config.init_from={workdir}.'
                )
            name = file.relative_to(folder).as_posix()
            with self._naming(step):
                iterator.set_state(integrity.read_json(folder, name))
        return state, step

    def restore_part(
        self, template: Any, step: int | str | None = None, *, whole: bool = False
    ) -> tuple[Any, int]:
        """As `restore`; unless `whole`, of some arrays, as {'model': ...}."""
        step = self._choose(step)
        self._verify(step)
        named, structure = _named(template)
        abstract = {name: _abstract(name, leaf) for name, leaf in named.items()}
        restoring = ocp.args.PyTreeRestore(
            item=abstract,
            restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
            partial_restore=not whole,
        )
        folder = self._plain / str(step) / 'state'
        with self._naming(step):
            saved = _saved(folder)
        self._check_fits(step, saved, abstract, whole)
        with contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
            with self._naming(step):
                arrays = handler.restore(folder, args=restoring)
        return structure.unflatten([arrays[name] for name in named]), step

    def latest_step(self) -> int | None:
        """The step of the newest checkpoint; waits for a save in progress."""
        return max(self._steps(), default=None)

    def latest_steps(self, count: int) -> list[int]:
        """The steps of the newest `count` checkpoints, ascending.

        Raises:
          ValueError: there are fewer.
        """
        steps = self._steps()
        if count > len(steps):
            raise ValueError(
                f'the mean of {count} checkpoints, and {self._directory} has '
                f'{len(steps)}: ask for fewer, or train with a higher '
                'config.keep_checkpoints.'
            )
        return steps[-count:]

    def best_step(self) -> int | None:
        """The step of the lowest loss, of equal ones the last; None if none has one."""
        qualities = {}
        for step in self._steps():
            with self._naming(step):
                qualities[step] = _quality(self._directory / str(step))
        return _best(qualities)

    def _steps(self) -> list[int]:
        if self._manager is None:
            return _on_disk(self._directory)
        with self._writing():
            self._settle(self._manager)
        # Not read from the disk, which several processes may see at different times.
        steps = sorted(self._manager.all_steps())
        return [step for step in steps if not (self._directory / str(step)).is_file()]

    def _settle(self, manager: ocp.CheckpointManager) -> None:
        """Waits for a save in progress; what is not to be kept then goes."""
        manager.wait_until_finished()
        if jax.process_index() == 0:
            shutil.rmtree(self._directory / _REMOVING, ignore_errors=True)

    def _verify(self, step: int) -> None:
        """Compares the files of a checkpoint with their digests, in process 0."""
        folder = self._directory / str(step)

        def problem() -> str:
            if not integrity.is_sealed(folder):
                # Not on standard output, where a sample is.
                told = f'checkpoint {step} in {self._directory} is not verified:'
                print(f'{told} it has no digests, as once none had', file=sys.stderr)
                return ''
            try:
                integrity.check(folder)
            except integrity.DamagedError as error:
                return str(error)
            return ''

        if found := processes.of_first(problem):
            raise self._damaged(step, found)

    @contextlib.contextmanager
    def _naming(self, step: int) -> Iterator[None]:
        """Turns errors of reading a checkpoint into one that names it."""
        try:
            yield
        except integrity.DamagedError as error:
            raise self._damaged(step, str(error)) from error
        except (ValueError, LookupError, TypeError, AttributeError, OSError) as error:
            if integrity.is_sealed(self._directory / str(step)):
                raise  # the files are as they were written
            told = str(error).strip('. \n').splitlines() or [type(error).__name__]
            raise self._damaged(step, told[0][:300]) from error

    def _damaged(self, step: int, problem: str) -> integrity.DamagedError:
        others = [other for other in _on_disk(self._directory) if other != step]
        other = f', or use --checkpoint={max(others)}' if others else ''
        remedy = f'. Restore it from a copy{other}.' if self._manager is None else ''
        return integrity.DamagedError(
            f'checkpoint {step} in {self._directory} is damaged or incomplete: '
            f'{problem}{remedy}'
        )

    def _choose(self, step: int | str | None) -> int:
        steps = self._steps()
        if not steps:
            raise FileNotFoundError(
                f'no checkpoint in {self._directory}: train first, or give --workdir '
                'the folder of a run that has saved one.'
            )
        chosen = self.best_step() if step == 'best' else step
        if step is None:
            chosen = steps[-1]
        elif isinstance(step, str) and step.isdecimal():
            chosen = int(step)
        if not isinstance(chosen, int) or chosen not in steps:
            missing = 'best step' if step == 'best' else f'step {step!r}'
            raise FileNotFoundError(
                f'no checkpoint of {missing} in {self._directory}. It has: '
                f'{", ".join(map(str, steps))}. Ask for one of them, for none (the '
                "latest), or for 'best' when some were evaluated."
            )
        return chosen

    def _check_fits(
        self, step: int, saved: Mapping[str, Any], asked: Mapping[str, Any], whole: bool
    ) -> None:
        """Compares with the checkpoint's metadata, before any array is read."""
        names = {**asked, **saved} if whole else asked
        pairs = [(n, _shape(saved.get(n)), _shape(asked.get(n))) for n in names]
        differing = [
            f'{name}: {old} in the checkpoint, {new} asked for'
            for name, old, new in pairs
            if old != new
        ]
        if differing:
            raise ValueError(
                f'checkpoint {step} in {self._directory} has other arrays than the '
                f'model asked for:\n{run_folder.listed(differing)}\nThis is the wrong '
                'config for this workdir: use its config.json, or another --workdir.'
            )


def _trim() -> None:
    """Gives back what glibc has freed and kept, in an arena for each few of the threads
    that save: 47 kB more with each save."""
    if sys.platform == 'linux':
        trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)  # not in musl
        if trim is not None:
            trim(0)


def _of_disk(error: BaseException | None) -> str:
    """Why a file could not be written, as an error or what led to it says; or ''."""
    while error is not None:
        if isinstance(error, OSError) and error.strerror:
            return error.strerror
        if found := re.search(r"os_error_code='(\d+)'", str(error)):  # TensorStore's
            return os.strerror(int(found[1]))
        error = error.__cause__ or error.__context__
    return ''


def _not_raised_too(record: logging.LogRecord) -> bool:
    """Not the page from each of orbax's threads of an error that it raises as well."""
    return not (record.exc_info and 'orbax' in record.pathname)


def _directory(workdir: str | os.PathLike[str]) -> pathlib.Path:
    return run_folder.absolute(workdir) / 'checkpoints'


def _on_disk(directory: pathlib.Path) -> list[int]:
    """The steps of the complete checkpoints in a folder, ascending."""
    if not directory.is_dir():
        return []
    return sorted(
        int(path.name)
        for path in directory.iterdir()
        # Not 0100, a copy that somebody made.
        if path.name.isdecimal() and path.name == str(int(path.name)) and path.is_dir()
    )


@contextlib.contextmanager
def _plainly_named(directory: pathlib.Path) -> Iterator[pathlib.Path]:
    """A name for a folder that is no pattern where orbax has a glob, and has no
    backslash, which TensorStore takes for a slash."""
    if not re.search(r'[][*?\\]', str(directory)):
        yield directory
        return
    with tempfile.TemporaryDirectory() as folder:
        link = pathlib.Path(folder, 'checkpoints')
        link.symlink_to(directory)
        yield link


class _Kept:
    """Which checkpoints stay: the last, the best, and what may be the best of them."""

    def __init__(self, directory: pathlib.Path, last: int):
        self._directory = directory
        self._last = last

    def should_preserve(
        self, checkpoints: Sequence[Any], *, context: Any
    ) -> list[bool]:
        del context
        folders = {c.step: self._directory / str(c.step) for c in checkpoints}
        stray = {step for step, folder in folders.items() if folder.is_file()}
        steps = [step for step in folders if step not in stray]
        qualities, unknown = {}, set()
        for step in steps:
            try:
                qualities[step] = _quality(folders[step])
            except integrity.DamagedError:
                unknown.add(step)
        kept = {*steps[-self._last :], _best(qualities), *unknown, *stray}
        return [step in kept for step in folders]


def _quality(folder: pathlib.Path) -> float:
    """What the best checkpoint has most of; infinitely little if it has no loss."""
    metrics = integrity.read_json(folder, _METRICS)
    loss = metrics.get('loss') if isinstance(metrics, dict) else None
    return -loss if loss is not None and math.isfinite(loss) else -math.inf


def _best(qualities: Mapping[int, float]) -> int | None:
    known = [(q, step) for step, q in qualities.items() if q > -math.inf]
    return max(known)[1] if known else None


def _named(tree: Any) -> tuple[dict[str, Any], jax.tree_util.PyTreeDef]:
    """A tree's leaves by readable names, in the tree's order, and its structure."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    named = {}
    for path, leaf in leaves:
        # A flax Variable is a node of one leaf, `value`: an internal name, left out.
        if len(path) > 1 and path[-1] == jax.tree_util.GetAttrKey('value'):
            path = path[:-1]
        named[jax.tree_util.keystr(path, simple=True, separator='/')] = leaf
    assert len(named) == len(leaves), 'two leaves of the state have one name'
    return named, structure


def _abstract(name: str, leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, 'sharding', None)
    if sharding is None:
        raise ValueError(
            f'{name} of the template has no sharding, so a restore would depend on the '
            'devices of the run that saved. Give jax.ShapeDtypeStruct(..., sharding=).'
        )
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _saved(folder: pathlib.Path) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of a checkpoint by their names; reads none.

    Not orbax's metadata(), which asks TensorStore for the spec of every array as JSON:
    that is never freed (0.1.86), 4.8 kB an array.
    """
    base = {'driver': 'file', 'path': f'{folder}/'}
    store = tensorstore.KvStore.open({'driver': 'ocdbt', 'base': base}).result()
    keys = [key for key in store.list().result() if key.endswith(_ZARRAY)]
    if not keys:  # nor is there one where the manifest is missing
        raise FileNotFoundError(f'no arrays in {folder}')
    reading = {key.removesuffix(_ZARRAY).decode(): store.read(key) for key in keys}
    saved = {}
    for name, content in reading.items():
        fields = json.loads(content.result().value)
        dtype = np.dtype(fields['dtype'])
        saved[name] = jax.ShapeDtypeStruct(fields['shape'], dtype)
    return saved


def _shape(array: Any) -> str:
    return run_folder.ABSENT if array is None else f'{array.dtype}{list(array.shape)}'
