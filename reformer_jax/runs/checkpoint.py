"""Checkpoints of a run: its state, its place in the data and its metrics.

Only this file imports orbax. A state is saved as one flat dictionary of arrays with
readable names (`params/layers/up/kernel`), so that a checkpoint does not depend on
the classes that hold the arrays and can be inspected without them. orbax writes a
checkpoint under a temporary name and renames it when it is complete: a killed run
leaves no half checkpoint that a restore would pick.
"""

import dataclasses
import math
import os
import types
from collections.abc import Mapping, Sequence
from typing import Any, Self

import grain
import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from reformer_jax.runs import folder as run_folder

# A train loop opens its folder and its checkpoints from one place.
open_workdir = run_folder.open_workdir
load_config = run_folder.load_config


def exists(workdir: str | os.PathLike[str]) -> bool:
    """Whether the run in a folder has saved a checkpoint."""
    folder = run_folder.absolute(workdir) / 'checkpoints'
    return folder.is_dir() and any(path.name.isdecimal() for path in folder.iterdir())


class Checkpointer:
    """Saves and restores the checkpoints of one run folder.

    A context manager: leaving it waits for the save in progress. Opened with `keep`
    it saves, and removes what killed saves left behind; without, it only reads and
    changes nothing, so that a run can be evaluated while it trains. Every process of
    a run calls every method.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        *,
        keep: int | None = None,
        best_metric: str = 'loss',
    ):
        """Opens `<workdir>/checkpoints`.

        Args:
          workdir: the run folder.
          keep: how many of the last checkpoints to keep, at least 1; the best one is
            kept besides. None opens for reading only.
          best_metric: the metric whose lowest value makes the best checkpoint.

        Raises:
          ValueError: `keep` is less than 1.
        """
        if keep is not None and keep < 1:
            raise ValueError(
                f'keep={keep} checkpoints cannot be resumed from: it must be at least '
                '1. Set keep_checkpoints=1 or more.'
            )
        self._keep = keep
        self._best_metric = best_metric
        self._directory = run_folder.absolute(workdir) / 'checkpoints'
        self._manager = ocp.CheckpointManager(
            self._directory,
            item_handlers={
                'state': ocp.StandardCheckpointHandler(),
                'data': grain.checkpoint.CheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(
                create=keep is not None,
                cleanup_tmp_directories=keep is not None,
                best_fn=lambda metrics: _quality(metrics, best_metric),
                best_mode='min',
                preservation_policy=_Retention(keep or 1, best_metric),
            ),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        self.close()

    def save(
        self,
        step: int,
        state: Any,
        iterator: grain.DatasetIterator | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> bool:
        """Saves `state` as of `step`, in the background.

        When it returns, the iterator may move on and the arrays may be donated: orbax
        has copied them to the host, or, where they are there already, holds them, and
        a donation then makes a copy. A failure to write is raised by the next `save`,
        `wait` or `close`.

        Args:
          step: the number of steps done.
          state: a pytree of arrays.
          iterator: the training data's iterator, saved at its present place.
          metrics: evaluation results of `state`, among them `best_metric`. None when
            there are none: such a checkpoint is never the best one.

        Returns:
          False, with nothing written, when the step has a checkpoint already.

        Raises:
          ValueError: opened for reading only, or `metrics` lacks `best_metric`.
        """
        if self._keep is None:
            raise ValueError(
                f'cannot save step {step}: the checkpoints of {self._directory.parent} '
                'are open for reading only. Give Checkpointer a number to keep.'
            )
        if metrics is not None and self._best_metric not in metrics:
            raise ValueError(
                f'the metrics of step {step} ({", ".join(metrics) or "none"}) lack '
                f'{self._best_metric!r}, which tells the best checkpoint. Add it, or '
                'give metrics=None.'
            )
        if step in self._manager.all_steps():
            return False
        items = {'state': ocp.args.StandardSave(_named(state)[0])}
        if iterator is not None:
            items['data'] = grain.checkpoint.CheckpointSave(iterator)
        values = {name: float(value) for name, value in (metrics or {}).items()}
        return self._manager.save(
            step, args=ocp.args.Composite(**items), metrics=values, force=True
        )

    def restore(
        self,
        state_template: Any,
        iterator: grain.DatasetIterator | None = None,
        step: int | str | None = None,
    ) -> tuple[Any, int]:
        """Restores a checkpoint straight into the shardings of a template.

        Args:
          state_template: a pytree like the saved one, of arrays or of
            `jax.ShapeDtypeStruct`s with shardings. The devices need not be as many
            as those of the run that saved.
          iterator: set, in place, to where the saved one stood.
          step: which checkpoint, as a number or its digits; 'best' for the one of
            lowest `best_metric`, None for the latest.

        Returns:
          The state and its step.

        Raises:
          FileNotFoundError: there is no such checkpoint.
          ValueError: the checkpoint has other arrays than the template, or holds no
            iterator for this number of processes.
        """
        step = self._choose(step)
        template, structure = _named(state_template)
        abstract = {name: _abstract(name, leaf) for name, leaf in template.items()}
        self._check_fits(step, abstract)
        items = {'state': ocp.args.StandardRestore(abstract)}
        if iterator is not None:
            self._check_has_iterator(step)
            items['data'] = grain.checkpoint.CheckpointRestore(iterator)
        arrays = self._manager.restore(step, args=ocp.args.Composite(**items)).state
        return structure.unflatten([arrays[name] for name in template]), step

    def restore_part(
        self, template: Any, step: int | str | None = None
    ) -> tuple[Any, int]:
        """Restores some arrays of a checkpoint, such as {'model': ...} of a state.

        Args:
          template: a pytree as of `restore`, whose names are among the saved ones.
          step: as of `restore`.

        Returns:
          The arrays in the template's tree, and the step.

        Raises:
          FileNotFoundError: there is no such checkpoint.
          ValueError: an array is not there, or has another shape or type.
        """
        step = self._choose(step)
        named, structure = _named(template)
        abstract = {name: _abstract(name, leaf) for name, leaf in named.items()}
        self._check_fits(step, abstract, whole=False)
        # The handler that saves takes whole states only.
        with ocp.CheckpointManager(
            self._directory,
            item_handlers={'state': ocp.PyTreeCheckpointHandler()},
            options=ocp.CheckpointManagerOptions(create=False),
        ) as manager:
            restoring = ocp.args.PyTreeRestore(
                item=abstract,
                restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
                partial_restore=True,
            )
            args = ocp.args.Composite(state=restoring)
            arrays = manager.restore(step, args=args).state
        return structure.unflatten([arrays[name] for name in named]), step

    def latest_step(self) -> int | None:
        """The step of the newest checkpoint; waits for a save in progress."""
        return max(self._steps(), default=None)

    def best_step(self) -> int | None:
        """The step of lowest `best_metric`; None when none has that metric."""
        return _best(
            {step: self._manager.metrics(step) for step in self._steps()},
            self._best_metric,
        )

    def wait(self) -> None:
        """Waits until the save in progress, if any, is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits as `wait` does and frees the threads."""
        self._manager.close()

    def _steps(self) -> list[int]:
        self.wait()
        return sorted(self._manager.all_steps())

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
            listed = ', '.join(map(str, steps))
            raise FileNotFoundError(
                f'no checkpoint of {missing} in {self._directory}. It has: {listed}. '
                "Ask for one of them, for None (the latest), or for 'best' when some "
                f'were saved with the metric {self._best_metric!r}.'
            )
        return chosen

    def _check_fits(
        self, step: int, asked: dict[str, jax.ShapeDtypeStruct], whole: bool = True
    ) -> None:
        """Compares with the checkpoint's metadata, before any array is read."""
        metadata = self._manager.item_metadata(step).get('state')
        if metadata is None:
            raise ValueError(
                f'checkpoint {step} in {self._directory} is incomplete: its folder was '
                'copied or removed in part. Copy it again, or move it away and restore '
                'another step.'
            )
        saved = metadata.tree
        names = list(asked)
        if whole:
            names += [name for name in saved if name not in asked]
        pairs = [(n, _shape(saved.get(n)), _shape(asked.get(n))) for n in names]
        differing = [
            f'{name}: {old} in the checkpoint, {new} asked for'
            for name, old, new in pairs
            if old != new
        ]
        if differing:
            raise ValueError(
                f'checkpoint {step} in {self._directory} has other arrays than the '
                'model asked for:\n'
                f'{run_folder.listed(differing)}\n'
                'This is the wrong config for this workdir: use the config.json in it, '
                'or another --workdir.'
            )

    def _check_has_iterator(self, step: int) -> None:
        saved = sorted((self._directory / str(step) / 'data').glob('process_*.json'))
        count = jax.process_count()
        if len(saved) != count:
            raise ValueError(
                f'checkpoint {step} in {self._directory} holds data iterators of '
                f'{len(saved)} processes, not of the {count} of this run. Start as '
                'many processes, or restore without an iterator (the data then starts '
                'anew).'
            )


