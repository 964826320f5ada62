"""A user's images reach the network as the test images of the source do."""

import numpy as np
import pytest
from PIL import Image

from prance_jax.core.errors import UserError
from prance_jax.data.arrays import from_arrays
from prance_jax.data.images.records import ImagesConfig
from prance_jax.data.load import DataConfig
from prance_jax.visualize.user_images import read_user_images

GREY = from_arrays((np.zeros((2, 10, 10, 1)), np.array([0, 1])), num_classes=2, mean=0.2, std=0.5)
RGB = from_arrays((np.zeros((2, 10, 10, 3)), np.array([0, 1])), num_classes=2, mean=(0, 0.5, 1), std=0.1)


def test_the_middle_is_cut_and_normalised(tmp_path):
    """20 x 40 pixels, the middle 20 x 20 of which is red: a share of 1 shows just these, at half size."""
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, 10:30, 0] = 255
    Image.fromarray(pixels).save(tmp_path / "b.png")
    Image.new("L", (10, 10), 51).save(tmp_path / "a.jpg", quality=100)
    (tmp_path / "notes.txt").write_text("no picture")
    config = DataConfig(name="folder", images=ImagesConfig(size=10, crop=1.0))
    images, names = read_user_images([str(tmp_path)], RGB, config)
    assert names == ["a.jpg", "b.png"] and images.shape == (2, 10, 10, 3) and images.dtype == np.float32
    assert np.allclose(images[1, :, 3:7], (10, -5, -10), atol=0.1)
    assert np.allclose(RGB.to_unit(images)[0], 0.2, atol=0.01)
    grey, _ = read_user_images([str(tmp_path / "a.jpg")], GREY, DataConfig())
    assert grey.shape == (1, 10, 10, 1) and np.allclose(grey, 0, atol=0.02)


def test_what_cannot_be_read_is_named(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"\x89PNG and then nothing")
    with pytest.raises(UserError, match="bad.png cannot be read as an image"):
        read_user_images([str(tmp_path)], GREY, DataConfig())
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no image"):
        read_user_images([str(tmp_path / "empty")], GREY, DataConfig())
