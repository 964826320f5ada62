"""Validation while training: the best checkpoint, early stopping, and runs that were interrupted."""

import json

import jax
import jax.numpy as jnp
import pytest

from prance_jax.config.stages import ValidationConfig
from prance_jax.core.errors import UserError
from prance_jax.training.checkpoint import Checkpoints
from prance_jax.training.loop import Stage, restore_stage, run_stage
from prance_jax.training.metrics import MetricsWriter
from prance_jax.training.progress import Progress

STEPS, EVERY = 40, 3
# Scores rise to steps 12 and 15, which are equal, and fall afterwards.
SCORES = {3: 0.2, 6: 0.5, 9: 0.4, 12: 0.8, 15: 0.8, 18: 0.7, 21: 0.1, 24: 0.3}


def init():
    return {"ema": {"w": jnp.arange(3.0)}, "count": jnp.int32(0)}


@jax.jit
def step(state, index):
    new = {"ema": {"w": state["ema"]["w"] * 0.9}, "count": state["count"] + 1}
    return new, {"loss": jnp.sum(state["ema"]["w"])}


def validate(state):
    return {"val_accuracy": SCORES.get(int(state["count"]), 0.0)}


class Killed(BaseException):
    pass


def killed_before(at):
    def killed_step(state, index):
        if int(index) == at:
            raise Killed
        return step(state, index)

    return Stage("seed0/toy", STEPS, init, killed_step, validate=validate)


STAGE = killed_before(None)


def run(folder, stage=STAGE, checkpoint_every=4, **settings):
    return run_stage(
        stage,
        folder / "checkpoints",
        MetricsWriter(folder / "metrics.jsonl"),
        checkpoint_every=checkpoint_every,
        log_every=5,
        progress=Progress(quiet=True),
        validation=ValidationConfig(every=EVERY, **settings),
    )


def lines(folder):
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in record.items() if name != "seconds"} for record in records]


def checkpoints(folder):
    return Checkpoints(folder / "checkpoints/seed0/toy").steps()


def test_the_best_checkpoint_is_kept_and_handed_on(tmp_path):
    last = run(tmp_path)
    assert int(last["count"]) == STEPS
    assert checkpoints(tmp_path) == [12, 36, 40]
    validated = {line["step"]: line["val_accuracy"] for line in lines(tmp_path) if "val_accuracy" in line}
    assert validated == {at: SCORES.get(at, 0.0) for at in [*range(EVERY, STEPS, EVERY), STEPS]}
    best = run(tmp_path, killed_before(0), use_checkpoint="best")
    assert int(best["count"]) == 12
    assert best["ema"]["w"].tolist() == pytest.approx([0, 0.9**12, 2 * 0.9**12])
    first, second, third = lines(tmp_path)[:3]
    assert [first["step"], second["step"], third["step"]] == [3, 5, 6]
    assert first["loss"] == pytest.approx(3 * (1 + 0.9 + 0.81) / 3) and "val_accuracy" not in second


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run with early stopping: its folder and its result."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(folder, patience=4, use_checkpoint="best")


@pytest.mark.parametrize("deaths, checkpoint_every", [([11, 12], 4), ([13, 20], None), ([7, 14, 23], 6)])
def test_interrupted_runs_end_the_same(whole, tmp_path, deaths, checkpoint_every):
    """Best step 12; the stage ends at 24, after four validations that are not better."""
    settings = dict(patience=4, use_checkpoint="best", checkpoint_every=checkpoint_every)
    for death in deaths:
        with pytest.raises(Killed):
            run(tmp_path, killed_before(death), **settings)
    again = run(tmp_path, **settings)
    assert int(again["count"]) == 12 and again["ema"]["w"].tolist() == whole[1]["ema"]["w"].tolist()
    assert lines(tmp_path) == lines(whole[0])
    assert lines(tmp_path)[-1]["step"] == 24 == checkpoints(tmp_path)[-1] and 12 in checkpoints(tmp_path)


def test_a_stage_that_ended_early_is_finished(tmp_path):
    settings = dict(patience=2, use_checkpoint="last")
    assert int(run(tmp_path, **settings)["count"]) == 18
    assert int(run(tmp_path, killed_before(18), **settings)["count"]) == 18
    validation = ValidationConfig(every=EVERY, patience=2, use_checkpoint="best")
    assert int(restore_stage(STAGE, tmp_path / "checkpoints", validation)["count"]) == 12
    with pytest.raises(UserError, match="stage seed0/toy is at step 18 of 40; run the train command"):
        restore_stage(STAGE, tmp_path / "checkpoints")


def test_what_needs_validations():
    with pytest.raises(UserError, match="need validation.every"):
        ValidationConfig(use_checkpoint="best")
