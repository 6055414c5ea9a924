"""Checkpoints that can be trusted: Orbax writes them, checksums verify them."""

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from cnn_jax.errors import InputError

PyTree = Any


class Restored(NamedTuple):
    """What `Checkpoints.restore` found."""

    state: PyTree
    """Of the template's structure, as NumPy arrays."""
    step: int
    extra: dict
    """What was saved beside the state."""
    damaged: list[str]
    """A sentence for each newer checkpoint that could not be used."""


class Checkpoints:
    """The checkpoints of one run: the last `keep`, and the best.

    Saving is asynchronous and atomic: a run killed in the middle of a save finds the one before. Orbax itself does not
    notice a flipped byte in an array, so that a checksum of every array is stored with it and verified on restoring.

    Args:
        folder: made when the first checkpoint is saved.
        keep: how many of the last to keep.
        best: name of the metric by which one more is kept, the highest; None keeps none.
        read_only: neither make the folder nor change anything in it.
    """

    def __init__(self, folder: str | Path, *, keep: int = 3, best: str | None = None, read_only: bool = False):
        import orbax.checkpoint as ocp
        from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

        # Once for the process, and for good: what ends late does so at any time.
        if not isinstance(sys.unraisablehook, _WithoutLateEnds):
            sys.unraisablehook = _WithoutLateEnds(sys.unraisablehook)
        self._ocp = ocp
        self.folder = Path(folder).absolute()
        policies = [LatestN(keep)]
        if best:
            policies.append(
                BestN(get_metric_fn=lambda metrics: metrics[best], n=1, keep_checkpoints_without_metrics=False)
            )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy(policies),
            cleanup_tmp_directories=not read_only,
            create=not read_only,
            read_only=read_only,
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options, item_names=("arrays", "extra"))
        self._unusable: set[int] = set()

    def steps(self) -> list[int]:
        """Steps of the checkpoints there are, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, state: PyTree, step: int, *, extra: dict | None = None, metrics: dict | None = None) -> None:
        """Saves a state in the background; `extra` is JSON, `metrics` holds numbers.

        A step that is saved already is left as it is. Damaged checkpoints that `restore` passed over are deleted: they
        would hide the new ones.
        """
        while self._unusable:
            self._manager.delete(self._unusable.pop())
        if step in self._manager.all_steps():
            return
        arrays = _flat(jax.device_get(state))
        note = {"arrays": {name: _describe(array) for name, array in arrays.items()}, "extra": extra or {}}
        note["checksum"] = _checksum(json.dumps(note, sort_keys=True).encode())
        ocp = self._ocp
        self._manager.save(
            step,
            args=ocp.args.Composite(arrays=ocp.args.PyTreeSave(arrays), extra=ocp.args.JsonSave(note)),
            metrics=metrics,
            force=True,
        )

    def restore(self, template: PyTree) -> Restored | None:
        """The newest checkpoint that is whole, or None where there is none at all.

        Args:
            template: a state of the same structure, shapes and dtypes.

        Raises:
            InputError: every checkpoint is damaged, or the newest whole one is of another model, optimiser or dtype.
        """
        newest = self._newest()
        if newest is None:
            return None
        arrays, note, step, damaged = newest
        expected = {name: (list(x.shape), str(x.dtype)) for name, x in _flat(template).items()}
        found = {name: (list(x.shape), str(x.dtype)) for name, x in arrays.items()}
        _check_fits(expected, found, self.folder / str(step))
        state = jax.tree.unflatten(jax.tree.structure(template), [arrays[name] for name in expected])
        return Restored(state, step, note["extra"], damaged)

    def restore_variables(self) -> Restored | None:
        """As `restore`, but only the state's `variables`, as nested dicts: the moving average where there is one.

        Neither the model nor the optimiser need be known.
        """
        newest = self._newest()
        if newest is None:
            return None
        arrays, note, step, damaged = newest
        prefix = "ema/" if any(name.startswith("ema/") for name in arrays) else ""
        variables = {"params": {}, "batch_stats": {}}
        for name, array in arrays.items():
            *path, leaf = name.removeprefix(prefix).split("/")
            if name.startswith(prefix) and path and path[0] in variables:
                into = variables
                for part in path:
                    into = into.setdefault(part, {})
                into[leaf] = array
        return Restored(variables, step, note["extra"], damaged)

    def _newest(self) -> tuple[dict, dict, int, list[str]] | None:
        """Arrays, note and step of the newest checkpoint that is whole, and what is wrong with newer ones."""
        damaged = []
        for step in reversed(self.steps()):
            try:
                return *self._read(step), step, damaged
            except _Damaged as error:
                self._unusable.add(step)
                damaged.append(f"checkpoint {step} in {self.folder} is damaged ({error})")
        if damaged:
            raise InputError(f"no checkpoint is whole: {'; '.join(damaged)}. Start again in another folder")
        return None

    def _read(self, step: int) -> tuple[dict[str, np.ndarray], dict]:
        ocp = self._ocp
        try:
            note = self._manager.restore(step, args=ocp.args.Composite(extra=ocp.args.JsonRestore()))["extra"]
            kept = {name: note[name] for name in ("arrays", "extra")}
            intact = _checksum(json.dumps(kept, sort_keys=True).encode()) == note["checksum"]
        except Exception as error:
            raise _Damaged(f"its description cannot be read: {type(error).__name__}") from error
        if not intact:
            raise _Damaged("its description differs from its checksum")
        as_numpy = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in note["arrays"]}
        restore = ocp.args.PyTreeRestore(restore_args=as_numpy)
        try:
            arrays = dict(self._manager.restore(step, args=ocp.args.Composite(arrays=restore))["arrays"])
        except Exception as error:  # Orbax and TensorStore raise whatever their formats' parsers do.
            raise _Damaged(f"its arrays cannot be read: {type(error).__name__}") from error
        for name, description in note["arrays"].items():
            if _describe(arrays[name]) != description:
                raise _Damaged(f"{name} differs from its checksum")
        return arrays, note

    def wait(self) -> None:
        """Returns when all is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for what is being saved, and lets go of the folder."""
        self._manager.close()


class _Damaged(Exception):
    pass


class _WithoutLateEnds(NamedTuple):
    """A hook that keeps off the screen what TensorStore says of reads and writes that end after one of them failed."""

    shown: Callable

    def __call__(self, unraisable) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            self.shown(unraisable)


def _flat(tree: PyTree) -> dict[str, Any]:
    """A tree as {"params/conv1/kernel": array}."""
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _checksum(data: bytes | memoryview) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _describe(array: np.ndarray) -> dict:
    array = np.ascontiguousarray(array)
    return {
        "shape": list(array.shape),
        "dtype": str(array.dtype),
        "blake2b": _checksum(array.reshape(-1).view(np.uint8).data),
    }


def _check_fits(expected: dict, found: dict, where: Path) -> None:
    for name in [*expected, *found]:
        if expected.get(name) != found.get(name):
            has, wants = (
                "nothing" if there is None else f"{there[1]}{there[0]}"
                for there in (found.get(name), expected.get(name))
            )
            raise InputError(
                f"checkpoint {where} is of another model, optimiser or dtype: it has {has} for {name}, "
                f"this run wants {wants}. Resume with the settings it was made with, or use another folder"
            )
