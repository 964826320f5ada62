"""MACs of a cascade by hand, against the traced program and XLA's count; trees; what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cascade.examples import SHORT, SPACE, random_cascade, two_looks, vit
from spec.test_macs import product_flops

from prance_jax.cascade.forward import forward_path
from prance_jax.cascade.looks import init_params, resize_images
from prance_jax.cascade.tree import grow_tree
from prance_jax.core.errors import UserError
from prance_jax.spec.cascade import START, Cascade, CascadeSpec, Look, Step
from prance_jax.spec.macs import macs, single_look_macs
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.spec.search_space import SearchSpace
from prance_jax.spec.structure import GroupChoice, Structure
from prance_jax.spec.token_counts import token_counts

GROUPS = vit(space=SHORT).largest.groups
SPEC = two_looks(space=SHORT)


def resizing_flops(shape, size):
    """Those of the products by which an image or a grid is resized."""
    if shape[1] == size:
        return 0
    return product_flops(jax.make_jaxpr(lambda x: resize_images(x, size))(jnp.zeros(shape)).jaxpr)


def reported_flops(cascade, node):
    """Products on the way to a node that serve decisions, not the answer: attention of CLS, early logits; and resizing."""
    total, first_groups = 0, {}
    for number in cascade.path(node):
        first_groups[cascade.steps[number - 1].look] = number  # the last one of each look
    looks = list(first_groups)
    for look, number in first_groups.items():
        spec, groups = cascade.spec.looks[look].spec, cascade.groups(number)
        counts = token_counts(spec, Structure(groups)).attention
        total += spec.space.attention_width * sum(counts)
        total += spec.class_tokens * spec.num_classes * sum(group.widths[-1] for group in groups)
        total += resizing_flops((1, *[cascade.spec.last.image_size] * 2, spec.channels), spec.image_size) // 2
        if look != looks[0]:
            before = cascade.spec.looks[looks[looks.index(look) - 1]].spec
            sides = [round(item.patches**0.5) for item in (before, spec)]
            total += resizing_flops((1, sides[0], sides[0], groups[0].widths[0]), sides[1]) // 2
    return 2 * total


def traced_flops(cascade, node):
    params = jax.eval_shape(lambda: init_params(cascade.spec, jax.random.key(0)))
    size, channels = cascade.spec.last.image_size, cascade.spec.last.channels
    image = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
    program = lambda params, image: forward_path(cascade, params, image, node).logits
    return product_flops(jax.make_jaxpr(program)(params, image).jaxpr), (program, params, image)


def test_macs_by_hand():
    space = SearchSpace("two layers", 8, 2, 1, (8,), (2,), layers=(1, 1), head_dim=4)
    last = ModelSpec(space, image_size=4, patch_size=2, num_classes=3, channels=1, exits=(0,))
    first = dataclasses.replace(last, image_size=2)
    cascade = Cascade(
        CascadeSpec((Look(first), Look(last))),
        (
            Step(0, 0, 0, space.uniform(8, 2).groups[:1]),
            Step(1, 0, 1, space.uniform(8, 2).groups[1:]),
            Step(2, 1, 0, space.uniform(8, 2).groups),
            Step(1, 1, 0, space.uniform(8, 2).groups),
        ),
    )
    attention = lambda tokens: tokens * 8 * 12 + 2 * tokens * tokens * 4 + tokens * 4 * 8
    mlp, residual_map, classifier = 2 * 8 * 16, 8 * 8, 8 * 3
    # The first look has 2 tokens, the second one 5. An exit's MLP runs on CLS.
    at_exit = 1 * 4 * 8 + attention(2) + mlp + residual_map + classifier
    at_end = at_exit + 2 * (mlp + residual_map) + attention(2) + mlp + classifier
    second = 4 * 4 * 8 + attention(5) + 5 * (mlp + residual_map) + attention(5) + mlp + classifier
    recycled = 2 * 8 * 8
    expected = [0, at_exit, at_end, at_end + recycled + second, at_exit + recycled + second]
    np.testing.assert_array_equal(cascade.macs, expected)
    assert cascade.spec.dense_macs == second == macs(last, last.largest).total


def test_single_look_macs_are_those_of_the_network():
    spec = vit()
    for seed in range(3):
        structure = spec.space.sample(jax.random.key(seed), 1, ((0.3, 0.6),)).image(0)
        assert single_look_macs(spec, structure) == macs(spec, structure).total


@pytest.mark.parametrize(
    "method, shares, changes",
    [
        ("prune", "none", {}),
        ("merge", "all", {"distilled": True}),
        ("prune_merge", "all_but_norms", {"residual_maps": False}),
        ("prune", "none", {"enter_at_widest": True, "scale_norm": True}),
        ("prune", "all", {"refined_cells": 1}),
    ],
)
def test_every_product_of_a_random_tree_is_counted(method, shares, changes):
    """Those of resizing excepted."""
    cascade = random_cascade(two_looks(method, shares, **changes), 2)
    for node in range(1, cascade.num_nodes):
        flops = traced_flops(cascade, node)[0]
        assert flops == 2 * cascade.macs[node] + reported_flops(cascade, node), node


def test_xla_counts_the_same():
    """XLA's count has element operations as well: within 3 % at the widths of ViT-S."""
    space = SearchSpace("small", 384, 4, 6, (192, 384), (2, 4), layers=(1, 1))
    last = ModelSpec(space, image_size=224, patch_size=16, num_classes=1000, exits=(0,))
    spec = CascadeSpec((Look(dataclasses.replace(last, image_size=112), "all"), Look(last)))
    groups = space.uniform(384, 4, (0.6,)).groups
    narrow = space.uniform(192, 4, (0.7,)).groups
    cascade = Cascade(spec, (Step(0, 0, 0, groups[:1]), Step(1, 0, 1, narrow[1:]), Step(2, 1, 0, groups)))
    for node in (1, 3):
        _, (program, params, image) = traced_flops(cascade, node)
        flops = jax.jit(program).lower(params, image).compile().cost_analysis()["flops"]
        resizing = resizing_flops(image.shape, 112) + (node > 1) * resizing_flops((1, 7, 7, 384), 14)
        assert (flops - resizing) / (2 * cascade.macs[node]) == pytest.approx(1, abs=0.03)


