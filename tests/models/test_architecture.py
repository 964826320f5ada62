"""Public architectures: masked equals compact, MACs are exact, timm computes the same."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from small import PAIR, compact, drawn_params, logits, make_spec, masked, structures
from spec.test_macs import product_flops

from prance_jax.baselines.diffrate_counts import LearnedCounts
from prance_jax.cascade.looks import recycle_tokens
from prance_jax.core.errors import UserError
from prance_jax.models.attention import attention_signals, rotary_angles
from prance_jax.models.forward import forward_exit, forward_first_group
from prance_jax.models.token_steps import reduce_tokens
from prance_jax.models.vit import ViT
from prance_jax.selector.observation import ObservationEncoder
from prance_jax.spec.architecture import Architecture
from prance_jax.spec.macs import count_parameters, exit_macs, macs, prefix_macs
from prance_jax.spec.search_space import SearchSpace
from prance_jax.spec.token_counts import token_counts
from prance_jax.tokens.methods.registry import METHODS
from prance_jax.tokens.token_set import AttentionSignals, initial_tokens

# Registers and a mean, as timm's `vit_*_reg4_gap_*`.
REGISTERS = Architecture(
    class_token=False, reg_tokens=2, no_embed_class=True, global_pool="avg", fc_norm=True
)
NO_PREFIX = Architecture(class_token=False, global_pool="avg", act_layer="gelu_tanh")
DINOV3 = Architecture(
    reg_tokens=3, pos_embed="none", rope_temperature=50, gated_mlp=True, act_layer="silu", global_pool="avg"
)
CLIP = Architecture(pre_norm=True, act_layer="quick_gelu")


@pytest.mark.parametrize(
    "mode, changes",
    [
        ("prune_merge", {"architecture": NO_PREFIX}),
        ("mctf", {"architecture": NO_PREFIX, "image_size": (12, 20)}),
        ("merge", {"architecture": DINOV3}),
        ("evit", {"architecture": REGISTERS, "image_size": (20, 12)}),
        ("prune", {"architecture": CLIP, "num_classes": 0}),
    ],
)
def test_masked_equals_compact_and_macs_are_exact(mode, changes):
    spec = make_spec(mode, space=PAIR, **changes)
    images = jax.random.normal(jax.random.key(7), (4, *spec.image_shape))
    params, sampled = drawn_params(spec), structures(spec, 3, batch=4)
    outcome = masked(spec)(params, images, sampled)
    structure = sampled.image(1)
    single = compact(spec, params, images[1:2], structure)
    width = single.logits.shape[1]
    scale = float(np.abs(single.logits).max())
    np.testing.assert_allclose(outcome.logits[1, :width], single.logits[0], rtol=1e-4, atol=1e-5 * scale)
    np.testing.assert_array_equal(outcome.logits[1, width:], 0)
    np.testing.assert_array_equal(outcome.tokens.token_of_patch[1], single.tokens.token_of_patch[0])
    # Traced but not counted: what decisions read and the compiler leaves out. Without CLS that is a whole map in each
    # layer; the map of the decision point is counted if the method reads it.
    counts = token_counts(spec, structure).attention
    reported = PAIR.attention_width * sum(counts)
    if not spec.architecture.class_token:
        reported = PAIR.attention_width * sum(count**2 for count in counts)
        reported -= PAIR.attention_width * counts[1] ** 2
    reported += spec.num_classes * sum(group.widths[-1] for group in structure.groups)
    program = lambda params, image: ViT(spec).apply({"params": params}, image, structure)
    flops = product_flops(jax.make_jaxpr(program)(params, images[1:2]).jaxpr)
    assert flops == 2 * (macs(spec, structure).total + reported)
    assert count_parameters(spec, spec.largest) == sum(
        leaf.size for leaf in jax.tree.leaves(drawn_params(plain_spec(spec)))
    )


def plain_spec(spec):
    """The same network without channels that its largest structure leaves out."""
    space = PAIR
    plain = SearchSpace("plain", 28, 3, space.heads, (28,), (3,), layers=(1, 1), head_dim=8)
    return dataclasses.replace(spec, space=plain)


@pytest.mark.parametrize("mode, architecture", [*((mode, NO_PREFIX) for mode in METHODS), ("mctf", DINOV3)])
def test_no_method_touches_the_prefix(mode, architecture):
    """At the lowest rate. Without prefix the placeholder is gone, and one patch or more remains."""
    spec = make_spec(mode, space=PAIR, architecture=architecture, image_size=12)
    num_prefix = spec.num_prefix_tokens
    features = jax.random.normal(jax.random.key(0), (2, spec.tokens, 4))
    tokens = initial_tokens(features, num_prefix)
    attention = jax.random.uniform(jax.random.key(1), features.shape[:2])
    signals = AttentionSignals(attention, features, attention, attention)
    counts = spec.tokens_after(spec.tokens, (0.05,) * spec.rates)
    reduced = reduce_tokens(spec, spec.method, tokens, signals, counts)
    assert reduced.features.shape[1] == counts[-1] > num_prefix
    np.testing.assert_allclose(reduced.features[:, :num_prefix], features[:, :num_prefix], rtol=1e-6)
    assert set(np.unique(reduced.token_of_patch)) <= {-1, *range(num_prefix, counts[-1])}
    assert (np.asarray(reduced.token_of_patch) >= num_prefix).any(axis=1).all()
    if reduced.size is not None:  # nothing is lost: sizes of merged tokens add up to the patches that remain
        kept = (np.asarray(reduced.token_of_patch) >= 0).sum(axis=1)
        if mode not in ("diffrate",):
            np.testing.assert_allclose(reduced.size[:, num_prefix:].sum(axis=1), kept)


def test_a_merged_token_has_the_mean_coordinates_of_its_patches():
    """Two patches of equal features, merged, give what one patch between them gives."""
    spec = make_spec(space=PAIR, architecture=DINOV3, image_size=(4, 12))
    tokens = initial_tokens(jax.numpy.zeros((1, 7, 8)), 4)
    angles = np.asarray(rotary_angles(spec, tokens))
    merged = tokens._replace(token_of_patch=jax.numpy.array([[4, 5, 4]]))
    np.testing.assert_allclose(rotary_angles(spec, merged)[0, 4], angles[0, 5], atol=1e-6)
    # Columns of the three patches: -2/3, 0, 2/3; one row: 0. Periods 1 and sqrt(50).
    expected = 2 * np.pi * np.array([0, 0, 2 / 3, 2 / 3 / 50**0.5])
    np.testing.assert_allclose(angles[0, 6], np.tile(expected, 2), atol=1e-5)
    np.testing.assert_array_equal(angles[0, :4], 0)


REFUSED = [
    ({"class_token": False}, {}, "class_token=False has none; set 'avg'"),
    ({"fc_norm": True}, {}, "takes none; set 'avg'"),
    ({"act_layer": "relu"}, {}, "choose from gelu, gelu_tanh, quick_gelu, silu"),
    ({"global_pool": "avg"}, {"distilled": True}, "distilled=True class tokens only"),
    ({}, {"num_classes": 0, "exits": (0,)}, "exits need"),
    ({}, {"image_size": (16, 20), "token_optimization": "cait"}, "4 x 5 patches"),
    ({"rope_temperature": 1}, {}, "must be above 1"),
]


@pytest.mark.parametrize("fields, changes, message", REFUSED)
def test_what_does_not_go_together_is_refused(fields, changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(make_spec(space=PAIR), architecture=Architecture(**fields), **changes)


def test_learned_counts_refuse_registers():
    with pytest.raises(UserError, match="reg_tokens=3 must be True and 0"):
        LearnedCounts(make_spec(space=PAIR, architecture=DINOV3))


def timm_network(name):
    """A tiny random network of timm, its architecture and other fields of `ModelSpec`."""
    library, torch = pytest.importorskip("timm"), pytest.importorskip("torch")
    sizes = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
    vit, norm = library.models.vision_transformer.VisionTransformer, torch.nn.LayerNorm
    torch.manual_seed(1)
    match name:
        case "registers":
            options = {"class_token": False, "reg_tokens": 2, "no_embed_class": True, "global_pool": "avg"}
            network = vit(img_size=(8, 12), num_classes=3, **options, **sizes)
            return network, REGISTERS, {"image_size": (8, 12), "num_classes": 3}
        case "clip":
            act = functools.partial(library.layers.QuickGELU)
            options = {"pre_norm": True, "norm_layer": functools.partial(norm, eps=1e-5), "act_layer": act}
            network = vit(img_size=8, num_classes=0, **options, **sizes)
            return network, CLIP, {"image_size": 8, "num_classes": 0, "norm_epsilon": 1e-5}
        case "avg":
            network = vit(img_size=8, num_classes=3, global_pool="avg", fc_norm=False, **sizes)
            return network, Architecture(global_pool="avg"), {"image_size": 8, "num_classes": 3}
        case "dinov3":
            options = {
                "rope_type": "dinov3",
                "rope_temperature": 50,
                "rope_rotate_half": True,
                "use_rot_pos_emb": True,
                "use_abs_pos_emb": False,
                "num_reg_tokens": 3,
                "use_fc_norm": False,
                "norm_layer": functools.partial(norm, eps=1e-5),
                "swiglu_mlp": True,
                "qkv_fused": True,
                "dynamic_img_size": True,
                "mlp_ratio": 4,
            }
            network = library.models.eva.Eva(img_size=(8, 16), num_classes=3, **options, **sizes)
            return network, DINOV3, {"image_size": (8, 16), "num_classes": 3, "norm_epsilon": 1e-5}


def from_state(state):
    """Parameters of the ViT from timm's, and the hidden units of its MLP."""
    wholes = {"cls_token": (-1,), "reg_token": None, "pos_embed": None}
    params = {
        name: state[name][0].reshape(shape or state[name][0].shape)
        for name, shape in wholes.items()
        if name in state
    }
    kernel = state["patch_embed.proj.weight"]
    leaf = {"kernel": kernel.transpose(2, 3, 1, 0).reshape(-1, 16), "bias": np.zeros(16)}
    params["patch_embed"] = leaf | {"bias": state.get("patch_embed.proj.bias", leaf["bias"])}

    def module(name):
        weight = state[f"{name}.weight"]
        bias = state.get(f"{name}.bias", np.zeros(len(weight)))
        return {"scale": weight, "bias": bias} if weight.ndim == 1 else {"kernel": weight.T, "bias": bias}

    for layer in (0, 1):
        names = {"norm1": "norm1", "qkv": "attn.qkv", "proj": "attn.proj", "norm2": "norm2", "fc2": "mlp.fc2"}
        names["fc1"] = "mlp.fc1"
        block = {ours: module(f"blocks.{layer}.{theirs}") for ours, theirs in names.items()}
        if block["fc1"]["kernel"].shape[1] == 2 * len(block["fc2"]["kernel"]):  # [gate, value]
            halves = jax.tree.map(lambda leaf: np.split(leaf, 2, axis=-1), block["fc1"])
            block["fc1_g"], block["fc1"] = (
                {key: half[index] for key, half in halves.items()} for index in (0, 1)
            )
        if f"blocks.{layer}.attn.q_bias" in state:
            q, v = (state[f"blocks.{layer}.attn.{part}_bias"] for part in "qv")
            block["qkv"]["bias"] = np.concatenate([q, np.zeros_like(q), v])
        params[f"block_{layer}"] = block
    for name in ("norm_pre", "norm", "head"):
        if f"{name}.weight" in state:
            params[name] = module(name)
    if "fc_norm.weight" in state:
        params["norm"] = module("fc_norm")
    return jax.tree.map(np.float32, params), params["block_0"]["fc1"]["kernel"].shape[1]


