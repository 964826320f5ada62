"""One image with all that was decided for it, ready to be put on a sheet or on the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prance_jax.visualize.patches import draw_kept, enlarge, patch_groups
from prance_jax.visualize.trace import Trace


@dataclass(frozen=True)
class ImagePanel:
    """name: of the image, in the report. panels: RGB uint8 [H, H, 3], the image and what was left of it after each decision.

    tokens: CLS counted, one number a panel. widths: per layer; ratios: MLP ratio per layer, hidden units over width.
    macs_kept: share of the full network's MACs. predicted, label: names of classes; label is None where nobody knows.
    """

    name: str
    panels: tuple[np.ndarray, ...]
    tokens: tuple[int, ...]
    widths: tuple[int, ...]
    ratios: tuple[float, ...]
    macs_kept: float
    predicted: str
    label: str | None

    @property
    def wrong(self) -> bool:
        return self.label is not None and self.predicted != self.label

    @property
    def verdict(self) -> str:
        """In a few words what was predicted and whether it is right; without a label, of which picture."""
        if self.label is None:
            return f"{self.name}: {self.predicted}"
        return f"says {self.predicted}, is {self.label}" if self.wrong else f"{self.predicted}, right"


def make_panels(
    units: np.ndarray,
    found: Trace,
    classes: Sequence[str],
    labels: Sequence[int] | None,
    names: Sequence[str],
    panels: bool = True,
) -> list[ImagePanel]:
    """units: [N, S, S, channels] in [0, 1], the images of `found`. panels: whether to draw the decisions; else the image alone."""
    result = []
    for index, (unit, name) in enumerate(zip(units, names)):
        own, pixels = found.some(index), enlarge(unit)
        numbers = patch_groups(own.tokens_of_patches) if panels else ()
        result.append(
            ImagePanel(
                name=name,
                panels=(pixels, *(draw_kept(pixels, row) for row in numbers)),
                tokens=tuple(map(int, own.tokens)),
                widths=tuple(map(int, own.widths)),
                ratios=tuple(float(mlp_dims / width) for mlp_dims, width in zip(own.mlp_dims, own.widths)),
                macs_kept=float(own.macs_kept),
                predicted=classes[own.predicted],
                label=None if labels is None else classes[labels[index]],
            )
        )
    return result


def spread_by_macs(macs_kept: np.ndarray, count: int) -> np.ndarray:
    """Indices of `count` images (or all there are), evenly from the one of fewest MACs to the one of most."""
    order = np.argsort(macs_kept, kind="stable")
    return order[np.unique(np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int))]


def easiest_and_hardest(macs_kept: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the `count` images of fewest MACs, rising, and of the `count` of most, falling; none in both."""
    order = np.argsort(macs_kept, kind="stable")
    count = min(count, len(order) // 2)
    return order[:count], order[::-1][:count]
