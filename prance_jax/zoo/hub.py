"""Finds the files of pretrained networks: on this machine, or on the Hugging Face hub.

`hf-hub:OWNER/NAME[@REVISION]` (timm's notation) is loaded by `huggingface_hub`, an optional package. Its
cache and its environment variables (HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE, HF_TOKEN) apply.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from prance_jax.core.errors import UserError

# In the order of preference.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_CONFIGS = ("config.json", "preprocessor_config.json")
_ADDRESS = re.compile(r"(hf-hub|hf_hub|local-dir):(.*)", re.DOTALL)


class NetworkFiles(NamedTuple):
    """Files of a pretrained network.

    Attributes:
      weights: the weight file, or the index of a sharded one.
      config: config.json, None without one.
    """

    weights: Path
    config: Path | None


def is_address(name: str | Path) -> bool:
    """Returns whether a name is an address, 'hf-hub:OWNER/NAME' or 'local-dir:FOLDER'."""
    return _ADDRESS.fullmatch(str(name)) is not None


def find_files(name: str | Path) -> NetworkFiles:
    """Finds the files of a network; files of the hub are downloaded unless the cache has them.

    Args:
      name: address, folder or weight file.

    Raises:
      UserError: the address is not valid, there is no weight file, or the hub cannot be reached.
    """
    match = _ADDRESS.fullmatch(str(name))
    if match and match[1] != "local-dir":
        return _files_of(_download(match[2], str(name)), str(name))
    path = Path(match[2]) if match else Path(name)
    if match and not path.is_dir():
        raise UserError(f"{name}: {path} is not a folder; wanted one with config.json and {WEIGHT_FILES[0]}")
    if path.is_dir():
        return _files_of(path, str(name))
    config = path.with_name("config.json")
    return NetworkFiles(path, config if config.is_file() else None)


def _files_of(folder: Path, origin: str) -> NetworkFiles:
    weights = next((folder / file for file in WEIGHT_FILES if (folder / file).is_file()), None)
    if weights is None:
        raise UserError(f"{origin} has none of {', '.join(WEIGHT_FILES)}")
    config = folder / "config.json"
    return NetworkFiles(weights, config if config.is_file() else None)


def _download(repository: str, origin: str) -> Path:
    """The folder of the cache that holds a repository's files."""
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", repository)
    if match is None:
        raise UserError(
            f"{origin} is not an address of the hub; wanted hf-hub:OWNER/NAME or hf-hub:OWNER/NAME@REVISION"
        )
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError:
        raise UserError(
            f"{origin} needs the package huggingface_hub: pip install 'prance-jax[hub]'"
        ) from None

    def get(file: str) -> Path | None:
        """The file in the cache; None if the repository does not have it."""
        try:
            return Path(huggingface_hub.hf_hub_download(match[1], file, revision=match[2]))
        except errors.LocalEntryNotFoundError as error:
            not_cached.append(error)
        except errors.EntryNotFoundError:
            pass
        return None

    not_cached: list[Exception] = []
    try:
        for file in _CONFIGS:
            get(file)
        for file in WEIGHT_FILES:
            if (path := get(file)) is not None:
                if file.endswith(".index.json"):
                    shards = file.replace(".index.json", "").replace(".", "-*.")
                    huggingface_hub.snapshot_download(match[1], revision=match[2], allow_patterns=[shards])
                return path.parent
    except errors.RepositoryNotFoundError:
        raise UserError(f"{origin}: the hub has no such repository, or it is not public") from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{origin}: the repository has no revision {match[2]!r}") from None
    except Exception as error:  # of the network: depends on the version of the client
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{origin} cannot be loaded from the hub ({reason})") from error
    if not_cached:
        raise UserError(
            f"{origin}: the hub cannot be reached, and the cache does not hold its files"
        ) from not_cached[0]
    raise UserError(f"{origin} has none of {', '.join(WEIGHT_FILES)}")
