"""The training loop: a killed run ends bit-identical, and no non-finite value is saved."""

import io
import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prance_jax.core.errors import UserError
from prance_jax.training import metrics as metrics_module
from prance_jax.training.checkpoint import Checkpoints
from prance_jax.training.loop import Stage, restore_stage, run_stage
from prance_jax.training.metrics import MetricsWriter
from prance_jax.training.progress import Progress

STEPS = 23
QUIET = Progress(quiet=True)


def init():
    return {"w": jnp.linspace(-1.0, 1.0, 7), "count": jnp.int32(0), "key": jax.random.key(3), "scale": 0.5}


def plain_step(state, step):
    """Noisy descent on |w|^2; the noise comes from the step alone."""
    noise = jax.random.normal(jax.random.fold_in(state["key"], step), (7,))
    gradient = state["w"] + state["scale"] * noise
    new = {**state, "w": state["w"] - 0.1 * gradient, "count": state["count"] + 1}
    return new, {"loss": jnp.sum(state["w"] ** 2), "noise": jnp.mean(noise)}


step = jax.jit(plain_step, donate_argnums=0)
STAGE = Stage("seed0/toy", STEPS, init, step)


class Killed(BaseException):
    pass


def killed_before(stage, at):
    """The stage, dead before its step number `at`."""

    def killed_step(state, index):
        if int(index) == at:
            raise Killed
        return stage.step(state, index)

    return Stage(stage.name, stage.steps, stage.init, killed_step)


def run(folder, stage=STAGE, **options):
    options = {"checkpoint_every": 4, "log_every": 5, "progress": QUIET, **options}
    return run_stage(stage, folder / "checkpoints", MetricsWriter(folder / "metrics.jsonl"), **options)


def lines(folder):
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(record.pop("seconds") >= 0 for record in records)
    return records


def assert_same(actual, expected):
    assert np.asarray(actual["w"]).tobytes() == np.asarray(expected["w"]).tobytes()
    assert int(actual["count"]) == int(expected["count"]) == STEPS


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run: its folder and its final state."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(folder)


def test_lines_are_window_means_and_the_final_state_is_the_plain_iteration(whole):
    folder, final = whole
    state, losses = jax.tree.map(jnp.asarray, init(), is_leaf=lambda x: hasattr(x, "dtype")), []
    for index in range(STEPS):
        state, values = plain_step(state, jnp.int32(index))
        losses.append(float(values["loss"]))
    np.testing.assert_allclose(final["w"], state["w"], rtol=1e-5)
    records = lines(folder)
    assert [record["step"] for record in records] == [5, 10, 15, 20, 23]
    assert {record["stage"] for record in records} == {"seed0/toy"}
    windows = [losses[0:5], losses[5:10], losses[10:15], losses[15:20], losses[20:23]]
    np.testing.assert_allclose([r["loss"] for r in records], [np.mean(w) for w in windows], rtol=1e-5)


@pytest.mark.parametrize("deaths", [[0], [3], [4], [11], [22], [6, 7, 19]])
def test_killed_and_resumed_is_bit_identical(whole, tmp_path, deaths):
    for death in deaths:
        with pytest.raises(Killed):
            run(tmp_path, killed_before(STAGE, death))
    assert_same(run(tmp_path), whole[1])
    assert lines(tmp_path) == lines(whole[0])


@pytest.mark.parametrize(
    "options", [dict(checkpoint_every=1), dict(checkpoint_every=None, checkpoint_seconds=-1.0)]
)
def test_when_checkpoints_are_made_does_not_matter(whole, tmp_path, options):
    with pytest.raises(Killed):
        run(tmp_path, killed_before(STAGE, 9), **options)
    saved = Checkpoints(tmp_path / "checkpoints/seed0/toy").latest()
    assert saved == 9 if options["checkpoint_every"] else 1 <= saved <= 9
    assert_same(run(tmp_path, checkpoint_every=None), whole[1])
    assert lines(tmp_path) == lines(whole[0])


def test_dying_while_the_metrics_are_written(whole, tmp_path, monkeypatch):
    write = MetricsWriter.write

    def torn(self, stage, step, seconds, values):
        write(self, stage, step, seconds, values)
        if step == 15:
            self.path.write_text(self.path.read_text()[:-20])  # half a line is on the disk
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(MetricsWriter, "write", torn)
        with pytest.raises(Killed):
            run(tmp_path)
    assert_same(run(tmp_path), whole[1])
    assert lines(tmp_path) == lines(whole[0])


def test_other_stages_keep_their_lines(tmp_path):
    writer = MetricsWriter(tmp_path / "metrics.jsonl")
    writer.write("dense", 100, 1.5, {"loss": 0.25, "bad": float("nan")})
    with pytest.raises(Killed):
        run(tmp_path, killed_before(STAGE, 7))
    run(tmp_path)
    first = metrics_module.read_metrics(tmp_path / "metrics.jsonl")[0]
    assert first == {"stage": "dense", "step": 100, "seconds": 1.5, "loss": 0.25, "bad": None}


def test_a_finished_stage_takes_no_step(whole, tmp_path):
    first = run(tmp_path)
    assert_same(run(tmp_path, killed_before(STAGE, 0)), first)
    assert lines(tmp_path) == lines(whole[0])


def test_a_damaged_newest_checkpoint_costs_steps_not_the_result(whole, tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, killed_before(STAGE, 17))
    newest = tmp_path / "checkpoints/seed0/toy/16"
    for path in (newest / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:10])
    assert_same(run(tmp_path), whole[1])
    assert lines(tmp_path) == lines(whole[0])


