"""DiffRate's counts: training and execution agree, and training reaches the target."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import SHORT, drawn_params, make_spec, quick_jit

from prance_jax.baselines.diffrate_counts import LearnedCounts
from prance_jax.config import io
from prance_jax.config.comparison import DiffRateConfig
from prance_jax.config.experiment import Config
from prance_jax.config.io import from_dict
from prance_jax.config.stages import OptimizerConfig
from prance_jax.core.errors import UserError
from prance_jax.experiments.comparison import method_rows
from prance_jax.experiments.experiment import Experiment
from prance_jax.experiments.targets import Target
from prance_jax.models.reduction import METHODS, ScheduledReduction, forward_reduced, scheduled_macs
from prance_jax.models.vit import ViT
from prance_jax.spec.block_latency import LatencyTargetError
from prance_jax.spec.macs import macs
from prance_jax.tokens.methods.diffrate import Counted
from prance_jax.tokens.schedules import Kept
from prance_jax.tokens.token_set import AttentionSignals, initial_tokens
from prance_jax.training.progress import Progress
from prance_jax.training.stages import diffrate_counts
from prance_jax.training.workdir import Workdir

SPEC = make_spec(space=SHORT)  # four layers, 17 tokens; counts are learned in layers 1 and 2
SEARCH = LearnedCounts(SPEC)
CONFIG = DiffRateConfig()
CONFIG_FILE = Path(__file__).parents[1] / "tiny_config.py"


def logits_of(*counts):
    """Distributions concentrated at token counts, (after pruning, after merging) of each layer."""
    return -100.0 * jnp.square(SEARCH.count_choices - jnp.asarray(counts, jnp.float32)[..., None])


def test_counts_by_hand():
    """The mean, rounded up, at most the tokens that arrive; probabilities by rank."""
    assert SEARCH.count_choices[0] == 17 and SEARCH.count_choices[-1] == 2 and list(SEARCH.layers) == [1, 2]
    assert list(LearnedCounts(SPEC, first=0).layers) == [0, 1, 2]
    np.testing.assert_array_equal(LearnedCounts(SPEC, 4).count_choices, [17, 13, 9, 5])
    even = jnp.full((2, 2, 16), -1e9).at[0, 0, jnp.asarray([0, 3])].set(0.0)  # 17 or 14: 15.5 on average
    even = even.at[0, 1, 9].set(0.0).at[1, :, 2].set(0.0)  # 8; then 15 twice, but only 8 arrive
    actual = SEARCH.counts(even)
    np.testing.assert_array_equal(actual.tokens_after, [[16, 8], [8, 8]])
    np.testing.assert_allclose(actual.keep_probs[0, 0], [1.0] * 14 + [0.5] * 3, rtol=1e-6)
    np.testing.assert_allclose(actual.keep_probs[0, 1], [1.0] * 8 + [0.0] * 9, rtol=1e-6)
    gradient = jax.grad(lambda logits: SEARCH.counts(logits).tokens_after[0, 0])(even)
    np.testing.assert_allclose(gradient[0, 0, jnp.asarray([0, 3])], [0.75, -0.75], rtol=1e-5)


def test_training_and_execution_agree(images):
    """Logits and MACs under counts are those of the resulting reduction."""
    params, logits = drawn_params(SPEC), logits_of((14, 9), (8, 5))
    counts = SEARCH.counts(logits)
    run = jax.jit(lambda p, x, l: SEARCH.forward(ViT(SPEC), p, x, SEARCH.counts(l)))
    actual = run(params, images, logits)
    reduction = diffrate_counts.best_counts(SPEC, CONFIG, logits)
    assert reduction.tokens_after(SPEC) == (17, 9, 5, 5) and reduction.method.reduce.steps[1] == (17, 14, 9)
    expected = quick_jit(lambda p, x: forward_reduced(ViT(SPEC), p, x, SPEC.largest, reduction).logits)(
        params, images
    )
    scale = float(np.abs(expected).max())
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5 * scale)
    share = scheduled_macs(SPEC, SPEC.largest, reduction).total / macs(SPEC, SPEC.largest).total
    assert float(SEARCH.macs_kept(counts)) == pytest.approx(share, rel=1e-6)


def test_counts_reach_their_target(images):
    """Training moves from DiffRate's constant schedule to the target; every logit has a gradient."""
    params = drawn_params(SPEC)
    config = DiffRateConfig(steps=40, batch=6, optimizer=OptimizerConfig(learning_rate=0.5, warmup=0))
    labels = jnp.arange(6) % 5
    sample = lambda tables, key, batch: (images, labels)
    step = diffrate_counts.counts_step(SPEC, config, 0.6, sample)
    state = diffrate_counts.init_diffrate_counts(SPEC, 0.8, config)
    first = diffrate_counts.best_counts(SPEC, config, state["params"]["logits"])
    shares = []
    for index in range(config.steps):
        state, metrics = step(state, index, jax.random.key(0), None, params)
        shares.append(float(metrics["macs_kept"]))
    assert shares[0] > 0.75 and abs(shares[-1] - 0.6) < 0.06
    last = diffrate_counts.best_counts(SPEC, config, state["params"]["logits"])
    full = macs(SPEC, SPEC.largest).total
    assert (
        scheduled_macs(SPEC, SPEC.largest, last).total
        < scheduled_macs(SPEC, SPEC.largest, first).total
        < full
    )
    moved = np.abs(
        state["params"]["logits"]
        - diffrate_counts.init_diffrate_counts(SPEC, 0.8, config)["params"]["logits"]
    )
    assert moved.max(axis=2).min() > 0


def test_rows_of_a_comparison(tmp_path):
    """Learned on the run's dense network, near the target; two layers have no count to learn."""

    def run(path, layers):
        overrides = f"--config.model.space.layers={layers}", "--config.compare.finetune.steps=0"
        counts = "--config.compare.counts.steps=3", "--config.compare.counts.batch=8"
        config = io.load_config(CONFIG_FILE, Config, (*overrides, *counts))
        experiment = Experiment(config, Workdir(tmp_path / path), Progress(quiet=True))
        return experiment, Target(experiment.spec("prune"), 0.8)

    experiment, target = run("five", "(1,4)")
    (row,) = method_rows(experiment, 0, "diffrate_learned", target, None)
    assert row.method == "diffrate_learned_80" and row.policy.method.name == "diffrate_learned"
    kept = experiment.evaluate(row, "validation").macs.mean() / macs(row.spec, row.spec.largest).total
    assert kept == pytest.approx(0.8, abs=0.1)
    with pytest.raises(LatencyTargetError, match="there is no layer to learn for"):
        experiment, target = run("two", "(1,1)")
        method_rows(experiment, 0, "diffrate_learned", target, None)


def test_wrong_settings_and_unknown_counts_are_refused():
    with pytest.raises(UserError, match="granularity = 0 is out of range"):
        from_dict(DiffRateConfig, {"granularity": 0})
    tokens = initial_tokens(jnp.ones((1, 5, 4)))
    signals = AttentionSignals(jnp.ones((1, 5)), jnp.ones((1, 5, 4)), jnp.ones((1, 5)))
    with pytest.raises(UserError, match="no layer was learned that leaves 3 of 5 tokens"):
        Counted(((5, 4, 2),))(tokens, signals, 3)
    same = ScheduledReduction(METHODS["diffrate"], Kept((17, 9, 5, 5)))
    assert same != diffrate_counts.best_counts(SPEC, CONFIG, logits_of((14, 9), (8, 5)))
