"""Public families: names, config.json, LayerScale; what is not supported is refused by name."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest
from small import drawn_params

import prance_jax
from prance_jax.core.errors import UserError
from prance_jax.spec.architecture import Architecture
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.spec.search_space import SearchSpace
from prance_jax.zoo.families.architectures import ARCHITECTURES
from prance_jax.zoo.formats import positions
from prance_jax.zoo.formats.files import save_weights
from prance_jax.zoo.formats.timm import to_timm
from prance_jax.zoo.load import flatten_params, load_weights, make_card, read_semantics

SPEC = ModelSpec(SearchSpace("mini", 12, 2.0, 3, (12,), (2.0,), (2,), head_dim=4), 8, 4, 5)
ARGUMENTS = {"embed_dim": 12, "depth": 2, "num_heads": 3, "mlp_ratio": 2, "patch_size": 4, "img_size": 8}
PARAMS = drawn_params(SPEC)
TENSORS = to_timm(PARAMS, SPEC)


def folder(path, tensors=TENSORS, architecture="vit_tiny_patch16_224", config=None, **arguments):
    """A folder as timm writes it; `config` replaces its config.json."""
    save_weights(path / "model.safetensors", tensors, {})
    timm_config = {"architecture": architecture, "num_classes": 5, "model_args": {**ARGUMENTS, **arguments}}
    (path / "config.json").write_text(json.dumps(timm_config if config is None else config))
    return f"local-dir:{path}"


def hugging_face(tensors):
    """The names of Hugging Face's ViT."""
    names = [
        (r"^blocks\.(\d+)\.attn\.proj", r"encoder.layer.\1.attention.output.dense"),
        (r"^blocks\.(\d+)\.norm1", r"encoder.layer.\1.layernorm_before"),
        (r"^blocks\.(\d+)\.norm2", r"encoder.layer.\1.layernorm_after"),
        (r"^blocks\.(\d+)\.mlp\.fc1", r"encoder.layer.\1.intermediate.dense"),
        (r"^blocks\.(\d+)\.mlp\.fc2", r"encoder.layer.\1.output.dense"),
        (r"^cls_token", "embeddings.cls_token"),
        (r"^pos_embed", "embeddings.position_embeddings"),
        (r"^patch_embed\.proj", "embeddings.patch_embeddings.projection"),
        (r"^norm\.", "layernorm."),
    ]
    renamed = {}
    for name, value in tensors.items():
        if ".qkv." in name:
            layer, leaf = name.split(".")[1], name.split(".")[-1]
            for part, array in zip(("query", "key", "value"), np.split(value, 3)):
                renamed[f"vit.encoder.layer.{layer}.attention.attention.{part}.{leaf}"] = array
        elif name.startswith("head."):
            renamed[name.replace("head", "classifier")] = value
        else:
            for pattern, replacement in names:
                name = re.sub(pattern, replacement, name)
            renamed[f"vit.{name}"] = value
    return renamed


HF_CONFIG = {
    "model_type": "vit",
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 24,
    "image_size": 8,
    "patch_size": 4,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "id2label": {str(index): word for index, word in enumerate("cat dog cow hen ant".split())},
}


def test_names_of_hugging_face_are_those_of_timm(tmp_path):
    address = folder(
        tmp_path, {**hugging_face(TENSORS), "vit.pooler.dense.bias": np.ones(12)}, config=HF_CONFIG
    )
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.1, 0.2, 0.3]}))
    model, params = prance_jax.create_model(address)
    jax.tree.map(np.testing.assert_array_equal, params, PARAMS)
    assert (model.spec.space.heads, model.spec.norm_epsilon, model.spec.image_size) == (3, 1e-5, 8)
    assert model.pretrained_cfg.labels == ("cat", "dog", "cow", "hen", "ant")
    assert model.pretrained_cfg.mean == (0.1, 0.2, 0.3)


