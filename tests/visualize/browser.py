"""Looks at a page as a user does: what it loads, whether its pictures are pictures, and what a browser makes of it."""

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
_LOADS = {"src", "href", "srcset", "poster", "data", "action", "background"}
_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars"
).split()
_ASK = """<script>document.title = JSON.stringify({
  wide: document.documentElement.scrollWidth, window: innerWidth, pictures: document.images.length,
  broken: [...document.images].filter(one => !one.naturalWidth).length,
  dark: getComputedStyle(document.body).backgroundColor})</script>"""


class Page(HTMLParser):
    """tags: how many of each. loads: every address that the page would load. images: what its pictures hold, decoded."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.loads, self.images, self._open = {}, [], [], []
        self.feed(text)
        self.close()
        self.loads += re.findall(r"url\(([^)]*)\)|@import\s+(\S+)", text)
        assert not self._open, f"left open: {self._open}"

    def handle_starttag(self, tag, attributes):
        self.tags[tag] = self.tags.get(tag, 0) + 1
        if tag not in ("img", "meta", "br", "link"):
            self._open.append(tag)
        given = dict(attributes)
        if tag == "img":
            head, _, data = given["src"].partition(",")
            assert re.fullmatch(r"data:image/(png|jpeg);base64", head) and given["alt"]
            picture = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
            picture.load()
            self.images.append(picture)
        else:
            self.loads += [value for name, value in given.items() if name in _LOADS]

    def handle_endtag(self, tag):
        assert self._open.pop() == tag


def seen(page: Path, folder: Path, width: int) -> dict:
    """What a browser with a window of this width says of the page."""
    asked = folder / f"asked{width}.html"
    asked.write_text(page.read_text().replace("</body>", _ASK + "</body>"))
    words = [CHROMIUM, *_FLAGS, f"--user-data-dir={folder / f'profile{width}'}", f"--window-size={width},800"]
    done = subprocess.run(
        [*words, "--dump-dom", asked.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    return json.loads(re.search(r"<title>(.*?)</title>", done.stdout).group(1))
