"""What a public pretrained network computes, and its preprocessing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from prance_jax.spec.architecture import ACTIVATIONS, Architecture
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.spec.search_space import SearchSpace


@dataclass(frozen=True)
class PretrainedConfig:
    """What a public pretrained network computes, under timm's names, and its preprocessing.

    A value that is not known is None. Tensors, config.json and architecture name each tell a part.

    Attributes:
      family: for messages, for example 'DINOv2'.
      architecture: timm's architecture name.
      width: channels of the residual stream.
      depth: number of layers.
      heads: attention heads of a layer.
      mlp_dim: hidden units of an MLP.
      patch_size: side of a patch, in pixels.
      image_size: rows and columns of the image, in pixels.
      channels: of the image.
      num_classes: outputs of the head; 0 without a head.
      act_layer: 'gelu' (exact), 'gelu_tanh', 'quick_gelu', 'silu' or another name.
      gated_mlp: the MLP has a gate (SwiGLU).
      norm_eps: epsilon of LayerNorm.
      global_pool: 'token' (CLS), 'avg' (mean of the patches), 'map' (attention) or another name.
      fc_norm: the last norm follows the mean.
      class_token: whether there is a CLS.
      distilled: whether there is a distillation token.
      reg_tokens: number of registers.
      pos_embed: 'learn' or 'none'.
      no_embed_class: only patches have positions.
      rope: whether queries and keys are rotated by their positions.
      pre_norm: a norm follows the embedding.
      layer_scale: whether branches have LayerScale; it is folded into their weights.
      resize: rule by which positions are resized, see `formats.positions.RULES`.
      mean: of the channels of training images, in [0, 1].
      std: standard deviation of the channels.
      labels: names of the classes.
      other: phrases, what the network computes beyond these fields.
    """

    family: str = "ViT"
    architecture: str | None = None
    width: int | None = None
    depth: int | None = None
    heads: int | None = None
    mlp_dim: int | None = None
    patch_size: int | None = None
    image_size: tuple[int, int] | None = None
    channels: int | None = None
    num_classes: int | None = None
    act_layer: str | None = None
    gated_mlp: bool | None = None
    norm_eps: float | None = None
    global_pool: str | None = None
    fc_norm: bool | None = None
    class_token: bool | None = None
    distilled: bool | None = None
    reg_tokens: int | None = None
    pos_embed: str | None = None
    no_embed_class: bool | None = None
    rope: bool | None = None
    pre_norm: bool | None = None
    layer_scale: bool | None = None
    resize: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    labels: tuple[str, ...] | None = None
    other: tuple[str, ...] = ()

    def unsupported(self) -> list[str]:
        """Lists what the network computes and `ViT` does not, and what nothing tells; one phrase each."""
        rows, columns = self.image_size or (1, 1)
        is_mean = self.global_pool == "avg"
        checks = {
            "no class token": self.class_token is False and not is_mean,
            "no learned positions": self.pos_embed == "none",
            "rotary positions (RoPE)": bool(self.rope),
            "a norm before the first layer, with an activation and an epsilon that only a config.json can tell": (
                bool(self.pre_norm) and None in (self.act_layer, self.norm_eps)
            ),
            f"activation {self.act_layer}": self.act_layer not in (None, *ACTIVATIONS),
            f"global_pool={self.global_pool!r}": self.global_pool not in (None, "token", "avg"),
            "the mean of the patches, before or after the last norm": is_mean and self.fc_norm is None,
            "a norm after pooling (fc_norm)": bool(self.fc_norm) and not is_mean,
            f"images of {rows} x {columns} pixels": rows != columns,
        }
        return [*(phrase for phrase, is_there in checks.items() if is_there), *self.other]

    @property
    def parts(self) -> Architecture:
        """What the network differs in from DeiT; LayerScale is folded, so it is no part."""
        return Architecture(
            class_token=self.class_token is not False,
            reg_tokens=self.reg_tokens or 0,
            no_embed_class=bool(self.no_embed_class),
            pre_norm=bool(self.pre_norm),
            act_layer=self.act_layer or ("silu" if self.gated_mlp else "gelu"),
            gated_mlp=bool(self.gated_mlp),
            global_pool=self.global_pool or "token",
            fc_norm=bool(self.fc_norm),
        )

    def model_spec(self, **changes: Any) -> ModelSpec:
        """Builds the specification of the plain ViT.

        Args:
          **changes: fields of `ModelSpec` that take precedence.
        """
        ratio = SearchSpace.ratio(self.width, self.mlp_dim)
        name = self.architecture or f"{self.family} {self.width}x{self.depth}"
        head_dim = self.width // self.heads
        space = SearchSpace(
            name, self.width, ratio, self.heads, (self.width,), (ratio,), (self.depth,), head_dim
        )
        fields = {
            "space": space,
            "image_size": (self.image_size or (224, 224))[0],
            "patch_size": self.patch_size,
            "num_classes": self.num_classes or 1000,
            "channels": self.channels or 3,
            "norm_epsilon": self.norm_eps or 1e-6,
            "distilled": bool(self.distilled),
            "architecture": self.parts,
        }
        return ModelSpec(**{**fields, **changes})
