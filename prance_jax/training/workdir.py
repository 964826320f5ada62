"""The folder of a run: its config, command, classes, metrics and checkpoints."""

import contextlib
import copy
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prance_jax.config import io
from prance_jax.config.experiment import Config
from prance_jax.core.errors import UserError, WriteError
from prance_jax.core.files import (
    disk_errors,
    local_path,
    make_folder,
    remove_empty,
    remove_partial_files,
    write_atomic,
)
from prance_jax.core.lock import lock_file
from prance_jax.core.sharding import is_main_process
from prance_jax.data.images.listing import shorten
from prance_jax.training.interrupts import agree_on_stop

MAY_CHANGE = (
    "data.folder.path",
    "data.tfds.data_dir",
    "data.images.threads",
    "evaluation.batch",
    "evaluation.chunk",
    "evaluation.speed_seconds",
    "checkpoint_seconds",
    "mesh",
)
"""Keys of the config that may change between two runs of a workdir, beside appended seeds.

They say where the same data lies and how fast a run is. Another mesh or batch of evaluation sums in
another order, so a continued run is then equal up to rounding, not bit-identical."""

_log = logging.getLogger(__name__)
# What a run may have written before its first checkpoint.
_BEFORE_TRAINING = {"config.json", "metrics.jsonl", "seconds.json", "tensorboard", "checkpoints"}


