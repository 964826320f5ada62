"""An exported model: program, weights and card in one file, run without the models' code."""

from __future__ import annotations

import functools
import io
import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from prance_jax.core.checks import check_budget, check_finite, check_images
from prance_jax.core.errors import UserError

FORMAT, VERSION = "prance_jax adaptive model", 2  # version 1: the budget is one number
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

        Works inside `jit`, and under `vmap` over batches: all images run as one batch. It has no gradient.

        Args:
          images: float [B, S, S, channels], normalised as in training; any B.
          budget: share of the dense MACs, within the card's `budget_range`; float, or float32 [B] for one
            per image. None takes the card's `default_budget`, or the upper end of the range.

        Returns:
          Logits, float32 [B, num_classes].

        Raises:
          UserError: images or budget do not fit the card, or a gradient is taken.
        """
        check_images(images, tuple(self.card["input"]["shape"][1:]))
        check_finite(images)
        images, budget_range = jnp.asarray(images, jnp.float32), self.card["budget_range"]
        if budget_range is None:
            if budget is not None:
                raise UserError("this model was exported for one budget; it takes no other")
            return self._run(self.weights, images)
        if budget is None:
            # Files written before cascades had a default lack it.
            budget = self.card.get("default_budget") or budget_range[1]
        check_budget(budget, *budget_range, images.shape[0])
        budget = jnp.asarray(budget, jnp.float32)
        if self.card["version"] > 1:
            budget = jnp.broadcast_to(budget, images.shape[:1])
        elif budget.ndim:
            raise UserError(_ONE_BUDGET)
        return self._run(self.weights, images, budget)

    @functools.cached_property
    def _run(self) -> Callable[..., jax.Array]:
        """Compiled (weights, images, budgets) -> logits, with rules for `vmap` and `grad`, which a program has not."""

        @jax.custom_jvp
        def call(weights, *inputs):
            return self.program.call(weights, *inputs)

        @call.defjvp
        def refuse(primals, tangents):
            raise UserError(
                "an exported model has no gradient; differentiate the one that prance_jax.load gives"
            )

        run = jax.custom_batching.custom_vmap(call)

        @run.def_vmap
        def merge_batches(axis_size, is_batched, weights, *inputs):
            if any(jax.tree.leaves(is_batched[0])):
                raise UserError("an exported model has one set of weights; vmap over images and budgets only")
            if inputs[-1].ndim == is_batched[-1]:
                raise UserError(_ONE_BUDGET)
            batches = [
                value if mapped else jnp.broadcast_to(value, (axis_size, *value.shape))
                for value, mapped in zip(inputs, is_batched[1:])
            ]
            logits = run(weights, *(value.reshape(-1, *value.shape[2:]) for value in batches))
            return logits.reshape(axis_size, -1, *logits.shape[1:]), True

        return jax.jit(run)


_ONE_BUDGET = "this file takes one budget for all images, and no vmap; export the model again"


def load_exported(path: str | Path) -> ExportedModel:
    """Reads a file that `prance_jax export` wrote.

    Raises:
      UserError: the file does not exist, is broken, or has another version.
    """
    try:
        with zipfile.ZipFile(path) as file:
            card = json.loads(file.read(CARD))
            if card.get("format") != FORMAT or card.get("version") not in range(1, VERSION + 1):
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
