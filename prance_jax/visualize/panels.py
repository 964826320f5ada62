"""Everything that was decided for one image, ready for a contact sheet or for the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from prance_jax.visualize.patches import draw_kept, enlarge, patch_groups
from prance_jax.visualize.trace import Trace


@dataclass(frozen=True)
class ImagePanel:
    """One image and the decisions for it.

    Attributes:
      name: name of the image in the report.
      panels: RGB uint8 [H, H, 3] each: the image, then its remaining tokens after each decision.
      tokens: number of tokens per panel, CLS included.
      widths: embedding width per layer.
      ratios: MLP ratio per layer, hidden units over width.
      macs_kept: MACs as a share of the dense network's.
      predicted: name of the predicted class.
      label: name of the labelled class; None for an image without a label.
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
    def is_wrong(self) -> bool:
        """Whether the prediction differs from the label."""
        return self.label is not None and self.predicted != self.label

    @property
    def caption(self) -> str:
        """Prediction and label in a few words; without a label, name and prediction."""
        return _caption(self.name, self.predicted, self.label)


class ExitAnswer(NamedTuple):
    """The answer of a cascade at one exit.

    Attributes:
      look: index of the look.
      group: group at whose end the exit is.
      predicted: name of the predicted class.
      probability: of that class.
    """

    look: int
    group: int
    predicted: str
    probability: float

    @property
    def exit_name(self) -> str:
        """Look and group for readers, counted from 1."""
        return f"look {self.look + 1}, group {self.group + 1}"


@dataclass(frozen=True)
class ExitPanel:
    """One image and the answers of a cascade for it.

    Attributes:
      name: name of the image in the report.
      pixels: RGB uint8 [H, H, 3].
      answers: at all exits on the way, in order; the last one is where the image stopped.
      macs_kept: MACs as a share of the dense network's.
      label: name of the labelled class; None for an image without a label.
    """

    name: str
    pixels: np.ndarray
    answers: tuple[ExitAnswer, ...]
    macs_kept: float
    label: str | None

    @property
    def is_wrong(self) -> bool:
        """Whether the last answer differs from the label."""
        return self.label is not None and self.answers[-1].predicted != self.label

    @property
    def caption(self) -> str:
        """Prediction and label in a few words; without a label, name and prediction."""
        return _caption(self.name, self.answers[-1].predicted, self.label)


def _caption(name: str, predicted: str, label: str | None) -> str:
    if label is None:
        return f"{name}: {predicted}"
    return f"{predicted}, right" if predicted == label else f"{predicted}, label {label}"


def make_panels(
    images: np.ndarray,
    trace: Trace,
    classes: Sequence[str],
    labels: Sequence[int] | None,
    names: Sequence[str],
    with_decisions: bool = True,
) -> list[ImagePanel]:
    """Draws images with the decisions for them.

    Args:
      images: float [N, S, S, channels] in [0, 1].
      trace: decisions for the same N images.
      classes: names of the classes.
      labels: class index per image; None for images without labels.
      names: name per image.
      with_decisions: whether to draw a panel after each decision, else the image alone.
    """
    panels = []
    for index, (image, name) in enumerate(zip(images, names)):
        facts, pixels = trace.select(index), enlarge(image)
        groups = patch_groups(facts.tokens_of_patches) if with_decisions else ()
        panels.append(
            ImagePanel(
                name=name,
                panels=(pixels, *(draw_kept(pixels, row) for row in groups)),
                tokens=tuple(map(int, facts.tokens)),
                widths=tuple(map(int, facts.widths)),
                ratios=tuple(float(mlp_dim / width) for mlp_dim, width in zip(facts.mlp_dims, facts.widths)),
                macs_kept=float(facts.macs_kept),
                predicted=classes[facts.predicted],
                label=None if labels is None else classes[labels[index]],
            )
        )
    return panels


def spread_by_macs(macs_kept: np.ndarray, count: int) -> np.ndarray:
    """Selects images evenly from the fewest MACs to the most.

    Args:
      macs_kept: [N], MACs per image.
      count: number of images; all where there are fewer.

    Returns:
      Indices of the images, by rising MACs.
    """
    order = np.argsort(macs_kept, kind="stable")
    return order[np.unique(np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int))]


def easiest_and_hardest(macs_kept: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Selects the images with the fewest and with the most MACs; no image is in both.

    Args:
      macs_kept: [N], MACs per image.
      count: images in each of the two; at most half of all.

    Returns:
      Indices of the fewest by rising MACs, and of the most by falling MACs.
    """
    order = np.argsort(macs_kept, kind="stable")
    count = min(count, len(order) // 2)
    return order[:count], order[::-1][:count]
