"""Export: a model as one file that `prance_jax.load_exported` runs anywhere.

The file is a zip archive of three entries. The program is StableHLO by `jax.export`, with a
symbolic batch size, for CPU, CUDA and TPU. A model of many budgets takes one budget per image. The
weights are separate arrays, so the program stays small. A JSON card describes input, output and what was measured.
"""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
from pathlib import Path
from typing import Any, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from prance_jax.core.files import atomic_file
from prance_jax.serving.cascade_model import CascadeModel
from prance_jax.serving.exported import CARD, FORMAT, PROGRAM, VERSION, WEIGHTS
from prance_jax.serving.model import AdaptiveModel

PLATFORMS = ("cpu", "cuda", "tpu")


def export(
    model: AdaptiveModel | CascadeModel, path: str | Path, facts: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Writes a model as one file.

    Args:
      model: the model.
      path: file to write; folders are created.
      facts: entries added to the card, such as preprocessing, labels, measured figures.

    Returns:
      The card.

    Raises:
      WriteError: the file cannot be written; an older file at `path` is then intact.
    """
    spec = model.spec
    leaves, tree = jax.tree.flatten((model.params, model.policy_params))

    def run(weights, images, *budget):
        params, policy_params = jax.tree.unflatten(tree, weights)
        return dataclasses.replace(model, params=params, policy_params=policy_params)(images, *budget)

    (batch,) = jax_export.symbolic_shape("batch")
    shape = spec.image_shape
    arguments = [
        tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves),
        jax.ShapeDtypeStruct((batch, *shape), jnp.float32),
    ]
    if model.budget_table is not None:
        arguments.append(jax.ShapeDtypeStruct((batch,), jnp.float32))
    program = jax_export.export(jax.jit(run), platforms=PLATFORMS)(*arguments)
    card = {
        "format": FORMAT,
        "version": VERSION,
        "jax": jax.__version__,
        "platforms": list(PLATFORMS),
        "input": {"shape": ["batch", *shape], "dtype": "float32"},
        "output": {"shape": ["batch", spec.num_classes], "dtype": "float32", "meaning": "logits"},
        "default_budget": getattr(model, "default_budget", None),
        "budget_range": None if model.budget_table is None else list(map(float, model.budget_table.range)),
        "search_space": spec.space.name,
        "token_optimization": spec.token_optimization,
        "compute_dtype": spec.dtype,
        **(facts or {}),
    }
    weights = io.BytesIO()
    np.savez(weights, **{str(index): np.asarray(leaf) for index, leaf in enumerate(leaves)})
    with atomic_file(path) as partial, zipfile.ZipFile(partial, "w") as file:
        file.writestr(CARD, json.dumps(card, indent=1))
        file.writestr(PROGRAM, program.serialize())
        file.writestr(WEIGHTS, weights.getvalue())
    return card
