"""Checkpoints on Orbax: whole or not there, checked when they are read, bit-identical when they come back.

Every checkpoint carries a description beside its arrays: the shape, dtype and checksum of each. From it comes
the list of what does not fit when the checkpoint is another model's, and the certainty that a damaged one is
never trained on. Orbax writes into a temporary folder and renames it, so a killed process leaves no half.
"""

import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax

from prance_jax.core.errors import UserError
from prance_jax.core.files import disk_errors
from prance_jax.training import tree_leaves

_log = logging.getLogger(__name__)
_FORMAT = "prance_jax checkpoint 1"


class Restored(NamedTuple):
    """A checkpoint that was read: its step, its tree, and the note it was saved with."""

    step: int
    tree: Any
    note: dict[str, Any]


class _Damaged(Exception):
    """The checkpoint cannot be trusted; an older one may be."""


class Checkpoints:
    """The newest checkpoints of one stage.

    Args:
      directory: the folder, made by the first `save`.
      keep: how many are kept; two or more, so that there is another if the newest is damaged.
    """

    def __init__(self, directory: str | Path, keep: int = 2):
        self.directory = Path(directory).absolute()
        self._keep = keep
        self._open: Any = None

    def save(self, step: int, tree: Any, note: Mapping[str, Any] | None = None) -> None:
        """Writes a checkpoint and returns when it is on the disk.

        Args:
          step: larger than every step saved before.
          tree: a pytree of arrays; typed PRNG keys are stored as their data.
          note: JSON-able values that belong to the checkpoint but not to the tree.

        Raises:
          UserError: the disk is full; the checkpoint before this one is intact.
        """
        import orbax.checkpoint as ocp

        arrays = {
            path: leaf
            for path, leaf in tree_leaves.leaves_by_path(tree_leaves.plain_arrays(tree)).items()
            if leaf.size
        }
        about = {
            "format": _FORMAT,
            "leaves": {
                path: [*tree_leaves.leaf_kind(leaf), tree_leaves.checksum(leaf)]
                for path, leaf in arrays.items()
            },
            "note": dict(note or {}),
        }
        args = ocp.args.Composite(state=ocp.args.StandardSave(arrays), about=ocp.args.JsonSave(about))
        try:
            with disk_errors(f"checkpoint {step} in {self.directory}"), _silent_orbax():
                self._manager(create=True).save(step, args=args, force=True)
        except Exception:
            # On a full disk the half that was written would be in the way of the next attempt.
            for half in self.directory.glob(f"{step}.*-tmp*"):
                shutil.rmtree(half, ignore_errors=True)
            raise

    def steps(self) -> list[int]:
        """The steps of the finished checkpoints, oldest first.

        Raises:
          UserError: the folder holds something, but nothing of ours.
        """
        if not self.directory.exists():
            return []
        if not self.directory.is_dir():
            raise UserError(f"checkpoint folder {self.directory} is a file")
        steps = sorted(self._manager(create=False).all_steps())
        names = [path.name for path in self.directory.iterdir()]
        ours = ("-tmp", ".damaged")
        strange = [name for name in names if not name.isdigit() and not any(part in name for part in ours)]
        if strange and not steps:
            raise UserError(f"{self.directory} holds no checkpoint of ours; found: {_few(sorted(strange))}")
        return steps

    def latest(self) -> int | None:
        """The step of the newest finished checkpoint, or None."""
        return max(self.steps(), default=None)

    def restore(self, example: Any, step: int | None = None) -> Any:
        """The tree saved at `step`, or the newest one that is not damaged.

        Args:
          example: a tree of the wanted structure: arrays, or `jax.ShapeDtypeStruct`s with their shardings.
          step: one of `steps`; None for the newest.

        Raises:
          UserError: no such checkpoint, or it does not fit the example (every path with what was wanted and
            what was found), or it is damaged and there is no other.
        """
        if step is None:
            restored = self.restore_newest(example)
            if restored is None:
                raise UserError(f"there is no checkpoint in {self.directory}")
            return restored.tree
        if step not in self.steps():
            raise UserError(f"{self.directory} has no checkpoint {step}; it has {self.steps() or 'none'}")
        try:
            return self._read(step, example).tree
        except _Damaged as error:
            raise UserError(f"checkpoint {self.directory / str(step)} is damaged: {error}") from error

    def restore_newest(self, example: Any) -> Restored | None:
        """The newest checkpoint that can be read, or None if there never was one.

        A damaged one is put aside (``<step>.damaged``) with a warning and the one before is used.

        Raises:
          UserError: the newest does not fit the example, or all are damaged.
        """
        problems = []
        for step in reversed(self.steps()):
            try:
                restored = self._read(step, example)
            except _Damaged as error:
                problems.append(f"{step}: {error}")
                continue
            for line in problems:
                damaged = line.partition(":")[0]
                reason = line.partition(": ")[2]
                folder = self.directory / damaged
                _log.warning("checkpoint %s is damaged (%s); using step %d", folder, reason, step)
                self._put_aside(damaged)
            return restored
        if problems:
            raise UserError(
                f"no checkpoint in {self.directory} can be read ({'; '.join(problems)}); "
                "remove the folder to start this stage again"
            )
        return None

    def _read(self, step: int, example: Any) -> Restored:
        import orbax.checkpoint as ocp

        manager = self._manager(create=False)
        try:
            args = ocp.args.Composite(about=ocp.args.JsonRestore())
            with _silent_orbax():
                about = manager.restore(step, args=args)["about"]
        except Exception as error:
            raise _Damaged(f"its description cannot be read, found {_few(self._found(step))}") from error
        if not isinstance(about, Mapping) or about.get("format") != _FORMAT:
            raise _Damaged(f"it was not written by this program, found {_few(self._found(step))}")
        abstract = tree_leaves.leaves_by_path(jax.eval_shape(tree_leaves.plain_arrays, example))
        wanted = {path: leaf for path, leaf in abstract.items() if leaf.size}
        self._check(
            step, {path: tree_leaves.leaf_kind(leaf) for path, leaf in wanted.items()}, about["leaves"]
        )

        places = tree_leaves.leaves_by_path(example)
        targets = {path: tree_leaves.abstract_leaf(leaf, places[path]) for path, leaf in wanted.items()}
        try:
            args = ocp.args.Composite(state=ocp.args.StandardRestore(targets))
            with _silent_orbax():
                found = manager.restore(step, args=args)["state"]
        except Exception as error:
            raise _Damaged(f"its arrays cannot be read, found {_few(self._found(step))}") from error
        sums = {path: checksum for path, (_, _, checksum) in about["leaves"].items()}
        wrong = [path for path, leaf in found.items() if sums[path] not in (None, tree_leaves.checksum(leaf))]
        if wrong:
            raise _Damaged(f"the checksum does not fit for {_few(wrong)}")
        tree = jax.tree_util.tree_map_with_path(
            lambda path, leaf: tree_leaves.rebuild_tree(leaf, found.get(tree_leaves.path_name(path))), example
        )
        return Restored(step, tree, dict(about["note"]))

    def _check(self, step: int, wanted: Mapping[str, list], found: Mapping[str, list]) -> None:
        found = {path: [shape, dtype] for path, (shape, dtype, _) in found.items()}
        lines = [
            f"{path}: wanted {_spell(wanted.get(path))}, found {_spell(found.get(path))}"
            for path in [*wanted, *(path for path in found if path not in wanted)]
            if wanted.get(path) != found.get(path)
        ]
        if lines:
            folder = self.directory / str(step)
            raise UserError(f"checkpoint {folder} is of another model: {'; '.join(lines)}")

    def _found(self, step: int) -> list[str]:
        folder = self.directory / str(step)
        return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())

    def _put_aside(self, step: str) -> None:
        folder = self.directory / step
        folder.rename(folder.with_name(f"{step}.damaged"))
        self._close()

    def _manager(self, create: bool) -> Any:
        if self._open is None:
            import orbax.checkpoint as ocp

            options = ocp.CheckpointManagerOptions(
                max_to_keep=self._keep,
                create=create,
                cleanup_tmp_directories=True,
                # Waiting for the disk is the point: after save() the metrics on disk may rely on it.
                enable_async_checkpointing=False,
            )
            self._open = ocp.CheckpointManager(self.directory, options=options)
        return self._open

    def _close(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None


@contextmanager
def _silent_orbax() -> Iterator[None]:
    """Without the tracebacks that Orbax's threads log of a failure that is raised anyway."""
    logger = logging.getLogger("absl")

    def drop(record: logging.LogRecord) -> bool:
        return False

    logger.addFilter(drop)
    try:
        yield
    finally:
        logger.removeFilter(drop)


def _spell(kind: list | None) -> str:
    return f"{kind[1]}{tuple(kind[0])}" if kind else "nothing"


def _few(names: list[str], most: int = 8) -> str:
    shown = ", ".join(names[:most]) or "nothing"
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
