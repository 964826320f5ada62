"""Reads PyTorch's .pth files without PyTorch, and without executing anything in them.

Such a file is a pickle, which may call anything that can be imported. This reader accepts the names
that PyTorch writes for tensors and replaces each with a function of its own that only records the
arguments. Any other name is refused before it is looked up, and the error gives the name.

Formats: the zip of PyTorch 1.6 and later (data.pkl, and one entry of raw bytes for each storage),
and the older single stream.
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
_MAGIC = 0x1950A86A20F9469CFC6C  # first number of the older format
_WRAPPERS = ("model", "state_dict")  # keys under which training scripts store the weights


class _Names(dict):
    """A state dict; version notes that PyTorch attaches to it are discarded."""

    def __setstate__(self, state: Any) -> None:
        pass


class _Storage(NamedTuple):
    key: str
    dtype: Any
    num_elements: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_torch(path: Path) -> dict[str, np.ndarray]:
    """Reads a state dict, bare or under 'model' or 'state_dict'.

    Returns:
      Name -> array.

    Raises:
      UserError: the file holds anything but tensors; the message names it. A damaged file raises
        other exceptions.
    """
    with open(path, "rb") as file:
        content, raw = _read_zip(file) if zipfile.is_zipfile(file) else _read_stream(file)
    while isinstance(content, Mapping):
        wrapper = next((key for key in _WRAPPERS if key in content), None)
        if wrapper is None:
            break
        content = content[wrapper]
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{path} holds no tensors by name, but a {type(content).__name__}")
    others = [str(name) for name, value in content.items() if not isinstance(value, _Tensor)]
    if others:
        raise UserError(f"{path} holds more than tensors: {', '.join(others)}; save the state dict alone")
    return {name: _array(tensor, raw[tensor.storage.key]) for name, tensor in content.items()}


def _read_zip(file: BinaryIO) -> tuple[Any, dict[str, bytes]]:
    """The unpickled content, and raw bytes by storage key."""
    with zipfile.ZipFile(file) as archive:
        (index,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        root = index.removesuffix("data.pkl")
        if root + "byteorder" in archive.namelist() and archive.read(root + "byteorder") != b"little":
            raise ValueError("stored by a big-endian machine")
        with archive.open(index) as pickled:
            reader = _Reader(pickled)
            content = reader.load()
        return content, {key: archive.read(f"{root}data/{key}") for key in reader.storages}


def _read_stream(file: BinaryIO) -> tuple[Any, dict[str, bytes]]:
    """The unpickled content, and raw bytes by storage key."""
    file.seek(0)
    if _Reader(file).load() != _MAGIC:
        raise ValueError("not a PyTorch file")
    _Reader(file).load(), _Reader(file).load()  # the format's version, the machine's byte order
    reader = _Reader(file)
    content = reader.load()
    raw = {}
    for key in _Reader(file).load():
        (num_elements,) = struct.unpack("<q", file.read(8))
        raw[key] = file.read(num_elements * np.dtype(reader.storages[key].dtype).itemsize)
    return content, raw


class _Reader(pickle.Unpickler):
    """Unpickles dicts, lists, numbers, text and `_Tensor`s; keeps the storages they refer to."""

    def __init__(self, file: BinaryIO):
        super().__init__(file, encoding="utf-8")
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        # New functions for each file, so that no change that it makes to them affects the next file.
        allowed = {
            "collections.OrderedDict": lambda *pairs: _Names(*pairs),
            "torch._utils._rebuild_tensor_v2": lambda storage, offset, shape, strides, *_: _Tensor(
                storage, offset, tuple(shape), tuple(strides)
            ),
            "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
        }
        full_name = f"{module}.{name}"
        if module == "torch" and name in _DTYPES:
            return name
        if full_name in allowed:
            return allowed[full_name]
        raise UserError(f"the pickle holds {full_name}, which is no tensor; save the state dict alone")

    def persistent_load(self, reference: Any) -> _Storage:
        kind, dtype, key, _, num_elements, *view = reference
        if kind != "storage" or view not in ([], [None]):
            raise ValueError("a reference that is not a storage")
        self.storages[key] = _Storage(key, _DTYPES[dtype], num_elements)
        return self.storages[key]


def _array(tensor: _Tensor, raw: bytes) -> np.ndarray:
    """Copies a tensor out of its storage; all its elements must lie inside the file's bytes."""
    storage = np.frombuffer(raw, tensor.storage.dtype)
    last = tensor.offset + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides))
    if min(tensor.offset, *tensor.shape, *tensor.strides, 0) < 0 or (
        0 not in tensor.shape and last >= len(storage)
    ):
        raise ValueError("a tensor reaches beyond its storage")
    if math.prod(tensor.shape) > len(storage):
        raise ValueError("a tensor has more elements than its storage")
    strides = [stride * storage.itemsize for stride in tensor.strides]
    view = np.lib.stride_tricks.as_strided(storage[tensor.offset :], tensor.shape, strides)
    return np.array(view)
