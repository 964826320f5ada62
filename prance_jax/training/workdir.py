"""The folder of a run: its config and command, and writes that are whole or not there at all."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prance_jax.config import io
from prance_jax.config.experiment import Config
from prance_jax.core.errors import UserError
from prance_jax.core.files import disk_errors, write_atomic


class Workdir:
    """One folder, one configuration: a run that finds another configuration in it refuses to start. Seeds may be added
    behind those that are there, since no stage of one depends on another's.

    Attributes:
      path: the folder; made by `claim`.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)

    @property
    def config_file(self) -> Path:
        return self.path / "config.json"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def events(self) -> Path:
        """Folder of TensorBoard's event files, one for each stage."""
        return self.path / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def claim(
        self,
        config: Mapping[str, Any],
        command: str,
        complete: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda found: found,
    ) -> bool:
        """Makes the folder and writes ``config.json``, or finds the same config there (a run to continue), or the same with
        fewer seeds: then ``config.json`` is written anew.

        Args:
          config: what `config_io.to_dict` made of the config.
          command: the command line, kept for the reader.
          complete: fills in what a config of an earlier version lacks, before the two are compared.

        Returns:
          Whether the folder held this config already.

        Raises:
          UserError: the folder belongs to another config (the differing keys are listed), its ``config.json``
            is not readable, or the folder cannot be made.
        """
        if self.config_file.exists():
            found = complete(self.record())
            more_seeds = _more_seeds(config, found)
            lines = io.differences(config, {**found, "seeds": config["seeds"]} if more_seeds else found)
            if lines:
                raise UserError(
                    f"workdir {self.path} belongs to another configuration ({'; '.join(lines)}); "
                    "choose another --workdir, or run with the same configuration to continue it"
                )
            if more_seeds:
                self._write(config, command)
            return True
        try:
            with disk_errors(f"workdir {self.path}"):
                self.path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise UserError(f"workdir {self.path} is a file; choose another --workdir") from None
        except PermissionError:
            raise UserError(f"workdir {self.path} cannot be written; choose another --workdir") from None
        self._write(config, command)
        return False

    def _write(self, config: Mapping[str, Any], command: str) -> None:
        text = json.dumps({"command": command, "config": config}, indent=2)
        write_atomic(self.config_file, text + "\n")

    def config(self) -> Config:
        """The config that the folder was made with.

        Raises:
          UserError: as `record`, or a key or value of it is not known here.
        """
        return io.from_dict(Config, self.record())

    def record(self) -> dict[str, Any]:
        """The config that the folder was made with, as nested dicts.

        Raises:
          UserError: there is none, or it is not what `claim` writes.
        """
        try:
            found = json.loads(self.config_file.read_text())
        except FileNotFoundError:
            raise UserError(f"{self.path} holds no config.json, so it is not a workdir") from None
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.config_file} is not readable JSON ({error}); remove it if nothing in the folder is "
                "worth keeping, or choose another --workdir"
            ) from error
        if not isinstance(found, dict) or not isinstance(found.get("config"), dict):
            raise UserError(f"{self.config_file} was not written by this program; choose another --workdir")
        return found["config"]


def _more_seeds(config: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    """Whether the seeds are those of the folder's config and others behind them."""
    ours, theirs = list(config.get("seeds", ())), list(found.get("seeds", ()))
    return len(ours) > len(theirs) > 0 and ours[: len(theirs)] == theirs
