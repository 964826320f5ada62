"""Which files of a folder or zip are images of which class, and what is reported of the others."""

import dataclasses
import io
import os
import struct
import zipfile

import numpy as np
import pytest
from PIL import Image

from prance_jax.core.errors import UserError
from prance_jax.data.images.decode import BadImage
from prance_jax.data.images.folder import FolderConfig, hold_out, load_folder_source, open_split
from prance_jax.data.images.records import ImagesConfig

IMAGES = ImagesConfig(size=4, crop=1.0, mean=(0.0,), std=(1.0,), threads=2)


def encoded(red, kind="PNG"):
    stream = io.BytesIO()
    Image.new("RGB", (6, 4), (red, 0, 0)).save(stream, kind)
    return stream.getvalue()


def fill(root, files):
    """Writes files given as name -> content."""
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def two_classes(root, per_class=3):
    """Classes 'ant' (red 0) and 'bee' (red 90) in train/ and test/."""
    names = [
        (split, name, number)
        for split in ("train", "test")
        for name in ("ant", "bee")
        for number in range(per_class)
    ]
    return fill(
        root, {f"{split}/{name}/{number}.png": encoded(90 * (name == "bee")) for split, name, number in names}
    )


def as_zip(root):
    """The same files in one zip, empty folders included."""
    path = root.parent / f"{root.name}.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(root.rglob("*")):
            archive.write(file, file.relative_to(root))
    return path


def load(path, in_memory=True, **change):
    names = {field.name for field in dataclasses.fields(FolderConfig)}
    folder = {name: value for name, value in change.items() if name in names}
    images = {name: value for name, value in change.items() if name not in names}
    config = FolderConfig(path=str(path), **folder)
    return load_folder_source(config, dataclasses.replace(IMAGES, in_memory=in_memory, **images))


def reds(source, name="test"):
    split = source.split(name)
    return (255 * np.asarray(split.images[:])[:, 2, 2, 0]).round().astype(int).tolist(), split.labels.tolist()


HIDDEN = {
    "train/.cache/0.png": encoded(1),
    "train/__MACOSX/ant/0.png": encoded(1),
    "train/ant/._0.png": b"resource fork",
    "train/ant/.thumbs/0.png": encoded(1),
    "train/bee/Thumbs.db": b"thumbnails",
    "train/desktop.ini": b"icon",
    "test/.DS_Store": b"finder",
    "test/@eaDir/0.png": encoded(1),
}


@pytest.mark.parametrize("in_memory", (True, False))
@pytest.mark.parametrize("kind", ("folder", "zip"))
def test_hidden_files_and_folders_do_not_count(tmp_path, kind, in_memory, caplog):
    root = fill(two_classes(tmp_path / "data"), HIDDEN)
    (root / "train" / ".empty").mkdir()
    source = load(root if kind == "folder" else as_zip(root), in_memory)
    assert source.classes == ("ant", "bee") and not caplog.records
    assert reds(source) == ([0] * 3 + [90] * 3, [0] * 3 + [1] * 3)
    counts = len(source.tables.labels) if in_memory else len(source.train)
    assert counts + len(source.split("validation").labels) == 6


@pytest.mark.parametrize("kind", ("folder", "zip"))
def test_folders_in_a_class_and_other_suffixes_are_read(tmp_path, kind, caplog):
    more = {
        "test/ant/deep/er/a.JPG": encoded(8, "JPEG"),
        "test/ant/b.jfif": encoded(16, "JPEG"),
        "test/bee/c.webp": encoded(99, "WEBP"),
        "test/bee/d.tif": encoded(100, "TIFF"),
        "test/bee/e.png": encoded(101, "BMP"),  # the content decides
    }
    root = fill(two_classes(tmp_path / "data"), more)
    values, labels = reds(load(root if kind == "folder" else as_zip(root)))
    np.testing.assert_allclose(values, [0, 0, 0, 16, 8, 90, 90, 90, 99, 100, 101], atol=3)
    assert labels == [0] * 5 + [1] * 6 and not caplog.records


