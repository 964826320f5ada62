"""Reads PyTorch's .pth files without PyTorch, and without executing anything in them.

Such a file is a pickle, which may call anything that can be imported. This reader replaces the names
that PyTorch writes for tensors with functions of its own that only record the arguments. Any other
name is never looked up: its object is a blank. Blanks beside the weights (a training script's parsed
arguments) are left out; a blank among the weights is refused, and the error gives the name.

Formats: the zip of PyTorch 1.6 and later (data.pkl, and one entry of raw bytes for each storage),
and the older single stream.
"""

from __future__ import annotations

import math
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
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
# Keys under which training scripts store the weights, and those of their averages over the training (EMA).
_WRAPPERS = ("model", "state_dict", "student")
_EMA_WRAPPERS = ("model_ema", "state_dict_ema", "teacher")


class _Names(dict):
    """A state dict; version notes that PyTorch attaches to it are discarded."""

    def __setstate__(self, state: Any) -> None:
        pass


class _Blank:
    """Stands for an object whose class is not looked up; `name` is that of the class or function."""

    name = ""

    def __init__(self, *_: Any, **__: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        """Discards an item of a list."""

    def extend(self, items: Any) -> None:
        """Discards items of a list."""


class _Storage(NamedTuple):
    key: str
    dtype: Any
    num_elements: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_torch(path: Path, ema: bool = False) -> dict[str, np.ndarray]:
    """Reads a state dict, bare or as training scripts store it: under 'model', 'state_dict' or 'student'.

    Args:
      path: of the file.
      ema: read the averaged weights: under 'model_ema', 'state_dict_ema' or 'teacher'.

    Returns:
      Name -> array. A warning tells that the file holds averaged weights as well.

    Raises:
      UserError: there are no averaged weights, or the weights hold anything but tensors; the message names
        it. A damaged file raises other exceptions.
    """
    with open(path, "rb") as file:
        content, read_storages = _read_zip(file) if zipfile.is_zipfile(file) else _read_stream(file)
        weights = _select(content, ema, path)
        raw = read_storages({tensor.storage.key for tensor in weights.values()})
    return {name: _array(tensor, raw[tensor.storage.key]) for name, tensor in weights.items()}


def _select(content: Any, ema: bool, path: Path) -> Mapping[str, _Tensor]:
    """The weights in an unpickled checkpoint."""
    is_averaged = False
    while isinstance(content, Mapping):
        plain = next((key for key in _WRAPPERS if key in content), None)
        averaged = next((key for key in _EMA_WRAPPERS if content.get(key) is not None), None)
        if plain and averaged and not ema:
            warnings.warn(
                f"{path} holds weights under {plain!r} and averaged ones (EMA) under {averaged!r}; the former are read, "
                "ema=True reads the latter",
                stacklevel=2,
            )
        key = (averaged if ema else None) or plain or averaged
        if key is None:
            break
        is_averaged |= key == averaged
        content = content[key]
    if ema and not is_averaged:
        raise UserError(f"{path} has no averaged weights ({', '.join(_EMA_WRAPPERS)}); leave ema=True out")
    if blank := _blank_name(content):
        raise UserError(f"the pickle holds {blank}, which is no tensor; save the state dict alone")
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{path} holds no tensors by name, but a {type(content).__name__}")
    if blanks := list(filter(None, map(_blank_name, content.values()))):
        raise UserError(f"the pickle holds {blanks[0]}, which is no tensor; save the state dict alone")
    others = [str(name) for name, value in content.items() if not isinstance(value, _Tensor)]
    if others:
        raise UserError(f"{path} holds more than tensors: {', '.join(others)}; save the state dict alone")
    return content


def _blank_name(item: Any) -> str:
    """Name of a class or function that was not looked up; '' for other objects."""
    is_blank = isinstance(item, _Blank) or (isinstance(item, type) and issubclass(item, _Blank))
    return item.name if is_blank else ""


def _read_zip(file: BinaryIO) -> tuple[Any, Callable[[Iterable[str]], dict[str, bytes]]]:
    """The unpickled content, and a function that reads raw bytes by storage key."""
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        if any(name.endswith("/constants.pkl") for name in names):
            raise UserError("it is a TorchScript program; save the state dict of the network")
        (index,) = [name for name in names if name.endswith("/data.pkl")]
        root = index.removesuffix("data.pkl")
        if root + "byteorder" in names and archive.read(root + "byteorder") != b"little":
            raise ValueError("stored by a big-endian machine")
        with archive.open(index) as pickled:
            content = _Reader(pickled).load()

    def read_storages(keys: Iterable[str]) -> dict[str, bytes]:
        with zipfile.ZipFile(file) as archive:
            return {key: archive.read(f"{root}data/{key}") for key in keys}

    return content, read_storages


def _read_stream(file: BinaryIO) -> tuple[Any, Callable[[Iterable[str]], dict[str, bytes]]]:
    """As `_read_zip`, of the older format."""
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
    return content, lambda keys: raw


class _Reader(pickle.Unpickler):
    """Unpickles dicts, lists, numbers, text, `_Tensor`s and blanks; keeps the storages they refer to."""

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
        kind = "a quantised tensor" if name == "_rebuild_qtensor" else full_name
        return type("Blank", (_Blank,), {"name": kind})

    def persistent_load(self, reference: Any) -> _Storage:
        kind, dtype, key, _, num_elements, *view = reference
        if kind != "storage" or view not in ([], [None]):
            raise ValueError("a reference that is not a storage")
        if dtype not in _DTYPES:
            raise UserError(
                f"it stores {_blank_name(dtype) or dtype}, as quantised weights do; save float weights"
            )
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
