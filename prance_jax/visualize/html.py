"""Renders the report page from the templates in the folder `templates`.

The page is one file: its images are data URIs, its styles are included, and it has no script.
It follows the light or dark setting of the reader. Each function returns escaped HTML, so parts
nest and any other text is escaped where a template prints it.
"""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from prance_jax.core.files import atomic_file
from prance_jax.spec.search_space import SearchSpace
from prance_jax.visualize.panels import ExitPanel, ImagePanel

_JPEG_FROM = 200  # pixels a side: smaller images are stored exactly, larger ones (photographs) as JPEG


def render_page(title: str, lead: str, parts: Sequence[Markup]) -> str:
    """Returns the whole document.

    Args:
      title: heading of the page and title of the window.
      lead: plain text under the heading.
      parts: HTML from the functions below.
    """
    return str(_render("page.html", title=title, lead=lead, parts=parts))


def section(title: str, text: str, *parts: Markup) -> Markup:
    """Returns a section: a heading, a paragraph and parts.

    Args:
      title: heading, plain text.
      text: paragraph, plain text.
      *parts: HTML from the functions below.
    """
    return _render("section.html", title=title, text=text, parts=parts)


def tiles(figures: Sequence[tuple[str, str]]) -> Markup:
    """Returns large figures, each with a few words below it: (figure, words)."""
    return _render("tiles.html", figures=figures)


def chart(png: bytes, description: str) -> Markup:
    """Returns a chart; its lightness is inverted on a dark page.

    Args:
      png: the file's bytes, drawn on white.
      description: text for readers who do not see the image.
    """
    return _render("chart.html", png=png, description=description)


def cards(images: Sequence[ImagePanel], space: SearchSpace) -> Markup:
    """Returns a card for each image: its tokens after each decision, the sizes of its layers.

    Args:
      images: what the cards show.
      space: the search space, for the largest sizes and the layers where groups begin.
    """
    return _render("cards.html", images=images, space=space)


def thumbs(heading: str, images: Sequence[ImagePanel]) -> Markup:
    """Returns small images with prediction, label and MACs.

    Args:
      heading: plain text above the images.
      images: what is shown; the first panel of each.
    """
    return _render("thumbs.html", heading=heading, images=images)


def exit_thumbs(heading: str, images: Sequence[ExitPanel]) -> Markup:
    """Returns small images with the answers of a cascade on the way, a bar as long as each probability.

    Args:
      heading: plain text above the images; may be empty.
      images: what is shown.
    """
    return _render("exits.html", heading=heading, images=images)


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    highlighted: Collection[int],
    remarks: Sequence[str],
) -> Markup:
    """Returns a table with remarks below it.

    Args:
      head: names of the columns; the first column is aligned left.
      rows: cells, one sequence per row.
      highlighted: indices of the rows in bold.
      remarks: lines in small print.
    """
    return _render("table.html", head=head, rows=rows, highlighted=highlighted, remarks=remarks)


def details(title: str, text: str) -> Markup:
    """Returns preformatted text that is folded away until the reader opens it.

    Args:
      title: the line that is always visible.
      text: the folded text.
    """
    return _render("details.html", title=title, text=text)


def figure_png(figure: Any) -> bytes:
    """Returns a matplotlib figure as the bytes of a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110, facecolor="white")
    return file.getvalue()


class Drawer:
    """Writes figures as PNG files into a folder and returns them for the page."""

    def __init__(self, folder: Path):
        """Takes the folder; it is created if needed."""
        self._folder = folder

    def save(self, name: str, figure: Any) -> bytes:
        """Writes a matplotlib figure and returns the bytes of its file.

        Args:
          name: of the file.
          figure: a matplotlib figure.
        """
        png = figure_png(figure)
        with atomic_file(self._folder / name) as partial:
            partial.write_bytes(png)
        return png

    def chart(self, name: str, figure: Any, description: str) -> Markup:
        """Writes a matplotlib figure and returns it as a chart of the page.

        Args:
          name: of the file.
          figure: a matplotlib figure.
          description: text for readers who do not see the image.
        """
        return chart(self.save(name, figure), description)


def _render(template: str, **values: Any) -> Markup:
    return Markup(_environment().get_template(template).render(values))


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("prance_jax.visualize", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=lambda share: f"{share:.1%}",
        number=lambda value: f"{value:.3g}",
        png_uri=lambda png: _data_uri(png, "png"),
        pixels_uri=_pixels_uri,
    )
    return environment


def _pixels_uri(pixels: np.ndarray) -> str:
    """Encodes RGB uint8 [H, W, 3]."""
    from PIL import Image

    file = io.BytesIO()
    if pixels.shape[0] < _JPEG_FROM:
        Image.fromarray(pixels).save(file, format="png", optimize=True)
        return _data_uri(file.getvalue(), "png")
    Image.fromarray(pixels).save(file, format="jpeg", quality=88)
    return _data_uri(file.getvalue(), "jpeg")


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
