"""Opens pretrained weights: a file, a folder with config.json, or a name of the Hugging Face hub."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prance_jax.core.errors import UserError
from prance_jax.zoo.families.architectures import HEADS
from prance_jax.zoo.families.canonical import fold
from prance_jax.zoo.families.config import PretrainedConfig
from prance_jax.zoo.families.describe import describe, refuse_unsupported
from prance_jax.zoo.families.names import detect_table
from prance_jax.zoo.formats import big_vision, released_prance
from prance_jax.zoo.formats.files import read_card, read_tensors
from prance_jax.zoo.hub import find_files


@dataclass(frozen=True)
class Pretrained:
    """Opened weights.

    Attributes:
      origin: of the weights, for messages.
      tensors: name -> array; of public families under timm's names, LayerScale folded.
      file_format: see `detect_format`.
      config: what the network computes; None for files of this package and released PRANCE.
      card: of the file, see `formats.files`.
    """

    origin: str
    tensors: dict[str, np.ndarray]
    file_format: str
    config: PretrainedConfig | None
    card: dict[str, Any]

    def heads(self) -> int:
        """Returns the heads of a layer: from config.json, card, .npz or the table of public networks.

        Raises:
          UserError: nothing tells them.
        """
        config = self.config
        heads = config.heads or HEADS.get((config.width, config.depth, config.mlp_dim))
        if heads is None:
            raise UserError(
                f"{self.origin} does not tell its number of heads, and no public network has width {config.width}, depth "
                f"{config.depth} and {config.mlp_dim} hidden units; put a config.json beside it, such as "
                '{"architecture": "vit_tiny_patch16_224", "model_args": {"embed_dim": 96, "num_heads": 3}}'
            )
        return heads


def open_pretrained(
    path: str | Path, *, ema: bool = False, ignore: Sequence[str] = (), architecture: str | None = None
) -> Pretrained:
    """Reads weights and what is known of their network.

    Args:
      path: of a weight file; 'local-dir:FOLDER' or a folder with config.json; 'hf-hub:OWNER/NAME', with
        '@REVISION' behind it for another than the newest.
      ema: read the averaged weights of a training script's checkpoint.
      ignore: patterns (* and ?) of tensors to leave out.
      architecture: timm's name of the network, if the caller knows it.

    Raises:
      UserError: the weights cannot be read, or their network computes what is not supported; the message
        names it.
    """
    files, origin = find_files(path), str(path)
    tensors = drop_ignored(read_tensors(files.weights, ema), ignore, path)
    file_format, card = detect_format(tensors), read_card(files.weights)
    if file_format == "big_vision":
        config = PretrainedConfig("ViT (big_vision)", heads=big_vision.num_heads(tensors))
    elif file_format == "timm":
        config, tensors = describe(
            tensors, detect_table(tensors), _read_config(files.config), architecture, origin
        )
        refuse_unsupported(config, origin)
        tensors = fold(tensors)
        if (heads := card.get("search_space", {}).get("heads")) and config.heads is None:
            config = dataclasses.replace(config, heads=heads)
    else:
        config = None
    return Pretrained(origin, tensors, file_format, config, card)


def drop_ignored(
    tensors: Mapping[str, np.ndarray], ignore: Sequence[str], origin: Any
) -> dict[str, np.ndarray]:
    """Removes the tensors that a pattern matches.

    Args:
      tensors: name -> array.
      ignore: patterns of names, with * and ?.
      origin: path of the file, for error messages.

    Raises:
      UserError: a pattern matches no tensor, so it is probably mistyped.
    """
    unmatched = [pattern for pattern in ignore if not fnmatch.filter(tensors, pattern)]
    if unmatched:
        raise UserError(f"{origin} has no tensor {', '.join(unmatched)} that could be ignored")
    ignored = {name for pattern in ignore for name in fnmatch.filter(tensors, pattern)}
    return {name: value for name, value in tensors.items() if name not in ignored}


def detect_format(tensors: Mapping[str, np.ndarray]) -> str:
    """Detects whose names tensors have.

    Returns:
      'prance_jax', 'big_vision', 'official' (released PRANCE) or 'timm' (timm, Hugging Face, OpenCLIP
      and originals); '' for other names.
    """
    names = list(tensors)
    if big_vision.is_big_vision(names):
        return "big_vision"
    if any(name.startswith("block_0/") for name in names):
        return "prance_jax"
    if released_prance.is_released_prance(names):
        return "official"
    return "timm" if detect_table(names) else ""


def _read_config(path: Path | None) -> dict[str, Any]:
    """config.json with preprocessor_config.json as 'preprocessor'; empty if it describes no network."""
    if path is None:
        return {}
    try:
        config = json.loads(path.read_text())
        preprocessor = path.with_name("preprocessor_config.json")
        more = json.loads(preprocessor.read_text()) if preprocessor.is_file() else {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a readable JSON file ({re.sub(chr(10), ' ', str(error))})") from None
    is_network = isinstance(config, dict) and ("architecture" in config or "model_type" in config)
    return {**config, "preprocessor": more} if is_network else {}
