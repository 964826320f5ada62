"""Describes a pretrained network by its tensors, config.json and architecture name."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from prance_jax.core.errors import UserError
from prance_jax.zoo.families.architectures import ARCHITECTURES
from prance_jax.zoo.families.canonical import num_layers, timm_tensors
from prance_jax.zoo.families.config import PretrainedConfig
from prance_jax.zoo.families.config_json import parse_config
from prance_jax.zoo.families.names import NameTable

# Tensors of networks that compute something else: part of a name -> family, what it computes.
_MARKS = {
    "downsample": ("Swin", "tokens that are merged on the grid"),
    "relative_position_bias": ("BEiT", "relative positions"),
    "q_norm": ("ViT", "normalised queries and keys"),
    "lambda_": ("ViT", "differential attention"),
    "embeds.": ("NaFlex ViT", "patches of any aspect ratio"),
    "blocks_token_only": ("CaiT", "layers for class tokens alone"),
    "attn.norm": ("EVA-02", "a norm inside attention"),
    "mlp.norm": ("EVA-02", "a norm inside MLPs"),
}


def describe(
    tensors: Mapping[str, np.ndarray],
    table: NameTable,
    config: Mapping[str, Any],
    architecture: str | None,
    origin: Any,
) -> tuple[PretrainedConfig, dict[str, np.ndarray]]:
    """Describes a network, and gives its tensors timm's names.

    Args:
      tensors: name -> array of the file.
      table: names of the file, see `names.detect_table`.
      config: content of config.json, empty without one.
      architecture: timm's name, where the caller gives one.
      origin: path of the file, for messages.

    Raises:
      UserError: config.json and tensors differ, or the network is of a kind that cannot be loaded.
    """
    named = {name: family for part, family in _MARKS.items() for name in tensors if part in name}
    arrays = timm_tensors(tensors, table, origin)
    seen = _from_tensors(tensors, arrays, table)
    if named:
        family, reason = next(iter(named.values()))
        seen |= {"family": family, "other": (reason,)}
    stated = parse_config(config, origin) if config else ARCHITECTURES.get(architecture or "")
    if stated is None:
        described = PretrainedConfig(**seen)
    else:
        _compare(stated, seen, origin)
        if stated.family != "ViT":
            seen["family"] = stated.family
        if stated.architecture is not None and seen["resize"] == "bilinear":
            seen["resize"] = stated.resize or "timm"
        described = dataclasses.replace(stated, **{**seen, "other": (*stated.other, *seen["other"])})
    has_gamma = any(name.endswith(".gamma_1") for name in tensors)
    if has_gamma and described.no_embed_class and described.class_token and described.family != "DeiT3":
        family = "DeiT3 (then name the model, deit3_...) or a ViT with RoPE, which has the same tensors and"
        described = dataclasses.replace(described, family=family, rope=True)
    return described, arrays


def refuse_unsupported(config: PretrainedConfig, origin: Any) -> None:
    """Raises an error that names the family and what it computes, if that is not supported.

    Args:
      config: of the network.
      origin: path of the file.

    Raises:
      UserError: see above.
    """
    if phrases := config.unsupported():
        raise UserError(
            f"{origin}: {config.family} computes {', '.join(phrases)}, which is not supported yet"
        )


def _from_tensors(
    tensors: Mapping[str, np.ndarray], arrays: Mapping[str, np.ndarray], table: NameTable
) -> dict[str, Any]:
    """Fields that tensors tell; `arrays` have timm's names."""
    facts: dict[str, Any] = {"family": "ViT", "other": ()}
    patches, head = arrays.get("patch_embed.proj.weight"), arrays.get("head.weight")
    if patches is not None and patches.ndim == 4:
        facts |= {"width": patches.shape[0], "channels": patches.shape[1], "patch_size": patches.shape[2]}
    facts["depth"] = num_layers(arrays)
    first = arrays.get("blocks.0.mlp.fc1.weight", arrays.get("blocks.0.mlp.fc1_g.weight"))
    if first is not None:
        facts["mlp_dim"] = len(first)
    facts |= {
        "gated_mlp": "blocks.0.mlp.fc1_g.weight" in arrays,
        "class_token": "cls_token" in arrays,
        "distilled": "dist_token" in arrays,
        "reg_tokens": arrays["reg_token"].shape[-2] if "reg_token" in arrays else 0,
        "pos_embed": "learn" if "pos_embed" in arrays else "none",
        "pre_norm": "norm_pre.weight" in arrays,
        "layer_scale": "blocks.0.ls1.gamma" in arrays,
        "num_classes": 0 if head is None else len(head),
    }
    if "pos_embed" in arrays:
        count = int(np.prod(arrays["pos_embed"].shape[:-1]))
        facts["no_embed_class"] = math.isqrt(count) ** 2 == count
    if "fc_norm.weight" in arrays:
        facts |= {"global_pool": "avg", "fc_norm": True}
    if "attn_pool.latent" in arrays:
        facts["global_pool"] = "map"
    if any("periods" in name for name in tensors) or facts["pos_embed"] == "none":
        facts["rope"] = True
    facts["family"], facts["resize"] = _family(tensors, facts, table)
    if head is not None and facts.get("width") not in (None, head.shape[-1]):
        facts["other"] = (f"a classifier of {head.shape[-1]} features, not of CLS's {facts['width']}",)
    if any(name.startswith("pre_logits.") for name in tensors) and head is not None:
        facts["other"] = ("a tanh layer before the classifier (pre_logits)",)
    if facts["distilled"] and head is not None and "head_dist.weight" not in arrays:
        facts["other"] = ("the answer of CLS alone beside a distillation token",)
    return facts


def _family(tensors: Mapping[str, Any], facts: Mapping[str, Any], table: NameTable) -> tuple[str, str]:
    """Family, and the rule by which its repository resizes positions."""
    rule = "hf" if table.naming == "Hugging Face" else "timm"
    if facts.get("global_pool") == "map":
        return "SigLIP", rule
    if facts["pre_norm"]:
        return "CLIP", rule
    if facts["pos_embed"] == "none":
        return "DINOv3", rule
    if facts["reg_tokens"]:
        return "DINOv2 with registers" if facts["layer_scale"] else "ViT with registers", "timm"
    if "mask_token" in tensors and facts["layer_scale"]:
        return "DINOv2", "dino"
    if facts["layer_scale"] and not facts["no_embed_class"]:
        return "DINOv2", rule
    if facts["distilled"]:
        return "DeiT", rule
    if table.naming == "timm" and facts.get("no_embed_class") and not facts["layer_scale"]:
        return "FlexiViT" if facts["class_token"] else "ViT without CLS", "bilinear"
    return "ViT", rule


def _compare(config: PretrainedConfig, facts: Mapping[str, Any], origin: Any) -> None:
    """Compares config.json or an architecture name with the tensors."""
    fields = ("width", "depth", "mlp_dim", "patch_size", "channels")
    problems = [
        f"{name} {facts[name]}, not {getattr(config, name)}"
        for name in fields
        if facts.get(name) is not None and getattr(config, name) not in (None, facts[name])
    ]
    if problems:
        raise UserError(
            f"{origin} is another network than its config.json or name says: it has {'; '.join(problems)}"
        )
