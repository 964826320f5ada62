"""Weight files: name -> array in, and out as safetensors with a card."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from prance_jax.core.errors import UserError
from prance_jax.zoo.formats.torch_file import read_torch


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """Name -> array of a weight file. Raises UserError where it is missing, broken or of another kind."""
    path = Path(path)
    readers = {
        ".safetensors": _safetensors,
        ".npz": _npz,
        ".pth": read_torch,
        ".pt": read_torch,
        ".bin": read_torch,
    }
    if path.suffix not in readers:
        raise UserError(f"{path} is no weight file that can be read; wanted {', '.join(readers)}")
    if not path.exists():
        raise UserError(f"{path} does not exist")
    try:
        return readers[path.suffix](path)
    except UserError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    except Exception as error:  # of four libraries, each with exceptions of its own
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path} cannot be read ({reason}); is it whole, and nothing but tensors?") from error


def save_weights(path: str | Path, tensors: Mapping[str, np.ndarray], card: Mapping[str, Any]) -> None:
    """Writes a .safetensors file, whole or not at all; card: JSON-able facts, kept as text in its header under 'card'."""
    from safetensors.numpy import save_file

    path = Path(path)
    if path.suffix != ".safetensors":
        raise UserError(f"{path}: weights are written as .safetensors")
    whole = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(whole, str(beside), {"card": json.dumps(card)})
        os.replace(beside, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or error})") from error
    finally:
        beside.unlink(missing_ok=True)


def read_card(path: str | Path) -> dict[str, Any]:
    """The card of a .safetensors file, empty where there is none."""
    from safetensors import safe_open

    if Path(path).suffix != ".safetensors":
        return {}
    with safe_open(str(path), "np") as file:
        return json.loads((file.metadata() or {}).get("card", "{}"))


def _safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(str(path))


def _npz(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: _with_type(value) for name, value in dict(arrays).items()}


def _with_type(array: np.ndarray) -> np.ndarray:
    """NumPy stores bfloat16 without its name, as two bytes of anything."""
    return array.view(ml_dtypes.bfloat16) if array.dtype == np.dtype("V2") else array
