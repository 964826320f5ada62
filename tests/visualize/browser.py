"""Checks a page as a user sees it: what it loads, whether its images decode, and its size in a browser."""

import base64
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

from PIL import Image

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_LOADING_ATTRIBUTES = {"src", "href", "srcset", "poster", "data", "action", "background"}
_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars"
).split()
_MEASURE = """<script>document.title = JSON.stringify({
  page_width: document.documentElement.scrollWidth, window_width: innerWidth, images: document.images.length,
  broken: [...document.images].filter(image => !image.naturalWidth).length,
  background: getComputedStyle(document.body).backgroundColor})</script>"""


class Page(HTMLParser):
    """A parsed page.

    Attributes:
      tags: number of each tag.
      loads: every address that the page would load.
      images: its images, decoded.
      text: the words of the page, without tags.
    """

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.loads, self.images, self.text, self._open = {}, [], [], "", []
        self.feed(text)
        self.close()
        self.loads += re.findall(r"url\(([^)]*)\)|@import\s+(\S+)", text)
        assert not self._open, f"not closed: {self._open}"

    def handle_starttag(self, tag, attributes):
        self.tags[tag] = self.tags.get(tag, 0) + 1
        if tag not in ("img", "meta", "br", "link"):
            self._open.append(tag)
        values = dict(attributes)
        if tag == "img":
            head, _, data = values["src"].partition(",")
            assert re.fullmatch(r"data:image/(png|jpeg);base64", head) and values["alt"]
            image = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
            image.load()
            self.images.append(image)
        else:
            self.loads += [value for name, value in values.items() if name in _LOADING_ATTRIBUTES]

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] != "style":
            self.text += data


def measure_page(page: Path, folder: Path, width: int) -> dict:
    """What a browser with a window of this width reports of the page."""
    copy = folder / f"page{width}.html"
    copy.write_text(page.read_text().replace("</body>", _MEASURE + "</body>"))
    words = [CHROMIUM, *_FLAGS, f"--user-data-dir={folder / f'profile{width}'}", f"--window-size={width},800"]
    done = subprocess.run(
        [*words, "--dump-dom", copy.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    return json.loads(re.search(r"<title>(.*?)</title>", done.stdout).group(1))
