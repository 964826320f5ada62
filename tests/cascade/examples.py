"""Small cascades that tests share: random trees, parameters, images and decisions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from prance_jax.cascade.looks import init_params
from prance_jax.spec.cascade import START, Cascade, CascadeSpec, Look, Step
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.spec.search_space import SearchSpace
from prance_jax.spec.structure import GroupChoice

SHORT = SearchSpace("short cascade", 16, 2, 2, (8, 16), (1, 2), layers=(1, 1), head_dim=8)
# Its last layer is no decision point, so it computes class tokens alone.
SPACE = SearchSpace("cascade test", 16, 2, 2, (8, 16), (1, 2), layers=(1, 2), head_dim=8)
BATCH = 9


def vit(method="prune", **changes) -> ModelSpec:
    """A network with an exit after its first group."""
    sizes = {"image_size": 16, "patch_size": 4, "num_classes": 5, "channels": 1, "exits": (0,)}
    return ModelSpec(**{"space": SPACE, **sizes, **changes}, token_optimization=method)


def two_looks(method="prune", shares="none", first=None, **changes) -> CascadeSpec:
    """A look at half the size, then one at the full size; `first` changes the first look."""
    last = vit(method, **changes)
    small = dataclasses.replace(last, image_size=8, full_last_layer=True, refined_cells=None)
    return CascadeSpec((Look(dataclasses.replace(small, **(first or {})), shares), Look(last)))


def random_choice(spec: ModelSpec, group: int, rng) -> GroupChoice:
    """Random sizes and keep rates of one group."""
    space = spec.space
    widths = [int(rng.choice(space.widths)) for _ in range(space.layers[group])]
    mlp_dims = [space.mlp_dim(width, float(rng.choice(space.ratios))) for width in widths]
    keep = [float(rng.choice((0.3, 0.55, 0.8, 1.0))) for _ in range(spec.rates if group else 0)]
    return GroupChoice(tuple(widths), tuple(mlp_dims), tuple(keep))


def random_cascade(spec: CascadeSpec, seed: int, num_steps: int = 5) -> Cascade:
    """A random tree: steps start at random nodes, mostly the newest, end at random exits and have random sizes."""
    rng, steps = np.random.default_rng(seed), []
    while len(steps) < num_steps:
        parent = len(steps) if rng.random() < 0.6 else int(rng.integers(len(steps) + 1))
        before = steps[parent - 1] if parent else None
        begins = [(look, 0) for look in range(len(spec.looks)) if before is None or look > before.look]
        begins = [item for item in begins if before or spec.looks[item[0]].spec.refined_cells is None]
        if before is not None and before.last_group + 1 < spec.looks[before.look].spec.space.groups:
            begins.append((before.look, before.last_group + 1))
        if not begins:
            continue
        look, group = begins[rng.integers(len(begins))]
        network = spec.looks[look].spec
        ends = [end for end in (*network.exits, network.space.groups - 1) if end >= group]
        groups = range(group, int(rng.choice(ends)) + 1)
        steps.append(Step(parent, look, group, tuple(random_choice(network, g, rng) for g in groups)))
    return Cascade(spec, tuple(steps))


def drawn_params(spec: CascadeSpec, seed: int = 0):
    """Random parameters: biases, norms, residual maps and maps of recycled tokens included."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: init_params(spec, jax.random.key(0)))

    def draw(path, leaf):
        name = path[-1].key
        mapped = name == "kernel" and path[-2].key == "residual_map"
        centre = np.eye(*leaf.shape) if mapped else float(name == "scale")
        return (centre + 0.2 * rng.standard_normal(leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def drawn_images(spec: CascadeSpec, batch: int = BATCH, seed: int = 1) -> np.ndarray:
    """Images of random pixels."""
    size, channels = spec.last.image_size, spec.last.channels
    return np.random.default_rng(seed).standard_normal((batch, size, size, channels)).astype(np.float32)


def random_actions(cascade: Cascade, seed: int, batch: int = BATCH) -> np.ndarray:
    """Random actions among those that there are, int32 [B, nodes]."""
    rng, columns = np.random.default_rng(seed), []
    for node, children in enumerate(cascade.children):
        columns.append(rng.integers(1 if node == START else 0, len(children) + 1, batch))
    return np.stack(columns, axis=1).astype(np.int32)


def stop_by_hand(cascade: Cascade, actions: np.ndarray) -> np.ndarray:
    """Where images stop, one by one."""
    stops = []
    for row in actions:
        node = START
        while node == START or row[node] != 0:
            node = cascade.children[node][row[node] - 1]
        stops.append(node)
    return np.asarray(stops)


def given(actions):
    """Decisions by a table of actions [B, nodes]."""
    return lambda node, features: jnp.take_along_axis(jnp.asarray(actions), node[:, None], axis=1)[:, 0]
