"""Names of methods for readers, from the keys of rows."""

from __future__ import annotations

import re

_ROWS = {
    "dense": "Dense",
    "meta_largest": "Meta-network, largest",
    "best_static": "Best static structure",
    "random_policy": "Random policy",
    # Rows of a cascade, one of each per budget.
    "best_static_finetuned": "Best static structure, fine-tuned",
    "random_routing": "Random routing",
    "confidence": "Confidence threshold",
    "prance_cascade": "PRANCE",
    "oracle": "Label oracle",
    # Rows of the benchmark of serving.
    "masked": "PRANCE, masked execution",
    "adaptive": "PRANCE, adaptive execution",
    "largest": "PRANCE, largest buckets",
}
# As their papers write them. Prune and Merge are PRANCE's operations under a fixed schedule.
_METHODS = {
    "prune": "Prune",
    "merge": "Merge",
    "tome": "ToMe",
    "evit": "EViT",
    "package": "SPViT package",
    "ppt": "PPT",
    "diffrate": "DiffRate",
    "diffrate_learned": "DiffRate, learned counts",
    "mctf": "MCTF",
    "mctf_consistent": "MCTF, consistency training",
    "cait": "CAIT",
    "cdcp": "CDCP",
    "cait_cdcp": "CAIT + CDCP",
    "spvit": "SPViT",
    "spvit_inserted": "SPViT, progressive insertion",
    "dynamicvit": "DynamicViT",
    # Other cascades.
    "dvt": "DVT",
    "cf_vit": "CF-ViT",
    "thinkingvit": "ThinkingViT",
}
_TOKEN_MODES = _METHODS | {"prune": "prune", "merge": "merge", "prune_merge": "prune + merge"}
_TRAINING = {None: "", "tuned": ", fine-tuned", "free": ", own token count per image"}
_KEY = re.compile(r"(?P<name>.+?)(_(?P<training>tuned|free))?(_(?P<share>\d+)(?P<time>_time)?)?")


def display_name(method: str) -> str:
    """Returns the name of a row for tables and pictures, as the paper of its method writes it.

    Args:
      method: key of the row (`Row.method`), for example ``tome_tuned_50``, ``prance_prune_30`` or
        ``prance_cascade_30``.

    Returns:
      For example "ToMe, fine-tuned, 50 %", "PRANCE (prune), budget 30 %" or "PRANCE, 30 %" (of a
      cascade). A method without a name here keeps its key.
    """
    key = _KEY.fullmatch(method)
    if key is None:
        return method
    name, share = key["name"], key["share"]
    family, _, mode = ("", "", "") if name in _ROWS else name.partition("_")
    if family == "prance" and mode:
        return f"PRANCE ({_mode_name(mode)})" + (f", budget {share} %" if share else "")
    if family == "single" and mode:
        trained = f"trained for {share} % only" if share else "one per budget"
        return f"PRANCE ({_mode_name(mode)}), {trained}"
    for baseline in ("best_static", "random_policy"):
        if name not in _ROWS and name.startswith(f"{baseline}_"):
            return f"{_ROWS[baseline]} ({_mode_name(name.removeprefix(f'{baseline}_'))})"
    label = (_ROWS | _METHODS).get(name, name) + _TRAINING[key["training"]]
    if share:
        label += f", {share} %" + (" of the time" if key["time"] else "")
    return label


def _mode_name(mode: str) -> str:
    return _TOKEN_MODES.get(mode, mode)
