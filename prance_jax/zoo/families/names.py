"""Tensor names of public ViTs, each with its name in timm.

A table lists every name that a family's files can hold; other names are an error when a file is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class NameTable:
    """Names of one library or repository.

    Attributes:
      naming: whose names they are: 'timm', 'Hugging Face' or 'OpenCLIP'.
      mark: regular expression of a name that only this table has.
      prefix: regular expression of what may stand before names.
      modules: module or parameter outside layers -> timm's.
      layer: regular expression of what stands before a layer's names; its group is the layer's index.
      layer_modules: module or parameter of a layer -> timm's.
      dropped: regular expression of names that classification does not use.
    """

    naming: str
    mark: str
    prefix: str
    modules: Mapping[str, str]
    layer: str
    layer_modules: Mapping[str, str]
    dropped: str

    def timm_name(self, name: str) -> str | None:
        """Returns timm's name of a tensor; '' for one that is not needed, None for an unknown one."""
        name = re.sub(f"^({self.prefix})", "", name) if self.prefix else name
        if re.fullmatch(self.dropped, name):
            return ""
        if name in self.modules:
            return self.modules[name]
        match = re.match(self.layer, name)
        start, table = "", self.modules
        if match:
            start, table, name = f"blocks.{match[1]}.", self.layer_modules, name[match.end() :]
        if name in table:
            return start + table[name]
        module, _, leaf = name.rpartition(".")
        if module not in table or leaf not in ("weight", "bias"):
            return None
        return f"{start}{table[module]}.{leaf}"


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


