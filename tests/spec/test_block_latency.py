"""Times by a table of one layer: added up by hand, and what targets in milliseconds choose by them."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small import SHORT, make_spec

from prance_jax.baselines.predictor_config import PredictorConfig, candidate_predictors, predictor_at_latency
from prance_jax.core.errors import UserError
from prance_jax.models.reduction import METHODS, ScheduledReduction, at_milliseconds, candidate_reductions
from prance_jax.spec.block_latency import BlockLatency, load_block_latency, network_name
from prance_jax.spec.macs import TokenCounts
from prance_jax.tokens.schedules import Removed

SPEC = make_spec(space=SHORT)  # four layers, 17 tokens
NONE = (0.0, 0.0, 0.0)
TABLE = BlockLatency(
    network_name(SPEC),
    tokens=(1, 5, 17),
    attend=(1.0, 2.0, 8.0),
    feed=(1.0, 3.0, 9.0),
    dense=68.5,
    outside=0.5,
    methods=(("tome", (0.0, 1.0, 4.0)), ("spvit_2", (0.5, 1.5, 7.5))),
    device="a device",
    batch=8,
)


def test_times_by_hand():
    """On the lines between the counts that were measured: attention of 11 tokens takes 5, of 3 tokens 1.5."""
    counts = TokenCounts((17, 11, 5, 3), (11, 5, 3, 1))
    layers = (8 + 5 + 2 + 1.5) + (6 + 3 + 2 + 1)
    assert TABLE.milliseconds(counts) == pytest.approx(0.5 + layers)
    assert TABLE.milliseconds(counts, "tome", (17, 11)) == pytest.approx(0.5 + layers + 4 + 2.5)
    assert TABLE.milliseconds(TokenCounts((17,) * 4, (17,) * 4)) == pytest.approx(TABLE.dense)


def test_outside_of_what_was_measured():
    """Below the smallest count nothing is faster than there; above the largest nothing is known."""
    table = BlockLatency("", (5, 17), (2.0, 8.0), (3.0, 9.0), 1.0, 0.0)
    assert table.milliseconds(TokenCounts((5,), (1,))) == table.milliseconds(TokenCounts((2,), (5,))) == 5.0
    with pytest.raises(UserError, match="18 tokens are beyond the 17"):
        table.milliseconds(TokenCounts((18,), (5,)))
    with pytest.raises(UserError, match="'evit' was not measured, only tome, spvit_2"):
        TABLE.milliseconds(TokenCounts((17,), (17,)), "evit", (17,))
    with pytest.raises(UserError, match="counts that rise"):
        dataclasses.replace(TABLE, tokens=(5, 1, 17))
    with pytest.raises(UserError, match="one time of 0 or more"):
        dataclasses.replace(TABLE, feed=(1.0, 3.0))


def test_reductions_and_selectors_by_hand():
    """17 tokens, 12 after the first layer, 5 after the third; the last MLP sees CLS alone."""
    own = ScheduledReduction(METHODS["tome"], Removed((5, 0, 7)))
    assert own.tokens_after(SPEC) == (12, 12, 7, 7)  # at most half of 12 go
    attend, feed = 8 + 5.5 + 5.5 + 3, 6.5 + 6.5 + 4 + 1
    assert own.milliseconds(SPEC, TABLE) == pytest.approx(0.5 + attend + feed + 4 + 2.75)
    # SPViT: 16 patches, 10 and the package and CLS from layer 1 on, 5 and the two from layer 3 on.
    spvit = PredictorConfig(True, (1, 3), (0.6, 0.3), heads=2)
    attend, feed = 8 + 5.5 + 5.5 + 3, 9 + 6.5 + 6.5 + 1
    assert spvit.milliseconds(SPEC, TABLE) == pytest.approx(0.5 + attend + feed + 7.5 + 5)


def plain_times(table, tokens_after, arriving, times):
    """Layer by layer, straight lines by their slope; `left`: tokens in the MLPs but the last."""

    def line(values, count):
        for (a, b), (x, y) in zip(zip(table.tokens, table.tokens[1:]), zip(values, values[1:])):
            if a <= count <= b:
                return x + (y - x) * (count - a) / (b - a)

    attention = (17, *tokens_after[:-1])
    total = table.outside + sum(line(times, count) for count in arriving)
    total += sum(line(table.attend, count) for count in attention)
    return total + sum(line(table.feed, count) for count in (*tokens_after[:-1], 1))


column = st.tuples(*[st.floats(0.0, 4.0)] * 3)


@given(st.sampled_from(sorted(METHODS)), column, column, column, st.floats(0.1, 30.0))
def test_a_target_keeps_as_much_as_it_can(name, attend, feed, times, target):
    """Whatever the table, rising or not: of all settings that fit, none keeps more tokens; none fits where it is said."""
    table = dataclasses.replace(TABLE, attend=attend, feed=feed, methods=((name, times),))
    fitting = []
    for own in candidate_reductions(SPEC, name):
        tokens_after = own.tokens_after(SPEC)
        arriving = [before for before, after in zip((17, *tokens_after), tokens_after) if after < before]
        if plain_times(table, tokens_after, arriving, times) <= target - 1e-9:
            fitting.append(tokens_after)
    try:
        found = at_milliseconds(SPEC, name, target, table)
    except UserError as error:
        assert not fitting and f"{name}: no setting takes {target:.4g} ms" in str(error)
        return
    assert sum(found.tokens_after(SPEC)) >= max(map(sum, fitting), default=0)
    assert found.milliseconds(SPEC, table) <= target
    wider = at_milliseconds(SPEC, name, 1.5 * target, table)
    assert all(more >= less for more, less in zip(wider.tokens_after(SPEC), found.tokens_after(SPEC)))


@given(column, column, st.floats(1.0, 40.0))
def test_where_tokens_cost_time_the_slowest_that_fits(attend, feed, target):
    rising = [tuple(np.cumsum(values).tolist()) for values in (attend, feed)]
    table = dataclasses.replace(TABLE, attend=rising[0], feed=rising[1], methods=(("spvit_2", NONE),))
    times = [own.milliseconds(SPEC, table) for own in candidate_predictors(SPEC, True, heads=2)]
    fitting = [time for time in times if time <= target]
    if not fitting:
        with pytest.raises(UserError, match=f"spvit_2: .* ask for {min(times):.4g} ms or more"):
            predictor_at_latency(SPEC, True, target, table, heads=2)
        return
    found = predictor_at_latency(SPEC, True, target, table, heads=2)
    assert found.milliseconds(SPEC, table) == max(fitting)


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
