"""The small network that tests share."""

from prance_jax.space import SearchSpace
from prance_jax.spec import ModelSpec

SPACE = SearchSpace("small test", 32, 3, 2, (16, 24, 28), (1, 2, 3), layers=(2, 2, 2, 2), head_dim=8)
KEEP = (0.3, 0.55, 0.8, 1.0)


def make_spec(mode="prune", official=False, **changes) -> ModelSpec:
    spec = ModelSpec(
        SPACE,
        **{"image_size": 16, "patch_size": 4, "num_classes": 5, "channels": 3, **changes},
        token_optimization=mode,
    )
    return spec.official() if official else spec


def keep_choices(spec: ModelSpec):
    return (KEEP,) * spec.rates