def test_a_tree_by_hand():
    """Nodes, actions and paths; at most one look after another."""
    cascade = Cascade(
        SPEC,
        (
            Step(0, 0, 0, GROUPS[:1]),
            Step(0, 1, 0, GROUPS),
            Step(1, 0, 1, GROUPS[1:]),
            Step(1, 1, 0, GROUPS[:1]),
            Step(4, 1, 1, GROUPS[1:]),
        ),
    )
    assert cascade.children == ((1, 2), (3, 4), (), (), (5,), ())
    assert cascade.next_nodes.tolist() == [
        [-1, 1, 2], [1, 3, 4], [2, -1, -1], [3, -1, -1], [4, 5, -1], [5, -1, -1]
    ]  # fmt: skip
    assert [cascade.path(node) for node in range(6)] == [(), (1,), (2,), (1, 3), (1, 4), (1, 4, 5)]
    assert (cascade.num_nodes, cascade.num_actions, cascade.horizon) == (6, 3, 3)
    assert cascade.groups(5) == GROUPS and cascade.groups(4) == GROUPS[:1] and cascade.groups(3) == GROUPS
    assert hash(cascade) == hash(Cascade(SPEC, cascade.steps)) and cascade == Cascade(SPEC, cascade.steps)


def test_a_grown_tree_has_every_way_on_that_is_not_smaller():
    space = SHORT
    small, large = space.uniform(8, 1, (0.5,)), space.uniform(16, 2)
    cascade = grow_tree(SPEC, ((small, large), (large,)), ((0, 1), (0, 0)))

    def ends(node):
        """(look, widths) of all paths from a node on, one entry per node."""
        return [
            (cascade.steps[child - 1].look, cascade.groups(child)[-1].widths, ends(child))
            for child in cascade.children[node]
        ]

    again = (1, (16,), [(1, (16,), [])])  # the second look, up to its exit and to its end
    from_large = [(0, (16,), [again]), again]
    from_small = [(0, (8,), [again]), (0, (16,), [again]), again]
    assert ends(START) == [(0, (8,), from_small), (0, (16,), from_large)]


def test_a_grown_tree_does_not_depend_on_the_order_of_its_beginnings():
    """Both structures have the same first group: one step serves both, and both ways on follow it."""
    large = SHORT.uniform(16, 2)
    small = large._replace(groups=(large.groups[0], large.groups[1]._replace(keep=(0.5,))))
    trees = [
        grow_tree(SPEC, ((small, large), (large,)), begin) for begin in (((0, 0), (0, 1)), ((0, 1), (0, 0)))
    ]
    assert trees[0] == trees[1] and len(trees[0].children[1]) == 3


def test_refined_macs_by_hand():
    """Four patches of one cell and three whole cells: 7 tokens and CLS; the dense network has 16 patches."""
    space = SearchSpace("two layers", 8, 2, 1, (8,), (2,), layers=(1, 1), head_dim=4)
    last = ModelSpec(space, image_size=8, patch_size=2, num_classes=3, channels=1, refined_cells=1)
    first = dataclasses.replace(last, image_size=4, refined_cells=None, full_last_layer=True)
    groups = space.uniform(8, 2).groups
    cascade = Cascade(CascadeSpec((Look(first), Look(last))), (Step(0, 0, 0, groups), Step(1, 1, 0, groups)))

    def look(tokens):
        attention = tokens * 8 * 12 + 2 * tokens * tokens * 4 + tokens * 4 * 8
        mlp, residual_map, classifier = 2 * 8 * 16, 8 * 8, 8 * 3
        return (tokens - 1) * 4 * 8 + 2 * attention + tokens * (mlp + residual_map) + mlp + classifier

    recycled = 5 * 8 * 8
    assert cascade.macs.tolist() == [0, look(5), look(5) + recycled + look(8)]
    assert cascade.spec.dense_macs == look(17) and cascade.spec.dense == last.unrefined


