"""Reads weight files, and writes .safetensors files with a card.

The card is JSON text in the header under `card`: search space, size, mean and standard deviation,
labels, measured figures, licence. Any reader of safetensors shows it; `convert --card FILE` adds
facts. Selectors are not stored in .safetensors files, but in `.prance` files.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from prance_jax.core.errors import UserError
from prance_jax.core.files import atomic_file
from prance_jax.zoo.formats.torch_file import read_torch
from prance_jax.zoo.formats.unwrap import strip_wrappers


def read_tensors(path: str | Path, ema: bool = False) -> dict[str, np.ndarray]:
    """Reads a weight file.

    Args:
      path: with suffix .safetensors, .npz, .pth, .pt or .bin; or model.safetensors.index.json, which lists
        the files of a sharded network.
      ema: read the averaged weights that a training script stored beside the others, see `read_torch`.

    Returns:
      Name -> array. Prefixes of wrappers ('module.') are left out, see `strip_wrappers`.

    Raises:
      UserError: the file is missing, damaged, of another format or holds more than tensors.
    """
    path = Path(path)
    readers = {
        ".safetensors": _safetensors,
        ".npz": _npz,
        **dict.fromkeys((".pth", ".pt", ".bin"), lambda path: read_torch(path, ema)),
        ".json": _read_shards,
    }
    if ema and path.suffix not in (".pth", ".pt", ".bin"):
        raise UserError(f"{path} holds one set of weights; ema=True is for .pth files of training scripts")
    if path.suffix not in readers:
        raise UserError(f"{path} is not a weight file that can be read; wanted {', '.join(readers)}")
    with _reading(path):
        return strip_wrappers(readers[path.suffix](path), path)


def save_weights(path: str | Path, tensors: Mapping[str, np.ndarray], card: Mapping[str, Any]) -> None:
    """Writes a .safetensors file; after an error no partial file remains.

    Args:
      path: of the file.
      tensors: name -> array.
      card: JSON-able facts, stored as text in the header under 'card'.

    Raises:
      UserError: the suffix differs, or the file cannot be written.
    """
    from safetensors.numpy import save

    path = Path(path)
    if path.suffix != ".safetensors":
        raise UserError(f"{path}: weights are written as .safetensors")
    contiguous = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    # Not `save_file`: its files can be read by their owner only.
    content = save(contiguous, {"card": json.dumps(card)})
    with atomic_file(path) as partial:
        partial.write_bytes(content)


def read_card(path: str | Path) -> dict[str, Any]:
    """Reads the card of a .safetensors file; empty if the file has none.

    Raises:
      UserError: the file is missing or damaged, or its card is no JSON object.
    """
    from safetensors import safe_open

    if Path(path).suffix != ".safetensors":
        return {}
    with _reading(Path(path)), safe_open(str(path), "np") as file:
        card = json.loads((file.metadata() or {}).get("card", "{}"))
        if not isinstance(card, dict) or not isinstance(card.get("network", {}), dict):
            raise UserError("its card should be a JSON object that `convert` wrote")
        return card


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raises a UserError of one line in place of every error of the code inside it."""
    if not os.path.exists(path):  # False for a name that no file can have, too
        raise UserError(f"{path} does not exist")
    try:
        yield
    except UserError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    except Exception as error:  # the readers are four libraries with different exceptions
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{path} cannot be read ({reason}); it must be complete and hold only tensors"
        ) from error


def _safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(str(path))


def _read_shards(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a sharded network; `path` is its index, {"weight_map": {tensor: file}}."""
    weight_map = json.loads(path.read_text())["weight_map"]
    files = sorted(set(weight_map.values()))
    if absent := [file for file in files if not (path.parent / file).is_file()]:
        raise UserError(f"{len(absent)} of its {len(files)} files are missing: {', '.join(absent[:3])}")
    tensors = {}
    for file in files:
        tensors |= (
            read_torch(path.parent / file) if file.endswith(".bin") else _safetensors(path.parent / file)
        )
    if absent := sorted(weight_map.keys() - tensors.keys()):
        raise UserError(f"its files lack {len(absent)} tensors that it lists: {', '.join(absent[:3])}")
    return tensors


def _npz(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: _restore_bfloat16(value) for name, value in dict(arrays).items()}


def _restore_bfloat16(array: np.ndarray) -> np.ndarray:
    """NumPy stores bfloat16 without its name, as two untyped bytes."""
    return array.view(ml_dtypes.bfloat16) if array.dtype == np.dtype("V2") else array
