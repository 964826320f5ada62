"""Weight files in and out: this package's names, timm's and the released PRANCE ones, told apart by what they hold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from prance_jax.errors import UserError
from prance_jax.models import official, timm
from prance_jax.models.vit import ViT
from prance_jax.models.walk import init
from prance_jax.spec import ModelSpec

Tree = dict[str, Any]


def load_weights(path: str | Path, spec: ModelSpec) -> Tree:
    """Parameters of `ViT(spec)` from a .safetensors, .npz or .pth file.

    .pth needs PyTorch, which reads tensors only and executes nothing. Position embeddings of another image size are resized as
    timm does. Raises UserError for a file that cannot be read, and one that lists everything that does not fit.
    """
    tensors = read_tensors(path)
    wanted = jax.eval_shape(lambda: init(ViT(spec), jax.random.key(0)))
    if any("/" in name for name in tensors):
        return official.fill(tensors, wanted, str(path))
    if any("patch_embed_super" in name for name in tensors):
        return official.meta_network(tensors, spec, wanted)
    return timm.from_timm(tensors, spec, wanted, str(path))


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """Name -> array of a weight file. Raises UserError where it is missing, broken or of another kind."""
    path = Path(path)
    readers = {".safetensors": _safetensors, ".npz": _npz, ".pth": _pth, ".pt": _pth, ".bin": _pth}
    if path.suffix not in readers:
        raise UserError(f"{path} is no weight file that can be read; wanted {', '.join(readers)}")
    if not path.exists():
        raise UserError(f"{path} does not exist")
    try:
        return readers[path.suffix](path)
    except UserError:
        raise
    except Exception as error:  # of four libraries, each with exceptions of its own
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path} cannot be read ({reason}); is it whole, and nothing but tensors?") from error


def save_weights(path: str | Path, tensors: Mapping[str, np.ndarray], card: Mapping[str, Any]) -> None:
    """Writes a .safetensors file; card: JSON-able facts, kept in its header under 'card'."""
    from safetensors.numpy import save_file

    if Path(path).suffix != ".safetensors":
        raise UserError(f"{path}: weights are written as .safetensors")
    whole = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    save_file(whole, str(path), {"card": json.dumps(card)})


def by_name(params: Tree) -> dict[str, np.ndarray]:
    """Parameters under this package's names, 'block_0/qkv/kernel'."""
    return {name: np.asarray(leaf) for name, leaf in official.paths(params)}


def _safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        from safetensors.numpy import load_file
    except ImportError as error:
        raise UserError(
            "reading .safetensors needs the package safetensors: pip install safetensors"
        ) from error
    return load_file(str(path))


def _npz(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def _pth(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise UserError(f"reading {path.suffix} needs PyTorch; or save the file as .safetensors") from error
    found = torch.load(path, map_location="cpu", weights_only=True)
    for key in ("model", "state_dict"):
        found = found.get(key, found)
    return {name: value.float().numpy() for name, value in found.items()}
