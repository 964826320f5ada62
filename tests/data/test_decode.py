"""Image files become 8-bit RGB or grey: every format, depth and orientation."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from prance_jax.data.images.decode import BadImage, crop_image, decode_image

RNG = np.random.default_rng(0)


def encoded(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def test_every_image_format_becomes_rgb():
    grey = Image.fromarray(np.full((4, 4), 77, np.uint8))
    grey_16_bits = Image.fromarray(np.full((4, 4), 257 * 77, np.uint16))
    cmyk = Image.new("CMYK", (4, 4), (255, 0, 0, 0))
    transparent = Image.new("RGBA", (4, 4), (9, 8, 7, 0))
    palette = Image.new("RGB", (4, 4), (200, 0, 0)).quantize(4)
    for data, expected in (
        (encoded(grey), (77, 77, 77)),
        (encoded(grey, "JPEG", quality=95), (77, 77, 77)),
        (encoded(grey_16_bits), (77, 77, 77)),
        (encoded(cmyk, "JPEG", quality=100), (0, 255, 255)),
        (encoded(transparent), (9, 8, 7)),
        (encoded(palette), (200, 0, 0)),
        (encoded(Image.new("RGB", (1, 1), (1, 2, 3))), (1, 2, 3)),
    ):
        out = decode_image(data)
        assert out.mode == "RGB"
        np.testing.assert_allclose(np.asarray(out)[0, 0], expected, atol=3)


def test_incomplete_files_are_bad_images():
    noise = Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    whole = encoded(noise, "JPEG")
    for data in (whole[: len(whole) // 2], b"", b"not an image", encoded(noise)[:300]):
        with pytest.raises(BadImage):
            decode_image(data)


VALUES = np.array([[0, 1, 128, 129], [255, 256, 30000, 32896], [40000, 50000, 65534, 65535]], np.uint16)


@pytest.mark.parametrize("share", (1.0, 0.2, 0.003))
@pytest.mark.parametrize("kind", ("PNG", "TIFF", "PPM", "JPEG2000"))
def test_16_bits_are_divided_by_257_however_dark_the_image_is(kind, share):
    values = (VALUES * share).astype(np.uint16)
    options = {} if kind != "JPEG2000" else dict(irreversible=False)
    image = Image.fromarray(values)
    if kind == "PPM":
        data = b"P5 4 3 65535\n" + values.astype(">u2").tobytes()
    else:
        data = encoded(image, kind, **options)
    np.testing.assert_array_equal(np.asarray(decode_image(data, channels=1)), np.round(values / 257))


def tiff(values, bits, sample_format=1, photometric=1, width=None):
    """A grey TIFF file, written by hand."""
    height, data = values.shape[0], values.tobytes()
    tags = {256: width or values.shape[1], 257: height, 258: bits, 259: 1, 262: photometric, 273: 8}
    tags |= {277: 1, 278: height, 279: len(data), 339: sample_format}
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = b"II*\0" + struct.pack("<I", 8 + len(data))
    return head + data + struct.pack("<H", len(tags)) + directory + bytes(4)


def test_12_bits_are_divided_by_4095():
    packed = np.array([[0x00, 0x08, 0x00, 0xFF, 0xFF, 0xFF]], np.uint8)  # 0, 2048, 4095, 4095
    out = np.asarray(decode_image(tiff(packed, 12, width=4), channels=1))
    np.testing.assert_array_equal(out, [[0, 128, 255, 255]])


def test_white_is_zero_is_inverted_at_every_depth():
    for values, bits in (
        (np.array([[0, 51, 255]], np.uint8), 8),
        (257 * np.array([[0, 51, 255]], np.uint16), 16),
    ):
        out = decode_image(tiff(values, bits, photometric=0), channels=1)
        np.testing.assert_array_equal(np.asarray(out), [[255, 204, 0]])


def test_floats_are_pixels_from_zero_to_one():
    ramp = np.linspace(0, 1, 18, dtype=np.float32).reshape(3, 6)
    out = np.asarray(decode_image(encoded(Image.fromarray(ramp), "TIFF")))
    np.testing.assert_array_equal(out, np.repeat(np.round(255 * ramp)[..., None], 3, axis=2))
    dark = np.asarray(decode_image(encoded(Image.fromarray(ramp / 100), "TIFF")))
    assert dark.max() == 3  # 255 / 100
    for values in (ramp * 255, ramp - 0.5, np.where(ramp > 0.5, np.nan, ramp)):
        with pytest.raises(BadImage, match="floating-point pixels from .*; save them with black as 0"):
            decode_image(encoded(Image.fromarray(values.astype(np.float32)), "TIFF"))


def test_integers_of_an_unknown_range_are_bad_images():
    values = np.arange(12).reshape(3, 4)
    for data in (
        tiff(values.astype(np.int16), 16, 2),
        tiff(values.astype(np.uint32), 32),
        tiff(values.astype(np.int32), 32, 2),
    ):
        with pytest.raises(BadImage, match="signed or 32-bit integer pixels, whose range is unknown; save 8"):
            decode_image(data)


def test_grey_weighs_red_green_and_blue():
    """ITU-R 601-2: 0.299 R + 0.587 G + 0.114 B."""
    colours = RNG.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    image = decode_image(encoded(Image.fromarray(colours)), channels=1)
    assert image.mode == "L"
    np.testing.assert_allclose(np.asarray(image), colours @ (0.299, 0.587, 0.114), atol=0.51)
    assert crop_image(image, 4, (0, 0, 5, 6)).shape == (4, 4, 1)


@pytest.mark.parametrize("kind", ("JPEG", "PNG", "WEBP"))
def test_the_orientation_tag_is_followed_by_choice(kind):
    """Tag 6: the stored image is turned by 90 degrees to the right; its bottom left comes to the top left."""
    stored = np.zeros((16, 32, 3), np.uint8)
    stored[8:, :8] = 255
    exif = Image.Exif()
    exif[274] = 6
    data = encoded(Image.fromarray(stored), kind, exif=exif, **({} if kind == "PNG" else dict(quality=100)))
    plain, turned = (np.asarray(decode_image(data, exif_orientation=turn)) for turn in (False, True))
    np.testing.assert_allclose(plain, stored, atol=40)
    np.testing.assert_allclose(turned, np.rot90(stored, -1), atol=40)
    assert turned.shape == (32, 16, 3) and turned[:4, :4].min() > 200 > 50 > turned[:4, 12:].max()


@pytest.mark.parametrize(
    "data, words",
    [
        (b"", "an empty file"),
        (b"<!DOCTYPE html>", r"no image of a known format; it starts with b'<!DOCTYP'"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image of a known format"),
        (encoded(Image.new("RGB", (9, 9)), "TIFF")[:40], "no image of a known format|Truncated"),
    ],
    ids=("empty", "a page of HTML", "EPS, which would start a program", "cut"),
)
def test_a_bad_image_has_a_reason(data, words):
    with pytest.raises(BadImage, match=words):
        decode_image(data)
