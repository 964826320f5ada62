"""The benchmark of a cascade: shares as asked, MACs by hand, the table and the file; no times."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands.command_line import CONFIG, refused, run
from small import PAIR, make_spec

from prance_jax.benchmarks import cascade as benchmark
from prance_jax.core.errors import UserError
from prance_jax.spec.cascade import START
from prance_jax.spec.macs import exit_macs, prefix_macs, single_look_macs

SPEC = make_spec(space=PAIR)


@pytest.fixture(autouse=True)
def program_runs_once(monkeypatch):
    """Every program is called, and takes a time that stands in for a measured one."""

    def timed(calls, repeats):
        for call in calls.values():
            jax.block_until_ready(call())
        return {name: [number + 1.0] * repeats for number, name in enumerate(calls)}

    monkeypatch.setattr(benchmark, "time_interleaved", timed)


@pytest.mark.parametrize(
    "batch, counts", [(1, (0, 1, 0)), (8, (2, 4, 2)), (64, (19, 26, 19)), (256, (77, 102, 77))]
)
def test_shares_are_drawn_as_asked(batch, counts):
    stops = benchmark.draw_stops((0.3, 0.4, 0.3), batch)
    assert stops.dtype == np.int32 and tuple(np.bincount(stops, minlength=3)) == counts
    np.testing.assert_array_equal(stops, benchmark.draw_stops((0.3, 0.4, 0.3), batch))
    if batch > 1:
        assert (stops != benchmark.draw_stops((0.3, 0.4, 0.3), batch, seed=1)).any()
        assert (benchmark.draw_stops((0.0, 1.0, 0.0), batch) == 1).all()
        assert len(np.unique(np.flatnonzero(np.diff(stops)))) > 2, "the answers are mixed"


def test_actions_lead_to_the_answers():
    tree = benchmark.two_look_cascade(SPEC)
    assert tree.children == ((1,), (2,), (3,), ())
    actions = benchmark.stop_actions(tree, np.asarray([2, 0, 1]))
    decide, node = benchmark.given_actions(jnp.asarray(actions)), jnp.full(3, START)
    for expected in ((1, 1, 1), (2, 1, 2), (3, 1, 2), (3, 1, 2)):
        node = jnp.asarray(tree.next_nodes)[node, decide(node, None)]
        assert tuple(map(int, node)) == expected


def macs_by_hand(tree):
    """MACs at the three answers: the small look, then the large one up to its exit, then its remaining groups."""
    first, last = (look.spec for look in tree.spec.looks)
    assert (first.tokens, last.tokens, last.exits) == (5, 17, (0,))
    group = last.largest.groups[:1]
    small = single_look_macs(first, first.largest)
    recycling, to_exit = 5 * 28 * 28, prefix_macs(last, group)
    middle = small + recycling + to_exit + exit_macs(last, group)
    return small, middle, middle - to_exit + single_look_macs(last, last.largest)


@pytest.mark.parametrize("batch, chunk, slots", [(8, 2, 16), (8, 3, 18), (1, 4, 2.0)])
def test_a_measurement(batch, chunk, slots):
    """Of 8 images 2, 4 and 2 stop at the answers: 8, 6 and 2 images run the steps."""
    row = benchmark.measure_cascade(SPEC, batch, chunk=chunk, repeats=2)
    assert (row.batch, row.chunk, row.dtype) == (batch, min(chunk, batch), "float32")
    shares = (0.25, 0.5, 0.25) if batch > 1 else (0.3, 0.4, 0.3)
    assert row.shares == pytest.approx(shares)
    tree = benchmark.two_look_cascade(SPEC)
    kept = np.dot(shares, macs_by_hand(tree)) / single_look_macs(SPEC, SPEC.largest)
    assert row.macs_kept == pytest.approx(kept)
    assert row.slots == pytest.approx(slots) and row.wasted_share == pytest.approx(1 - batch * 2 / slots)
    # The dense network takes one second, the paths two, three and four.
    seconds = 2.0 if batch > 1 else 0.3 * 2 + 0.4 * 3 + 0.3 * 4
    assert row.path_ms == (pytest.approx((2e3, 3e3, 4e3)) if batch == 1 else ())
    assert (row.dense_images_per_s, row.images_per_s) == pytest.approx((batch, batch / seconds))
    assert row.speedup == pytest.approx(1 / seconds) and row.realised_share == pytest.approx(kept / seconds)


def test_networks_without_a_cascade_of_two_looks_are_refused():
    with pytest.raises(UserError, match="this one has 1 and 2"):
        benchmark.two_look_cascade(make_spec(space=PAIR, image_size=4))


def test_the_command(tmp_path, capsys):
    words = ["--measure", "cascade", "--repeats", "1", "--batches", "1,5", "--dtypes", "float32"]
    status, printed, _ = run(
        capsys, "benchmark", "--config", CONFIG, *words, "--out", str(tmp_path / "speed")
    )
    heading, *lines = printed.splitlines()
    columns = ("batch", "chunk", "dense img/s", "cascade img/s", "MACs %", "speed-up", "achieved share %")
    assert status == 0 and all(column in heading for column in (*columns, "slots wasted %"))
    record = json.loads((tmp_path / "speed/benchmark.json").read_text())
    assert {"hardware", "command"} <= set(record) and record["weights"].endswith("0.3,0.4,0.3")
    assert [(row["batch"], row["chunk"]) for row in record["rows"]] == [(1, 1), (5, 1)]
    for line, row in zip(lines, record["rows"]):
        assert len(line) == len(heading) and int(line.split()[0]) == row["batch"]
        assert row["realised_share"] == pytest.approx(row["speedup"] * row["macs_kept"])
    command = ["benchmark", "--config", CONFIG, "--measure", "cascade"]
    assert "--shares '0.3,0.7'" in refused(capsys, *command, "--shares", "0.3,0.7")
    assert "--chunk 0" in refused(capsys, *command, "--chunk", "0")
