"""Reads config.json of timm and Hugging Face."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from prance_jax.core.errors import UserError
from prance_jax.zoo.families.architectures import ARCHITECTURES, refused_architecture
from prance_jax.zoo.families.config import PretrainedConfig

_ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "swish": "silu",
}
_FAMILIES = {
    "vit": "ViT",
    "deit": "DeiT",
    "dinov2": "DINOv2",
    "dinov2_with_registers": "DINOv2 with registers",
    "dinov3_vit": "DINOv3",
    "vit_mae": "MAE",
    "vit_msn": "MSN",
    "clip": "CLIP",
    "clip_vision_model": "CLIP",
    "siglip": "SigLIP",
    "siglip_vision_model": "SigLIP",
}
# Values that configs of CLIP and SigLIP leave out.
_SPARSE = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "image_size": 224,
}
_SPARSE_CLIP = {**_SPARSE, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
_SPARSE_SIGLIP = {**_SPARSE, "patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
# timm's arguments that change nothing when a network answers.
_HARMLESS = {"drop_rate", "drop_path_rate", "proj_drop_rate", "attn_drop_rate", "pos_drop_rate", "pretrained"}
_HARMLESS |= {
    "patch_drop_rate",
    "dynamic_img_size",
    "dynamic_img_pad",
    "weight_init",
    "fix_init",
    "strict_img_size",
}


def parse_config(config: Mapping[str, Any], origin: Any) -> PretrainedConfig:
    """Reads what a config.json tells of a network.

    Args:
      config: its content, of timm or Hugging Face; 'preprocessor' holds preprocessor_config.json.
      origin: of the network, for error messages.

    Raises:
      UserError: the network is of a kind that cannot be loaded.
    """
    if "architecture" in config:
        return _parse_timm(config, origin)
    if "model_type" in config:
        return _parse_hugging_face(config, origin)
    raise UserError(
        f"{origin}: its config.json has neither timm's 'architecture' nor Hugging Face's 'model_type'"
    )


def _parse_timm(config: Mapping[str, Any], origin: Any) -> PretrainedConfig:
    name = str(config["architecture"]).split(".")[0]
    if name.startswith("test_vit") or name not in ARCHITECTURES:
        family, reason = refused_architecture(name)
        raise UserError(f"{origin}: {family} ({name}) computes {reason}, which is not supported yet")
    facts = {"architecture": name}
    preset = config.get("pretrained_cfg") or config  # the oldest form is flat
    if size := preset.get("input_size"):
        facts |= {"channels": int(size[0]), "image_size": tuple(map(int, size[1:3]))}
    facts |= {key: tuple(map(float, preset[key])) for key in ("mean", "std") if preset.get(key)}
    classes = config.get("num_classes", preset.get("num_classes"))
    facts |= {} if classes is None else {"num_classes": int(classes)}
    labels = config.get("label_names") or preset.get("label_names")
    facts |= {"labels": tuple(map(str, labels))} if labels else {}
    if config.get("global_pool") not in (None, ""):
        facts["global_pool"] = str(config["global_pool"])
    changes, other = _model_args(dict(config.get("model_args") or {}), ARCHITECTURES[name])
    return dataclasses.replace(ARCHITECTURES[name], **{**facts, **changes, "other": tuple(other)})


def _model_args(arguments: dict[str, Any], base: PretrainedConfig) -> tuple[dict[str, Any], list[str]]:
    """Fields that timm's `model_args` set, and phrases for those that are not supported."""
    facts, other = {}, []
    sizes = {"embed_dim": "width", "depth": "depth", "num_heads": "heads", "patch_size": "patch_size"}
    sizes |= {"num_classes": "num_classes", "in_chans": "channels"}
    same = ("global_pool", "act_layer", "no_embed_class", "class_token", "pre_norm", "reg_tokens", "fc_norm")
    for key, value in arguments.items():
        if value is None or key in _HARMLESS:
            continue
        if key in sizes and isinstance(value, int):
            facts[sizes[key]] = value
        elif key == "img_size":
            facts["image_size"] = (value, value) if isinstance(value, int) else tuple(value)
        elif key in same:
            facts[key] = _ACTIVATIONS.get(value, value) if isinstance(value, str) else value
        elif key == "init_values":
            facts["layer_scale"] = True
        elif key not in ("mlp_ratio", "qkv_bias"):  # tensors tell them
            other.append(f"{key}={value!r}")
    width, ratio = facts.get("width", base.width), arguments.get("mlp_ratio", 4)
    return facts | {"mlp_dim": int(width * ratio)}, other


def _parse_hugging_face(config: Mapping[str, Any], origin: Any) -> PretrainedConfig:
    kind = str(config["model_type"])
    if kind not in _FAMILIES:
        raise UserError(
            f"{origin}: model_type {kind!r} is no ViT that can be loaded; there are {', '.join(_FAMILIES)}"
        )
    labels, preprocessor = config.get("id2label") or {}, config.get("preprocessor") or {}
    image_mean, image_std = preprocessor.get("image_mean"), preprocessor.get("image_std")
    vision = config.get("vision_config") or config
    if kind.startswith("clip"):
        vision = {**_SPARSE_CLIP, **vision}
    elif kind.startswith("siglip"):
        vision = {**_SPARSE_SIGLIP, **vision}
    size, activation = vision.get("image_size"), vision.get("hidden_act", "gelu")
    if kind.startswith("dinov2") and vision.get("use_swiglu_ffn"):
        activation = "silu"  # published configs say gelu
    other, classes = [], config.get("architectures") or []
    if "SiglipForImageClassification" in classes or "CLIPForImageClassification" in classes:
        other.append("the mean of the tokens in place of the family's pooling")
    mlp_dim = vision.get("intermediate_size")
    if mlp_dim is None and "mlp_ratio" in vision and not vision.get("use_swiglu_ffn"):
        mlp_dim = int(vision["hidden_size"] * vision["mlp_ratio"])
    names = tuple(str(labels[key]) for key in sorted(labels, key=int))
    return PretrainedConfig(
        family=_FAMILIES[kind],
        width=vision.get("hidden_size"),
        depth=vision.get("num_hidden_layers"),
        heads=vision.get("num_attention_heads"),
        mlp_dim=mlp_dim,
        patch_size=vision.get("patch_size"),
        image_size=None if size is None else (size, size) if isinstance(size, int) else tuple(size),
        channels=vision.get("num_channels"),
        act_layer=_ACTIVATIONS.get(activation, activation),
        norm_eps=vision.get("layer_norm_eps"),
        rope=True if kind == "dinov3_vit" else None,
        mean=None if image_mean is None else tuple(image_mean),
        std=None if image_std is None else tuple(image_std),
        labels=None if all(name == f"LABEL_{index}" for index, name in enumerate(names)) else names,
        other=tuple(other),
    )
