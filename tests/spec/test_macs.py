"""MACs and parameters: by hand, against the papers, against the program and XLA's own count."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import MODES, SPACE, keep_choices, make_spec, structures

from prance_jax.models import forward
from prance_jax.models.vit import ViT
from prance_jax.spec.element_operations import element_operations
from prance_jax.spec.macs import count_parameters, macs
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.spec.search_space import SPACES, SearchSpace
from prance_jax.spec.token_counts import token_counts, tokens_after_layers


def deit(width, heads):
    space = SearchSpace("deit", width, 4, heads, (width,), (4,), layers=(12,))
    return ModelSpec(space, image_size=224, patch_size=16, num_classes=1000, full_last_layer=True)


@pytest.mark.parametrize(
    "width, heads, gmacs, millions", [(192, 3, 1.25, 5.7), (384, 6, 4.60, 22.1), (768, 12, 17.56, 86.6)]
)
def test_a_plain_vit_costs_what_deit_costs(width, heads, gmacs, millions):
    spec = deit(width, heads)
    assert macs(spec, spec.largest).total / 1e9 == pytest.approx(gmacs, rel=0.005)
    assert count_parameters(spec, spec.largest) / 1e6 == pytest.approx(millions, rel=0.005)


@pytest.mark.parametrize("name, millions", [("tiny", 12.5), ("small", 35.3), ("base", 102.5)])
def test_stored_parameters_of_the_papers_spaces(name, millions):
    """The released tiny stores 13.3 M: q, k and v have the super width 256, of which 3 x 64 are used."""
    spec = ModelSpec(SPACES[name], image_size=224, patch_size=16, num_classes=1000)
    shapes = jax.eval_shape(lambda: forward.init_params(ViT(spec), jax.random.key(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6 == pytest.approx(millions, rel=0.005)


def test_base_holds_ten_to_the_fourteen_structures():
    assert SPACES["base"].num_structures == 15**12


def test_tokens_by_hand():
    # 17 tokens; floor(0.5 x 17) = 8, floor(0.5 x 8) = 4, floor(0.3 x 4) = 1 -> the floor of two tokens.
    spec = make_spec("prune")
    structure = SPACE.uniform(16, 1, (0.5,))
    last = structure.groups[3]._replace(keep=(0.3,))
    structure = structure._replace(groups=(*structure.groups[:3], last))
    counts = token_counts(spec, structure)
    assert tokens_after_layers(spec, structure) == (17, 8, 8, 4, 4, 2)
    assert counts.mlp == (17, 8, 8, 4, 4, 1)  # only CLS is classified
    assert counts.attention == (17, 17, 8, 8, 4, 4)


def test_one_layer_by_hand():
    space = SearchSpace("two layers", 8, 2, 1, (8,), (2,), layers=(1, 1), head_dim=4)
    spec = ModelSpec(space, image_size=4, patch_size=2, num_classes=3, channels=1, token_optimization="merge")
    cost = macs(spec, space.uniform(8, 2, (0.5,)), selector=7)
    # 5 tokens; the merge keeps floor(2.5) = 2 of them: 3 sources x 2 destinations x (2 x 8 + 2).
    assert cost.patch_embedding == 4 * 4 * 8
    assert cost.attention == 2 * (5 * 8 * 12 + 2 * 5 * 5 * 4 + 5 * 4 * 8)
    assert cost.mlp == 5 * 2 * 8 * 16 + 2 * 8 * 16  # the last one on CLS
    assert cost.residual_maps == 5 * 8 * 8
    assert cost.token_optimization == 3 * 2 * 18
    assert (cost.selector, cost.classifier) == (7, 8 * 3)


@pytest.mark.parametrize("mode", ["prune", "merge", "prune_merge"])
def test_per_image_counts_are_the_static_ones(mode):
    spec = make_spec(mode)
    sampled = SPACE.sample(jax.random.key(0), 20, keep_choices(spec))
    total, active = jax.jit(lambda s: (macs(spec, s, 11).total, count_parameters(spec, s)))(sampled)
    for index in range(20):
        structure = sampled.image(index)
        np.testing.assert_allclose(total[index], macs(spec, structure, 11).total, rtol=1e-6)
        np.testing.assert_allclose(active[index], count_parameters(spec, structure), rtol=1e-6)


def test_totals_beyond_int32_per_image():
    spec = ModelSpec(SPACES["base"], image_size=384, patch_size=16, num_classes=1000)
    static = spec.largest
    arrays = jax.tree.map(lambda leaf: jnp.full(2, leaf), static)
    mixed = static._replace(groups=(static.groups[0], *arrays.groups[1:]))
    exact = macs(spec, static).total
    assert exact > 2**31
    for structure in (arrays, mixed):
        np.testing.assert_allclose(macs(spec, structure).total, exact, rtol=1e-6)


def test_element_operations_by_hand():
    space = SearchSpace("two layers", 8, 2, 1, (8,), (2,), layers=(1, 1), head_dim=4)
    spec = ModelSpec(space, image_size=4, patch_size=2, num_classes=3, channels=1)
    operations = element_operations(spec, space.uniform(8, 2, (0.5,)))
    assert operations == (2 * 25, (5 + 5 + 5 + 1) * 8 + 8, (5 + 1) * 16)


CASES = [
    ("tiny", "prune", 240, 6, (1.0,)),
    ("tiny", "merge", 216, 4, (0.7,)),
    ("small", "prune", 384, 3.5, (0.6,)),
    ("small", "prune_merge", 320, 2, (0.7, 0.8)),
    ("base", "merge", 720, 3.5, (0.7,)),
]


@pytest.mark.parametrize("name, mode, width, ratio, keep", CASES)
def test_the_compact_program_has_the_counted_products(name, mode, width, ratio, keep):
    """The products of the program are 2 x MACs within 0.5 %.

    XLA's count of the compiled program includes element operations. It is within 3 % where these are
    few (they are about 5 % of `tiny`).
    """
    spec = ModelSpec(SPACES[name], image_size=224, patch_size=16, num_classes=1000, token_optimization=mode)
    structure = spec.space.uniform(width, ratio, keep)
    model = ViT(spec)
    params = jax.eval_shape(lambda: forward.init_params(model, jax.random.key(0)))
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    program = lambda params, image: model.apply({"params": params}, image, structure)
    expected = 2 * macs(spec, structure).total
    assert product_flops(jax.make_jaxpr(program)(params, image).jaxpr) / expected == pytest.approx(
        1, abs=0.005
    )
    if name != "tiny":
        flops = jax.jit(program).lower(params, image).compile().cost_analysis()["flops"]
        assert flops / expected == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("official", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_every_product_of_a_random_structure_is_counted(mode, official, params):
    """The count is exact for widths that differ between layers.

    Products that are traced but not counted serve the state for decisions: the attention of CLS in
    each layer, and the early logits after each group.
    """
    spec = make_spec(mode, official)
    sampled = structures(spec, 3, batch=5)
    for index in range(5):
        structure = sampled.image(index)
        image = jax.ShapeDtypeStruct((1, spec.image_size, spec.image_size, 3), jnp.float32)
        program = lambda params, image: ViT(spec).apply({"params": params}, image, structure)
        reported = SPACE.attention_width * sum(token_counts(spec, structure).attention)
        reported += spec.num_classes * sum(group.widths[-1] for group in structure.groups)
        flops = product_flops(jax.make_jaxpr(program)(params, image).jaxpr)
        assert flops == 2 * (macs(spec, structure).total + reported)


@pytest.mark.parametrize("official", [False, True])
def test_active_parameters_are_those_that_a_gradient_reaches(official, params, images):
    """Key biases are excepted: they shift all attention logits of a query equally, so they change no output.

    With CLS as the only token no query would change an output, hence the high keep rates.
    """
    spec = make_spec("prune", official)
    sampled = SPACE.sample(jax.random.key(6), 3, ((0.8, 1.0),))
    score = lambda params, structure: jnp.sum(
        jnp.sin(ViT(spec).apply({"params": params}, images[:2], structure))
    )
    gradient = jax.jit(jax.vmap(jax.grad(score), in_axes=(None, 0)))
    # vmap passes one structure at a time, for both images.
    reached = gradient(params, jax.tree.map(lambda leaf: jnp.stack([leaf, leaf], axis=1), sampled))
    for index in range(3):
        total = 0
        for path, leaf in jax.tree_util.tree_leaves_with_path(reached):
            gradient_of_leaf = np.asarray(leaf[index])
            if "qkv" in jax.tree_util.keystr(path) and gradient_of_leaf.ndim == 1:
                gradient_of_leaf = np.ones_like(gradient_of_leaf)
            total += np.count_nonzero(gradient_of_leaf)
        assert total == count_parameters(spec, sampled.image(index))


def product_flops(jaxpr) -> int:
    """2 x multiply-accumulates of every dot product of a program, from the shapes alone."""
    total = 0
    for equation in jaxpr.eqns:
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            if hasattr(inner, "eqns"):
                total += product_flops(getattr(inner, "jaxpr", inner))
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
    return total