@pytest.mark.parametrize("name", ["registers", "clip", "avg", "dinov3"])
def test_timm_agrees(name):
    network, architecture, fields = timm_network(name)
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        for number, parameter in enumerate(network.parameters()):
            parameter.add_(
                0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            )
    params, hidden = from_state({key: value.detach().numpy() for key, value in network.state_dict().items()})
    ratio = SearchSpace.ratio(16, hidden)
    space = SearchSpace("plain", 16, ratio, 2, (16,), (ratio,), layers=(2,), head_dim=8)
    spec = make_spec(space=space, architecture=architecture, **fields)
    images = np.random.default_rng(0).standard_normal((2, *spec.image_shape)).astype(np.float32)
    with torch.inference_mode():
        expected = network.eval()(torch.tensor(images).permute(0, 3, 1, 2)).numpy()
    actual = logits(spec, params, images)
    np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)


@pytest.mark.parametrize("architecture", [NO_PREFIX, DINOV3])
def test_exits_observations_and_looks(architecture):
    """Their MACs add up, and they run at the shapes that they declare."""
    spec = make_spec("tome", space=PAIR, architecture=architecture, exits=(0,))
    structure = spec.space.uniform(24, 2, (0.6,))
    total = macs(spec, structure).total
    assert prefix_macs(spec, structure.groups) + exit_macs(spec, structure.groups) == total
    # `tome` reads no importance, so the map that a selector reads without CLS is one more product.
    maps = 0 if architecture.class_token else spec.tokens**2 * PAIR.attention_width
    assert macs(spec, structure, selector=7).selector == 7 + maps
    larger = dataclasses.replace(spec, image_size=32)
    encoder, params = ObservationEncoder(spec), drawn_params(spec)
    weights = {"norm": {"scale": np.ones(32), "bias": np.zeros(32)}}
    weights |= {part: {"kernel": np.eye(32), "bias": np.zeros(32)} for part in ("class_tokens", "patches")}

    def run(params, images):
        state = forward_first_group(ViT(spec), params, images, structure.groups[0])
        added = recycle_tokens(weights, spec, larger, state, 24)
        return (
            encoder(state, 1),
            forward_exit(ViT(spec), params, state, 0),
            added,
            state.signals.cls_attention,
        )

    images = np.ones((2, 16, 16, 3), np.float32)
    observation, early, added, importance = jax.eval_shape(run, params, images)
    assert observation.shape == (2, encoder.size) and early.shape == (2, 5)
    assert added.shape == (2, larger.all_tokens, 24) and importance.shape == (2, spec.tokens)


def test_without_cls_the_importance_is_the_attention_received():
    """Of two keys, the one that every query is drawn to has all the attention; it sums to 1."""
    q = np.full((1, 1, 3, 4), 10.0, np.float32)
    k = np.stack([np.full(4, value, np.float32) for value in (0.0, 5.0, 0.0)])[None, None]
    signals = attention_signals(q, k, None, None, has_cls=False)
    np.testing.assert_allclose(signals.cls_attention, [[0, 1, 0]], atol=1e-6)
    with pytest.raises(UserError, match="num_classes=0 has none"):
        ObservationEncoder(make_spec(space=PAIR, num_classes=0))