@pytest.mark.parametrize("kind", ("folder", "zip"))
def test_other_files_are_counted_in_one_warning(tmp_path, kind, caplog):
    others = ("a.jpg", "ant/a.heic", "ant/more/b.txt", "bee/none", "bee/x.npy", "notes.csv")
    root = fill(two_classes(tmp_path / "data"), {f"test/{name}": b"data" for name in others})
    source = load(root if kind == "folder" else as_zip(root))
    assert reds(source)[1] == [0] * 3 + [1] * 3
    (record,) = caplog.records
    assert "6 files are not used" in record.getMessage()
    assert "a.jpg; ant/a.heic; ant/more/b.txt; bee/none; bee/x.npy; and 1 more" in record.getMessage()


def test_links_are_followed_and_circles_and_pipes_left_out(tmp_path, caplog):
    root = two_classes(tmp_path / "data")
    fill(tmp_path, {"elsewhere/cat/0.png": encoded(50), "elsewhere/1.png": encoded(40)})
    (root / "train" / "cat").symlink_to(tmp_path / "elsewhere" / "cat")
    (root / "train" / "ant" / "link.png").symlink_to(tmp_path / "elsewhere" / "1.png")
    (root / "train" / "bee" / "circle").symlink_to(root)
    (root / "train" / "bee" / "again").symlink_to(root / "train" / "bee")
    os.mkfifo(root / "train" / "ant" / "pipe.png")
    records = open_split(root, "train")
    assert records.classes == ("ant", "bee", "cat")
    assert records.names[3] == "train/ant/link.png" and records.names[-1] == "train/cat/0.png"
    assert records.get(3)[0] == encoded(40) and records.labels.tolist() == [0] * 4 + [1] * 3 + [2]
    assert "3 files are not used" in caplog.text and "ant/pipe.png; bee/again; bee/circle" in caplog.text


@pytest.mark.parametrize("in_memory", (True, False))
def test_a_broken_link_is_a_bad_image(tmp_path, in_memory, caplog):
    root = two_classes(tmp_path / "data")
    (root / "test" / "bee" / "1b.png").symlink_to("nowhere.png")
    with pytest.raises(UserError, match=r"test/bee/1b.png \(a broken link to nowhere.png\)"):
        next(load(root, in_memory).batches(2))
    assert reds(load(root, in_memory, on_bad_image="skip"))[1] == [0] * 3 + [1] * 3
    assert len(caplog.records) == 1 and "left out 1 of 7: test/bee/1b.png (a broken link" in caplog.text


@pytest.mark.parametrize("name", ("data", "data/train", "data/train/cat", "data/test.zip"))
def test_a_broken_link_in_place_of_a_folder_is_named(tmp_path, name):
    root = two_classes(tmp_path / "data")
    link = tmp_path / name
    if link.exists():
        link.rename(tmp_path / "moved")
    link.symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=f"{name} is a broken link to .*nowhere; repair or remove it"):
        load(root)


def set_flag(path, name, flag):
    """Sets a bit in the flags of a file, in both headers of the zip."""
    data = bytearray(path.read_bytes())
    for signature, offset, start in ((b"PK\x03\x04", 6, 30), (b"PK\x01\x02", 8, 46)):
        position = data.find(signature)
        while position >= 0:
            if data[position + start :].startswith(name.encode()):
                data[position + offset] |= flag
            position = data.find(signature, position + 1)
    path.write_bytes(data)


def test_an_encrypted_zip_is_refused(tmp_path):
    path = as_zip(two_classes(tmp_path / "data"))
    set_flag(path, "test/bee/1.png", 1)
    with pytest.raises(UserError, match="data.zip: 1 files are encrypted; unpack them"):
        load(path)


def test_damaged_files_in_a_zip_are_bad_images(tmp_path):
    """One is overwritten, one claims 2 GiB, one uses an unknown method, one is a link."""
    path = tmp_path / "data.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in "abcde":
            info = zipfile.ZipInfo(f"train/ant/{name}.png")
            info.external_attr = (0o120777 if name == "d" else 0o100644) << 16
            archive.writestr(
                info, b"../e.png" if name == "d" else encoded(7) + bytes(range(200)), zipfile.ZIP_DEFLATED
            )
        offsets = {info.filename[-5]: info.header_offset for info in archive.infolist()}
    data = bytearray(path.read_bytes())
    data[offsets["a"] + 45 : offsets["a"] + 75] = b"\xff" * 30
    central = [data.find(f"train/ant/{name}.png".encode(), offsets["e"] + 45) - 46 for name in "abc"]
    data[central[1] + 24 : central[1] + 28] = struct.pack("<I", 2**31)
    data[central[2] + 10 : central[2] + 12] = struct.pack("<H", 77)
    path.write_bytes(data)
    records = open_split(path, "train")
    for index, words in enumerate(
        (
            "damaged in the zip",
            "2147483648 bytes; at most",
            "damaged in the zip: .*supported",
            "a link in the zip to ../e.png",
        )
    ):
        with pytest.raises(BadImage, match=words):
            records.get(index)
    assert records.get(4)[0].startswith(encoded(7))