@dataclasses.dataclass(frozen=True)
class _Retention:
    """Keeps the last `keep` checkpoints and the best one (an orbax policy)."""

    keep: int
    best_metric: str

    def should_preserve(
        self,
        checkpoints: Sequence[checkpoint_managers.PolicyCheckpointInfo],
        *,
        context: Any,
    ) -> list[bool]:
        metrics = {info.step: info.metrics for info in checkpoints}
        kept = {*sorted(metrics)[-self.keep :], _best(metrics, self.best_metric)}
        return [info.step in kept for info in checkpoints]


def _best(metrics: Mapping[int, Mapping[str, float] | None], name: str) -> int | None:
    """The first step of the lowest finite value."""
    values = {step: _quality(metrics[step], name) for step in sorted(metrics)}
    best = min(values, key=values.__getitem__, default=None)
    return None if best is None or math.isinf(values[best]) else best


def _quality(metrics: Mapping[str, float] | None, name: str) -> float:
    """A checkpoint's metric; infinite, so never the best, when it has none."""
    value = (metrics or {}).get(name, math.inf)
    return value if math.isfinite(value) else math.inf


def _named(tree: Any) -> tuple[dict[str, Any], jax.tree_util.PyTreeDef]:
    """A tree's leaves by readable names, in the tree's order, and its structure."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    named = {_name(path): leaf for path, leaf in leaves}
    assert len(named) == len(leaves), 'two leaves of the state have one name'
    return named, structure


def _name(path: tuple[Any, ...]) -> str:
    # A flax Variable is a node of one leaf, `value`: an internal name, left out.
    if len(path) > 1 and path[-1] == jax.tree_util.GetAttrKey('value'):
        path = path[:-1]
    return jax.tree_util.keystr(path, simple=True, separator='/')


def _abstract(name: str, leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, 'sharding', None)
    if sharding is None:
        raise ValueError(
            f'{name} of the template has no sharding, so a restore would depend on the '
            'devices of the run that saved. Give jax.ShapeDtypeStruct(..., sharding=).'
        )
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _shape(array: Any) -> str:
    return run_folder.ABSENT if array is None else f'{array.dtype}{list(array.shape)}'
