"""The page holds everything itself and escapes every name."""

import numpy as np
from small import SPACE
from visualize.browser import Page

from prance_jax.visualize import html
from prance_jax.visualize.panels import ImagePanel

BAD = '<img src="http://a.example/x.png">{{ title }}'


def bad_page() -> tuple[str, np.ndarray]:
    """A page with every kind of part, whose every text is `BAD`, and the pixels of its large image."""
    noise = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    image = ImagePanel(BAD, (noise, noise[:28, :28]), (17, 5), (16,) * 8, (2.0,) * 8, 0.4321, BAD, "b")
    parts = [
        html.tiles([(BAD, BAD)]),
        html.section(BAD, BAD, html.cards([image], SPACE), html.thumbs(BAD, [image])),
        html.table([BAD], [[BAD], ["PRANCE (prune)"]], [1], [BAD, "second remark"]),
        html.details(BAD, BAD),
        html.chart(html.figure_png(_figure()), BAD),
    ]
    return html.render_page(BAD, BAD, parts), noise


def _figure():
    from matplotlib.figure import Figure

    return Figure(figsize=(1, 1))


def test_names_are_text_and_large_images_are_small_files():
    text, noise = bad_page()
    page = Page(text)
    assert page.tags["img"] == len(page.images) == 4 and not page.loads
    assert [image.format for image in page.images] == ["JPEG", "PNG", "JPEG", "PNG"]
    assert (np.asarray(page.images[1]) == noise[:28, :28]).all()
    assert "43.2%" in text and len(text) < 400_000
    # Title, heading, lead; 2 of the tile, 2 of the section, 1 caption of the card, 2 of the thumbs, 3 of the
    # table and 2 of the details.
    assert page.text.count(BAD) == 3 + 2 + 2 + 1 + 2 + 3 + 2


def test_parts_of_the_page():
    page = Page(bad_page()[0])
    assert page.tags["tr"] == 3 and page.tags["th"] == 1 and page.tags["td"] == 2
    assert page.tags["h1"] == page.tags["h2"] == page.tags["h3"] == page.tags["details"] == 1
    assert page.tags["u"] == 2 * 8  # a bar per layer: widths and MLP ratios
    assert "decision 1: 5 left" in page.text and "second remark" in page.text


def test_a_part_that_is_not_html_is_escaped():
    assert "&lt;b&gt;" in html.section("title", "text", "<b>")
