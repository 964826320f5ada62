"""Draws the tokens that remain: pruned patches are hatched, merged patches share a colour."""

from __future__ import annotations

import colorsys

import numpy as np

PRUNED, ALONE = -2, -1
"""Values of a patch in no group: its token was pruned, or its token carries no other patch."""

_PAPER, _HATCH = np.array([226, 229, 234], np.float32), np.array([168, 174, 184], np.float32)
_WASH, _TINT = 0.86, 0.36


def patch_groups(tokens_of_patches: np.ndarray) -> np.ndarray:
    """Numbers the groups of merged patches.

    Two patches have the same number exactly where one token carries both. A token keeps its number
    from decision to decision. Where two tokens merge, the number is that of the one with more
    patches, then of the one that comes first.

    Args:
      tokens_of_patches: int [D, P], token of each patch after each decision; -1 once pruned.

    Returns:
      int [D, P]: PRUNED, ALONE or the number of a group from 0.
    """
    groups = np.empty(tokens_of_patches.shape, int)
    previous, num_groups = np.full(tokens_of_patches.shape[1], ALONE), 0
    for decision, token_of_patch in enumerate(tokens_of_patches):
        current = np.where(token_of_patch < 0, PRUNED, ALONE)
        for token in np.unique(token_of_patch[token_of_patch >= 0]):
            members = np.flatnonzero(token_of_patch == token)
            if len(members) < 2:
                continue
            numbers, first, counts = np.unique(
                previous[members][previous[members] >= 0], return_index=True, return_counts=True
            )
            if len(numbers):
                current[members] = numbers[np.lexsort((first, -counts))[0]]
            else:
                current[members], num_groups = num_groups, num_groups + 1
        groups[decision] = previous = current
    return groups


def group_colour(group: int) -> np.ndarray:
    """Returns the RGB colour [3] of a group, 0 to 255; the first twenty differ clearly."""
    hue = (0.04 + group * 0.381966) % 1.0
    value, saturation = ((1.0, 0.85), (0.8, 1.0), (1.0, 0.5))[group % 3]
    return 255 * np.array(colorsys.hsv_to_rgb(hue, saturation, value), np.float32)


def enlarge(image: np.ndarray, side: int = 168) -> np.ndarray:
    """Enlarges an image by a whole factor.

    Args:
      image: float [S, S, channels] in [0, 1]; one channel is grey.
      side: smallest side of the result, pixels.

    Returns:
      RGB uint8 [H, H, 3], H at least `side`.
    """
    rgb = np.broadcast_to(image, (*image.shape[:2], 3)) if image.shape[2] == 1 else image[:, :, :3]
    pixels = np.round(255 * np.clip(rgb, 0, 1)).astype(np.uint8)
    factor = max(1, -(-side // image.shape[0]))
    return pixels.repeat(factor, axis=0).repeat(factor, axis=1)


def draw_kept(pixels: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Draws an image after one decision.

    Args:
      pixels: RGB uint8 [H, H, 3].
      groups: int [P], a row of `patch_groups`.

    Returns:
      RGB uint8 [H, H, 3].
    """
    grid = int(round(len(groups) ** 0.5))
    patch = pixels.shape[0] // grid
    line = max(1, patch // 8)
    group_grid = groups.reshape(grid, grid)
    group_of_pixel = group_grid.repeat(patch, axis=0).repeat(patch, axis=1)
    canvas = pixels.astype(np.float32)
    is_pruned = group_of_pixel == PRUNED
    canvas[is_pruned] = (1 - _WASH) * canvas[is_pruned] + _WASH * _PAPER
    # A bright sky is as pale as a washed-out patch; the hatching tells them apart.
    down, across = np.indices(is_pruned.shape)
    canvas[is_pruned & ((down + across) % max(4, patch // 2) == 0)] = _HATCH
    for group in np.unique(group_grid[group_grid >= 0]):
        inside, tint = group_of_pixel == group, group_colour(group)
        canvas[inside] = (1 - _TINT) * canvas[inside] + _TINT * tint
        canvas[inside & _edge(group_grid == group, patch, line)] = tint
    return np.round(canvas).astype(np.uint8)


def _edge(member: np.ndarray, patch: int, line: int) -> np.ndarray:
    """Marks pixels within `line` of the border of a group: bool [grid, grid] of patches -> bool [H, H]."""
    grid = len(member)
    edge = np.zeros((grid, patch, grid, patch), bool)
    padded = np.pad(member, 1)
    above, below, left, right = padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]
    edge[:, :line] |= ~above[:, None, :, None]
    edge[:, -line:] |= ~below[:, None, :, None]
    edge[:, :, :, :line] |= ~left[:, None, :, None]
    edge[:, :, :, -line:] |= ~right[:, None, :, None]
    return edge.reshape(grid * patch, grid * patch)
