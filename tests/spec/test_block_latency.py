"""The table of one layer's times: sums by hand, and the settings that targets in milliseconds choose."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small import SHORT, make_spec

from prance_jax.baselines.predictor_config import PredictorConfig, candidate_predictors, predictor_at_latency
from prance_jax.core.errors import UserError
from prance_jax.models.reduction import (
    METHODS,
    ScheduledReduction,
    candidate_reductions,
    reduction_at_latency,
)
from prance_jax.spec.block_latency import BlockLatency, load_block_latency, network_name
from prance_jax.spec.token_counts import TokenCounts
from prance_jax.tokens.schedules import Removed

SPEC = make_spec(space=SHORT)  # four layers, 17 tokens
NONE = (0.0, 0.0, 0.0)
TABLE = BlockLatency(
    network_name(SPEC),
    tokens=(1, 5, 17),
    attention=(1.0, 2.0, 8.0),
    mlp=(1.0, 3.0, 9.0),
    dense=68.5,
    outside=0.5,
    methods=(("tome", (0.0, 1.0, 4.0)), ("spvit_2", (0.5, 1.5, 7.5))),
    device="a device",
    batch=8,
)


def test_times_by_hand():
    """Times between measured counts are linear: attention of 11 tokens takes 5, of 3 tokens 1.5."""
    counts = TokenCounts((17, 11, 5, 3), (11, 5, 3, 1))
    layers = (8 + 5 + 2 + 1.5) + (6 + 3 + 2 + 1)
    assert TABLE.milliseconds(counts) == pytest.approx(0.5 + layers)
    assert TABLE.milliseconds(counts, "tome", (17, 11)) == pytest.approx(0.5 + layers + 4 + 2.5)
    assert TABLE.milliseconds(TokenCounts((17,) * 4, (17,) * 4)) == pytest.approx(TABLE.dense)


def test_counts_outside_the_measured_range():
    """Below the smallest count its own time holds; above the largest the table refuses."""
    table = BlockLatency("", (5, 17), (2.0, 8.0), (3.0, 9.0), 1.0, 0.0)
    assert table.milliseconds(TokenCounts((5,), (1,))) == table.milliseconds(TokenCounts((2,), (5,))) == 5.0
    with pytest.raises(UserError, match="18 tokens exceed the 17"):
        table.milliseconds(TokenCounts((18,), (5,)))
    with pytest.raises(UserError, match="'evit' was not measured, only tome, spvit_2"):
        TABLE.milliseconds(TokenCounts((17,), (17,)), "evit", (17,))
    with pytest.raises(UserError, match="two or more counts, ascending"):
        dataclasses.replace(TABLE, tokens=(5, 1, 17))
    with pytest.raises(UserError, match="one time of 0 or more"):
        dataclasses.replace(TABLE, mlp=(1.0, 3.0))


def test_reductions_and_predictors_by_hand():
    """17 tokens, 12 after the first layer, 7 after the third; the last MLP runs on CLS only."""
    reduction = ScheduledReduction(METHODS["tome"], Removed((5, 0, 7)))
    assert reduction.tokens_after(SPEC) == (12, 12, 7, 7)  # at most half of 12 are removed
    attention, mlp = 8 + 5.5 + 5.5 + 3, 6.5 + 6.5 + 4 + 1
    assert reduction.milliseconds(SPEC, TABLE) == pytest.approx(0.5 + attention + mlp + 4 + 2.75)
    # SPViT: 16 patches; from layer 1 on 10, the package and CLS; from layer 3 on 5 and the same two.
    spvit = PredictorConfig(True, (1, 3), (0.6, 0.3), heads=2)
    attention, mlp = 8 + 5.5 + 5.5 + 3, 9 + 6.5 + 6.5 + 1
    assert spvit.milliseconds(SPEC, TABLE) == pytest.approx(0.5 + attention + mlp + 7.5 + 5)


def plain_times(table, tokens_after, tokens_before, times):
    """Adds up layer by layer, with explicit slopes; `tokens_after`: tokens after each layer's reduction."""

    def line(values, count):
        for (a, b), (x, y) in zip(zip(table.tokens, table.tokens[1:]), zip(values, values[1:])):
            if a <= count <= b:
                return x + (y - x) * (count - a) / (b - a)

    attention = (17, *tokens_after[:-1])
    total = table.outside + sum(line(times, count) for count in tokens_before)
    total += sum(line(table.attention, count) for count in attention)
    return total + sum(line(table.mlp, count) for count in (*tokens_after[:-1], 1))


column = st.tuples(*[st.floats(0.0, 4.0)] * 3)


@given(st.sampled_from(sorted(METHODS)), column, column, column, st.floats(0.1, 30.0))
def test_a_target_keeps_as_much_as_it_can(name, attention, mlp, times, target):
    """For any table: no fast enough setting keeps more tokens; an error is raised only if there is none."""
    table = dataclasses.replace(TABLE, attention=attention, mlp=mlp, methods=((name, times),))
    fitting = []
    for reduction in candidate_reductions(SPEC, name):
        tokens_after = reduction.tokens_after(SPEC)
        tokens_before = [before for before, after in zip((17, *tokens_after), tokens_after) if after < before]
        if plain_times(table, tokens_after, tokens_before, times) <= target - 1e-9:
            fitting.append(tokens_after)
    try:
        chosen = reduction_at_latency(SPEC, name, target, table)
    except UserError as error:
        assert not fitting and f"{name}: no setting takes {target:.4g} ms" in str(error)
        return
    assert sum(chosen.tokens_after(SPEC)) >= max(map(sum, fitting), default=0)
    assert chosen.milliseconds(SPEC, table) <= target
    wider = reduction_at_latency(SPEC, name, 1.5 * target, table)
    assert all(more >= less for more, less in zip(wider.tokens_after(SPEC), chosen.tokens_after(SPEC)))


@given(column, column, st.floats(1.0, 40.0))
def test_the_slowest_setting_that_fits_is_chosen_where_tokens_cost_time(attention, mlp, target):
    rising = [tuple(np.cumsum(values).tolist()) for values in (attention, mlp)]
    table = dataclasses.replace(TABLE, attention=rising[0], mlp=rising[1], methods=(("spvit_2", NONE),))
    times = [predictor.milliseconds(SPEC, table) for predictor in candidate_predictors(SPEC, True, heads=2)]
    fitting = [time for time in times if time <= target]
    if not fitting:
        with pytest.raises(UserError, match=f"spvit_2: .* ask for {min(times):.4g} ms or more"):
            predictor_at_latency(SPEC, True, target, table, heads=2)
        return
    chosen = predictor_at_latency(SPEC, True, target, table, heads=2)
    assert chosen.milliseconds(SPEC, table) == max(fitting)


def test_written_and_read(tmp_path):
    file = tmp_path / "blocks.json"
    TABLE.save(file, lambda path, text: path.write_text(text))
    assert load_block_latency(file, SPEC) == TABLE
    with pytest.raises(UserError, match="another network .*; this one: 6 layers of 28"):
        load_block_latency(file, make_spec())
    with pytest.raises(UserError, match="none.json does not exist; write it with the profile command"):
        load_block_latency(tmp_path / "none.json", SPEC)
    file.write_text(file.read_text().replace("feed_ms", "fed_ms"))
    with pytest.raises(UserError, match="is not a table of block latencies .*feed_ms"):
        load_block_latency(file, SPEC)