class Workdir:
    """The folder of a run, which belongs to one configuration.

    A run with another configuration is refused, once there is a checkpoint. Seeds may be appended to
    those of the folder, since the stages of one seed do not depend on those of another. The keys in
    `MAY_CHANGE` may differ as well.

    Attributes:
      path: the folder; `lock` and `claim` create it.
    """

    def __init__(self, path: str | Path):
        self.path = local_path(path)
        self._created: list[Path] = []

    @property
    def config_file(self) -> Path:
        """Path of config.json."""
        return self.path / "config.json"

    @property
    def metrics_file(self) -> Path:
        """Path of metrics.jsonl."""
        return self.path / "metrics.jsonl"

    @property
    def events(self) -> Path:
        """Folder of the TensorBoard files, with a folder for each stage."""
        return self.path / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints, with a folder for each stage."""
        return self.path / "checkpoints"

    def is_workdir(self) -> bool:
        """Returns whether the folder has a config.json; False also if the path cannot be used."""
        return os.path.lexists(self.config_file)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps other processes from training in the folder, and clears what killed ones left behind.

        The system releases the lock when the process ends, however it ends. Of several hosts the first
        locks for all. A file system without locks gives one warning, and the run goes on. On a mounted
        bucket a lock holds on one machine only.

        Raises:
          UserError: another process trains in the folder, or the folder cannot be created.
        """
        self._make_folder()
        with contextlib.ExitStack() as stack:
            refusal = lock_file(self.path / ".lock", stack) if is_main_process() else None
            _, refused = agree_on_stop(True, False, refusal is not None)
            if refused:
                raise UserError(
                    f"workdir {self.path} is in use by {refusal or 'another run'}; wait until it ends, or "
                    "choose another --workdir"
                )
            if is_main_process():
                for folder in (self.path, self.path / "show", self.path / "segment"):
                    remove_partial_files(folder)
            yield

    def check(
        self,
        config: Mapping[str, Any],
        complete: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda stored: stored,
    ) -> bool:
        """Checks that the folder, if it is a workdir, may be used with a config; it writes nothing.

        Args:
          config: the config as nested dicts, from `config.io.to_dict`.
          complete: brings a config of an earlier version up to date before the comparison.

        Returns:
          Whether the stored config differs in what may change.

        Raises:
          UserError: the folder belongs to another config (the message lists the keys that differ), or
            its ``config.json`` cannot be read.
        """
        if not self.is_workdir() or self._is_untrained():
            return True
        stored = complete(self.record())
        accepted = _with_changes(stored, config)
        if _more_seeds(config, stored):
            accepted["seeds"] = config["seeds"]
        if lines := io.differences(config, accepted):
            raise UserError(
                f"workdir {self.path} belongs to another configuration ({'; '.join(lines)}); "
                "choose another --workdir, or run with the same configuration to continue it"
            )
        return bool(io.differences(config, stored))

    def claim(
        self,
        config: Mapping[str, Any],
        command: str,
        complete: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda stored: stored,
        classes: Sequence[str] = (),
    ) -> bool:
        """Creates the folder with ``config.json``, or checks that it belongs to this config.

        A folder with the same config is continued. If only seeds were appended or keys of `MAY_CHANGE`
        differ, or nothing was trained yet, ``config.json`` is written again.

        Args:
          config: the config as nested dicts, from `config.io.to_dict`.
          command: the command line, stored for the reader.
          complete: brings a config of an earlier version up to date before the comparison.
          classes: names of the classes in their order; stored if given.

        Returns:
          Whether the folder was a workdir already.

        Raises:
          UserError: as `check` and `check_classes`, or the folder cannot be written.
        """
        is_continued = self.is_workdir()
        has_changes = self.check(config, complete)
        if is_continued and not self._is_untrained():
            self.check_classes(classes)
            if not has_changes and (not classes or "classes" in self._content()):
                return True
            classes = classes or self._content().get("classes", ())
        self._make_folder()
        content = {"command": command, "config": config, **({"classes": list(classes)} if classes else {})}
        try:
            write_atomic(self.config_file, json.dumps(content, indent=2) + "\n")
        except WriteError as error:
            if not is_continued:
                (self.path / ".lock").unlink(missing_ok=True)
                remove_empty(self._created)
            if has_changes or not is_continued:
                raise
            _log.warning("%s", error)  # only the classes are missing
        return is_continued

    def check_classes(self, classes: Sequence[str]) -> None:
        """Checks that the data have the classes that the folder was trained with, in the same order.

        Nothing is checked where the folder stores none, as before the first run.

        Raises:
          UserError: a class was added, lost, renamed or moved.
        """
        stored = self._content().get("classes") if self.is_workdir() and not self._is_untrained() else None
        if not stored or not classes or list(classes) == stored:
            return
        added = [name for name in classes if name not in stored]
        lost = [name for name in stored if name not in classes]
        parts = [
            f"{what} {shorten(names, 5)}" for what, names in (("new:", added), ("missing:", lost)) if names
        ]
        raise UserError(
            f"the data have other classes than workdir {self.path} was trained with "
            f"({'; '.join(parts) or 'another order'}; {len(classes)} here, {len(stored)} in the workdir); "
            "give the same data, or choose another --workdir"
        )

    def config(self) -> Config:
        """Reads the config of the folder; old names of keys are accepted silently.

        Raises:
          UserError: as `record`; or a key or value is not known in this version.
        """
        return io.from_dict(Config, self.record())

    def record(self) -> dict[str, Any]:
        """Reads the config of the folder as nested dicts, as it was stored.

        Raises:
          UserError: there is none, or it is not a file that `claim` wrote.
        """
        return self._content()["config"]

    def command(self) -> str:
        """Reads the command line that wrote config.json; UserError as `record`."""
        return str(self._content().get("command", ""))

    def _content(self) -> dict[str, Any]:
        try:
            content = json.loads(self.config_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"{self.path} holds no config.json, so it is not a workdir") from None
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.config_file} is not readable JSON ({error}); it cannot be made anew: put back a copy, "
                "or choose another --workdir"
            ) from error
        if not isinstance(content, dict) or not isinstance(content.get("config"), dict):
            raise UserError(f"{self.config_file} was not written by this program; choose another --workdir")
        return content

    def _make_folder(self) -> None:
        try:
            with disk_errors(f"workdir {self.path}"):
                self._created += make_folder(self.path)
        except WriteError as error:
            if isinstance(error.__cause__, (FileExistsError, NotADirectoryError)):
                raise UserError(f"workdir {self.path} is a file; choose another --workdir") from None
            raise

    def _is_untrained(self) -> bool:
        """Whether the folder holds nothing that depends on its config."""
        names = {path.name for path in self.path.iterdir() if not path.name.startswith(".")}
        if names - _BEFORE_TRAINING:
            return False
        return not any(path.name.isdigit() for path in self.checkpoints.rglob("*"))


def _with_changes(stored: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the stored config with the values of another one for the keys in `MAY_CHANGE`."""
    changed = copy.deepcopy(dict(stored))
    for key in MAY_CHANGE:
        *sections, name = key.split(".")
        source, target = config, changed
        for section in sections:
            source, target = source.get(section, {}), target.get(section, {})
        if name in source and name in target:
            target[name] = source[name]
    return changed


def _more_seeds(config: Mapping[str, Any], stored: Mapping[str, Any]) -> bool:
    """Returns whether the config only appends seeds to those of the stored config."""
    seeds, stored_seeds = list(config.get("seeds", ())), list(stored.get("seeds", ()))
    return len(seeds) > len(stored_seeds) > 0 and seeds[: len(stored_seeds)] == stored_seeds
