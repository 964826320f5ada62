"""Patches of an image as a picture: what was pruned is washed out and hatched, what was merged shares a colour and an
outline."""

from __future__ import annotations

import colorsys

import numpy as np

PRUNED, ALONE = -2, -1
"""What a patch may be in place of a member of group 0, 1, ...: no longer there, or a token of its own."""

_PAPER, _HATCH = np.array([226, 229, 234], np.float32), np.array([168, 174, 184], np.float32)
_WASH, _TINT = 0.86, 0.36


def patch_groups(tokens_of_patches: np.ndarray) -> np.ndarray:
    """Numbers the groups of merged patches: [D, P] owners after each decision -> int [D, P] of PRUNED, ALONE or a group.

    Patches have one number exactly where one token carries them together. A token keeps its number from decision to
    decision; where two are merged, it is that of the one that held more patches (then of the one that comes first).
    """
    found, fresh, before = (
        np.empty(tokens_of_patches.shape, int),
        0,
        np.full(tokens_of_patches.shape[1], ALONE),
    )
    for decision, owner in enumerate(tokens_of_patches):
        now = np.where(owner < 0, PRUNED, ALONE)
        for token in np.unique(owner[owner >= 0]):
            members = np.flatnonzero(owner == token)
            if len(members) < 2:
                continue
            numbers, first, counts = np.unique(
                before[members][before[members] >= 0], return_index=True, return_counts=True
            )
            if len(numbers):
                now[members] = numbers[np.lexsort((first, -counts))[0]]
            else:
                now[members], fresh = fresh, fresh + 1
        found[decision] = before = now
    return found


def group_colour(group: int) -> np.ndarray:
    """RGB [3] in 0 ... 255 of a group; neighbours in number are far apart in hue, the first twenty all differ."""
    hue = (0.04 + group * 0.381966) % 1.0
    value, saturation = ((1.0, 0.85), (0.8, 1.0), (1.0, 0.5))[group % 3]
    return 255 * np.array(colorsys.hsv_to_rgb(hue, saturation, value), np.float32)


def enlarge(image: np.ndarray, side: int = 168) -> np.ndarray:
    """An image [S, S, channels] in [0, 1] as RGB uint8 of `side` pixels or a little more, by whole multiples."""
    rgb = np.broadcast_to(image, (*image.shape[:2], 3)) if image.shape[2] == 1 else image[:, :, :3]
    pixels = np.round(255 * np.clip(rgb, 0, 1)).astype(np.uint8)
    factor = max(1, -(-side // image.shape[0]))
    return pixels.repeat(factor, axis=0).repeat(factor, axis=1)


def draw_kept(pixels: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """One panel: RGB uint8 [H, H, 3] of an image after a decision.

    numbers: int [P], a row of `groups`.
    """
    grid = int(round(len(numbers) ** 0.5))
    patch = pixels.shape[0] // grid
    line = max(1, patch // 8)
    number = numbers.reshape(grid, grid)
    large = number.repeat(patch, axis=0).repeat(patch, axis=1)
    canvas = pixels.astype(np.float32)
    gone = large == PRUNED
    canvas[gone] = (1 - _WASH) * canvas[gone] + _WASH * _PAPER
    # A bright sky is as pale as what was washed out; lines tell them apart.
    down, across = np.indices(gone.shape)
    canvas[gone & ((down + across) % max(4, patch // 2) == 0)] = _HATCH
    for group in np.unique(number[number >= 0]):
        inside, tint = large == group, group_colour(group)
        canvas[inside] = (1 - _TINT) * canvas[inside] + _TINT * tint
        canvas[inside & _edge(number == group, patch, line)] = tint
    return np.round(canvas).astype(np.uint8)


def _edge(member: np.ndarray, patch: int, line: int) -> np.ndarray:
    """Pixels within `line` of a side where a patch of the group meets one that is not: [grid, grid] -> [H, H] bool."""
    grid = len(member)
    edge = np.zeros((grid, patch, grid, patch), bool)
    around = np.pad(member, 1)
    above, below, left, right = around[:-2, 1:-1], around[2:, 1:-1], around[1:-1, :-2], around[1:-1, 2:]
    edge[:, :line] |= ~above[:, None, :, None]
    edge[:, -line:] |= ~below[:, None, :, None]
    edge[:, :, :, :line] |= ~left[:, None, :, None]
    edge[:, :, :, -line:] |= ~right[:, None, :, None]
    return edge.reshape(grid * patch, grid * patch)
