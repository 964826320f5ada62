"""PyTorch files without PyTorch: written by hand from the format; code in them never runs."""

import argparse
import collections
import json
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

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


def checkpoint(**entries):
    """Returns the pickle of a training script: state dicts by name, beside the objects of the script."""
    arguments = argparse.Namespace(lr=0.1, out=Path("out"), seeds={1, 2})
    script = pickle.dumps({"args": arguments, "sched": collections.Counter("ab")}, 2)[2:-1]
    states = b"".join(
        text(name) + b"}(" + text(tensor_name) + tensor(*layout) + b"u"
        for name, (tensor_name, layout) in entries.items()
    )
    return b"\x80\x02}(" + states + text("script") + script + b"u."


BIAS, TAIL = (6, (2,), (1,)), (5, (3,), (1,))


def test_a_training_scripts_checkpoint_is_read_and_its_averages_on_demand(tmp_path):
    path = zipped(tmp_path / "w.pth", checkpoint(state_dict=("b", BIAS), state_dict_ema=("b", TAIL)))
    with pytest.warns(UserWarning, match="'state_dict' and averaged ones .EMA. under 'state_dict_ema'"):
        np.testing.assert_array_equal(read_tensors(path)["b"], [7, 8])
    np.testing.assert_array_equal(read_tensors(path, ema=True)["b"], [5, 7, 8])
    with pytest.raises(UserError, match="has no averaged weights"):
        read_tensors(zipped(tmp_path / "plain.pth", checkpoint(model=("b", BIAS))), ema=True)
    with pytest.raises(UserError, match="w.npz holds one set of weights"):
        read_tensors(tmp_path / "w.npz", ema=True)


def test_programs_and_whole_objects_are_refused_by_name(tmp_path):
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        archive.writestr("run/data.pkl", state_dict())
        archive.writestr("run/constants.pkl", pickle.dumps((), 2))
    with pytest.raises(UserError, match="it is a TorchScript program"):
        read_tensors(tmp_path / "script.pt")
    with pytest.raises(UserError, match="holds argparse.Namespace, which is no tensor"):
        read_tensors(zipped(tmp_path / "object.pt", pickle.dumps(argparse.Namespace(a=1), 2)))
    quantised = state_dict().replace(b"ctorch\nFloatStorage", b"ctorch\nQInt8Storage")
    with pytest.raises(UserError, match="stores torch.QInt8Storage, as quantised weights do"):
        read_tensors(zipped(tmp_path / "quantised.pt", quantised))


@pytest.mark.parametrize("prefix", ["module.", "module._orig_mod.", "backbone."])
def test_prefixes_that_all_names_share_are_left_out(tmp_path, prefix):
    np.savez(tmp_path / "w.npz", **{f"{prefix}norm.bias": WEIGHT, f"{prefix}head.bias": WEIGHT})
    with pytest.warns(UserWarning, match=f"prefix '{prefix}' of all names"):
        assert set(read_tensors(tmp_path / "w.npz")) == {"norm.bias", "head.bias"}
    np.savez(tmp_path / "w.npz", **{f"{prefix}norm.bias": WEIGHT, "head.bias": WEIGHT})
    assert set(read_tensors(tmp_path / "w.npz")) == {f"{prefix}norm.bias", "head.bias"}


def test_sharded_files_are_read_whole_or_refused(tmp_path):
    for number in (1, 2):
        save_file({f"w{number}": WEIGHT * number}, str(tmp_path / f"part{number}.safetensors"))
    index = tmp_path / "model.safetensors.index.json"
    weight_map = {f"w{number}": f"part{number}.safetensors" for number in (1, 2)}
    index.write_text(json.dumps({"weight_map": weight_map}))
    np.testing.assert_array_equal(read_tensors(index)["w2"], 2 * WEIGHT)
    index.write_text(json.dumps({"weight_map": {**weight_map, "w3": "part2.safetensors"}}))
    with pytest.raises(UserError, match="lack 1 tensors that it lists: w3"):
        read_tensors(index)
    (tmp_path / "part1.safetensors").unlink()
    with pytest.raises(UserError, match="1 of its 2 files are missing: part1.safetensors"):
        read_tensors(index)


@pytest.mark.parametrize(
    "name, words", [("blocks.0.attn.qkv.lora_A.weight", "adapter"), ("fc.weight.absmax", "quantised")]
)
def test_adapters_and_quantised_weights_are_refused(tmp_path, name, words):
    np.savez(tmp_path / "w.npz", **{name: WEIGHT})
    with pytest.raises(UserError, match=words):
        read_tensors(tmp_path / "w.npz")
