"""The specification of one network: all that sets its shapes and semantics, nothing learned."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Literal

from prance_jax.core.errors import UserError
from prance_jax.core.fields import NumChannels, Range, Repeats, Share, Side, check_fields
from prance_jax.core.sizes import Rate, Size
from prance_jax.spec.architecture import Architecture, ChannelCounts, TokenLayout
from prance_jax.spec.search_space import SearchSpace
from prance_jax.tokens.method import TokenMethod
from prance_jax.tokens.methods.registry import get_method


@dataclass(frozen=True)
class ModelSpec(TokenLayout):
    """A meta-network, or a plain ViT: a meta-network with one structure.

    `enter_at_widest`, `scale_norm`, `token_floor` and `full_last_layer` reproduce the released
    inference code of PRANCE, see `official`.

    Attributes:
      space: the structures that the weights hold.
      image_size: side of the image, or its rows and columns, in pixels.
      patch_size: side of a patch, in pixels; divides `image_size`.
      num_classes: classes of an image, or of a pixel if `pixels`. 0: no head, the answer is what the head would
        read (timm's features).
      channels: of the image.
      token_optimization: token method at every decision point: 'prune', 'merge' or 'prune_merge' of
        the paper, or another name in `tokens.methods.registry.METHODS`, for example 'tome'.
      weighted_merge: merge by the mean weighted by token sizes. False: the plain mean of the paper.
      norm_epsilon: of LayerNorm; 1e-6 for timm and DeiT files, 1e-5 for the released PRANCE files.
      dtype: of the computation, 'float32' or 'bfloat16'. Parameters, norms, softmax and logits are
        always float32.
      remat: recompute attention weights and hidden units in the backward pass. They are most of the
        memory of training; recomputing adds about a third to the work of that pass.
      channels_left: channels after pruning, see `baselines.channel_removal.remove_channels`. None:
        all channels of the space.
      distilled: a second class token with its own classifier (DeiT, arXiv 2012.12877, section 4).
        Logits are the mean of both. Token methods leave both tokens alone; token predictors
        (SPViT, DynamicViT) refuse such networks.
      residual_maps: a learned linear map replaces the plain residual at the end of a group, as in
        the paper. Without them a structure of one width is a plain ViT, see `zoo.extract`.
      pixels: predict a class for each pixel, from all patches. Reduced tokens are put back on the
        grid first. False: one class for the image.
      multi_label: an image may have several of the classes; each is predicted by the sigmoid of its
        logit. False: one class, by the softmax.
      exits: groups, ascending and without the last one, at whose end the network can answer: each has a
        norm and a classifier of its own, which read what the head reads.
      enter_at_widest: the layer before a decision point writes the largest width, which the
        attention at the decision point reads; the residual is cut afterwards. False: layers run at
        their chosen widths.
      scale_norm: multiply normalised values by sqrt(width / super_width).
      token_floor: fewest tokens after a reduction, a distillation token not counted. 2 keeps CLS
        and one patch token.
      full_last_layer: the last layer computes all tokens, as in timm and in the released code. False:
        only those that the head reads, see `num_queries`; logits are the same.
      refined_cells: number of cells, each of 2 x 2 patches, that enter as four tokens; every other cell
        enters as one. Scores choose the cells of each image, see `tokens.unmerge.CellSplit`. None:
        every patch is a token.
      architecture: what public ViTs differ in; by default DeiT's.

    Raises:
      UserError: a field is out of its range, or does not go with another one.
    """

    space: SearchSpace
    image_size: Side | tuple[Side, Side]
    patch_size: Side
    num_classes: Annotated[int, Range(0, 2**24)]
    channels: NumChannels = 3
    token_optimization: str = "prune"
    weighted_merge: bool = False
    norm_epsilon: Share = 1e-6
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False
    channels_left: ChannelCounts | None = None
    distilled: bool = False
    residual_maps: bool = True
    pixels: bool = False
    multi_label: bool = False
    exits: tuple[int, ...] = ()
    enter_at_widest: bool = False
    scale_norm: bool = False
    token_floor: Repeats = 2
    full_last_layer: bool = False
    refined_cells: int | None = None
    architecture: Architecture = Architecture()

    def __post_init__(self):
        check_fields(self, "network")
        get_method(self.token_optimization)
        if any(side % self.patch_size for side in self.image_sides):
            raise UserError(f"image size {self.image_size} is not a multiple of patch size {self.patch_size}")
        self._check_combinations()
        last = self.space.groups - 1
        if list(self.exits) != sorted(set(self.exits)) or not all(0 <= group < last for group in self.exits):
            raise UserError(
                f"exits={self.exits} must be groups from 0 to {last - 1}, ascending and without repeats; the "
                "last group ends in the head"
            )
        if self.refined_cells is not None:
            self._check_cells()

    def _check_combinations(self) -> None:
        if self.pixels and self.multi_label:
            raise UserError("pixels=True predicts one class for each pixel, so multi_label must be False")
        if self.distilled and self.reads_all_tokens:
            raise UserError(
                "pixels=True and global_pool='avg' classify patches, distilled=True class tokens only; set one of them"
            )
        if self.distilled and not self.architecture.class_token:
            raise UserError("distilled=True has a CLS and a distillation token; set class_token=True")
        if not self.num_classes and (self.pixels or self.exits):
            raise UserError(
                f"num_classes=0 has no classifier, which pixels=True and exits need; there are pixels={self.pixels} "
                f"and exits={self.exits}"
            )
        if self.architecture.rope_temperature is not None:
            if self.space.head_dim % 4 or self.channels_left is not None:
                raise UserError(
                    "rope_temperature rotates whole heads: their width must be a multiple of 4 and their channels "
                    f"not pruned; the width is {self.space.head_dim}, channels_left={self.channels_left}"
                )
        rows, columns = self.grid
        if rows != columns and (self.method.needs_grid or self.refined_cells is not None):
            raise UserError(
                f"image_size={self.image_size} has {rows} x {columns} patches; token_optimization='cait' and "
                "refined_cells need a square"
            )

    def _check_cells(self) -> None:
        side = self.grid[0]
        if side % 2 or not 0 <= self.refined_cells <= self.cells:
            raise UserError(
                f"refined_cells={self.refined_cells} needs an even number of patches on a side and must be 0 to the "
                f"number of cells; there are {side} patches on a side and {self.cells} cells"
            )
        if self.pixels or self.method.needs_grid:
            raise UserError(
                f"refined_cells={self.refined_cells} gives no grid of tokens, which pixels=True and "
                f"token_optimization='cait' need; there are pixels={self.pixels} and {self.token_optimization!r}"
            )

    def official(self) -> ModelSpec:
        """Returns this network with the semantics of PRANCE's released inference code."""
        return dataclasses.replace(
            self,
            enter_at_widest=True,
            scale_norm=True,
            token_floor=1,
            norm_epsilon=1e-5,
            full_last_layer=True,
        )

    @property
    def method(self) -> TokenMethod:
        """The token method at every decision point."""
        return get_method(self.token_optimization)

    @property
    def rates(self) -> int:
        """Number of keep rates of a decision point."""
        return self.method.rates

    def tokens_after(self, count: Size, rates: tuple[Rate, ...]) -> tuple[Size, ...]:
        """Counts the tokens after each step of a reduction.

        Args:
          count: tokens before it, prefix tokens counted; int or int32 [B].
          rates: keep rate of each step; float or float32 [B] each.

        Returns:
          Tokens after each step; int or int32 [B] each.
        """
        return self.method.tokens_after(
            count, rates, self.fewest_tokens, self.patches, self.extra_prefix_tokens
        )

    @property
    def unrefined(self) -> ModelSpec:
        """This network with every patch as a token; it has the same weights."""
        return self if self.refined_cells is None else dataclasses.replace(self, refined_cells=None)

    def num_queries(self, layer: int) -> int | None:
        """Counts the leading tokens whose attention a layer computes.

        In the last layer these are the class tokens; keys and values are still those of all tokens. All
        tokens attend if the layer is a decision point, since a reduction follows.

        Args:
          layer: index of the layer, from 0.

        Returns:
          The number of queries; None for all tokens that arrive.
        """
        is_last = layer == self.space.depth - 1
        is_decision_point = layer in self.space.first_layers[1:]
        if is_last and self.reads_class_tokens_only and not is_decision_point:
            return self.class_tokens
        return None

    def reduces_last_layer(self, method: TokenMethod) -> bool:
        """Returns whether a scheduled reduction runs in the last layer, too.

        After the last attention it changes no answer of a classifier. One step ahead it changes the values
        that CLS reads.

        Args:
          method: of the schedule.
        """
        return method.group_ahead is not None or not self.reads_class_tokens_only

    @property
    def largest(self):
        """The dense network's structure: all channels and all tokens."""
        structure = self.space.largest(self.rates)
        if self.channels_left is None:
            return structure
        hidden, groups = iter(self.channels_left.hidden), []
        for group in structure.groups:
            groups.append(group._replace(mlp_dims=tuple(next(hidden) for _ in group.mlp_dims)))
        return structure._replace(groups=tuple(groups))

    def head_dims(self, layer: int) -> tuple[int, int]:
        """Returns the channels of a head in a layer: of queries and keys, and of values."""
        if self.channels_left is None:
            return self.space.head_dim, self.space.head_dim
        return self.channels_left.qk[layer], self.channels_left.vo[layer]

    def stored_mlp_dim(self, layer: int) -> int:
        """Returns the hidden units of a layer's stored weights."""
        if self.channels_left is None:
            return self.space.mlp_dim(self.space.super_width, self.space.super_ratio)
        return self.channels_left.hidden[layer]