_TIMM = NameTable(
    "timm",
    r"(blocks|transformer\.blocks)\.\d+\.|patch_embed\.proj\.|cls_token|pos_embed",
    "",
    {
        **_same("cls_token", "dist_token", "reg_token", "pos_embed", "patch_embed.proj", "norm_pre"),
        **_same("norm", "fc_norm", "head", "head_dist", "attn_pool.latent", "attn_pool.q", "attn_pool.kv"),
        **_same("attn_pool.proj", "attn_pool.norm", "attn_pool.mlp.fc1", "attn_pool.mlp.fc2"),
        "register_tokens": "reg_token",
        "storage_tokens": "reg_token",
    },
    r"blocks\.(\d+)\.",
    {
        **_same("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "ls1.gamma", "ls2.gamma"),
        **_same("attn.q_bias", "attn.v_bias", "mlp.fc1_g", "mlp.fc1_x", "mlp.norm", "attn.norm"),
        "attn.qkv.bias_mask": "attn.qkv.bias_mask",
        "gamma_1": "ls1.gamma",
        "gamma_2": "ls2.gamma",
        "attn.q_proj": "attn.q",
        "attn.k_proj": "attn.k",
        "attn.v_proj": "attn.v",
        "mlp.w12": "mlp.fc1",
        "mlp.w1": "mlp.fc1_g",
        "mlp.w2": "mlp.fc1_x",
        "mlp.w3": "mlp.fc2",
    },
    r"mask_token|local_cls_norm\..*|rope_embed\.periods|decoder.*|attn\.k_bias",
)
_HUGGING_FACE = NameTable(
    "Hugging Face",
    r".*encoder\.layer\.\d+\.attention\.attention\.",
    r"vit\.|deit\.|dinov2\.|dinov2_with_registers\.",
    {
        "embeddings.cls_token": "cls_token",
        "embeddings.distillation_token": "dist_token",
        "embeddings.register_tokens": "reg_token",
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.patch_embeddings.projection": "patch_embed.proj",
        "layernorm": "norm",
        "classifier": "head",
        "cls_classifier": "head",
        "distillation_classifier": "head_dist",
    },
    r"encoder\.layer\.(\d+)\.",
    {
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "attention.attention.query": "attn.q",
        "attention.attention.key": "attn.k",
        "attention.attention.value": "attn.v",
        "attention.output.dense": "attn.proj",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
        **_same("norm1", "norm2", "mlp.fc1", "mlp.fc2"),
        "mlp.weights_in": "mlp.fc1",
        "mlp.weights_out": "mlp.fc2",
        "layer_scale1.lambda1": "ls1.gamma",
        "layer_scale2.lambda1": "ls2.gamma",
    },
    r"embeddings\.mask_token|pooler\.dense\..*|decoder.*",
)
_DINOV3 = NameTable(
    "Hugging Face",
    r"(model\.)?layer\.\d+\.attention\.q_proj",
    r"model\.|dinov3_vit\.",
    {
        "embeddings.cls_token": "cls_token",
        "embeddings.register_tokens": "reg_token",
        "embeddings.patch_embeddings": "patch_embed.proj",
        "norm": "norm",
        "classifier": "head",
    },
    r"layer\.(\d+)\.",
    {
        **_same("norm1", "norm2"),
        "attention.q_proj": "attn.q",
        "attention.k_proj": "attn.k",
        "attention.v_proj": "attn.v",
        "attention.o_proj": "attn.proj",
        "mlp.gate_proj": "mlp.fc1_g",
        "mlp.up_proj": "mlp.fc1",
        "mlp.down_proj": "mlp.fc2",
        "layer_scale1.lambda1": "ls1.gamma",
        "layer_scale2.lambda1": "ls2.gamma",
    },
    r"embeddings\.mask_token",
)
_CLIP = NameTable(
    "Hugging Face",
    r".*encoder\.layers\.\d+\.self_attn\.",
    r"vision_model\.",
    {
        "embeddings.class_embedding": "cls_token",
        "embeddings.position_embedding.weight": "pos_embed",
        "embeddings.patch_embedding": "patch_embed.proj",
        "pre_layrnorm": "norm_pre",
        "post_layernorm": "norm",
        "visual_projection": "head",
        "classifier": "head",
        "head.probe": "attn_pool.latent",
        "head.attention.in_proj_weight": "attn_pool.qkv.weight",
        "head.attention.in_proj_bias": "attn_pool.qkv.bias",
        "head.attention.out_proj": "attn_pool.proj",
        "head.layernorm": "attn_pool.norm",
        "head.mlp.fc1": "attn_pool.mlp.fc1",
        "head.mlp.fc2": "attn_pool.mlp.fc2",
    },
    r"encoder\.layers\.(\d+)\.",
    {
        "layer_norm1": "norm1",
        "layer_norm2": "norm2",
        "self_attn.q_proj": "attn.q",
        "self_attn.k_proj": "attn.k",
        "self_attn.v_proj": "attn.v",
        "self_attn.out_proj": "attn.proj",
        **_same("mlp.fc1", "mlp.fc2"),
    },
    r"text_model\..*|text_projection.*|logit_scale|logit_bias|embeddings\.position_ids",
)
_OPEN_CLIP = NameTable(
    "OpenCLIP",
    r".*transformer\.resblocks\.\d+\.",
    r"visual\.",
    {
        "class_embedding": "cls_token",
        "positional_embedding": "pos_embed",
        "conv1": "patch_embed.proj",
        "ln_pre": "norm_pre",
        "ln_post": "norm",
        "proj": "head.weight.T",
    },
    r"transformer\.resblocks\.(\d+)\.",
    {
        "ln_1": "norm1",
        "ln_2": "norm2",
        "attn.in_proj_weight": "attn.qkv.weight",
        "attn.in_proj_bias": "attn.qkv.bias",
        "attn.out_proj": "attn.proj",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
        "ls_1.gamma": "ls1.gamma",
        "ls_2.gamma": "ls2.gamma",
    },
    r"input_resolution|context_length|vocab_size",
)
# timm's names last: others use some of them as well.
_TABLES = (_OPEN_CLIP, _CLIP, _DINOV3, _HUGGING_FACE, _TIMM)


def detect_table(names: Collection[str]) -> NameTable | None:
    """Returns the table whose names tensors have, None if there is none.

    Args:
      names: of the tensors.
    """
    return next((table for table in _TABLES if any(re.match(table.mark, name) for name in names)), None)
