"""The small network that tests share, and its executions."""

import functools

import jax
import numpy as np

from prance_jax.models import forward
from prance_jax.models.vit import ViT
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.spec.search_space import SearchSpace
from prance_jax.spec.structure import Structure

SPACE = SearchSpace("small test", 32, 3, 2, (16, 24, 28), (1, 2, 3), layers=(1, 2, 2, 1), head_dim=8)
# Three groups: for programs with a branch per plan, whose compilation is what a test waits for.
SHORT = SearchSpace("short test", 32, 3, 2, (16, 24, 28), (1, 2, 3), layers=(1, 2, 1), head_dim=8)
# Two layers, one decision: where nothing depends on depth.
PAIR = SearchSpace("pair test", 32, 3, 2, (16, 24, 28), (1, 2, 3), layers=(1, 1), head_dim=8)
KEEP = (0.3, 0.55, 0.8, 1.0)
MODES = ("merge", "prune", "prune_merge")


def make_spec(mode="prune", official=False, **changes) -> ModelSpec:
    sizes = {"image_size": 16, "patch_size": 4, "num_classes": 5, "channels": 3}
    spec = ModelSpec(**{"space": SPACE, **sizes, **changes}, token_optimization=mode)
    return spec.official() if official else spec


def keep_choices(spec: ModelSpec):
    return (KEEP,) * spec.rates


def noisy_params(spec: ModelSpec):
    """Random parameters; biases and norms are not left at zero and one."""
    leaves, tree = jax.tree.flatten(forward.init_params(ViT(spec), jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [leaf + 0.2 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys)]
    return jax.tree.unflatten(tree, noisy)


def structures(spec: ModelSpec, seed: int, batch: int = 6) -> Structure:
    """A random structure for each image."""
    return spec.space.sample(jax.random.key(seed), batch, keep_choices(spec))


@functools.lru_cache(maxsize=None)
def masked(spec: ModelSpec):
    """(params, images, per-image structure) -> Outcome; one compiled program for all tests."""
    return jax.jit(
        lambda params, images, structure: forward.forward_adaptive(
            ViT(spec), params, images, structure.groups[0], forward.fixed_decisions(structure)
        )
    )


def quick_jit(function, **options):
    """jit for a program of few runs: optimising it would take far longer than running it."""
    quick = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(function, compiler_options=quick, **options)


@functools.lru_cache(maxsize=None)
def _compact(spec: ModelSpec, structure: Structure):
    return quick_jit(
        lambda params, images: forward.forward_adaptive(
            ViT(spec), params, images, structure.groups[0], forward.fixed_decisions(structure)
        )
    )


def compact(spec: ModelSpec, params, images, structure: Structure) -> forward.ForwardOutput:
    """Outcome under a static structure."""
    return _compact(spec, structure)(params, images)


def drawn_params(spec: ModelSpec, seed: int = 0):
    """Random parameters without a compiled initialisation: biases, norms and residual maps included."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: forward.init_params(ViT(spec), jax.random.key(0)))

    def draw(path, leaf):
        name = path[-1].key
        mapped = name == "kernel" and path[-2].key == "residual_map"
        centre = np.eye(*leaf.shape) if mapped else float(name == "scale")
        return (centre + 0.2 * rng.standard_normal(leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def logits(spec: ModelSpec, params, images, structure=None):
    """Of a static structure, the largest by default."""
    return np.asarray(quick_jit(lambda p, x: ViT(spec).apply({"params": p}, x, structure))(params, images))
