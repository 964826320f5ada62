"""The profile of one layer: the table from the times of its programs, and that the programs run."""

from pathlib import Path

import pytest
from small import SHORT, drawn_params, make_spec

from prance_jax.baselines.predictor_config import PredictorConfig
from prance_jax.benchmarks.profiles import blocks
from prance_jax.cli import main
from prance_jax.config import io
from prance_jax.config.experiment import Config
from prance_jax.data.load import placeholder_source
from prance_jax.models.reduction import reduction_at_latency
from prance_jax.spec.block_latency import load_block_latency, network_name
from prance_jax.spec.token_counts import token_counts

CONFIG = Path(__file__).parents[1] / "tiny_config.py"
SPVIT = PredictorConfig(True, (0,), (1.0,), heads=2)


def test_the_table_by_hand(monkeypatch):
    """On a device where a call takes 4 ms, a token 8 ms in an attention and 16 in an MLP, a reduction of ToMe 24
    and a token predictor 40, in batches of 8. The dense network takes 4 + 4 x 17 x 24, and 8 for its embedding."""
    spec = make_spec(space=SHORT)  # four layers, 17 tokens

    def time_interleaved(programs, repeats):
        seconds = {}
        for name in programs:
            part, count = name if isinstance(name, tuple) else (name, 0)
            milliseconds = {"dense": 1640, "call": 0, "attention": 4 * 8 * count, "mlp": 4 * 16 * count}.get(
                part
            )
            if part == "tome":
                milliseconds = 2 * (8 * count + 24)
            elif part == SPVIT:
                milliseconds = 2 * 40
            seconds[name] = [9.0, (4 + milliseconds) / 1e3, 0.0]  # the median counts
        return seconds

    monkeypatch.setattr(blocks, "time_interleaved", time_interleaved)
    result = blocks.measure_blocks(spec, drawn_params(spec), ["tome", SPVIT], "here", 8, counts=(1, 2, 9, 17))
    assert (result.network, result.device, result.batch) == (network_name(spec), "here", 8)
    assert result.attention == pytest.approx((1, 2, 9, 17)) and result.mlp == pytest.approx((2, 4, 18, 34))
    columns = dict(result.methods)
    assert columns["tome"] == pytest.approx((0, 0, 3, 3)) and columns["spvit_2"] == pytest.approx(
        (0, 0, 5, 5)
    )
    # The last of the four MLPs runs on CLS.
    assert result.dense == pytest.approx(1644 / 8) and result.outside == pytest.approx(12 / 8 + 34 - 2)
    assert result.milliseconds(token_counts(spec, spec.largest)) == pytest.approx(result.dense)


def test_even_steps():
    assert blocks.token_grid(make_spec()) == (1, 3, 6, 8, 11, 14, 17)
    assert blocks.token_grid(make_spec(image_size=4)) == (1, 2)


def test_the_command(tmp_path, capsys):
    """Every program runs; the table fits the network, and a schedule can be chosen by it."""
    file, words = tmp_path / "blocks.json", ["--config.model.patch_size=10"]  # five tokens
    words += ["--config.compare.methods=('mctf','spvit')", "--repeats", "1"]
    line = [
        "profile",
        "--what",
        "blocks",
        "--config",
        str(CONFIG),
        "--out",
        str(file),
        "--batch",
        "2",
        *words,
    ]
    assert main(line) == 0 and "outside of the layers" in capsys.readouterr().out
    config = io.load_config(CONFIG, Config, words[:1])
    spec = config.spec(placeholder_source(config.data), "prune")
    table = load_block_latency(file, spec)
    assert table.tokens == (1, 2, 3, 4, 5) and table.batch == 2 and "JAX" in table.device
    assert [name for name, _ in table.methods] == ["mctf", "spvit_1"]
    assert all(times[0] == 0 for _, times in table.methods)
    assert reduction_at_latency(spec, "mctf", 1e6 * table.dense, table).tokens_after(spec) == (5, 5)
