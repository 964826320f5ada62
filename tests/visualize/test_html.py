"""The page holds everything itself, whatever names it is given."""

import numpy as np
from small import SPACE
from visualize.browser import Page

from prance_jax.visualize import html
from prance_jax.visualize.panels import ImagePanel


def test_names_are_text_and_large_pictures_are_small_files():
    noise = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    bad = '<img src="http://a.example/x.png">'
    one = ImagePanel(bad, (noise, noise[:28, :28]), (17, 5), (16,) * 8, (2.0,) * 8, 0.4321, bad, "b")
    own = [
        html.section(bad, bad, html.cards([one], SPACE), html.thumbs([one])),
        html.table([bad], [[bad], ["prance_prune"]]),
        html.folded(bad, bad) + html.tiles([(bad, bad)]) + html.remarks([bad]),
    ]
    text = html.render_page(bad, bad, own)
    found = Page(text)
    assert found.tags["img"] == len(found.images) == 3 and not found.loads
    assert [picture.format for picture in found.images] == ["JPEG", "PNG", "JPEG"]
    assert (np.asarray(found.images[1]) == noise[:28, :28]).all()
    assert "43.2%" in text and len(text) < 400_000