def spec_of(shares="none", last=None, **first):
    looks = two_looks(shares=shares, space=SHORT).looks
    return CascadeSpec(
        (
            Look(dataclasses.replace(looks[0].spec, **first), shares),
            Look(dataclasses.replace(looks[1].spec, **(last or {}))),
        )
    )


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: CascadeSpec(()), "has no look; give at least one"),
        (
            lambda: CascadeSpec((Look(vit(), "all"),)),
            "last look has all weights; its shares must be 'none', not 'all'",
        ),
        (lambda: Look(vit(), "some"), "shares='some' is not known; choose from all, all_but_norms, none"),
        (lambda: spec_of(num_classes=7), "look 0 has num_classes=7, the last look 5; both must be the same"),
        (lambda: spec_of(channels=3), "look 0 has channels=3, the last look 1; both"),
        (lambda: spec_of(dtype="bfloat16"), "look 0 has dtype=bfloat16, the last look float32"),
        (lambda: spec_of(distilled=True), "look 0 has distilled=True, the last look False"),
        (lambda: spec_of(image_size=(8, 12)), r"it needs classes, a square; .*image_size=\(8, 12\)"),
        (lambda: spec_of(num_classes=0, exits=()), "num_classes=0, image_size="),
        (lambda: spec_of(pixels=True, last={"pixels": True}), "pixels must be False, it is True"),
        (lambda: spec_of(space=SPACE, full_last_layer=False), "look 0 needs full_last_layer=True"),
        (
            lambda: spec_of("all", space=SPACE),
            "look 0 has shares='all', so it must have the last look's space, ",
        ),
        (
            lambda: spec_of("all", patch_size=2),
            "patch_size, residual_maps, channels_left; or set shares='none'",
        ),
        (lambda: spec_of("all_but_norms", residual_maps=False), "look 0 has shares='all_but_norms'"),
        (
            lambda: spec_of(image_size=12, last={"refined_cells": 1}),
            "look 1 has 2 cells on a side, look 0 3 patches; one must divide the other",
        ),
    ],
)
def test_looks_that_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


WIDE = dataclasses.replace(SHORT, super_width=24)
# From the first look to the last one, past a look of another width.
JUMP = CascadeSpec(
    (Look(vit(space=SHORT, image_size=8)), Look(vit(space=WIDE, image_size=8)), Look(vit(space=WIDE)))
)
BEGIN = Step(0, 0, 0, GROUPS[:1])


@pytest.mark.parametrize(
    "steps, message",
    [
        ((), "has no step; give at least one that begins a look"),
        ((Step(1, 0, 0, GROUPS),), r"step 1 \(look 0, groups 0 to 1\): needs a parent from 0 to 0"),
        ((Step(0, 2, 0, GROUPS),), "a look from 0 to 1"),
        ((BEGIN, Step(1, 0, 1, ())), r"step 2 .* at least one choice"),
        ((Step(0, 0, 1, GROUPS[1:]),), "the parent must end after group 0 of look 0"),
        ((BEGIN, Step(1, 1, 1, GROUPS[1:])), "does not continue node 1; .* after group 0 of look 1"),
        ((Step(0, 1, 0, GROUPS), Step(1, 0, 0, GROUPS)), "step 2 .* cannot begin after look 1"),
        (
            (Step(0, 0, 0, (*GROUPS, GROUPS[1])),),
            r"does not end in an exit; look 0 has exits after groups \(0, 1\)",
        ),
        (
            (Step(0, 0, 0, (GroupChoice((8, 8), (8, 8)),)),),
            "group 0 has 2 widths, 2 mlp_dims and 0 keep rates; it needs 1, 1 and 0",
        ),
        (
            (BEGIN, Step(1, 0, 1, (GroupChoice((8,), (8,)),))),
            "group 1 has .* 0 keep rates; it needs 1, 1 and 1",
        ),
    ],
)
def test_steps_that_are_refused(steps, message):
    with pytest.raises(UserError, match=message):
        Cascade(SPEC, steps)


def test_a_look_of_refined_cells_needs_an_earlier_look():
    spec = two_looks(space=SHORT, refined_cells=2)
    with pytest.raises(
        UserError, match="step 1 .* has refined_cells, so it must begin after an earlier look"
    ):
        Cascade(spec, (Step(0, 1, 0, GROUPS),))
    Cascade(spec, (Step(0, 0, 0, GROUPS), Step(1, 1, 0, GROUPS)))
    Cascade(spec.unrefined, (Step(0, 1, 0, GROUPS),))


def test_a_jump_over_a_look_of_another_width_is_refused():
    message = (
        "begins after look 0, whose stored width is 16; .* are those of look 1, whose stored width is 24"
    )
    with pytest.raises(UserError, match=message):
        Cascade(JUMP, (BEGIN, Step(1, 2, 0, GROUPS)))
    Cascade(JUMP, (BEGIN, Step(1, 1, 0, GROUPS), Step(2, 2, 0, GROUPS)))