def test_reading_a_stage_changes_no_file(tmp_path, caplog):
    """Also where the newest checkpoint is damaged: the older one is the result, with a warning."""
    run(tmp_path)
    folder = tmp_path / "checkpoints/seed0/toy"
    older, newest = Checkpoints(folder).steps()
    expected = Checkpoints(folder).restore(jax.eval_shape(init), older)
    for path in (folder / str(newest) / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:10])
    before = {path: path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*"))}
    with caplog.at_level(logging.WARNING, logger="prance_jax"):
        state = restore_stage(STAGE, tmp_path / "checkpoints")
    np.testing.assert_array_equal(state["w"], expected["w"])
    assert int(state["count"]) == older
    assert f"{newest} is damaged" in caplog.text and f"using step {older}" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*"))} == before


def test_sigkill_and_sigterm_from_outside(whole, tmp_path):
    """A process: SIGKILL at step 14, SIGTERM at step 17, then it ends."""
    program = textwrap.dedent(
        f"""
        import os, signal, sys
        sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parents[2])!r}]
        import test_loop as toy
        from pathlib import Path
        folder, number, at = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
        def stepping(state, index):
            if int(index) == at:
                os.kill(os.getpid(), number)
            return toy.step(state, index)
        toy.run(folder, toy.Stage(toy.STAGE.name, toy.STEPS, toy.init, stepping))
        """
    )

    def child(number, at):
        command = [sys.executable, "-c", program, str(tmp_path), str(int(number)), str(at)]
        environment = {**os.environ, "JAX_PLATFORMS": jax.default_backend(), "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)

    killed = child(signal.SIGKILL, 14)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert Checkpoints(tmp_path / "checkpoints/seed0/toy").latest() == 12
    stopped = child(signal.SIGTERM, 17)
    assert stopped.returncode == 143, stopped.stderr
    assert Checkpoints(tmp_path / "checkpoints/seed0/toy").latest() == 18
    assert_same(run(tmp_path), whole[1])
    assert lines(tmp_path) == lines(whole[0])


def test_ctrl_c_finishes_the_step_and_saves(whole, tmp_path):
    def interrupting(state, index):
        if int(index) == 9:
            os.kill(os.getpid(), signal.SIGINT)
        return step(state, index)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Stage(STAGE.name, STEPS, init, interrupting), checkpoint_every=None)
    assert signal.getsignal(signal.SIGINT) is before
    assert Checkpoints(tmp_path / "checkpoints/seed0/toy").latest() == 10
    assert_same(run(tmp_path), whole[1])


@jax.jit
def exploding_step(state, index):
    new, values = plain_step(state, index)
    return new, {**values, "loss": jnp.where(index == 13, jnp.nan, values["loss"])}


@jax.jit
def overflowing_step(state, index):
    new, values = plain_step(state, index)
    w = jnp.where((index == 13) & (jnp.arange(7) == 2), jnp.inf, new["w"])
    return {**new, "w": w}, {"noise": values["noise"]}


@pytest.mark.parametrize(
    "bad, words",
    [
        (exploding_step, ["seed0/toy", "metric loss", "between steps 13 and 14", "step 12", "learning rate"]),
        (overflowing_step, ["seed0/toy", "the state (w)", "between steps 12 and 16", "step 12", "float32"]),
    ],
)
def test_nothing_non_finite_is_saved(tmp_path, bad, words):
    with pytest.raises(UserError) as caught:
        run(tmp_path, Stage(STAGE.name, STEPS, init, bad))
    assert all(word in str(caught.value) for word in words), caught.value
    checkpoints = Checkpoints(tmp_path / "checkpoints/seed0/toy")
    assert checkpoints.latest() == 12
    assert np.isfinite(checkpoints.restore(jax.tree.map(jnp.asarray, init()))["w"]).all()


def test_non_finite_before_any_checkpoint(tmp_path):
    with pytest.raises(UserError, match="checkpoint does not exist yet"):
        run(tmp_path, Stage(STAGE.name, STEPS, init, exploding_step), checkpoint_every=None)
    assert Checkpoints(tmp_path / "checkpoints/seed0/toy").latest() is None


def test_another_stages_checkpoint_is_refused(tmp_path):
    run(tmp_path)
    other = Stage(STAGE.name, STEPS, lambda: {**init(), "w": jnp.zeros(8)}, step)
    with pytest.raises(UserError, match=r"w: wanted float32\(8,\), found float32\(7,\)"):
        run(tmp_path, other)
    with pytest.raises(UserError, match="checkpoint at step 23, beyond its 20 steps"):
        run(tmp_path, Stage(STAGE.name, 20, init, step))


def test_progress_in_a_log_is_plain_lines(tmp_path):
    stream = io.StringIO()
    progress = Progress(stream=stream, every_seconds=0.0)
    run(tmp_path, Stage(STAGE.name, STEPS, init, step, headline=("noise",)), progress=progress)
    printed = stream.getvalue().splitlines()
    assert "\r" not in stream.getvalue() and len(printed) >= 5
    assert printed[-1].startswith("seed0/toy  23/23") and " steps/s  done in " in printed[-1]
    assert "noise" in printed[-1] and "loss" not in printed[-1]


def test_quiet_is_quiet(tmp_path):
    stream = io.StringIO()
    run(tmp_path, progress=Progress(quiet=True, stream=stream, every_seconds=0.0))
    assert stream.getvalue() == ""
