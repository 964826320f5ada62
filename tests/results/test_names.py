"""Names of methods for readers, for every kind of row that the code makes."""

import pytest

from prance_jax.config.comparison import LEARNED, SPVIT_INSERTED
from prance_jax.models.reduction import METHODS
from prance_jax.results.names import display_name

NAMES = {
    # Rows of the main table, with one token mode and with several.
    "dense": "Dense",
    "meta_largest": "Meta-network, largest",
    "best_static": "Best static structure",
    "best_static_merge": "Best static structure (merge)",
    "random_policy": "Random policy",
    "random_policy_prune_merge": "Random policy (prune + merge)",
    "prance_prune": "PRANCE (prune)",
    "prance_merge": "PRANCE (merge)",
    "prance_prune_merge": "PRANCE (prune + merge)",
    "prance_tome": "PRANCE (ToMe)",
    "prance_prune_30": "PRANCE (prune), budget 30 %",
    "prance_prune_merge_100": "PRANCE (prune + merge), budget 100 %",
    "single_prune_30": "PRANCE (prune), trained for 30 % only",
    "tome_30": "ToMe, 30 %",
    # Token reductions, without training and fine-tuned.
    "prune": "Prune",
    "merge": "Merge",
    "tome": "ToMe",
    "evit": "EViT",
    "package": "SPViT package",
    "ppt": "PPT",
    "diffrate": "DiffRate",
    "mctf": "MCTF",
    "cait": "CAIT",
    "dense_tuned": "Dense, fine-tuned",
    "tome_tuned": "ToMe, fine-tuned",
    "tome_tuned_50": "ToMe, fine-tuned, 50 %",
    "tome_50_time": "ToMe, 50 % of the time",
    "tome_tuned_50_time": "ToMe, fine-tuned, 50 % of the time",
    "diffrate_learned_50": "DiffRate, learned counts, 50 %",
    "diffrate_learned_tuned_50": "DiffRate, learned counts, fine-tuned, 50 %",
    "mctf_consistent_tuned_50": "MCTF, consistency training, fine-tuned, 50 %",
    # Methods that are trained.
    "spvit_tuned_60": "SPViT, fine-tuned, 60 %",
    "spvit_free_60": "SPViT, own token count per image, 60 %",
    "dynamicvit_tuned_35": "DynamicViT, fine-tuned, 35 %",
    "dynamicvit_free_35_time": "DynamicViT, own token count per image, 35 % of the time",
    "spvit_inserted_tuned_50": "SPViT, progressive insertion, fine-tuned, 50 %",
    "spvit_inserted_free_50": "SPViT, progressive insertion, own token count per image, 50 %",
    "cdcp_tuned_50": "CDCP, fine-tuned, 50 %",
    "cait_cdcp_tuned_50": "CAIT + CDCP, fine-tuned, 50 %",
    # Curves of a picture: rows without their budget.
    "single_prune": "PRANCE (prune), one per budget",
    "spvit_free": "SPViT, own token count per image",
    "mctf_consistent": "MCTF, consistency training",
    # Rows of a cascade, and their curves in pictures.
    "best_static_finetuned_20": "Best static structure, fine-tuned, 20 %",
    "random_routing_20": "Random routing, 20 %",
    "confidence_20": "Confidence threshold, 20 %",
    "prance_cascade_20": "PRANCE, 20 %",
    "oracle_20": "Label oracle, 20 %",
    "best_static_finetuned": "Best static structure, fine-tuned",
    "prance_cascade": "PRANCE",
    # Rows of the benchmark of serving.
    "masked": "PRANCE, masked execution",
    "adaptive": "PRANCE, adaptive execution",
    "largest": "PRANCE, largest buckets",
    # A method that a reader adds keeps its key.
    "mine": "mine",
    "mine_tuned_50": "mine, fine-tuned, 50 %",
}


@pytest.mark.parametrize("method, name", NAMES.items())
def test_names(method, name):
    assert display_name(method) == name


@pytest.mark.parametrize("method", [*METHODS, *LEARNED, SPVIT_INSERTED])
def test_every_method_of_the_comparison_has_a_name(method):
    assert display_name(method) != method
