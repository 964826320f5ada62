"""PyTorch's .pth files without PyTorch: tensors only, and nothing in the file is ever executed.

Such a file is a pickle, which may call anything that can be imported. This reader knows five names, each of them a function of
its own that only takes notes; any other name is refused before it is looked up. Formats: the zip of PyTorch 1.6 and later
(data.pkl beside one entry of raw bytes per storage) and the older single stream.
"""

from __future__ import annotations

import math
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from prance_jax.core.errors import UserError

_DTYPES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
_MAGIC = 0x1950A86A20F9469CFC6C  # opens the older format
_WRAPPERS = ("model", "state_dict")  # under which training scripts keep the weights


class _Names(dict):
    """A state dict; PyTorch hangs notes on versions to it, which are not wanted."""

    def __setstate__(self, state: Any) -> None:
        pass


class _Storage(NamedTuple):
    key: str
    dtype: Any
    numbers: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_torch(path: Path) -> dict[str, np.ndarray]:
    """Name -> array of a state dict, bare or under 'model' or 'state_dict'.

    Raises UserError for anything but tensors in it, naming what; other exceptions for a file that is broken.
    """
    with open(path, "rb") as file:
        found, raw = _zipped(file) if zipfile.is_zipfile(file) else _stream(file)
    while isinstance(found, Mapping) and (inner := next((w for w in _WRAPPERS if w in found), None)):
        found = found[inner]
    if not isinstance(found, Mapping) or not found:
        raise UserError(f"{path} holds no tensors by name, but a {type(found).__name__}")
    strangers = [str(name) for name, value in found.items() if not isinstance(value, _Tensor)]
    if strangers:
        raise UserError(f"{path} holds more than tensors: {', '.join(strangers)}; save the state dict alone")
    return {name: _array(tensor, raw[tensor.storage.key]) for name, tensor in found.items()}


def _zipped(file: BinaryIO) -> tuple[Any, dict[str, bytes]]:
    with zipfile.ZipFile(file) as archive:
        (index,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        root = index.removesuffix("data.pkl")
        if root + "byteorder" in archive.namelist() and archive.read(root + "byteorder") != b"little":
            raise ValueError("stored by a big-endian machine")
        with archive.open(index) as pickled:
            reader = _Reader(pickled)
            found = reader.load()
        return found, {key: archive.read(f"{root}data/{key}") for key in reader.storages}


def _stream(file: BinaryIO) -> tuple[Any, dict[str, bytes]]:
    file.seek(0)
    if _Reader(file).load() != _MAGIC:
        raise ValueError("not a file of PyTorch")
    _Reader(file).load(), _Reader(file).load()  # the format's version, the machine's byte order
    reader = _Reader(file)
    found = reader.load()
    raw = {}
    for key in _Reader(file).load():
        (numbers,) = struct.unpack("<q", file.read(8))
        raw[key] = file.read(numbers * np.dtype(reader.storages[key].dtype).itemsize)
    return found, raw


class _Reader(pickle.Unpickler):
    """Builds dicts, lists, numbers, text and `_Tensor`s; storages: by key, those that were named."""

    def __init__(self, file: BinaryIO):
        super().__init__(file, encoding="utf-8")
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        # Fresh functions for each file, so that whatever it does to them ends with it.
        known = {
            "collections.OrderedDict": lambda *pairs: _Names(*pairs),
            "torch._utils._rebuild_tensor_v2": lambda storage, offset, shape, strides, *rest: _Tensor(
                storage, offset, tuple(shape), tuple(strides)
            ),
            "torch._utils._rebuild_parameter": lambda tensor, *rest: tensor,
        }
        whole = f"{module}.{name}"
        if module == "torch" and name in _DTYPES:
            return name
        if whole in known:
            return known[whole]
        raise UserError(f"the pickle holds {whole}, which is no tensor; save the state dict alone")

    def persistent_load(self, reference: Any) -> _Storage:
        kind, dtype, key, _, numbers, *view = reference
        if kind != "storage" or view not in ([], [None]):
            raise ValueError("a reference that is no storage")
        self.storages[key] = _Storage(key, _DTYPES[dtype], numbers)
        return self.storages[key]


def _array(tensor: _Tensor, raw: bytes) -> np.ndarray:
    """A tensor as an array of its own; every number of it must lie inside the file's bytes."""
    whole = np.frombuffer(raw, tensor.storage.dtype)
    last = tensor.offset + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides))
    if min(tensor.offset, *tensor.shape, *tensor.strides, 0) < 0 or (
        0 not in tensor.shape and last >= len(whole)
    ):
        raise ValueError("a tensor reaches beyond its storage")
    if math.prod(tensor.shape) > len(whole):
        raise ValueError("a tensor claims more numbers than are stored")
    strides = [stride * whole.itemsize for stride in tensor.strides]
    view = np.lib.stride_tricks.as_strided(whole[tensor.offset :], tensor.shape, strides)
    return np.array(view)
