"""One HTML file that needs nothing else: pictures are inside of it, there is no script, and it follows light and dark."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from prance_jax.spec.search_space import SearchSpace
from prance_jax.visualize.panels import ImagePanel

_STYLE = """
:root{color-scheme:light dark;--page:#f6f7f9;--card:#fff;--ink:#1b2027;--soft:#5b6470;--line:#dde1e7;--blue:#0072b2;
--orange:#c98700;--red:#c44e00;--track:#e9ecf1}
@media(prefers-color-scheme:dark){:root{--page:#0e1116;--card:#1a1a1a;--ink:#e7eaee;--soft:#a0a8b4;--line:#333a44;
--blue:#4db2ee;--orange:#f0b429;--red:#ff8a4c;--track:#2b3038}.chart img{filter:invert(.898) hue-rotate(180deg)}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1160px;margin:0 auto;padding:24px 16px 64px}
h1{font-size:1.7rem;margin:0 0 4px}h2{font-size:1.25rem;margin:40px 0 4px}h3{font-size:1rem;margin:20px 0 8px}
p{margin:4px 0 12px;max-width:75ch}.soft,figcaption,small{color:var(--soft)}
.small{font-size:.85rem}code{font:.85em ui-monospace,Menlo,Consolas,monospace;overflow-wrap:anywhere}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:20px 0}
.tile,.card,.chart,.wide,details{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:14px}
.tile b{display:block;font-size:1.6rem;line-height:1.2}.tile span{color:var(--soft);font-size:.85rem}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,500px),1fr));gap:14px}
.card header{display:flex;justify-content:space-between;gap:12px;margin-bottom:8px}
.card header>span{color:var(--blue);white-space:nowrap}.wrong{color:var(--red)}
.strip{display:flex;gap:8px}.strip figure,.thumb{margin:0;flex:1 1 0;min-width:0}
.strip img,.thumb img{width:100%;display:block;border-radius:4px}img[src^="data:image/png"]{image-rendering:pixelated}.chart img{image-rendering:auto!important}
figcaption{font-size:.75rem;line-height:1.3;margin-top:4px}
.bars{display:flex;flex-wrap:wrap;gap:6px 14px;margin-top:10px}.bars>div{flex:1 1 150px;min-width:0}
.bars>.many{flex-basis:216px}.many span{font-size:.56rem!important}.bars small{font-size:.72rem}
.layers{display:flex;gap:3px;align-items:flex-end}.layers span{flex:1;min-width:0;text-align:center;font-size:.65rem;
color:var(--soft)}.layers i{display:flex;align-items:flex-end;height:44px;background:var(--track);border-radius:2px}
.layers u{display:block;width:100%;background:var(--blue);border-radius:2px}.ratio u{background:var(--orange)}
.layers .opens{margin-left:8px}
.thumbs{display:grid;grid-template-columns:repeat(8,1fr);gap:10px}@media(max-width:700px){.thumbs{grid-template-columns:repeat(4,1fr)}}
.chart,.wide{overflow-x:auto;margin:12px 0}.chart img{display:block;min-width:640px;width:100%;height:auto}
table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums}
th,td{padding:4px 10px;text-align:right;white-space:nowrap;border-bottom:1px solid var(--line)}
th:first-child,td:first-child{text-align:left}tr.prance{font-weight:600}
.key{display:inline-block;width:.95em;height:.95em;border-radius:3px;vertical-align:-.1em;margin:0 2px 0 8px}
summary{cursor:pointer}pre{overflow-x:auto;font-size:.75rem}
"""


def render_page(title: str, lead: str, parts: Sequence[str]) -> str:
    """The document; parts: HTML made by the functions below, lead: plain text under the title."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style></head>\n<body><main>\n"
        f'<h1>{escape(title)}</h1>\n<p class="soft">{escape(lead)}</p>\n'
        + "\n".join(parts)
        + "\n</main></body></html>\n"
    )


def section(title: str, text: str, *parts: str) -> str:
    """A heading, a paragraph of plain text, and parts in HTML."""
    return f"<section><h2>{escape(title)}</h2><p>{escape(text)}</p>{''.join(parts)}</section>"


