"""Checkpoints of a run: its state, its place in the data and its metrics.

Only this file imports orbax. A state is saved as one flat dictionary of arrays with
readable names (`params/layers/up/kernel`), so that a checkpoint does not depend on
the classes that hold the arrays and can be inspected without them. orbax writes a
checkpoint under a temporary name and renames it when it is complete: a killed run
leaves no half checkpoint that a restore would pick.
"""

import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any, Self

import grain
import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from reformer_jax.runs import folder as run_folder

# orbax measures how long a save takes by the wall clock, which may be set on by a day:
# ten years, and nothing that waits for the folder's creation, for 300 s at most.
_SAVING = ocp.AsyncOptions(
    timeout_secs=10 * 365 * 24 * 3600, create_directories_asynchronously=False
)


def exists(workdir: str | os.PathLike[str]) -> bool:
    """Whether the run in a folder has saved a checkpoint."""
    folder = _directory(workdir)
    return folder.is_dir() and any(path.name.isdecimal() for path in folder.iterdir())


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
        self._keep = keep
        self._directory = _directory(workdir)
        policies = checkpoint_managers.preservation_policy
        best = policies.BestN(
            get_metric_fn=_quality, n=1, keep_checkpoints_without_metrics=False
        )
        self._manager = ocp.CheckpointManager(
            self._directory,
            item_handlers={
                'state': ocp.StandardCheckpointHandler(),
                'data': grain.checkpoint.CheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(
                create=keep is not None,
                cleanup_tmp_directories=keep is not None,
                best_fn=_quality,
                async_options=_SAVING,
                preservation_policy=policies.AnyPreservationPolicy(
                    [policies.LatestN(keep), best]
                ),
            ),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self._manager.close()

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
          ValueError: opened for reading only.
        """
        if self._keep is None:
            raise ValueError(
                f'cannot save step {step}: the checkpoints of {self._directory.parent} '
                'are open for reading only. Give Checkpointer a number to keep.'
            )
        if step in self._manager.all_steps():
            return False
        items = {'state': ocp.args.StandardSave(_named(state)[0])}
        if iterator is not None:
            items['data'] = grain.checkpoint.CheckpointSave(iterator)
        return self._manager.save(
            step, args=ocp.args.Composite(**items), metrics={}, force=True
        )

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds to a checkpoint, if the step has one, how its state was evaluated.

        A checkpoint without a finite 'loss' among its metrics is never the best one.
        """
        if step not in self._steps():
            return
        if jax.process_index() == 0:
            # Where orbax has the metrics of a save.
            file = self._directory / str(step) / 'metrics' / 'metrics'
            file.parent.mkdir(exist_ok=True)
            run_folder.write_json(file, metrics)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f'metrics of step {step}')
        self._manager.reload()

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
          ValueError: the checkpoint has other arrays than the template, or no iterator.
        """
        state, step = self.restore_part(template, step, whole=True)
        if iterator is not None:
            # The saved iterator's state: that of any process, for all read the same.
            files = (self._directory / str(step) / 'data').glob('process_*.json')
            file = min(files, default=None)
            if file is None:
                folder = self._directory.parent
                raise ValueError(
                    f'checkpoint {step} in {folder} has no place in the data, as that '
                    'of an imported model: start another run with '
                    f'--config.init_from={folder}.'
                )
            iterator.set_state(json.loads(file.read_text('utf-8')))
        return state, step

    def restore_part(
        self, template: Any, step: int | str | None = None, *, whole: bool = False
    ) -> tuple[Any, int]:
        """As `restore`; unless `whole`, of some arrays, as {'model': ...}."""
        step = self._choose(step)
        named, structure = _named(template)
        abstract = {name: _abstract(name, leaf) for name, leaf in named.items()}
        self._check_fits(step, abstract, whole)
        restoring = ocp.args.PyTreeRestore(
            item=abstract,
            restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
            partial_restore=not whole,
        )
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            folder = self._directory / str(step) / 'state'
            arrays = checkpointer.restore(folder, args=restoring)
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
        self._steps()
        step = self._manager.best_step()
        known = step is not None and math.isfinite(
            _quality(self._manager.metrics(step))
        )
        return step if known else None

    def _steps(self) -> list[int]:
        self._manager.wait_until_finished()
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
            raise FileNotFoundError(
                f'no checkpoint of {missing} in {self._directory}. It has: '
                f'{", ".join(map(str, steps))}. Ask for one of them, for none (the '
                "latest), or for 'best' when some were evaluated."
            )
        return chosen

    def _check_fits(
        self, step: int, asked: dict[str, jax.ShapeDtypeStruct], whole: bool
    ) -> None:
        """Compares with the checkpoint's metadata, before any array is read."""
        metadata = self._manager.item_metadata(step).get('state')
        if metadata is None:
            raise ValueError(
                f'checkpoint {step} in {self._directory} is incomplete, copied or '
                'removed in part: copy it again, or move it away to restore another.'
            )
        saved = metadata.tree
        names = asked | saved if whole else asked
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


def _directory(workdir: str | os.PathLike[str]) -> pathlib.Path:
    return run_folder.absolute(workdir) / 'checkpoints'


def _quality(metrics: Mapping[str, float | None] | None) -> float:
    """What the best checkpoint has most of; infinitely little if it has no loss."""
    loss = (metrics or {}).get('loss')
    return -loss if loss is not None and math.isfinite(loss) else -math.inf


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


def _shape(array: Any) -> str:
    return run_folder.ABSENT if array is None else f'{array.dtype}{list(array.shape)}'
