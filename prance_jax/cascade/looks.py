"""Parameters of the looks of a cascade, and what one look hands to the next: its tokens, and scores of cells.

Parameters are a dict with an entry `look_K` for every look, and `recycle_K` for every look but the first. The last look
has all its parameters; a look that shares weights with it has only its unshared.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from prance_jax.core.checks import check_images
from prance_jax.core.sizes import Size
from prance_jax.models import forward
from prance_jax.models.elastic import dense, layer_norm
from prance_jax.models.outputs import GroupState
from prance_jax.models.vit import ViT
from prance_jax.spec.cascade import CascadeSpec, have_same_blocks
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.tokens.unmerge import unmerge

Params = Any


def init_params(spec: CascadeSpec, key: jax.Array) -> Params:
    """Initialises the parameters of all looks; a later look starts as if there were none before it.

    Args:
      spec: the looks.
      key: of the random numbers; the last look has the parameters that it would have alone.
    """
    params = {}
    for number, look in enumerate(spec.looks):
        is_last = number == len(spec.looks) - 1
        look_key = key if is_last else jax.random.fold_in(key, number)
        whole = forward.init_params(ViT(look.spec), look_key)
        params[f"look_{number}"] = whole if is_last else _unshared_leaves(whole, look.shares)
        if number:
            params[f"recycle_{number}"] = _init_recycling(
                spec.looks[number - 1].spec.space.super_width, look.spec.space.super_width
            )
    return params


def init_from_network(spec: CascadeSpec, network: Params, key: jax.Array) -> Params:
    """Initialises a cascade from a trained network.

    The last look is the network. Earlier looks of the same search space start as its copies, with positions resized to
    their grids; others start at random. An exit that the network does not have starts like its head.

    Args:
      spec: the looks.
      network: parameters of the last look; its exits may be missing.
      key: of the random numbers.
    """
    params = init_params(spec, key)
    for number, look in enumerate(spec.looks):
        if not have_same_blocks(look.spec, spec.last):
            continue
        answer = {"norm": network["norm"], "head": network["head"]}
        exits = {f"exit_{group}": network.get(f"exit_{group}", answer) for group in look.spec.exits}
        start = {name: value for name, value in network.items() if not name.startswith("exit_")}
        start = jax.tree.map(jnp.copy, {**start, **exits})
        if "pos_embed" in network:
            start["pos_embed"] = resize_positions(network["pos_embed"], spec.last, look.spec)
        is_last = number == len(spec.looks) - 1
        params[f"look_{number}"] = start if is_last else _unshared_leaves(start, look.shares)
    return params


def look_params(spec: CascadeSpec, params: Params, look: int) -> Params:
    """Returns all parameters of one look, those that it shares with the last look among them.

    Args:
      spec: the looks.
      params: parameters of the cascade.
      look: index of the look.
    """
    unshared = params[f"look_{look}"]
    if look == len(spec.looks) - 1 or spec.looks[look].shares == "none":
        return unshared
    return _overlay(params[f"look_{len(spec.looks) - 1}"], unshared)


def images_of_look(spec: CascadeSpec, images: jax.Array, look: int) -> jax.Array:
    """Resizes images of the full size to that of a look.

    Args:
      spec: the looks.
      images: float [B, S, S, channels].
      look: index of the look.

    Raises:
      UserError: images have the wrong shape, or are not floating point.
    """
    check_images(images, spec.last.image_shape)
    return resize_images(jnp.asarray(images, jnp.float32), spec.looks[look].spec.image_size)


def resize_images(images: jax.Array, size: int) -> jax.Array:
    """Resizes images [B, S, S, C] to [B, size, size, C]: means of square pieces if `size` divides S, else bilinear.

    At half the size the mean is what bilinear interpolation without antialiasing gives, as in CF-ViT, and costs no product.

    Args:
      images: float [B, S, S, C].
      size: side of the result, in pixels.
    """
    side = images.shape[1]
    if side == size:
        return images
    if side % size == 0:
        pieces = images.reshape(-1, size, side // size, size, side // size, images.shape[-1])
        return pieces.mean(axis=(2, 4))
    return _resize_linear(images, size)


def _resize_linear(x: jax.Array, size: int) -> jax.Array:
    """Resizes [B, S, S, C]; under `jax_enable_x64` JAX would compute the weights in 64 bits."""
    with jax.enable_x64(False):
        return jax.image.resize(x, (x.shape[0], size, size, x.shape[-1]), "linear")


def resize_positions(positions: jax.Array, spec: ModelSpec, target: ModelSpec) -> jax.Array:
    """Resizes learned positions to another grid; prefix tokens keep theirs.

    Args:
      positions: [spec.positions, C].
      spec: network that the positions are of.
      target: network that they are for; has as many class tokens.

    Returns:
      [target.positions, C].
    """
    num_prefix = spec.positions - spec.patches
    return jnp.concatenate(
        [positions[:num_prefix], _resize_grid(positions[None, num_prefix:], target.patches)[0]]
    )


class HandedOn(NamedTuple):
    """What a look gets from the look before it.

    Attributes:
      added: [B, spec.all_tokens, width], added to the embedding; None for the first look of an image.
      scores: float32 [B, spec.cells], which choose the cells that are split; None without `spec.refined_cells`.
    """

    added: jax.Array | None = None
    scores: jax.Array | None = None


def hand_on(
    spec: CascadeSpec, params: Params, from_look: int, state: GroupState, look: int, width: Size
) -> HandedOn:
    """Returns what a look gets from an earlier one.

    Args:
      spec: the looks.
      params: parameters of the cascade.
      from_look: index of the look that was left.
      state: state of inference where it was left.
      look: index of the look that begins.
      width: channels of its embedding.
    """
    before, target = spec.looks[from_look].spec, spec.looks[look].spec
    added = recycle_tokens(params[f"recycle_{look}"], before, target, state, width)
    if target.refined_cells is None:
        return HandedOn(added)
    return HandedOn(added, cell_scores(state.patch_attention, target.cells))


def cell_scores(patch_attention: jax.Array, cells: int) -> jax.Array:
    """Brings the attention to patches to a grid of cells, float32 [B, cells].

    A cell gets the mean of the patches that it contains, or the value of the patch that contains it. CF-ViT keeps a running
    average over layers; this is the attention of the last layer that ran.

    Args:
      patch_attention: float32 [B, P], see `GroupState`.
      cells: number of cells. On a side it divides the number of patches, or is divided by it.

    Reference: CF-ViT, arXiv 2203.03821.
    """
    side, new_side = round(patch_attention.shape[1] ** 0.5), round(cells**0.5)
    grid = patch_attention.reshape(-1, side, side)
    if side >= new_side:
        step = side // new_side
        return grid.reshape(-1, new_side, step, new_side, step).mean(axis=(2, 4)).reshape(-1, cells)
    step = new_side // side
    return grid.repeat(step, axis=1).repeat(step, axis=2).reshape(-1, cells)


def recycle_tokens(
    weights: Params, spec: ModelSpec, target: ModelSpec, state: GroupState, width: Size
) -> jax.Array:
    """Maps the tokens of a look to an addend of the next look's embedding.

    Norm, a linear map for prefix tokens and one for the others, which start at zero; then every token is put back on its
    patches (pruned patches get zero), and the grid is resized to that of the next look. There a cell that is not split
    gets the mean of its patches, see `CellSplit.arrange`; CF-ViT gives it nothing.

    Args:
      weights: parameters `recycle_K` of the next look.
      spec: network of the look that the tokens come from.
      target: network of the next look.
      state: state of inference where the look was left.
      width: channels of the next look's embedding.

    Returns:
      [B, target.all_tokens, width].

    Reference: CF-ViT, arXiv 2203.03821, section 3.3; ThinkingViT, arXiv 2507.10800, section 3.
    """
    tokens, prefix = state.tokens, spec.num_prefix_tokens
    norm = weights["norm"]
    x = layer_norm(tokens.features, norm["scale"], norm["bias"], state.width, spec.norm_epsilon)
    mapped = [
        dense(part, map_["kernel"], map_["bias"], state.width, width, target.space.max_width)
        for part, map_ in ((x[:, :prefix], weights["class_tokens"]), (x[:, prefix:], weights["patches"]))
    ]
    grid = unmerge(tokens._replace(features=jnp.concatenate(mapped, axis=1)), "zero")
    return jnp.concatenate([mapped[0], _resize_grid(grid, target.patches)], axis=1)


def _resize_grid(grid: jax.Array, patches: int) -> jax.Array:
    """Resizes features [B, P, C] on a square grid to [B, patches, C], bilinear."""
    batch, count, channels = grid.shape
    if count == patches:
        return grid
    side, new_side = round(count**0.5), round(patches**0.5)
    resized = _resize_linear(grid.reshape(batch, side, side, channels), new_side)
    return resized.reshape(batch, patches, channels)


def _init_recycling(width_in: int, width: int) -> Params:
    """Weights of a map that starts at zero."""
    zero_map = lambda: {
        "kernel": jnp.zeros((width_in, width), jnp.float32),
        "bias": jnp.zeros(width, jnp.float32),
    }
    norm = {"scale": jnp.ones(width_in, jnp.float32), "bias": jnp.zeros(width_in, jnp.float32)}
    return {"norm": norm, "class_tokens": zero_map(), "patches": zero_map()}


def _unshared_leaves(params: Params, shares: str, inside_norm: bool = False) -> Params:
    """The part of a look's parameters that it does not share."""
    if shares == "none":
        return params
    unshared = {}
    for name, value in params.items():
        if name in ("pos_embed", "norm", "head", "head_dist") or name.startswith("exit_"):
            unshared[name] = value
        elif not isinstance(value, dict):
            if shares == "all_but_norms" and (inside_norm or name == "bias"):
                unshared[name] = value
        elif inner := _unshared_leaves(value, shares, name.startswith("norm")):
            unshared[name] = inner
    return unshared


def _overlay(shared: Params, unshared: Params) -> Params:
    """Shared parameters, with a look's own ones in place of theirs."""
    merged = dict(shared)
    for name, value in unshared.items():
        merged[name] = _overlay(shared[name], value) if isinstance(value, dict) and name in shared else value
    return merged
