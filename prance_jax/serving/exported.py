"""An exported model: program, weights and card in one file, run without the models' code."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass, field
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
    """An exported model; called with images it returns logits.

    Attributes:
      card: description of the file: input, output, `budget_range`, and the facts given to `export`.
      weights: arrays that the program takes.
      program: the compiled network and selector, for any batch size.
    """

    card: dict[str, Any]
    weights: tuple[jax.Array, ...] = field(repr=False)
    program: jax_export.Exported = field(repr=False)

    def __call__(self, images: jax.Array, budget: float | None = None) -> jax.Array:
        """Classifies images, each with its own structure.

        Args:
          images: float [B, S, S, channels], normalised as in training; any B.
          budget: share of the dense MACs, within the card's `budget_range`; None takes the card's
            `default_budget`, or the upper end of the range.

        Returns:
          Logits, float32 [B, num_classes].

        Raises:
          UserError: images or budget do not fit the card.
        """
        check_images(images, tuple(self.card["input"]["shape"][1:]))
        budget_range = self.card["budget_range"]
        if budget_range is None:
            if budget is not None:
                raise UserError("this model was exported for one budget; it takes no other")
            return self.program.call(self.weights, jnp.asarray(images, jnp.float32))
        if budget is None:
            # Files written before cascades had a default lack it.
            budget = self.card.get("default_budget") or budget_range[1]
        check_budget(budget, *budget_range)
        return self.program.call(self.weights, jnp.asarray(images, jnp.float32), jnp.float32(budget))


def load_exported(path: str | Path) -> ExportedModel:
    """Reads a file that `prance_jax export` wrote.

    Raises:
      UserError: the file does not exist, is broken, or has another version.
    """
    try:
        with zipfile.ZipFile(path) as file:
            card = json.loads(file.read(CARD))
            if card.get("format") != FORMAT or card.get("version") != VERSION:
                raise UserError(
                    f"{path} is {card.get('format')!r} version {card.get('version')}, this program reads "
                    f"{FORMAT!r} version {VERSION}; export the model again"
                )
            program = jax_export.deserialize(bytearray(file.read(PROGRAM)))
            with np.load(io.BytesIO(file.read(WEIGHTS)), allow_pickle=False) as arrays:
                weights = tuple(jnp.asarray(arrays[f"{index}"]) for index in range(len(arrays.files)))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; write it with the export command") from None
    except UserError:
        raise
    except Exception as error:  # zip, JSON, StableHLO and npz raise different exceptions
        raise UserError(f"{path} is not an exported model ({error}); export it again") from error
    return ExportedModel(card, weights, program)
