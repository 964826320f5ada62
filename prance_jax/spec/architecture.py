"""What the networks of public ViT families differ in, and the order and number of their tokens."""

from __future__ import annotations

from dataclasses import dataclass

from prance_jax.core.errors import UserError

POSITIONS = ("learn", "none")
POOLS = ("token", "avg")
ACTIVATIONS = ("gelu", "gelu_tanh", "quick_gelu", "silu")


@dataclass(frozen=True)
class ChannelCounts:
    """Channels of each layer after channel pruning.

    Attributes:
      qk: channels of a head's queries and keys, for each layer.
      vo: channels of a head's values, for each layer.
      hidden: hidden units of the MLP, for each layer.
    """

    qk: tuple[int, ...]
    vo: tuple[int, ...]
    hidden: tuple[int, ...]


@dataclass(frozen=True)
class Architecture:
    """What public ViTs differ in, under the names of timm's `VisionTransformer`. The defaults are DeiT's.

    Biases are always there; weights of a layer without one have a bias of zeros. LayerScale is multiplied
    into the weights of the branch before it. `ModelSpec.norm_epsilon` is the epsilon of all norms.

    Attributes:
      class_token: whether there is a CLS. Without one the importance of a token is the attention that it
        receives, mean over heads and queries, and the mean of the patches is classified.
      reg_tokens: number of registers, behind CLS and the distillation token; never removed or merged
        (arXiv 2309.16588).
      pos_embed: 'learn', positions are added to the embedding; 'none', they are not.
      no_embed_class: only patches have learned positions, prefix tokens have none.
      rope_temperature: queries and keys of patches are rotated by their coordinates, with periods from 1
        to almost this (RoPE as in DINOv3, whose value is 100); None: they are not. A merged token has the
        mean coordinates of its patches.
      pre_norm: a norm follows the embedding, as in CLIP.
      act_layer: 'gelu', 'gelu_tanh', 'quick_gelu' (x sigmoid(1.702 x)) or 'silu'.
      gated_mlp: the MLP is fc2(act(fc1_g(x)) fc1(x)), for 'silu' SwiGLU (arXiv 2002.05202).
      global_pool: the classifier reads class tokens ('token') or the mean of the patches ('avg'). Merged
        tokens count by their sizes where the token method tracks them.
      fc_norm: with 'avg', the last norm follows the mean. False: it comes before.

    Raises:
      UserError: a field is out of its range, or `global_pool` needs a token that is not there.
    """

    class_token: bool = True
    reg_tokens: int = 0
    pos_embed: str = "learn"
    no_embed_class: bool = False
    rope_temperature: float | None = None
    pre_norm: bool = False
    act_layer: str = "gelu"
    gated_mlp: bool = False
    global_pool: str = "token"
    fc_norm: bool = False

    def __post_init__(self):
        choices = {"pos_embed": POSITIONS, "act_layer": ACTIVATIONS, "global_pool": POOLS}
        for name, values in choices.items():
            if getattr(self, name) not in values:
                raise UserError(
                    f"{name}={getattr(self, name)!r} is not supported; choose from {', '.join(values)}"
                )
        if self.reg_tokens < 0:
            raise UserError(f"reg_tokens={self.reg_tokens} must be 0 or more")
        if self.rope_temperature is not None and self.rope_temperature <= 1:
            raise UserError(
                f"rope_temperature={self.rope_temperature} must be above 1, or None for no rotation"
            )
        if not self.class_token and self.global_pool == "token":
            raise UserError("global_pool='token' classifies CLS, and class_token=False has none; set 'avg'")
        if self.fc_norm and self.global_pool == "token":
            raise UserError(
                "fc_norm=True is the norm of a mean, and global_pool='token' takes none; set 'avg'"
            )


class TokenLayout:
    """Order and number of tokens: CLS, distillation token, registers, then patches or cells.

    The base of `ModelSpec`, which has the fields.
    """

    @property
    def image_sides(self) -> tuple[int, int]:
        """Height and width of an image, in pixels."""
        size = self.image_size
        return (size, size) if isinstance(size, int) else size

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        return (*self.image_sides, self.channels)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        rows, columns = self.image_sides
        return rows // self.patch_size, columns // self.patch_size

    @property
    def patches(self) -> int:
        """Patches of an image."""
        rows, columns = self.grid
        return rows * columns

    @property
    def class_tokens(self) -> int:
        """Number of class tokens: CLS if there is one, and the distillation token if there is one."""
        return self.architecture.class_token + self.distilled

    @property
    def num_prefix_tokens(self) -> int:
        """Number of tokens before the patches: class tokens and registers."""
        return self.class_tokens + self.architecture.reg_tokens

    @property
    def extra_prefix_tokens(self) -> int:
        """Prefix tokens that token methods do not get, see `tokens.prefix`; -1 without prefix tokens."""
        return self.num_prefix_tokens - 1

    @property
    def cells(self) -> int:
        """Cells of 2 x 2 patches."""
        return self.patches // 4

    @property
    def positions(self) -> int:
        """Learned positions: of all patches, and of prefix tokens if they have some."""
        if self.architecture.pos_embed == "none":
            return 0
        return self.patches + (0 if self.architecture.no_embed_class else self.num_prefix_tokens)

    @property
    def all_tokens(self) -> int:
        """Prefix tokens, and every patch as a token."""
        return self.num_prefix_tokens + self.patches

    @property
    def tokens(self) -> int:
        """Tokens before any reduction: prefix tokens, and patches or cells."""
        if self.refined_cells is None:
            return self.all_tokens
        return self.num_prefix_tokens + self.cells + 3 * self.refined_cells

    @property
    def fewest_tokens(self) -> int:
        """Fewest tokens after a reduction, all prefix tokens counted; one patch at least if no CLS is classified."""
        reads_patches = self.architecture.global_pool != "token"
        return (max(self.token_floor, 2) if reads_patches else self.token_floor) + self.extra_prefix_tokens

    @property
    def outputs(self) -> int:
        """Logits that the head computes for one token: for all pixels of a patch if `pixels`."""
        return self.num_classes * (self.patch_size**2 if self.pixels else 1)

    @property
    def read_tokens(self) -> int:
        """Vectors that the heads classify: class tokens, the mean of the patches, or all patches if `pixels`."""
        if self.pixels:
            return self.patches
        return self.class_tokens if self.architecture.global_pool == "token" else 1

    @property
    def reads_all_tokens(self) -> bool:
        """Whether the heads need every token: to classify pixels, or to pool patches."""
        return self.pixels or self.architecture.global_pool != "token"

    @property
    def reads_class_tokens_only(self) -> bool:
        """Whether the last MLP runs on class tokens alone, which are all that a classifier reads."""
        return not (self.full_last_layer or self.reads_all_tokens)

    @property
    def patch_values(self) -> int:
        """Values of one flattened patch."""
        return self.patch_size**2 * self.channels
