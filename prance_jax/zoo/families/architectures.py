"""timm's architecture names of the ViTs that can be loaded, and reasons for those that cannot."""

from __future__ import annotations

import dataclasses
import re

from prance_jax.zoo.families.config import PretrainedConfig

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CLIP = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
# Width, depth, heads.
_SIZES = {
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "medium": (512, 12, 8),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}
# Heads of public networks by width, depth and MLP size. Tensors do not tell them.
HEADS = {(width, depth, 4 * width): heads for width, depth, heads in _SIZES.values()} | {
    (1152, 27, 4304): 16,
    (1408, 40, 6144): 16,
    (1664, 48, 8192): 16,
    (1536, 40, 4096): 24,
}
# What architectures that are not in the table compute, by a part of the name.
_REASONS = {
    r"^(vit_.*_rope_|vit_.*_rope_mixed)": ("ViT with RoPE", "rotary positions (RoPE)"),
    r"^vit_pe_": ("Perception Encoder", "rotary positions (RoPE) and attention pooling"),
    r"^eva02": ("EVA-02", "rotary positions (RoPE) and a gated MLP"),
    r"^eva_": ("EVA", "another layer order or pooling"),
    r"^beit": ("BEiT", "relative positions"),
    r"dinov3": ("DINOv3", "registers and rotary positions (RoPE)"),
    r"siglip": ("SigLIP", "no class token and attention pooling (MAP)"),
    r"_rpn_|_rpn$": ("ViT with ResPostBlock", "norms after the branches"),
    r"^(swin|cait|xcit|pit|volo|convit|crossvit|levit|mvit|maxvit|hiera|naflex|aimv2|samvit|vitamin)": (
        "no plain ViT",
        "another architecture",
    ),
}


def _plain(size: str, patch: int, pixels: int, **fields) -> PretrainedConfig:
    width, depth, heads = _SIZES[size]
    facts = {
        "width": width,
        "depth": depth,
        "heads": heads,
        "mlp_dim": 4 * width,
        "patch_size": patch,
        "image_size": (pixels, pixels),
        "act_layer": "gelu",
        "norm_eps": 1e-6,
        "global_pool": "token",
        "distilled": False,
        **fields,
    }
    return PretrainedConfig(**facts)


def _table() -> dict[str, PretrainedConfig]:
    table, deit, vit = {}, {"family": "DeiT", **IMAGENET}, {"family": "ViT (AugReg)", **HALF}
    for size, pixels in (("tiny", 224), ("small", 224), ("base", 224), ("base", 384)):
        table[f"deit_{size}_patch16_{pixels}"] = _plain(size, 16, pixels, **deit)
        distilled = {**deit, "distilled": True}
        table[f"deit_{size}_distilled_patch16_{pixels}"] = _plain(size, 16, pixels, **distilled)
    sizes = {
        "tiny": ((16, 224), (16, 384)),
        "small": ((8, 224), (16, 224), (16, 384), (32, 224), (32, 384)),
        "base": ((8, 224), (16, 224), (16, 384), (32, 224), (32, 384)),
        "large": ((14, 224), (16, 224), (16, 384), (32, 224), (32, 384)),
        "huge": ((14, 224),),
    }
    for size, variants in sizes.items():
        for patch, pixels in variants:
            table[f"vit_{size}_patch{patch}_{pixels}"] = _plain(size, patch, pixels, **vit)
    # timm's default weights under this name.
    table["vit_small_patch8_224"] = _plain("small", 8, 224, family="DINO", **IMAGENET)
    mean = {"class_token": False, "global_pool": "avg", "fc_norm": True, "family": "ViT with registers"}
    for size in ("medium", "base"):
        table[f"vit_{size}_patch16_reg4_gap_256"] = _plain(
            size, 16, 256, reg_tokens=4, no_embed_class=True, layer_scale=size == "medium", **mean, **HALF
        )
    for size in ("small", "base", "large"):
        flexi = {"family": "FlexiViT", "no_embed_class": True, "resize": "bilinear", **HALF}
        table[f"flexivit_{size}"] = _plain(size, 16, 240, **flexi)
        table[f"vit_{size}_patch14_dinov2"] = _plain(
            size, 14, 518, family="DINOv2", layer_scale=True, num_classes=0, **IMAGENET
        )
        registers = {"family": "DINOv2 with registers", "reg_tokens": 4, "no_embed_class": True}
        table[f"vit_{size}_patch14_reg4_dinov2"] = _plain(
            size, 14, 518, layer_scale=True, num_classes=0, **registers, **IMAGENET
        )
    deit3 = {"family": "DeiT3", "layer_scale": True, "no_embed_class": True, **IMAGENET}
    for size, patch, pixels in (
        *((size, 16, pixels) for size in ("small", "base", "large") for pixels in (224, 384)),
        ("medium", 16, 224),
        ("huge", 14, 224),
    ):
        table[f"deit3_{size}_patch{patch}_{pixels}"] = _plain(size, patch, pixels, **deit3)
    clip = {"family": "CLIP", "pre_norm": True, "norm_eps": 1e-5, **CLIP}
    for size, patch, gelu, quick_gelu in (
        ("base", 32, (224, 256, 384, 448), (224,)),
        ("base", 16, (224, 384), (224,)),
        ("large", 14, (224, 336), (224, 336)),
        ("huge", 14, (224, 336, 378), (224, 378)),
    ):
        for pixels in gelu:
            pixel_range = HALF if size == "large" else {}
            table[f"vit_{size}_patch{patch}_clip_{pixels}"] = _plain(
                size, patch, pixels, **{**clip, **pixel_range}
            )
        for pixels in quick_gelu:
            quick = {**clip, "act_layer": "quick_gelu"}
            table[f"vit_{size}_patch{patch}_clip_quickgelu_{pixels}"] = _plain(size, patch, pixels, **quick)
    return table


ARCHITECTURES = {name: dataclasses.replace(config, architecture=name) for name, config in _table().items()}


def refused_architecture(name: str) -> tuple[str, str]:
    """Returns family and reason why an architecture of timm that is not in the table cannot be loaded.

    Args:
      name: of the architecture, without a tag.
    """
    for pattern, reason in _REASONS.items():
        if re.search(pattern, name):
            return reason
    return name, "an architecture that is not in prance_jax.list_models()"