def tiles(figures: Sequence[tuple[str, str]]) -> str:
    """Large figures with a few words under each: (figure, words)."""
    own = (
        f'<div class="tile"><b>{escape(big)}</b><span>{escape(words)}</span></div>' for big, words in figures
    )
    return f'<div class="tiles">{"".join(own)}</div>'


def chart(png: bytes, words: str) -> str:
    """A chart on white; on a dark page its light is turned round."""
    return f'<div class="chart"><img src="{_uri(png, "png")}" alt="{escape(words)}"></div>'


def cards(images: Sequence[ImagePanel], space: SearchSpace) -> str:
    """Each image with what was left after every decision, and what its layers were given."""
    return f'<div class="cards">{"".join(_card(one, space) for one in images)}</div>'


def thumbs(images: Sequence[ImagePanel]) -> str:
    """The images alone, with prediction, label and MACs."""
    own = (
        f'<figure class="thumb">{_img(one.panels[0], one.name)}<figcaption>{_verdict(one)}<br>'
        f"{one.macs_kept:.1%} MACs</figcaption></figure>"
        for one in images
    )
    return f'<div class="thumbs">{"".join(own)}</div>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column names a method; rows of PRANCE stand out."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = (
        f'<tr class="{"prance" if row[0].startswith("prance") else "other"}">'
        + "".join(f"<td>{escape(cell)}</td>" for cell in row)
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
    )


def folded(title: str, text: str) -> str:
    """Text as it is, behind a title that opens it."""
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"


def remarks(lines: Sequence[str]) -> str:
    """Small print, a line each."""
    return f'<p class="soft small">{"<br>".join(map(escape, lines))}</p>'


def small_heading(text: str) -> str:
    return f"<h3>{escape(text)}</h3>"


def png_of(figure: Any) -> bytes:
    """A matplotlib figure as PNG."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110, facecolor="white")
    return file.getvalue()


def _card(one: ImagePanel, space: SearchSpace) -> str:
    panels = []
    for number, (pixels, tokens) in enumerate(zip(one.panels, one.tokens)):
        words = f"{tokens} tokens" if number == 0 else f"decision {number}: {tokens} left"
        img = _img(pixels, f"{one.name}, {words}")
        panels.append(f"<figure>{img}<figcaption>{words}</figcaption></figure>")
    widths = _layers(one.widths, space.max_width, space, "width", "")
    ratios = _layers(one.ratios, space.ratios[-1], space, "MLP ratio", "ratio")
    return (
        f'<article class="card"><header><b>{_verdict(one)}</b><span>{one.macs_kept:.1%} of the MACs</span></header>'
        f'<div class="strip">{"".join(panels)}</div><div class="bars">{widths}{ratios}</div></article>'
    )


def _layers(values: Sequence[float], most: float, space: SearchSpace, name: str, kind: str) -> str:
    bars = "".join(
        f'<span class="{"opens" if layer in space.first_layers[1:] else "follows"}">'
        f'<i><u style="height:{100 * value / most:.0f}%"></u></i>{value:.3g}</span>'
        for layer, value in enumerate(values)
    )
    kind = f"{kind} many" if len(values) > 8 else kind
    return f'<div class="{kind}"><small>{name} of each layer</small><div class="layers">{bars}</div></div>'


def _verdict(one: ImagePanel) -> str:
    return f'<span class="{"wrong" if one.wrong else "right"}">{escape(one.verdict)}</span>'


def _img(pixels: np.ndarray, words: str) -> str:
    """Small pictures exactly, large ones (photographs) as JPEG: a page of many stays small."""
    from PIL import Image

    kind = "png" if pixels.shape[0] < 200 else "jpeg"
    file = io.BytesIO()
    Image.fromarray(pixels).save(
        file, format=kind, **({"quality": 88} if kind == "jpeg" else {"optimize": True})
    )
    return f'<img src="{_uri(file.getvalue(), kind)}" alt="{escape(words)}">'


def _uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
