"""The table and the remarks of a cascade: columns, exits, and what is compared with what."""

import dataclasses
import re

import pytest

from prance_jax.results.plots import _caption, _families
from prance_jax.results.rows import ExitShare, Results, Row, load_results
from prance_jax.results.table import cells, format_table, markdown, mean_exits, save_results

EXITS = (
    (ExitShare(0, 2, 0.5, 1.0, 0.11), ExitShare(1, 3, 0.5, 0.8, 0.6)),
    (ExitShare(0, 2, 0.3, 0.9, 0.11), ExitShare(1, 2, 0.2, 0.5, 0.4), ExitShare(1, 3, 0.5, 0.6, 0.6)),
)


def row(method, seed, top1, kept, **others):
    figures = dict(top1_change=top1 - 0.9, gmacs=0.02 * kept, macs_kept=kept, won=4, lost=4)
    quantiles = dict(macs_p05=kept, macs_p50=kept, macs_p95=kept)
    return Row(method, seed, top1, **{**figures, **quantiles, **others})


def seed_rows(seed):
    """Of seed 1 PRANCE is 2 points better than of seed 0, and all others 1 point better."""
    up = 0.01 * seed
    spread = dict(macs_p05=0.11, macs_p50=0.29, macs_p95=1.034)
    return (
        row("dense", seed, 0.88, 1.0, images_per_s=100.0, speedup=1.0, realised_share=1.0),
        row("dense_tuned", seed, 0.9 + up, 1.0, images_per_s=100.0, speedup=1.0, realised_share=1.0),
        row("best_static_finetuned_33", seed, 0.8 + up, 0.32, images_per_s=250.0),
        row("random_routing_33", seed, 0.7 + up, 0.33, difficulty_rho=0.01, **spread),
        row("confidence_33", seed, 0.85 + up, 0.33, difficulty_rho=0.4, gap_won=0.6, **spread),
        row(
            "prance_cascade_33",
            seed,
            0.86 + 2 * up,
            0.33,
            difficulty_rho=0.5,
            gap_won=0.64,
            exits=EXITS[seed],
            **spread,
        ),
        row("oracle_33", seed, 0.95 + up, 0.33, **spread),
    )


ONE = Results(seed_rows(0), 2000, "a machine", "a command", 60.0)
TWO = dataclasses.replace(ONE, rows=(*seed_rows(0), *seed_rows(1)))


def test_columns_without_figures_are_left_out():
    head, *rows = cells(ONE)
    assert head == (
        "method|top-1 %|change|GMACs|MACs %|MACs 5/50/95 %|difficulty rho|gap won %|img/s|speed-up|achieved %"
    ).split("|")
    by_name = {line[0]: line[1:] for line in rows}
    assert by_name["PRANCE, 33 %"] == "86.00 -4.00 0.00660 33.0 11/29/103 0.50 64 - - -".split()
    assert by_name["Dense"] == "88.00 -2.00 0.0200 100.0 100/100/100 - - 100 1.00 100".split()
    assert by_name["Best static structure, fine-tuned, 33 %"][-3:] == ["250", "-", "-"]
    assert list(by_name)[3:] == [
        "Random routing, 33 %",
        "Confidence threshold, 33 %",
        "PRANCE, 33 %",
        "Label oracle, 33 %",
    ]
    untimed = dataclasses.replace(ONE, rows=ONE.rows[3:])
    assert cells(untimed)[0][-1] == "gap won %" and "achieved" not in markdown(untimed)
    assert cells(dataclasses.replace(ONE, rows=()))[0] == ["method"]


def test_several_seeds_have_one_spread_per_column():
    by_name = {line[0]: line for line in cells(TWO)}
    assert by_name["PRANCE, 33 %"][1] == "87.00 ±1.41" and by_name["PRANCE, 33 %"][5] == "11/29/103"
    assert by_name["PRANCE, 33 %"][6] == "0.50 ±0.00"


@pytest.mark.parametrize("results", [ONE, TWO])
def test_the_table_fits_120_columns(results):
    wide = tuple(
        dataclasses.replace(one, images_per_s=123_456.0, speedup=12.5, realised_share=0.9, gmacs=17.58)
        for one in results.rows
    )
    lines = format_table(dataclasses.replace(results, rows=wide)).splitlines()
    assert max(map(len, lines)) <= 120
    assert len({len(line) for line in (lines[0], lines[3])}) == 1


def test_the_line_of_exits_counts_from_one():
    assert (
        "PRANCE, 33 %: 50 % of the images stop at look 1, group 3 (right 100.0 %, 11 % of the MACs), "
        "50 % at look 2, group 4 (right 80.0 %, 60 % of the MACs)" in markdown(ONE)
    )
    assert "looks and groups are counted from 1" in markdown(ONE)


def test_exits_of_several_seeds_are_means_over_images():
    """By hand: (0.5 x 1.0 + 0.3 x 0.9) / 0.8 = 0.9625; an exit that one seed lacks has half the share."""
    means = mean_exits([one for one in TWO.rows if one.exits])
    assert [(part.look, part.group) for part in means] == [(0, 2), (1, 2), (1, 3)]
    assert [part.share for part in means] == pytest.approx([0.4, 0.1, 0.5])
    assert [part.top1 for part in means] == pytest.approx([0.9625, 0.5, 0.7])
    assert "40 % of the images stop at look 1, group 3 (right 96.2 %, 11 % of the MACs), 10 %" in markdown(
        TWO
    )


def test_margins_over_the_rows_of_the_same_budget():
    """By hand: 6, 16, 1 and -4 points in seed 0, each 1 more in seed 1; the sample deviation of (0, 1) is 0.71."""
    assert (
        "PRANCE, 33 %: +6.50 ±0.71 points over Best static structure, fine-tuned, 33 %; "
        "+16.50 ±0.71 points over Random routing, 33 %; +1.50 ±0.71 points over Confidence threshold, 33 %; "
        "-3.50 ±0.71 points over Dense, fine-tuned; seed by seed" in markdown(TWO)
    )


def test_the_reference_is_the_fine_tuned_dense_network():
    text = markdown(TWO)
    assert "change: percentage points against the dense network, fine-tuned  \n" in text
    assert "PRANCE, 33 %, image by image against the dense network, fine-tuned: won 4, 4; lost 4, 4; " in text
    assert "tokens:" not in text
    paper = Results((row("prance_prune", 0, 0.9, 0.5, tokens_left=0.5),), 9, "a", "b", 1.0)
    assert "change: percentage points against the dense network; tokens: kept" in markdown(paper)


def test_exits_are_stored(tmp_path):
    save_results(TWO, tmp_path)
    assert load_results(tmp_path) == TWO


def test_the_picture_joins_budgets_and_explains_the_rows():
    rows = (*ONE.rows, row("prance_cascade_50", 0, 0.89, 0.5))
    families = _families(rows)
    assert list(families) == [re.sub(r"_\d+$", "", one.method) for one in ONE.rows]
    assert len(families["prance_cascade"][1]) == 2
    assert len({style for style, _ in families.values()}) == 6  # both dense networks are stars
    caption = _caption(rows)
    assert caption.count("\n") == 3 and "Label oracle: " in caption
    assert "Best static structure: " not in caption
