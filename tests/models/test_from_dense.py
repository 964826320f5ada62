"""A meta-network that starts from a dense one computes what the dense one computes."""

import dataclasses

import jax
import numpy as np
import pytest
from small import SPACE, make_spec, noisy_params, quick_jit

from prance_jax.errors import UserError
from prance_jax.models import walk
from prance_jax.models.files import save_weights
from prance_jax.models.from_dense import (
    channel_order,
    hidden_order,
    meta_from_dense,
    same_structure,
    start_from,
)
from prance_jax.models.timm import to_timm
from prance_jax.models.vit import ViT
from prance_jax.space import SearchSpace


def dense_spec(width=24, hidden=60, heads=2, **changes):
    """A plain ViT; 24 and 60: narrower than the space's 28 and 84 in both."""
    space = SearchSpace("plain", width, hidden / width, heads, (width,), (hidden / width,), (8,), head_dim=8)
    return make_spec(**{"space": space, **changes})


def logits(spec, params, images, structure=None):
    return quick_jit(lambda p, x: ViT(spec).apply({"params": p}, x, structure))(params, images)


@pytest.mark.parametrize(
    "source, distilled",
    [
        (make_spec(), False),  # the run's own dense network, its residual maps trained
        (dense_spec(28, 84), False),  # as large as the largest structure
        (dense_spec(24, 60, heads=1), True),  # fewer heads, hidden units and channels than there are
    ],
)
def test_the_structure_of_its_width_is_the_dense_network(source, distilled, images):
    source = dataclasses.replace(source, distilled=distilled)
    spec = make_spec(distilled=distilled)
    dense = noisy_params(source)
    params = meta_from_dense(dense, source, spec, walk.init(ViT(spec), jax.random.key(5)))
    structure = same_structure(source, spec)
    assert structure.widths == (source.space.widest,) * SPACE.depth
    wanted = np.asarray(logits(source, dense, images))
    found = logits(spec, params, images, structure)
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max(), rtol=0)


def test_what_matters_most_comes_first():
    """Of a network whose channels and units were shuffled, the order found undoes the shuffle."""
    source = dense_spec()
    dense = jax.tree.map(np.array, noisy_params(source))
    rng = np.random.default_rng(0)
    channels, units = rng.permutation(24), rng.permutation(60)
    for layer in range(8):
        block = dense[f"block_{layer}"]
        block["fc2"]["kernel"][units] *= np.linspace(9, 1, 60)[:, None]
        block["fc2"]["kernel"][:, channels] *= np.linspace(9, 1, 24)
    found = hidden_order(dense, source, 3)
    assert np.corrcoef(np.argsort(found), np.argsort(units))[0, 1] > 0.9
    assert np.corrcoef(np.argsort(channel_order(dense, source)), np.argsort(channels))[0, 1] > 0.9


def test_everything_in_the_way_is_listed():
    source = dense_spec(20, 100, heads=3, norm_epsilon=1e-5)
    with pytest.raises(UserError) as caught:
        same_structure(source, make_spec())
    for words in (
        "norm_epsilon 1e-05, wanted 1e-06",
        "3 heads, at most 2",
        "width 20, wanted one of (16, 24",
    ):
        assert words in str(caught.value)
    with pytest.raises(UserError, match="100 hidden units, at most 72 at width 24"):
        same_structure(dense_spec(24, 100), make_spec())
    with pytest.raises(UserError, match="residual maps where this network has none"):
        same_structure(make_spec(), make_spec(residual_maps=False))


def test_a_file_of_a_dense_network_is_measured_and_taken(tmp_path, images):
    """Sizes come from the file; with other classes the classifier stays fresh and all else is taken."""
    spec, source = make_spec(), dense_spec(28, 84, num_classes=7)
    dense = noisy_params(source)
    save_weights(tmp_path / "dense.safetensors", to_timm(dense, source), {})
    fresh = walk.init(ViT(spec), jax.random.key(5))
    params = start_from(tmp_path / "dense.safetensors", spec, fresh)
    np.testing.assert_array_equal(params["head"]["kernel"], fresh["head"]["kernel"])
    direct = meta_from_dense(dense, source, spec, fresh)
    jax.tree.map(np.testing.assert_array_equal, params, direct)