def test_layer_scale_multiplies_the_branches(tmp_path):
    """Half of the weights under a LayerScale of two compute the same; so do zeros of biases that are left out."""
    tensors, scaled = dict(TENSORS), {}
    for name, value in TENSORS.items():
        is_branch = name.startswith("blocks") and re.search(r"attn\.proj|mlp\.fc2", name)
        scaled[name] = value / 2 if is_branch else value
    for layer in range(2):
        scaled |= {f"blocks.{layer}.{scale}.gamma": np.full(12, 2.0, np.float32) for scale in ("ls1", "ls2")}
        tensors[f"blocks.{layer}.attn.qkv.bias"] = np.zeros(36, np.float32)
        del scaled[f"blocks.{layer}.attn.qkv.bias"]
    _, params = prance_jax.create_model(folder(tmp_path, scaled, "vit_small_patch14_dinov2"))
    save_weights(tmp_path / "plain.safetensors", tensors, {})
    expected = load_weights(tmp_path / "plain.safetensors", SPEC, architecture="vit_small_patch14_dinov2")
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def without(*starts, **more):
    return {**{name: value for name, value in TENSORS.items() if not name.startswith(starts)}, **more}


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"global_pool": "max"}, r"ViT \(AugReg\) computes global_pool='max', which is not"),
        ({"global_pool": "avg"}, "computes the mean of the patches, before or after the last norm"),
        ({"act_layer": "relu"}, "computes activation relu"),
        ({"img_size": (8, 32)}, "computes images of 8 x 32 pixels"),
        ({"block_fn": "ResPostBlock"}, "computes block_fn='ResPostBlock'"),
        ({"embed_dim": 16}, "is another network than its config.json or name says: it has width 12, not 16"),
        ({"architecture": "vit_base_patch16_rope_ape_224"}, "ViT with RoPE .* rotary positions"),
        ({"architecture": "vit_small_patch16_dinov3"}, "DINOv3 .* registers and rotary positions"),
        ({"tensors": without("cls", reg_token=np.ones((1, 4, 12)))}, "computes no class token"),
        (
            {"tensors": without("cls", "head", **{"attn_pool.latent": np.ones(1)})},
            "no class token, global_pool='map'",
        ),
        ({"tensors": without(**{"pre_logits.fc.bias": np.ones(12)})}, r"a tanh layer before the classifier"),
        ({"tensors": without(**{"blocks.0.attn.q_norm.weight": np.ones(4)})}, "normalised queries and keys"),
        (
            {"tensors": without(**{"head.weight": np.ones((5, 24))})},
            "a classifier of 24 features, not of CLS's 12",
        ),
        ({"config": {"model_type": "beit"}}, "model_type 'beit' is no ViT that can be loaded"),
        ({"config": {**HF_CONFIG, "hidden_act": "relu6"}}, "computes activation relu6"),
    ],
)
def test_what_the_network_does_not_compute_is_refused(tmp_path, arguments, words):
    with pytest.raises(UserError, match=words):
        prance_jax.create_model(folder(tmp_path, **arguments))


@pytest.mark.parametrize(
    "names, words",
    [
        (
            ("encoder.layers.0.self_attn.q_proj.weight", "pre_layrnorm.weight"),
            "CLIP computes .*a norm before",
        ),
        (
            ("visual.transformer.resblocks.0.ln_1.weight", "visual.ln_pre.weight"),
            "CLIP computes .*a norm before",
        ),
        (("encoder.layers.0.self_attn.q_proj.weight", "head.probe"), "SigLIP computes .*global_pool='map'"),
        (("layer.0.attention.q_proj.weight", "layer.0.norm1.bias"), "DINOv3 computes .*rotary positions"),
        (("blocks.0.attn.relative_position_bias_table", "cls_token"), "BEiT computes .*relative positions"),
        (
            ("blocks.0.gamma_1", "blocks.0.attn.qkv.bias", "cls_token", "pos_embed"),
            "DeiT3 .*or a ViT with RoPE",
        ),
    ],
)
def test_families_are_recognised_by_their_names(tmp_path, names, words):
    save_weights(tmp_path / "w.safetensors", {name: np.ones((1, 4, 12), np.float32) for name in names}, {})
    with pytest.raises(UserError, match=words):
        load_weights(tmp_path / "w.safetensors", SPEC)


def test_the_card_of_a_file_tells_the_pooling(tmp_path):
    """CLS or the mean of the patches: the weights have the same shapes."""
    spec = dataclasses.replace(SPEC, architecture=Architecture(global_pool="avg"))
    file = tmp_path / "mean.safetensors"
    save_weights(file, flatten_params(PARAMS), make_card(spec, "prance_jax"))
    assert read_semantics(file)["architecture"] == spec.architecture


