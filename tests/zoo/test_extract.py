"""A structure cut out is the structure, to float tolerance; what cannot be cut is told, all of it at once."""

import dataclasses

import jax
import numpy as np
import pytest
from small import PAIR, drawn_params, logits, make_spec

from prance_jax.core.errors import UserError
from prance_jax.spec.macs import parameters
from prance_jax.spec.model_spec import ChannelCounts
from prance_jax.spec.search_space import SearchSpace
from prance_jax.spec.structure import GroupChoice, Structure
from prance_jax.zoo.extract import extract_structure
from prance_jax.zoo.formats.files import save_weights
from prance_jax.zoo.formats.timm import to_timm
from prance_jax.zoo.load import load_weights

FREE = make_spec(space=PAIR, residual_maps=False)


def mixed_hidden(width):
    """One width, another MLP in every layer, all tokens."""
    return Structure((GroupChoice((width,), (width,)), GroupChoice((width,), (3 * width,), (1.0,))))


@pytest.mark.parametrize("official", [False, True])
def test_the_plain_network_computes_the_same_and_comes_back_bit_identical(tmp_path, images, official):
    spec = dataclasses.replace(FREE.official() if official else make_spec(space=PAIR), distilled=not official)
    params, structure = drawn_params(spec), mixed_hidden(28 if official else 24)
    if spec.residual_maps:  # one that only shifts is no obstacle
        params["block_0"]["residual_map"]["kernel"] = np.eye(32, dtype=np.float32)
    small, plain = extract_structure(params, spec, structure)
    wanted = logits(spec, params, images, structure)
    np.testing.assert_allclose(logits(plain, small, images), wanted, atol=1e-5 * np.abs(wanted).max(), rtol=0)
    assert small["block_0"]["fc1"]["kernel"].shape == (structure.widths[0], 3 * structure.widths[0])
    assert parameters(plain, plain.largest) == sum(leaf.size for leaf in jax.tree.leaves(small))
    save_weights(tmp_path / "small.safetensors", to_timm(small, plain), {})
    jax.tree.map(np.testing.assert_array_equal, load_weights(tmp_path / "small.safetensors", plain), small)


def test_everything_in_the_way_is_listed():
    structure = Structure((GroupChoice((16,), (16,)), GroupChoice((28,), (56,), (0.5,))))
    with pytest.raises(UserError) as caught:
        extract_structure(drawn_params(FREE), FREE, structure)
    said = str(caught.value)
    assert "its width changes (16, 28)" in said and "tokens are dropped before group 1" in said
    # A token costs 64 MACs a channel and layer around attention and those of its MLP: 2816 + 3840; 3584 + 3136 with 28x1.
    assert said.endswith("nearest that can be cut out: 28x1")
    spec = make_spec(space=PAIR)
    with pytest.raises(UserError, match=r"differs from the identity in layer 0 .*residual_maps=False"):
        extract_structure(drawn_params(spec), spec, PAIR.uniform(24, 2, (1.0,)))
    with pytest.raises(UserError, match="entered at the widest width"):
        extract_structure(drawn_params(FREE), FREE.official(), PAIR.uniform(24, 2, (1.0,)))


def test_hidden_units_that_do_not_divide_evenly():
    for width in range(1, 200):
        for mlp_dims in range(1, 4 * width, 7):
            assert SearchSpace.mlp_dim(width, SearchSpace.ratio(width, mlp_dims)) == mlp_dims


def test_pruned_channels_stand_in_the_way():
    space = FREE.space
    heads, mlp_dims = (4,) * space.depth, (8,) * space.depth
    pruned = dataclasses.replace(FREE, channels_left=ChannelCounts(heads, heads, mlp_dims))
    with pytest.raises(UserError, match="channels were pruned.*before its channels are pruned"):
        extract_structure({}, pruned, pruned.largest)


def test_timm_agrees(tmp_path, images):
    """What is cut out loads into timm, attention of another width than the stream included, and agrees to 1e-4."""
    library, torch = pytest.importorskip("timm"), pytest.importorskip("torch")
    params = drawn_params(FREE)
    small, plain = extract_structure(params, FREE, mixed_hidden(24))

    class Attention(library.layers.Attention):
        def __init__(self, dim, **options):
            super().__init__(dim, attn_head_dim=8, **options)

    theirs = library.models.vision_transformer.VisionTransformer(
        img_size=16,
        patch_size=4,
        num_classes=5,
        embed_dim=24,
        depth=2,
        num_heads=2,
        mlp_ratio=3.0,
        attn_layer=Attention,
    ).eval()
    theirs.load_state_dict({name: torch.tensor(value) for name, value in to_timm(small, plain).items()})
    with torch.inference_mode():
        wanted = theirs(torch.tensor(np.asarray(images)).permute(0, 3, 1, 2)).numpy()
    found = logits(FREE, params, images, mixed_hidden(24))
    np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max(), rtol=0)
