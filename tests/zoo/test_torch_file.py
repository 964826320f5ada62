"""PyTorch files without PyTorch: written by hand from the format; code in them never runs."""

import pickle
import struct
import zipfile

import numpy as np
import pytest

from prance_jax.core.errors import UserError
from prance_jax.zoo.formats.files import read_tensors

WEIGHT = np.arange(6, dtype=np.float32).reshape(2, 3)
STORAGE = np.concatenate([WEIGHT.ravel(), np.float32([7, 8])])


def text(word):
    return b"X" + struct.pack("<I", len(word)) + word.encode()


def number(value):
    return b"J" + struct.pack("<i", value)


def tensor(offset, shape, strides, view=b""):
    """Returns the opcodes that PyTorch writes for a tensor in storage '0' of eight float32."""
    storage = text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + number(8) + view
    shapes = b"(" + b"".join(map(number, shape)) + b"t(" + b"".join(map(number, strides)) + b"t"
    hooks = b"\x89ccollections\nOrderedDict\n)R"
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n((" + storage + b"tQ" + number(offset) + shapes + hooks + b"tR"
    )


def state_dict(view=b"", **tensors):
    """Returns an OrderedDict with PyTorch's version notes, under 'model', beside a number."""
    tensors = tensors or {"weight": (0, (3, 2), (1, 3)), "bias": (6, (2,), (1,))}
    items = b"".join(text(name) + tensor(*layout, view) for name, layout in tensors.items())
    notes = b"}(" + text("_metadata") + b"}u"
    names = b"ccollections\nOrderedDict\n)R(" + items + b"u" + notes + b"b"
    return b"\x80\x02}(" + text("epoch") + number(3) + text("model") + names + b"u."


def zipped(path, pickled, raw=STORAGE.tobytes()):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("run/data.pkl", pickled)
        archive.writestr("run/data/0", raw)
    return path


def stream(path, pickled):
    head = b"".join(pickle.dumps(item, 2) for item in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    path.write_bytes(head + pickled + pickle.dumps(["0"], 2) + struct.pack("<q", 8) + STORAGE.tobytes())
    return path


@pytest.mark.parametrize("write", [zipped, lambda path, _: stream(path, state_dict(view=b"N"))])
def test_tensors_are_read_with_their_strides(tmp_path, write):
    tensors_read = read_tensors(write(tmp_path / "w.pth", state_dict()))
    assert list(tensors_read) == ["weight", "bias"]
    np.testing.assert_array_equal(tensors_read["weight"], WEIGHT.T)
    np.testing.assert_array_equal(tensors_read["bias"], [7, 8])


class Bomb:
    def __reduce__(self):
        return exec, ("open('exploded', 'w')",)


@pytest.mark.parametrize(
    "pickled, words",
    [
        (pickle.dumps({"model": Bomb()}, 2), r"holds (__builtin__|builtins).exec, which is no tensor"),
        (pickle.dumps({"a": Bomb(), "b": WEIGHT}, 4), "holds builtins.exec, which is no tensor"),
        (pickle.dumps({"a": WEIGHT}, 2), "holds numpy.*reconstruct.*, which is no tensor"),
        (pickle.dumps({"a": 1, "b": [2]}, 2), "holds more than tensors: a, b"),
        (pickle.dumps([1, 2], 2), "holds no tensors by name, but a list"),
        (state_dict(weight=(4, (2, 3), (3, 1))), "cannot be read .a tensor reaches beyond its storage"),
        (state_dict(weight=(0, (9, 9), (0, 0))), "a tensor has more elements than its storage"),
        (state_dict()[:-40], "cannot be read"),
    ],
)
def test_other_content_is_refused_and_nothing_runs(tmp_path, monkeypatch, pickled, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words):
        read_tensors(zipped(tmp_path / "w.pth", pickled))
    assert not (tmp_path / "exploded").exists()


def test_a_file_that_is_cut_short_is_refused(tmp_path):
    path_of_zip = zipped(tmp_path / "w.pth", state_dict())
    for path, length in ((path_of_zip, 300), (stream(tmp_path / "old.pth", state_dict(view=b"N")), 390)):
        path.write_bytes(path.read_bytes()[:length])
        with pytest.raises(UserError, match=f"{path.name} cannot be read"):
            read_tensors(path)
    with pytest.raises(UserError, match="cannot be read .a tensor reaches beyond"):
        read_tensors(zipped(tmp_path / "short.pth", state_dict(), STORAGE.tobytes()[:16]))


@pytest.mark.parametrize("zip_format", [True, False])
def test_what_pytorch_writes_is_read(tmp_path, zip_format):
    torch = pytest.importorskip("torch")
    layer = torch.nn.Linear(3, 2)
    state = {**layer.state_dict(), "half": torch.ones(2, dtype=torch.bfloat16), "turned": torch.ones(2, 3).T}
    torch.save({"state_dict": state}, tmp_path / "w.pt", _use_new_zipfile_serialization=zip_format)
    tensors_read = read_tensors(tmp_path / "w.pt")
    assert tensors_read.keys() == state.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(tensors_read[name].astype(np.float32), value.float().numpy())
