"""The folder of a run: its config, command, metrics and checkpoints."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prance_jax.config import io
from prance_jax.config.experiment import Config
from prance_jax.core.errors import UserError
from prance_jax.core.files import disk_errors, write_atomic


class Workdir:
    """The folder of a run, which belongs to one configuration.

    A run with another configuration is refused. Seeds may be appended to those of the folder, since the
    stages of one seed do not depend on those of another.

    Attributes:
      path: the folder; `claim` creates it.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)

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

    def claim(
        self,
        config: Mapping[str, Any],
        command: str,
        complete: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda stored: stored,
    ) -> bool:
        """Creates the folder with ``config.json``, or checks that it belongs to this config.

        A folder with the same config is continued. If only seeds were appended, ``config.json`` is
        written again.

        Args:
          config: the config as nested dicts, from `config.io.to_dict`.
          command: the command line, stored for the reader.
          complete: brings a config of an earlier version up to date before the comparison.

        Returns:
          Whether the folder had this config already.

        Raises:
          UserError: the folder belongs to another config (the message lists the keys that differ), its
            ``config.json`` cannot be read, or the folder cannot be created.
        """
        if self.config_file.exists():
            stored = complete(self.record())
            more_seeds = _more_seeds(config, stored)
            lines = io.differences(config, {**stored, "seeds": config["seeds"]} if more_seeds else stored)
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
        try:
            content = json.loads(self.config_file.read_text())
        except FileNotFoundError:
            raise UserError(f"{self.path} holds no config.json, so it is not a workdir") from None
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.config_file} is not readable JSON ({error}); remove it if nothing in the folder is "
                "worth keeping, or choose another --workdir"
            ) from error
        if not isinstance(content, dict) or not isinstance(content.get("config"), dict):
            raise UserError(f"{self.config_file} was not written by this program; choose another --workdir")
        return content["config"]


def _more_seeds(config: Mapping[str, Any], stored: Mapping[str, Any]) -> bool:
    """Returns whether the config only appends seeds to those of the stored config."""
    seeds, stored_seeds = list(config.get("seeds", ())), list(stored.get("seeds", ()))
    return len(seeds) > len(stored_seeds) > 0 and seeds[: len(stored_seeds)] == stored_seeds
