"""Export: an `AdaptiveModel` as one self-contained file that `prance_jax.load_exported` runs anywhere.

The program is StableHLO by `jax.export`, with a symbolic batch, for CPU, CUDA and TPU. Weights lie beside it as arrays,
so that the program stays small, with a JSON card that tells what goes in and what was measured.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from prance_jax.core.files import disk_errors
from prance_jax.serving.exported import CARD, FORMAT, PROGRAM, VERSION, WEIGHTS
from prance_jax.serving.model import AdaptiveModel

PLATFORMS = ("cpu", "cuda", "tpu")


def export(model: AdaptiveModel, path: str | Path, facts: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Writes the file and returns its card.

    facts: what the card tells beside shapes: preprocessing, labels, measured figures. Raises UserError on a full disk;
    an older file at `path` is then intact.
    """
    spec = model.spec
    leaves, tree = jax.tree.flatten((model.params, model.policy_params))

    def run(weights, images, *budget):
        params, policy_params = jax.tree.unflatten(tree, weights)
        own = AdaptiveModel(
            params,
            policy_params,
            model.buckets,
            model.policy,
            model.decision_cost,
            model.budget_table,
            model.chunk,
        )
        return own(images, *budget)

    (batch,) = jax_export.symbolic_shape("batch")
    shape = (spec.image_size, spec.image_size, spec.channels)
    arguments = [
        tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves),
        jax.ShapeDtypeStruct((batch, *shape), jnp.float32),
    ]
    if model.budget_table is not None:
        arguments.append(jax.ShapeDtypeStruct((), jnp.float32))
    program = jax_export.export(jax.jit(run), platforms=PLATFORMS)(*arguments)
    card = {
        "format": FORMAT,
        "version": VERSION,
        "jax": jax.__version__,
        "platforms": list(PLATFORMS),
        "input": {"shape": ["batch", *shape], "dtype": "float32"},
        "output": {"shape": ["batch", spec.num_classes], "dtype": "float32", "meaning": "logits"},
        "budget_range": None if model.budget_table is None else list(map(float, model.budget_table.range)),
        "search_space": spec.space.name,
        "token_optimization": spec.token_optimization,
        "compute_dtype": spec.dtype,
        **(facts or {}),
    }
    weights = io.BytesIO()
    np.savez(weights, **{str(index): np.asarray(leaf) for index, leaf in enumerate(leaves)})
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with zipfile.ZipFile(beside, "w") as file:
                file.writestr(CARD, json.dumps(card, indent=1))
                file.writestr(PROGRAM, program.serialize())
                file.writestr(WEIGHTS, weights.getvalue())
            os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    return card
