"""Models by name, as in timm: `create_model('prance_small_patch16_224')`."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prance_jax.core.errors import UserError
from prance_jax.core.fields import check_type
from prance_jax.models.vit import ViT
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.spec.search_space import SPACES, SearchSpace
from prance_jax.zoo.load import load_weights, read_semantics

_MODELS: dict[str, Callable[[], ModelSpec]] = {}


def register_model(name: str, spec: Callable[[], ModelSpec]) -> None:
    """Adds a model under a name.

    Args:
      name: of the model, as in `create_model(name)`.
      spec: () -> ModelSpec.

    Raises:
      UserError: the name is in use.
    """
    if name in _MODELS:
        raise UserError(f"a model {name!r} is registered already; choose another name")
    _MODELS[name] = spec


def list_models(pattern: str = "*") -> list[str]:
    """Returns the names of registered models, sorted.

    Args:
      pattern: of the names, with * and ?, for example 'prance*'.
    """
    return sorted(fnmatch.filter(_MODELS, pattern))


def create_model(name: str, *, weights: str | Path | None = None, **changes: Any) -> ViT | tuple[ViT, dict]:
    """Creates a model by name, with or without weights.

    `model.apply({"params": params}, images)` runs the dense network on images [B, S, S, channels],
    normalised as in training. A structure of the search space as further argument runs that
    structure. `model.init(key, images)` initialises parameters.

    Args:
      name: of the model, see `list_models`.
      weights: a weight file, see `zoo.load.load_weights`. Its card sets the semantics of the
        network, and a released PRANCE file implies `ModelSpec.official`; `changes` take precedence.
      **changes: fields of `ModelSpec`, for example num_classes=10, image_size=384,
        token_optimization='merge', dtype='bfloat16'.

    Returns:
      The Flax module; with `weights`, the module and its parameters.

    Raises:
      UserError: the name or a field is unknown (the nearest are listed), an argument has a wrong type
        or is out of its range, or the weights belong to another model.
    """
    check_type(name, "create_model: name", str)
    check_type(weights, "create_model: weights", str, os.PathLike, type(None))
    if name not in _MODELS:
        near = difflib.get_close_matches(name, _MODELS, n=3, cutoff=0.4) or list_models()
        raise UserError(f"model {name!r} is not known; nearest: {', '.join(near)}")
    spec = _MODELS[name]()
    fields = [field.name for field in dataclasses.fields(ModelSpec)]
    for change in changes:
        if change not in fields:
            near = difflib.get_close_matches(change, fields, n=1) or fields
            raise UserError(f"create_model has no option {change!r}; nearest: {', '.join(near)}")
    from_file = {} if weights is None else read_semantics(weights)
    model = ViT(dataclasses.replace(spec, **{**from_file, **changes}))
    return model if weights is None else (model, load_weights(weights, model.spec))


def _plain(size: str, distilled: bool = False) -> ModelSpec:
    """A DeiT or ViT: one structure, one group, no residual maps."""
    preset = SPACES[f"deit_{size}"]
    space = SearchSpace(
        f"deit_{size}",
        preset.super_width,
        preset.super_ratio,
        preset.heads,
        preset.widths,
        preset.ratios,
        (12,),
    )
    return ModelSpec(space, image_size=224, patch_size=16, num_classes=1000, distilled=distilled)


for _size in ("tiny", "small", "base"):
    register_model(f"deit_{_size}_patch16_224", lambda size=_size: _plain(size))
    register_model(f"deit_{_size}_distilled_patch16_224", lambda size=_size: _plain(size, distilled=True))
    register_model(f"vit_{_size}_patch16_224", lambda size=_size: _plain(size))
    register_model(f"prance_{_size}_patch16_224", lambda size=_size: ModelSpec(SPACES[size], 224, 16, 1000))
