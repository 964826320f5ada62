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
from prance_jax.spec.search_space import SPACES
from prance_jax.zoo.families.architectures import ARCHITECTURES
from prance_jax.zoo.hub import is_address
from prance_jax.zoo.load import fill_network, read_semantics
from prance_jax.zoo.pretrained import open_pretrained

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


def create_model(
    name: str, *, weights: str | Path | None = None, ema: bool = False, **changes: Any
) -> ViT | tuple[ViT, dict]:
    """Creates a model by name, with or without weights.

    `model.apply({"params": params}, images)` runs the dense network on images [B, S, S, channels],
    normalised as in training, see `model.pretrained_cfg`. A structure of the search space as further argument runs
    that structure. `model.init(key, images)` initialises parameters.

    Args:
      name: of the model, see `list_models`; or weights with a config.json: 'hf-hub:OWNER/NAME', with '@REVISION' for
        another than the newest, or 'local-dir:FOLDER'.
      weights: a weight file or such an address, see `zoo.load.load_weights`. Its card or config.json sets the
        semantics of the network, and a released PRANCE file implies `ModelSpec.official`; `changes` take precedence.
      ema: read the averaged weights of a training script's checkpoint.
      **changes: fields of `ModelSpec`, for example num_classes=10, image_size=384,
        token_optimization='merge', dtype='bfloat16'. With `num_classes`, weights for another number of
        classes get a random classifier; weights without one always do.

    Returns:
      The Flax module; with `weights` or an address, the module and its parameters.

    Raises:
      UserError: the name or a field is unknown (the nearest are listed), an argument has a wrong type
        or is out of its range, or the weights belong to another model.
    """
    check_type(name, "create_model: name", str)
    check_type(weights, "create_model: weights", str, os.PathLike, type(None))
    fields = [field.name for field in dataclasses.fields(ModelSpec)]
    for change in changes:
        if change not in fields:
            near = difflib.get_close_matches(change, fields, n=1) or fields
            raise UserError(f"create_model has no option {change!r}; nearest: {', '.join(near)}")
    if is_address(name):
        if weights is not None:
            raise UserError(
                f"{name} has weights of its own; leave weights={str(weights)!r} out, or name a model"
            )
        opened = open_pretrained(name, ema=ema)
        if opened.config is None:
            raise UserError(
                f"{name} holds weights of this package; name the model: create_model(NAME, weights={name!r})"
            )
        config = dataclasses.replace(opened.config, heads=opened.heads())
        spec = config.model_spec(**changes)
    elif name not in _MODELS:
        near = difflib.get_close_matches(name, _MODELS, n=3, cutoff=0.4) or list_models()
        raise UserError(f"model {name!r} is not known; nearest: {', '.join(near)}")
    elif weights is None:
        return ViT(dataclasses.replace(_MODELS[name](), **changes), ARCHITECTURES.get(name))
    else:
        opened = open_pretrained(weights, ema=ema, architecture=name)
        config = opened.config
        from_file = read_semantics(weights) if config is None or opened.card else {}
        spec = _MODELS[name]()
        if config is not None:
            # Whether prefix tokens have positions changes no answer, but the shape of the parameters.
            positions = spec.architecture.no_embed_class
            parts = dataclasses.replace(config.parts, no_embed_class=positions)
            eps = spec.norm_epsilon if config.norm_eps is None else config.norm_eps
            from_file = {"architecture": parts, "norm_epsilon": eps, **from_file}
        spec = dataclasses.replace(spec, **{**from_file, **changes})
    model = ViT(spec, config)
    has_head = any(path.startswith("head") for path in opened.tensors)
    return model, fill_network(opened, spec, fresh_head="num_classes" in changes or not has_head)


for _size in ("tiny", "small", "base"):
    register_model(f"prance_{_size}_patch16_224", lambda size=_size: ModelSpec(SPACES[size], 224, 16, 1000))
for _name, _config in ARCHITECTURES.items():
    register_model(_name, _config.model_spec)
