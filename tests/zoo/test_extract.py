"""An extracted structure computes the same, to float tolerance; one error lists all obstacles."""

import dataclasses

import jax
import numpy as np
import pytest
from small import PAIR, drawn_params, logits, make_spec

from prance_jax.core.errors import UserError
from prance_jax.spec.macs import count_parameters
from prance_jax.spec.model_spec import ChannelCounts
from prance_jax.spec.search_space import SearchSpace
from prance_jax.spec.structure import GroupChoice, Structure
from prance_jax.zoo.extract import extract_structure
from prance_jax.zoo.formats.files import save_weights
from prance_jax.zoo.formats.timm import to_timm
from prance_jax.zoo.load import load_weights

PLAIN = make_spec(space=PAIR, residual_maps=False)


def mixed_hidden(width):
    """One width, MLPs of different sizes, all tokens."""
    return Structure((GroupChoice((width,), (width,)), GroupChoice((width,), (3 * width,), (1.0,))))


@pytest.mark.parametrize("official", [False, True])
def test_the_plain_network_computes_the_same_and_comes_back_bit_identical(tmp_path, images, official):
    spec = dataclasses.replace(
        PLAIN.official() if official else make_spec(space=PAIR), distilled=not official
    )
    params, structure = drawn_params(spec), mixed_hidden(28 if official else 24)
    if spec.residual_maps:  # a map with a bias only is no obstacle
        params["block_0"]["residual_map"]["kernel"] = np.eye(32, dtype=np.float32)
    small, plain = extract_structure(params, spec, structure)
    expected = logits(spec, params, images, structure)
    actual = logits(plain, small, images)
    np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)
    assert small["block_0"]["fc1"]["kernel"].shape == (structure.widths[0], 3 * structure.widths[0])
    assert count_parameters(plain, plain.largest) == sum(leaf.size for leaf in jax.tree.leaves(small))
    save_weights(tmp_path / "small.safetensors", to_timm(small, plain), {})
    jax.tree.map(np.testing.assert_array_equal, load_weights(tmp_path / "small.safetensors", plain), small)


def test_all_obstacles_are_listed():
    structure = Structure((GroupChoice((16,), (16,)), GroupChoice((28,), (56,), (0.5,))))
    full = dataclasses.replace(PLAIN, full_last_layer=True)
    with pytest.raises(UserError) as caught:
        extract_structure(drawn_params(PLAIN), full, structure)
    message = str(caught.value)
    assert "its width changes (16, 28)" in message and "tokens are dropped before group 1" in message
    # MACs of a token: 64 per channel and layer for attention, then the MLP's: 2816 + 3840; 28x1: 3584 + 3136.
    assert message.endswith("nearest that can be extracted: 28x1")
    spec = make_spec(space=PAIR)
    with pytest.raises(UserError, match=r"differs from the identity in layer 0 .*residual_maps=False"):
        extract_structure(drawn_params(spec), spec, PAIR.uniform(24, 2, (1.0,)))
    with pytest.raises(UserError, match="entered at the widest width"):
        extract_structure(drawn_params(PLAIN), PLAIN.official(), PAIR.uniform(24, 2, (1.0,)))


def test_hidden_units_that_do_not_divide_evenly():
    for width in range(1, 200):
        for mlp_dims in range(1, 4 * width, 7):
            assert SearchSpace.mlp_dim(width, SearchSpace.ratio(width, mlp_dims)) == mlp_dims


def test_pruned_channels_are_refused():
    space = PLAIN.space
    heads, mlp_dims = (4,) * space.depth, (8,) * space.depth
    pruned = dataclasses.replace(PLAIN, channels_left=ChannelCounts(heads, heads, mlp_dims))
    with pytest.raises(UserError, match="channels were pruned.*before its channels are pruned"):
        extract_structure({}, pruned, pruned.largest)


def test_timm_agrees(tmp_path, images):
    """The extracted network loads into timm, also with attention of another width, and agrees to 1e-4."""
    library, torch = pytest.importorskip("timm"), pytest.importorskip("torch")
    params = drawn_params(PLAIN)
    small, plain = extract_structure(params, PLAIN, mixed_hidden(24))

    class Attention(library.layers.Attention):
        def __init__(self, dim, **options):
            super().__init__(dim, attn_head_dim=8, **options)

    timm_model = library.models.vision_transformer.VisionTransformer(
        img_size=16,
        patch_size=4,
        num_classes=5,
        embed_dim=24,
        depth=2,
        num_heads=2,
        mlp_ratio=3.0,
        attn_layer=Attention,
    ).eval()
    timm_model.load_state_dict({name: torch.tensor(value) for name, value in to_timm(small, plain).items()})
    with torch.inference_mode():
        expected = timm_model(torch.tensor(np.asarray(images)).permute(0, 3, 1, 2)).numpy()
    actual = logits(PLAIN, params, images, mixed_hidden(24))
    np.testing.assert_allclose(actual, expected, atol=1e-4 * np.abs(expected).max(), rtol=0)
