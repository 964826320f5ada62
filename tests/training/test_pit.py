"""PiT's selectors learn: the shares that stay go to their targets, and the network moves with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prance_jax.config import FinetuneConfig, OptimizerConfig, SelectiveConfig
from prance_jax.data.source import Split
from prance_jax.models.pit import PiTSpec
from prance_jax.training.pit import init, pit_step, predict, top1

SPEC = PiTSpec(12, 3, 4, 4, (8, 16), (2, 2), (1, 1), 2.0, channels=1, sites=(0, 0), kept=(7 / 9, 1 / 4))


def sample(tables, key, batch):
    """Noise: what is told apart is not the matter here."""
    labels = jax.random.randint(key, (batch,), 0, SPEC.num_classes)
    return jax.random.normal(key, (batch, 12, 12, 1)), labels


def test_kept_shares_reach_their_targets():
    """One far above and one far below a half, from about a half both."""
    optimizer = OptimizerConfig(learning_rate=2e-2, warmup=5)
    config = FinetuneConfig(steps=120, batch=16, optimizer=optimizer)
    drawn = init(SPEC, config, jax.random.key(0))["params"]
    teacher = {name: leaves for name, leaves in drawn.items() if not name.startswith("selector")}
    state = init(SPEC, config, jax.random.key(1), teacher)
    before = jax.tree.map(np.array, state["params"])
    for name in teacher:
        jax.tree.map(np.testing.assert_array_equal, before[name], teacher[name])
    step, told = pit_step(SPEC, config, SelectiveConfig(ratio=20.0), sample), []
    for index in range(config.steps):
        state, metrics = step(state, jnp.int32(index), jax.random.key(2), (), teacher)
        told.append(jax.device_get(metrics))
    assert all(np.isfinite(list(one.values())).all() for one in told)
    for name in ("selector_0", "selector_1", "stage0_block_0", "pool_0"):
        moved = jax.tree.map(lambda old, new: np.abs(new - old).max(), before[name], state["params"][name])
        assert max(jax.tree.leaves(moved)) > 1e-3
    shares = np.array([[one["kept_0"], one["kept_1"]] for one in told])
    np.testing.assert_allclose(shares[:3].mean(0), 0.5, atol=0.2)
    np.testing.assert_allclose(shares[-30:].mean(0), SPEC.kept, atol=0.06)


def test_every_image_counts_once():
    """30 images in batches of 12, the last one padded; 17 labels are those that are predicted."""
    params = init(SPEC, FinetuneConfig(), jax.random.key(0))["params"]
    images = np.random.default_rng(0).normal(size=(36, 12, 12, 1)).astype(np.float32)
    told = np.concatenate([predict(SPEC)(params, part) for part in np.split(images, 3)])[:30]
    labels = np.where(np.arange(30) < 17, told, (told + 1) % 3)
    assert top1(SPEC, params, Split(images[:30], labels, {}), batch=12) == pytest.approx(17 / 30)
