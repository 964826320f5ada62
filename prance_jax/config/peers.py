"""Published cascades for `cascade.peers`, made of this library's looks.

All of them: every later look gets the tokens of the look before, added to its embedding through a linear map that
starts at zero. Images stop by the largest probability of an answer. Training is that of `experiments/cascade`, with
a teacher, and not that of the papers.
"""

from __future__ import annotations

from prance_jax.config.cascade import LookConfig, PeerConfig
from prance_jax.core.errors import UserError

_LARGEST = (1.0,)


def dvt(image_sizes: tuple[int, ...]) -> PeerConfig:
    """Returns DVT: networks with weights of their own, on finer and finer grids.

    From the paper: one more network per answer, each with more tokens, and features of the one before.
    Different here: the image is resized and patches keep their side. Features are added to the embedding; DVT
    feeds them to every MLP, and hands on attention maps as well.

    Args:
      image_sizes: sides of the image for all looks but the last one, pixels, ascending. The last one sees the
        image as it is.

    Raises:
      UserError: there is no size, or they do not ascend.

    Reference: arXiv 2105.15075, section 3.
    """
    if not image_sizes or list(image_sizes) != sorted(set(image_sizes)):
        raise UserError(f"dvt: image_sizes={image_sizes} must be ascending, without repeats, at least one")
    first, *later = image_sizes
    looks = [LookConfig(first, structures=_LARGEST, begins=1)]
    looks += [LookConfig(size, structures=_LARGEST) for size in (*later, None)]
    return PeerConfig("dvt", tuple(looks))


def cf_vit(image_size: int) -> PeerConfig:
    """Returns CF-ViT: one network on a coarse grid, then on a finer one where the first look attended most.

    From the paper: both looks have the same weights, but positions of their own. The second look splits the most
    attended half of the cells into four tokens; every other cell is one token.
    Different here: each look has a classifier of its own. Attention is that of the last layer, there a running average.
    Tokens are brought to the fine grid by bilinear interpolation and a linear map, the class token too; there by an
    MLP, without the class token. Stage one also trains the whole fine grid.

    Args:
      image_size: side of the image for the first look, pixels.

    Reference: arXiv 2203.03821, section 3.
    """
    first = LookConfig(image_size, shares="all", structures=_LARGEST, begins=1)
    return PeerConfig("cf_vit", (first, LookConfig(structures=_LARGEST, refined=0.5)))


def thinkingvit(share: float) -> PeerConfig:
    """Returns ThinkingViT: a small structure of the network, then the whole network, on the same grid.

    From the paper: both looks have the same weights, the first one a part of them.
    Different here: the first structure is searched, not fixed. Widths narrow the embedding and MLPs, not the heads, so
    they save less than in the paper. Where they do not save enough for `share`, the first look drops tokens as well,
    which ThinkingViT does not. It stops by entropy, and scales the tokens that it hands on by one number.

    Args:
      share: of the dense MACs; the first look costs at most so much.

    Reference: arXiv 2507.10800, section 3.
    """
    first = LookConfig(shares="all", structures=(share,), begins=1)
    return PeerConfig("thinkingvit", (first, LookConfig(structures=_LARGEST)))
