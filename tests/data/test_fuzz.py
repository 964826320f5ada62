"""Damaged files of every format: each is decoded or a bad image with a reason, in bounded memory."""

import io
import resource
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from prance_jax.data.images.decode import BadImage, decode_image

# Pillow warns of damaged tags and of sizes near its own limit.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
KINDS = {
    "JPEG": {},
    "progressive JPEG": dict(progressive=True),
    "PNG": {},
    "TIFF": dict(compression="tiff_lzw"),
    "WEBP": {},
    "GIF": {},
    "BMP": {},
    "PPM": {},
}


def whole_files():
    """A small image of noise and gradients in every format."""
    rng = np.random.default_rng(5)
    pixels = rng.integers(0, 80, (40, 56, 3), dtype=np.uint8) + np.arange(56, dtype=np.uint8)[:, None] * 3
    image, exif = Image.fromarray(pixels), Image.Exif()
    exif[274] = 6
    for kind, options in KINDS.items():
        stream = io.BytesIO()
        if kind in ("JPEG", "WEBP", "PNG"):
            options = dict(options, exif=exif)
        image.save(stream, kind.split()[-1], **options)
        yield kind, stream.getvalue()


FILES = dict(whole_files())


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """Cuts a file, flips its bits, or overwrites, removes or doubles a part; often in its first bytes."""
    for _ in range(rng.integers(1, 4)):
        if not data:
            return data
        reach = len(data) if rng.random() < 0.5 else min(len(data), 64)
        start = int(rng.integers(0, reach))
        end = start + int(rng.integers(1, 9))
        change = rng.integers(0, 6)
        if change == 0:
            data = data[: int(rng.integers(0, len(data)))]
        elif change == 1:
            data = data[:start] + bytes([data[start] ^ (1 << int(rng.integers(0, 8)))]) + data[start + 1 :]
        elif change == 2:
            data = data[:start] + rng.bytes(end - start) + data[end:]
        elif change == 3:
            data = data[:start] + b"\xff" * (end - start) + data[end:]
        elif change == 4:
            data = data[:start] + data[end:]
        else:
            data = data[:end] + data[start:]
    return data


def outcome(data: bytes, **options) -> str:
    """'decoded', or the reason; any other exception is a failure."""
    try:
        image = decode_image(data, **options)
    except BadImage as error:
        reason = str(error)
        assert reason and "BytesIO" not in reason and "\n" not in reason
        return reason
    pixels = np.asarray(image)
    assert image.mode == "RGB" and pixels.dtype == np.uint8 and pixels.size
    return "decoded"


@pytest.mark.parametrize("kind", FILES)
def test_damaged_files_are_decoded_or_have_a_reason(kind):
    rng = np.random.default_rng(len(kind))
    assert outcome(FILES[kind]) == "decoded"
    outcomes = {"decoded": 0, "bad": 0}
    for _ in range(30):
        data = mutated(FILES[kind], rng)
        whole, draft = outcome(data, exif_orientation=True), outcome(data, exif_orientation=True, draft=True)
        # What a stream tries before training is what it can read later.
        assert (whole == "decoded") == (draft == "decoded")
        outcomes["decoded" if whole == "decoded" else "bad"] += 1
    assert outcomes["bad"] > 0 and (outcomes["decoded"] > 0 or kind == "PNG"), outcomes  # PNG has checksums


def png(width, height):
    """A PNG file that states a size and has few pixels."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def with_size(kind, position, size):
    """A small file whose header has another size."""
    return FILES[kind][:position] + size + FILES[kind][position + len(size) :]


HUGE = {
    "PNG": png(60000, 60000),
    "PNG above our limit alone": png(13000, 13000),
    "PNG below the limit": png(11000, 11000),
    "JPEG": with_size("JPEG", FILES["JPEG"].index(b"\xff\xc0") + 5, struct.pack(">HH", 65000, 65000)),
    "GIF": with_size("GIF", 6, struct.pack("<HH", 65535, 65535)),
    "BMP": with_size("BMP", 18, struct.pack("<ii", 60000, 60000)),
    "PPM": b"P6 60000 60000 255\n" + bytes(1000),
}


@pytest.mark.parametrize("kind", HUGE)
def test_a_huge_size_in_a_header_takes_no_memory(kind):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert outcome(HUGE[kind]) != "decoded"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes


def test_the_limit_of_pixels_is_stated():
    with pytest.raises(BadImage, match="13000 x 12000 pixels; at most 134217728"):
        decode_image(b"P6 13000 12000 255\n" + bytes(10))
