"""The specification of one network: everything that decides shapes and semantics, nothing that is learned."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from prance_jax.core.errors import UserError
from prance_jax.core.sizes import Rate, Size
from prance_jax.spec.search_space import SearchSpace
from prance_jax.tokens.method import TokenMethod
from prance_jax.tokens.methods.registry import get_method


@dataclass(frozen=True)
class ChannelCounts:
    """What channel pruning has left of a network, a number for each layer: channels of each head's queries and keys, of
    its values, and hidden units."""

    qk: tuple[int, ...]
    vo: tuple[int, ...]
    hidden: tuple[int, ...]


@dataclass(frozen=True)
class ModelSpec:
    """A meta-network.

    image_size, patch_size: pixels; square images. channels: of the image. num_classes: outputs.
    token_optimization: at every decision point; 'prune', 'merge' or 'prune_merge' of the paper, or any other of
      `tokens.METHODS`, say 'tome'.
    weighted_merge: merge by size-weighted mean in place of the paper's plain mean.
    norm_epsilon: of LayerNorm; 1e-6 in timm and DeiT files, 1e-5 in the official ones.
    dtype: of the computation, 'float32' or 'bfloat16'; parameters, norms, softmax and logits stay float32.
    channels_left: of a network whose channels were pruned (`channels.materialize`); None: all that the space stores.
    distilled: a second class token with a classifier of its own (Touvron et al. 2021, arXiv 2012.12877, section 4); logits are
      the mean of both, and token methods leave both tokens alone.
    pixels: the head says a class for every pixel, from all patches, in place of one for the image; num_classes is then of a
      pixel. Reduced tokens are put back on the grid for it.
    residual_maps: a learned linear map in place of the plain residual where a group ends, as in the paper. Without them a
      structure of one width is a plain ViT, see `models.cut`.
    remat: attention weights and hidden units are computed again in the backward pass in place of being kept: the bulk of
      what training remembers, for about a third more work there.

    The last three switches reproduce the released inference code of PRANCE, see `official`:
    enter_at_widest: the layer before a decision point writes the widest choice, and the attention at the decision
      point reads it; the residual is cut afterwards. Native: nothing runs at a width that was not chosen.
    scale_norm: normalised values are multiplied by sqrt(width / super width).
    token_floor: fewest tokens that a reduction leaves (native: CLS and one patch token), a distillation token not counted.
    """

    space: SearchSpace
    image_size: int
    patch_size: int
    num_classes: int
    channels: int = 3
    token_optimization: str = "prune"
    weighted_merge: bool = False
    norm_epsilon: float = 1e-6
    dtype: str = "float32"
    remat: bool = False
    channels_left: ChannelCounts | None = None
    distilled: bool = False
    residual_maps: bool = True
    pixels: bool = False
    enter_at_widest: bool = False
    scale_norm: bool = False
    token_floor: int = 2

    def __post_init__(self):
        get_method(self.token_optimization)
        if self.image_size <= 0 or self.patch_size <= 0 or self.image_size % self.patch_size:
            raise UserError(
                f"image size {self.image_size} is not a positive multiple of patch size {self.patch_size}"
            )
        if self.num_classes < 1 or self.channels < 1:
            raise UserError(f"num_classes={self.num_classes} and channels={self.channels} must be positive")
        if self.pixels and self.distilled:
            raise UserError(
                "pixels=True reads patches; a distilled network has classifiers of its class tokens alone"
            )
        if self.dtype not in ("float32", "bfloat16"):
            raise UserError(f"dtype {self.dtype!r} is not supported; say 'float32' or 'bfloat16'")

    def official(self) -> ModelSpec:
        """The same network with the semantics of the released inference code, for official checkpoints."""
        return dataclasses.replace(
            self, enter_at_widest=True, scale_norm=True, token_floor=1, norm_epsilon=1e-5
        )

    @property
    def method(self) -> TokenMethod:
        return get_method(self.token_optimization)

    @property
    def rates(self) -> int:
        """Keep rates per decision point."""
        return self.method.rates

    def tokens_after(self, count: Size, rates: tuple[Rate, ...]) -> tuple[Size, ...]:
        """Tokens after each step of a reduction of `count` tokens at the given keep rates; ints or int32 [B]."""
        return self.method.tokens_after(count, rates, self.fewest_tokens, self.patches, self.class_tokens - 1)

    @property
    def patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    @property
    def class_tokens(self) -> int:
        """CLS, and the distillation token where there is one."""
        return 1 + self.distilled

    @property
    def tokens(self) -> int:
        """Original tokens: class tokens and the patches."""
        return self.class_tokens + self.patches

    @property
    def fewest_tokens(self) -> int:
        """What a reduction leaves at least, all class tokens counted."""
        return self.token_floor + self.distilled

    @property
    def outputs(self) -> int:
        """Numbers that the head says of one token: a class, or one for each of a patch's pixels."""
        return self.num_classes * (self.patch_size**2 if self.pixels else 1)

    @property
    def read_tokens(self) -> int:
        """Tokens that heads read: class tokens, or all patches."""
        return self.patches if self.pixels else self.class_tokens

    @property
    def patch_values(self) -> int:
        """Numbers in one flattened patch."""
        return self.patch_size**2 * self.channels

    @property
    def largest(self):
        """The largest structure of the space with all tokens: the full network."""
        structure = self.space.largest(self.rates)
        if self.channels_left is None:
            return structure
        hidden, groups = iter(self.channels_left.hidden), []
        for group in structure.groups:
            groups.append(group._replace(mlp_dims=tuple(next(hidden) for _ in group.mlp_dims)))
        return structure._replace(groups=tuple(groups))

    def head_dims(self, layer: int) -> tuple[int, int]:
        """Channels of one head in a layer: of queries and keys, of values."""
        if self.channels_left is None:
            return self.space.head_dim, self.space.head_dim
        return self.channels_left.qk[layer], self.channels_left.vo[layer]

    def stored_mlp_dim(self, layer: int) -> int:
        """Hidden units that a layer's weights hold."""
        if self.channels_left is None:
            return self.space.mlp_dim(self.space.super_width, self.space.super_ratio)
        return self.channels_left.hidden[layer]