def test_a_file_that_is_no_zip_is_named(tmp_path):
    (tmp_path / "data.tar").write_bytes(b"something else")
    with pytest.raises(UserError, match="data.tar cannot be read as a zip .*; download or pack it again"):
        load(tmp_path / "data.tar")


@pytest.mark.parametrize("path", ("gs://bucket/data", "s3://bucket/data.zip", "https://host/data"))
def test_other_file_systems_are_refused(path):
    with pytest.raises(UserError, match=f"data.folder.path is '{path}'; images are read from local files"):
        FolderConfig(path=path)


@pytest.mark.parametrize("in_memory", (True, False))
def test_a_rare_class_is_trained_and_named(tmp_path, in_memory, caplog):
    """A class of one training image stays in training; one that the test set lacks keeps its label."""
    root = two_classes(tmp_path / "data")
    fill(root, {"train/aa/0.png": encoded(200)})
    source = load(root, in_memory)
    labels = source.tables.labels if in_memory else next(source.batches(5)).labels
    assert source.classes == ("aa", "ant", "bee") and np.bincount(labels).tolist() == [1, 2, 2]
    assert reds(source) == ([0] * 3 + [90] * 3, [1] * 3 + [2] * 3)
    texts = [record.getMessage() for record in caplog.records]
    assert texts == [
        f"{root}/train (its part held out for validation) has no image of 1 of 3 classes: aa",
        f"{root}/test has no image of 1 of 3 classes: aa",
    ]


def test_nothing_to_hold_out_is_an_error_that_states_it(tmp_path):
    with pytest.raises(
        UserError, match="no class has two images, so none can be held out .* set data.folder.validation"
    ):
        load(two_classes(tmp_path / "data", per_class=1))
    part, held_out = hold_out(open_split(two_classes(tmp_path / "more", 2), "train"), 0.5)
    assert part.labels.tolist() == held_out.labels.tolist() == [0, 1]


@pytest.mark.parametrize("in_memory", (True, False))
def test_an_empty_class_folder_is_an_error_or_skipped(tmp_path, in_memory, caplog):
    root = two_classes(tmp_path / "data")
    (root / "train" / "cat").mkdir()
    with pytest.raises(UserError, match="no image in 1 of 3 class folders: cat; remove them, or set"):
        load(root, in_memory)
    assert load(root, in_memory, on_bad_image="skip").num_classes == 3
    assert "train has no image of 1 of 3 classes: cat" in caplog.text


def test_a_limit_is_named_where_it_leaves_out_a_class(tmp_path, caplog):
    load(two_classes(tmp_path / "data"), limit=1)
    assert "train (limit 1) has no image of 1 of 2 classes: bee" in caplog.text


@pytest.mark.parametrize("in_memory", (True, False))
def test_grey_images_for_a_network_of_one_channel(tmp_path, in_memory):
    """Red weighs 0.299 in grey: 90 becomes 27."""
    source = load(two_classes(tmp_path / "data"), in_memory, channels=1, mean=(0.1,), std=(0.5,))
    images = source.split("test").images[:]
    assert source.channels == 1 and images.shape == (6, 4, 4, 1)
    np.testing.assert_allclose(images[3:], (27 / 255 - 0.1) / 0.5, atol=1e-6)
    tables = source.tables if in_memory else next(source.batches(4))
    assert tables.images.shape[1:] == (4, 4, 1) and set(np.unique(tables.images)) == {0, 27}


def test_settings_that_do_not_fit_the_channels_are_refused():
    for change, words in (
        (
            dict(channels=1, mean=(0.4, 0.5)),
            "mean has 2 numbers; expected one, or one for each of 1 channels",
        ),
        (dict(channels=2), "channels = 2 is not known; choose one of 1, 3"),
        (dict(std=(0.5, 0.0, 0.5)), "std.1. = 0.0 is out of range; it should be above 0"),
    ):
        with pytest.raises(UserError, match=words):
            ImagesConfig(**change)