def test_heads_that_differ_from_the_models_are_refused(tmp_path):
    """Three heads of 64 or six of 32: the tensors are the same."""
    folder(tmp_path, num_heads=2)
    with pytest.raises(UserError, match="model.safetensors has 2 heads, the model 3"):
        load_weights(tmp_path / "model.safetensors", SPEC)
    query = "Transformer/encoderblock_0/MultiHeadDotProductAttention_0/query/kernel"
    np.savez(tmp_path / "w.npz", **{query: np.ones((12, 6, 2)), "cls": np.ones((1, 1, 12))})
    with pytest.raises(UserError, match="has 6 heads, the model 3"):
        load_weights(tmp_path / "w.npz", SPEC)


@pytest.mark.parametrize("change", ["five classes", "no classifier"])
def test_another_number_of_classes_gets_a_fresh_head(tmp_path, change):
    address = folder(tmp_path, TENSORS if change == "five classes" else without("head"))
    words = "has 5 classes: head is a random one for 3" if change == "five classes" else "has no classifier"
    with pytest.warns(UserWarning, match=words):
        model, params = prance_jax.create_model(address, num_classes=3)
    assert params["head"]["kernel"].shape == (12, 3) and np.abs(params["head"]["kernel"]).max() > 0
    np.testing.assert_array_equal(params["block_1"]["qkv"]["kernel"], PARAMS["block_1"]["qkv"]["kernel"])


def test_addresses_that_do_not_hold_a_network_are_refused(tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        prance_jax.create_model(f"local-dir:{tmp_path}/none")
    with pytest.raises(UserError, match="has none of model.safetensors"):
        prance_jax.create_model(f"local-dir:{tmp_path}")
    with pytest.raises(UserError, match="wanted hf-hub:OWNER/NAME"):
        prance_jax.create_model("hf-hub:vit_tiny")
    with pytest.raises(UserError, match="leave weights='w.pth' out"):
        prance_jax.create_model("hf-hub:timm/vit", weights="w.pth")


RESIZED = {
    # Published kernels: Keys' cubic with a = -0.75 at a quarter of the way (PyTorch's), and halves of a pixel.
    "hf": (8, [0, -0.03515625, 0.26171875, 0.87890625, -0.10546875, 0, 0, 0], 16, 6),
    "bilinear": (8, [0, 0, 0, 0.25, 0.75, 0, 0, 0], 16, 8),
    "linear": (3, [0, 0.5, 0.5], 5, 3),
}


@pytest.mark.parametrize("rule", RESIZED)
def test_positions_are_resized_by_the_librarys_kernel(rule):
    old, expected, new, index = RESIZED[rule]
    row = positions.resize_matrix(old, new, rule)[index]
    np.testing.assert_allclose(row, expected, atol=1e-12)


def test_timms_rule_is_the_antialiased_cubic_of_jax_and_dinos_is_almost_that_of_hugging_face():
    grid = np.random.default_rng(0).normal(size=(10, 1)).astype(np.float32)
    for new in (7, 16):
        expected = jax.image.resize(grid, (new, 1), "cubic", antialias=True)
        np.testing.assert_allclose(positions.resize_matrix(10, new, "timm") @ grid, expected, atol=1e-5)
        hf, dino = (positions.resize_matrix(10, new, rule) for rule in ("hf", "dino"))
        assert 1e-4 < np.abs(hf - dino).max() < 0.2
        np.testing.assert_allclose(dino.sum(axis=1), 1, atol=1e-12)  # a constant stays constant


@pytest.mark.parametrize(
    "name, millions",  # published by timm
    [
        ("vit_base_patch32_224", 88.2),
        ("vit_small_patch14_dinov2", 22.06 + 0.385),  # and a classifier of 1000 classes
    ],
)
def test_architectures_have_the_parameters_of_timm(name, millions):
    model = prance_jax.create_model(name)
    side = model.spec.image_size
    shapes = jax.eval_shape(
        model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, side, side, 3), "float32")
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6 == pytest.approx(millions, rel=2e-3)
    assert model.pretrained_cfg is ARCHITECTURES[name]


