"""Training of PiT's token predictors: the kept share reaches its target, and the network is trained too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prance_jax.baselines.pit_spec import PiTSpec
from prance_jax.config.comparison import PredictorLossConfig
from prance_jax.config.stages import FinetuneConfig, OptimizerConfig
from prance_jax.data.source import Split
from prance_jax.training.stages.pit import init_pit, pit_step, predict, top1

SIZES = {"patch_size": 4, "stride": 4, "dims": (8,), "heads": (2,), "depths": (1,), "mlp_ratio": 2.0}
SPEC = PiTSpec(12, 3, channels=1, predictor_blocks=(0,), keep_rates=(2 / 9,), **SIZES)


def sample(tables, key, batch):
    """Noise: accuracy does not matter here."""
    labels = jax.random.randint(key, (batch,), 0, SPEC.num_classes)
    return jax.random.normal(key, (batch, 12, 12, 1)), labels


def test_the_kept_share_reaches_its_target():
    """It begins at about a half."""
    optimizer = OptimizerConfig(learning_rate=2e-2, warmup=5)
    config = FinetuneConfig(steps=120, batch=16, optimizer=optimizer)
    initial = init_pit(SPEC, config, jax.random.key(0))["params"]
    teacher = {name: leaves for name, leaves in initial.items() if not name.startswith("selector")}
    state = init_pit(SPEC, config, jax.random.key(1), teacher)
    before = jax.tree.map(np.array, state["params"])
    for name in teacher:
        jax.tree.map(np.testing.assert_array_equal, before[name], teacher[name])
    step, history = pit_step(SPEC, config, PredictorLossConfig(ratio=20.0), sample), []
    for index in range(config.steps):
        state, metrics = step(state, jnp.int32(index), jax.random.key(2), (), teacher)
        history.append(jax.device_get(metrics))
    assert all(np.isfinite(list(metrics.values())).all() for metrics in history)
    after = jax.device_get(state["params"])
    for name in ("selector_0", "stage0_block_0"):
        moved = jax.tree.map(lambda old, new: np.abs(new - old).max(), before[name], after[name])
        assert max(jax.tree.leaves(moved)) > 1e-3
    shares = np.array([metrics["kept_0"] for metrics in history])
    assert abs(shares[:3].mean() - 0.5) < 0.2
    assert abs(shares[-30:].mean() - 2 / 9) < 0.05


def test_every_image_counts_once():
    """30 images in batches of 12, the last one padded; 17 labels equal the predictions."""
    params = init_pit(SPEC, FinetuneConfig(), jax.random.key(0))["params"]
    images = np.random.default_rng(0).normal(size=(36, 12, 12, 1)).astype(np.float32)
    predicted = np.concatenate([predict(SPEC)(params, part) for part in np.split(images, 3)])[:30]
    labels = np.where(np.arange(30) < 17, predicted, (predicted + 1) % 3)
    assert top1(SPEC, params, Split(images[:30], labels, {}), batch=12) == pytest.approx(17 / 30)
