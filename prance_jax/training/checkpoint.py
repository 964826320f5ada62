"""Checkpoints with Orbax: written atomically, verified when read, bit-identical when restored.

Every checkpoint has a description beside its arrays: shape, dtype and checksum of each. With it an
error can list all mismatches with another model, and a damaged checkpoint is never trained on. Orbax
writes into a temporary folder and renames it, so a killed process leaves no half.
"""

import logging
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
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
    """A checkpoint that was read.

    Attributes:
      step: its step.
      tree: its pytree of arrays.
      note: the JSON values that it was saved with.
    """

    step: int
    tree: Any
    note: dict[str, Any]


class _Damaged(Exception):
    """The checkpoint cannot be used; an older one may be."""


class Checkpoints:
    """The newest checkpoints of one stage.

    Args:
      directory: the folder; the first `save` creates it.
      keep: number of checkpoints to keep; two or more, in case the newest is damaged.
      read_only: whether reading changes nothing in the folder, not even a damaged checkpoint's name.
    """

    def __init__(self, directory: str | Path, keep: int = 2, read_only: bool = False):
        self.directory = Path(directory).absolute()
        self._keep, self._read_only = keep, read_only
        self._best: int | None = None
        self._open: Any = None

    def save(
        self, step: int, tree: Any, note: Mapping[str, Any] | None = None, best: int | None = None
    ) -> None:
        """Writes a checkpoint and returns when it is on the disk.

        Args:
          step: its step, larger than all steps saved before.
          tree: a pytree of arrays; typed PRNG keys are stored as their data.
          note: JSON values that belong to the checkpoint but not to the tree.
          best: step of the best checkpoint, this one or an older one, which is kept as well; None for
            none.

        Raises:
          UserError: the disk is full; the previous checkpoint is intact.
        """
        import orbax.checkpoint as ocp

        self._best = best
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
            # On a full disk an incomplete folder would block the next attempt.
            for incomplete in self.directory.glob(f"{step}.*-tmp*"):
                shutil.rmtree(incomplete, ignore_errors=True)
            raise

    def steps(self) -> list[int]:
        """Returns the steps of the finished checkpoints, oldest first.

        Raises:
          UserError: the folder holds files, but no checkpoint of this program.
        """
        if not self.directory.exists():
            return []
        if not self.directory.is_dir():
            raise UserError(f"checkpoint folder {self.directory} is a file")
        with _silent_orbax():
            steps = sorted(self._manager(create=False).all_steps())
        names = [path.name for path in self.directory.iterdir()]
        known = ("-tmp", ".damaged")
        foreign = [name for name in names if not name.isdigit() and not any(part in name for part in known)]
        if foreign and not steps:
            raise UserError(
                f"{self.directory} holds no checkpoint of prance_jax; found: {_shorten(sorted(foreign))}"
            )
        return steps

    def latest(self) -> int | None:
        """Returns the step of the newest finished checkpoint, or None."""
        return max(self.steps(), default=None)

    def restore(self, example: Any, step: int | None = None) -> Any:
        """Reads the tree of a checkpoint, by default of the newest one that is not damaged.

        Args:
          example: a tree of the same structure: arrays, or `jax.ShapeDtypeStruct`s with shardings.
          step: one of `steps`; None for the newest.

        Returns:
          The tree, with the shardings of the example.

        Raises:
          UserError: there is no such checkpoint; it does not fit the example (the message names each
            path with both shapes and dtypes); or it is damaged and there is no other.
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
        """Reads the newest checkpoint that is not damaged; None if there is no checkpoint.

        A damaged one is renamed to ``<step>.damaged`` with a warning, unless `read_only`, and the one
        before is used.

        Raises:
          UserError: the newest does not fit the example, or all are damaged.
        """
        problems: list[tuple[int, _Damaged]] = []
        for step in reversed(self.steps()):
            try:
                restored = self._read(step, example)
            except _Damaged as error:
                problems.append((step, error))
                continue
            for damaged, reason in problems:
                folder = self.directory / str(damaged)
                _log.warning("checkpoint %s is damaged (%s); using step %d", folder, reason, step)
                if not self._read_only:
                    self._rename_damaged(str(damaged))
            return restored
        if problems:
            reasons = "; ".join(f"{damaged}: {reason}" for damaged, reason in problems)
            raise UserError(
                f"no checkpoint in {self.directory} can be read ({reasons}); "
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
            raise _Damaged(f"its description cannot be read, found {_shorten(self._files(step))}") from error
        if not isinstance(about, Mapping) or about.get("format") != _FORMAT:
            raise _Damaged(f"it was not written by this program, found {_shorten(self._files(step))}")
        abstract = tree_leaves.leaves_by_path(jax.eval_shape(tree_leaves.plain_arrays, example))
        expected = {path: leaf for path, leaf in abstract.items() if leaf.size}
        stored = {path: [shape, dtype] for path, (shape, dtype, _) in about["leaves"].items()}
        kinds = {path: tree_leaves.leaf_kind(leaf) for path, leaf in expected.items()}
        if lines := tree_leaves.mismatches(kinds, stored):
            folder = self.directory / str(step)
            raise UserError(f"checkpoint {folder} is of another model: {'; '.join(lines)}")

        examples = tree_leaves.leaves_by_path(example)
        targets = {path: tree_leaves.abstract_leaf(leaf, examples[path]) for path, leaf in expected.items()}
        try:
            args = ocp.args.Composite(state=ocp.args.StandardRestore(targets))
            with _silent_orbax():
                arrays = manager.restore(step, args=args)["state"]
        except Exception as error:
            raise _Damaged(f"its arrays cannot be read, found {_shorten(self._files(step))}") from error
        sums = {path: checksum for path, (_, _, checksum) in about["leaves"].items()}
        wrong = [
            path for path, leaf in arrays.items() if sums[path] not in (None, tree_leaves.checksum(leaf))
        ]
        if wrong:
            raise _Damaged(f"the checksum does not fit for {_shorten(wrong)}")
        tree = jax.tree_util.tree_map_with_path(
            lambda path, leaf: tree_leaves.rebuild_leaf(leaf, arrays.get(tree_leaves.path_name(path))),
            example,
        )
        return Restored(step, tree, dict(about["note"]))

    def _files(self, step: int) -> list[str]:
        folder = self.directory / str(step)
        return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())

    def _rename_damaged(self, step: str) -> None:
        folder = self.directory / step
        folder.rename(folder.with_name(f"{step}.damaged"))
        self._close()

    def _manager(self, create: bool) -> Any:
        if self._open is None:
            import orbax.checkpoint as ocp

            options = ocp.CheckpointManagerOptions(
                preservation_policy=self,
                create=create,
                cleanup_tmp_directories=not self._read_only,
                # After save() the metrics on the disk rely on it.
                enable_async_checkpointing=False,
            )
            self._open = ocp.CheckpointManager(self.directory, options=options)
        return self._open

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Returns which checkpoints are kept: the newest and the best one; Orbax deletes the others.

        Args:
          checkpoints: all of them, oldest first.
          context: of Orbax; not used.
        """
        oldest = len(checkpoints) - self._keep
        return [
            index >= oldest or checkpoint.step == self._best for index, checkpoint in enumerate(checkpoints)
        ]

    def _close(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None


@contextmanager
def _silent_orbax() -> Iterator[None]:
    """Hides the tracebacks that Orbax's threads print of a failure that is raised anyway."""
    logger, hook = logging.getLogger("absl"), sys.excepthook

    def drop(record: logging.LogRecord) -> bool:
        return False

    def drop_late_reads(kind: type, error: BaseException, trace: Any) -> None:
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            hook(kind, error, trace)

    logger.addFilter(drop)
    sys.excepthook = drop_late_reads
    try:
        yield
        sys.excepthook = hook  # after a failure other reads may end at any later time
    finally:
        logger.removeFilter(drop)


def _shorten(names: list[str], limit: int = 8) -> str:
    shown = ", ".join(names[:limit]) or "nothing"
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