def test_architectures_are_those_of_timm():
    """All names, by the attributes of timm's modules, which are made without memory."""
    library, torch = pytest.importorskip("timm"), pytest.importorskip("torch")
    activations = {"GELU": "gelu", "QuickGELU": "quick_gelu"}
    for name, config in ARCHITECTURES.items():
        if config.distilled:
            continue
        with torch.device("meta"):
            network = library.create_model(name)
        block, parts, has = (
            network.blocks[0],
            config.parts,
            lambda module: type(module).__name__ != "Identity",
        )
        assert (network.embed_dim, len(network.blocks), block.attn.num_heads) == (
            config.width,
            config.depth,
            config.heads,
        ), name
        assert (*network.patch_embed.img_size, *network.patch_embed.patch_size) == (
            *config.image_size,
            *2 * (config.patch_size,),
        ), name
        assert (block.mlp.fc1.out_features, block.norm1.eps) == (config.mlp_dim, config.norm_eps), name
        assert (activations[type(block.mlp.act).__name__], has(block.ls1)) == (
            parts.act_layer,
            bool(config.layer_scale),
        ), name
        assert (network.cls_token is not None, network.num_reg_tokens, network.no_embed_class) == (
            parts.class_token,
            parts.reg_tokens,
            parts.no_embed_class,
        ), name
        assert (network.global_pool, has(network.fc_norm), has(network.norm_pre)) == (
            parts.global_pool,
            parts.fc_norm,
            parts.pre_norm,
        ), name
        preset = network.default_cfg
        assert (tuple(preset["mean"]), tuple(preset["std"])) == (config.mean, config.std), name


VIT = "vit_tiny_patch16_224"


@pytest.mark.parametrize(
    "architecture, change",
    [
        ("deit3_small_patch16_224", {}),
        ("vit_small_patch14_dinov2", {"patch_size": 16}),
        ("flexivit_small", {}),
        (VIT, {"global_pool": "avg", "act_layer": "gelu_tanh"}),
        (VIT, {"global_pool": "avg", "fc_norm": False}),
        (VIT, {"reg_tokens": 4, "no_embed_class": True}),
        (VIT, {"class_token": False, "reg_tokens": 2, "no_embed_class": True, "global_pool": "avg"}),
        (VIT, {"pre_norm": True, "act_layer": "quick_gelu"}),
    ],
)
def test_timm_computes_the_same(tmp_path, architecture, change):
    """Random networks, LayerScale folded, also at another size: positions by timm's rule of the family."""
    library, torch = pytest.importorskip("timm"), pytest.importorskip("torch")
    torch.manual_seed(0)
    arguments = {"embed_dim": 48, "depth": 2, "num_heads": 3, "img_size": 64, "num_classes": 5, **change}
    network = library.create_model(architecture, **arguments).eval()
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    tensors = {name: value.numpy() for name, value in network.state_dict().items()}
    address = folder(
        tmp_path, tensors, config={"architecture": architecture, "num_classes": 5, "model_args": arguments}
    )
    for size in (64, 96):
        resized = library.create_model(architecture, **{**arguments, "img_size": size}).eval()
        from timm.models.vision_transformer import checkpoint_filter_fn

        flexi = {"interpolation": "bilinear", "antialias": False} if "flexi" in architecture else {}
        resized.load_state_dict(checkpoint_filter_fn(dict(network.state_dict()), resized, **flexi))
        images = np.random.default_rng(size).normal(size=(2, size, size, 3)).astype(np.float32)
        with torch.inference_mode():
            expected = resized(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
        model, params = prance_jax.create_model(address, image_size=size)
        actual = np.asarray(model.apply({"params": params}, images))
        np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)


@pytest.mark.parametrize("kind", ["ViT", "Dinov2", "DeiT", "Dinov2WithRegisters", "CLIPVision"])
def test_hugging_face_computes_the_same(tmp_path, kind):
    library, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "image_size": 64,
        "patch_size": 16,
    }
    sizes |= {"mlp_ratio": 2} if kind.startswith("Dinov2") else {"intermediate_size": 96}
    network = getattr(library, f"{kind}Model")(getattr(library, f"{kind}Config")(**sizes)).eval()
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    network.save_pretrained(tmp_path)
    images = np.random.default_rng(0).normal(size=(2, 96, 96, 3)).astype(np.float32)
    with torch.inference_mode():
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
        options = {} if kind.startswith("Dinov2") else {"interpolate_pos_encoding": True}
        features = network(pixels, **options)
    model, params = prance_jax.create_model(f"local-dir:{tmp_path}", image_size=96, num_classes=48)
    for head in {"head", "head_dist"} & params.keys():
        params[head] = {"kernel": np.eye(48, dtype=np.float32), "bias": np.zeros(48, np.float32)}
    answer = features.last_hidden_state[:, : model.spec.class_tokens].numpy().mean(axis=1)
    expected = features.pooler_output.numpy() if kind == "CLIPVision" else answer  # CLS after the last norm
    actual = np.asarray(model.apply({"params": params}, images))
    np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)
