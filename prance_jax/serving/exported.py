"""An exported model: one file with program, weights and card, run by JAX alone, without this package's model code."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from prance_jax.core.checks import check_budget, check_images
from prance_jax.core.errors import UserError

FORMAT, VERSION = "prance_jax adaptive model", 1
PROGRAM, WEIGHTS, CARD = "program.stablehlo", "weights.npz", "card.json"


@dataclass(frozen=True)
class ExportedModel:
    """What `load_exported` gives. card: what the file tells about itself."""

    card: dict[str, Any]
    weights: tuple[jax.Array, ...]
    program: jax_export.Exported

    def __call__(self, images: jax.Array, budget: float | None = None) -> jax.Array:
        """Logits float32 [B, num_classes] of float images [B, S, S, channels], any B.

        budget: share of the full network's MACs, within the card's `budget_range`; by default its upper end.
        Raises UserError for images or a budget that the card does not admit.
        """
        check_images(images, tuple(self.card["input"]["shape"][1:]))
        span = self.card["budget_range"]
        if span is None:
            if budget is not None:
                raise UserError("this model was exported for one budget; it takes no other")
            return self.program.call(self.weights, jnp.asarray(images, jnp.float32))
        budget = span[1] if budget is None else budget
        check_budget(budget, *span)
        return self.program.call(self.weights, jnp.asarray(images, jnp.float32), jnp.float32(budget))


def load_exported(path: str | Path) -> ExportedModel:
    """Reads a file written by `prance_jax export`.

    Raises UserError where it is not there, broken, or of another version.
    """
    try:
        with zipfile.ZipFile(path) as file:
            card = json.loads(file.read(CARD))
            if card.get("format") != FORMAT or card.get("version") != VERSION:
                raise UserError(
                    f"{path} is {card.get('format')!r} version {card.get('version')}, this program reads {FORMAT!r} "
                    f"version {VERSION}; export the model again"
                )
            program = jax_export.deserialize(bytearray(file.read(PROGRAM)))
            with np.load(io.BytesIO(file.read(WEIGHTS)), allow_pickle=False) as arrays:
                weights = tuple(jnp.asarray(arrays[f"{index}"]) for index in range(len(arrays.files)))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; write it with the export command") from None
    except UserError:
        raise
    except Exception as error:  # of four formats, each with exceptions of its own
        raise UserError(f"{path} is not an exported model ({error}); export it again") from error
    return ExportedModel(card, weights, program)
