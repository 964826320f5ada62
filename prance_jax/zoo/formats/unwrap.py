"""Removes what wrappers around a network put before the names of its tensors."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from prance_jax.core.errors import UserError

# DataParallel, torch.compile, Lightning and training scripts, DINO, OpenCLIP around timm.
WRAPPERS = ("module.", "_orig_mod.", "model.", "backbone.", "visual.trunk.")
# Tensors of CLIP and SigLIP that belong to no image network.
_TEXT = re.compile(
    r"(module\.)?(text|text_model|transformer\.resblocks|token_embedding|ln_final)\.|"
    r"(module\.)?(logit_scale|logit_bias|positional_embedding|text_projection(\.weight)?)$"
)


def strip_wrappers(tensors: Mapping[str, np.ndarray], origin: Any) -> dict[str, np.ndarray]:
    """Removes the prefixes of wrappers that all names share; a warning names them.

    Args:
      tensors: name -> array of the file.
      origin: path of the file, for messages.

    Raises:
      UserError: the file holds an adapter or quantised weights, which are no network.
    """
    if adapter := next(
        (name for name in tensors if re.search(r"\blora_[AB]\b|\blora_embedding", name)), None
    ):
        raise UserError(
            f"it holds an adapter ({adapter}), not a network; merge it into its base network first"
        )
    suffixes = r"(\.SCB|\.qweight|\.qzeros|\.quant_state\..*|_packed_params.*|\.absmax)$"
    if quantised := next((name for name in tensors if re.search(suffixes, name)), None):
        raise UserError(f"it holds quantised weights ({quantised}); save float weights")
    if any("visual." in name for name in tensors):  # both halves of a CLIP
        tensors = {name: value for name, value in tensors.items() if not _TEXT.match(name)}
    removed = ""
    while prefix := next((prefix for prefix in WRAPPERS if all(n.startswith(prefix) for n in tensors)), None):
        if not tensors:
            break
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
        removed += prefix
    if removed:
        warnings.warn(f"{origin}: the prefix {removed!r} of all names is left out", stacklevel=2)
    return dict(tensors)
