"""Results: the fixed JSON layout, and numbers in the table that were worked out by hand."""

import dataclasses
import json
import math

import numpy as np
import pytest

from prance_jax.core.errors import UserError
from prance_jax.results import table
from prance_jax.results.names import display_name
from prance_jax.results.rows import Results, Row, load_results
from prance_jax.results.significance import p_value, won_and_lost
from prance_jax.results.table import format_table, hardware, markdown, save_results

COLUMNS = """method seed top1 top1_change gmacs macs_kept tokens_left tokens_mean active_params
images_per_s speedup realised_share won lost won_static
lost_static macs_p05 macs_p50 macs_p95 difficulty_rho gap_won mean_ap mean_ap_change exits""".split()


def row(method, seed, top1, **others):
    figures = dict(
        top1_change=-0.002,
        gmacs=0.01234,
        macs_kept=0.48,
        tokens_left=0.2,
        tokens_mean=0.5,
        active_params=310_000,
        images_per_s=900.0,
        speedup=1.8,
        realised_share=0.9,
    )
    return Row(method, seed, top1, **{**figures, **others})


def make(*rows):
    return Results(rows, images=2000, hardware="a machine", command="python -m prance_jax", seconds=512.0)


ONE = make(row("dense", 0, 0.95, top1_change=0.0, speedup=None), row("prance_prune", 0, 0.948))


def cells(results, name):
    [line] = [line for line in markdown(results).splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_json_has_the_fixed_layout_and_null_for_what_was_not_measured(tmp_path):
    save_results(
        dataclasses.replace(ONE, rows=(*ONE.rows, row("random_policy", 0, 0.9, speedup=math.nan))), tmp_path
    )
    record = json.loads((tmp_path / "results.json").read_text())
    assert list(record) == ["rows", "images", "hardware", "command", "seconds"]
    assert all(list(line) == COLUMNS for line in record["rows"])
    assert record["rows"][1]["top1"] == 0.948 and record["images"] == 2000 and record["seconds"] == 512.0
    assert record["rows"][0]["speedup"] is None and record["rows"][2]["speedup"] is None
    assert "NaN" not in (tmp_path / "results.json").read_text()


def test_what_is_saved_is_loaded(tmp_path):
    save_results(ONE, tmp_path / "new")
    assert load_results(tmp_path / "new") == ONE
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["results.json", "results.md"]
    assert (tmp_path / "new" / "results.md").read_text() == markdown(ONE)


def test_one_seed_shows_plain_figures():
    assert cells(ONE, "PRANCE (prune)") == [
        "PRANCE (prune)",
        "94.80",
        "-0.20",
        "0.0123",
        "48.0",
        "20.0",
        "50.0",
        "0.310",
        "900",
        "1.80",
        "90",
    ]
    assert cells(ONE, "Dense")[2] == "+0.00" and cells(ONE, "Dense")[9] == "-"
    assert "±" not in format_table(ONE)


def test_several_seeds_show_mean_and_sample_standard_deviation():
    three = make(
        *(row("dense", seed, top1) for seed, top1 in enumerate((0.94, 0.95, 0.97))),
        row("prance_prune", 0, 0.9),
    )
    # mean 95.333, deviations -1.333, -0.333, 1.667: sqrt((1.778 + 0.111 + 2.778) / 2) = 1.528
    assert cells(three, "Dense")[1] == "95.33 ±1.53"
    assert cells(three, "PRANCE (prune)")[1] == "90.00"
    assert cells(three, "Dense")[8] == "900 ±0"
    assert "95.33 ±1.53" in format_table(three)
    assert "3 seeds (0, 1, 2)" in format_table(three)


def test_margins_are_taken_seed_by_seed():
    """By hand: differences 1.0, 2.0, 3.0 points, whose mean is 2 and sample deviation 1, though seeds differ by 10."""
    rows = [row("random_policy", seed, 0.7 + 0.1 * seed) for seed in range(3)]
    rows += [row("prance_prune", seed, 0.71 + 0.11 * seed) for seed in range(3)]
    rows += [row("random_policy_merge", 0, 0.5), row("prance_merge", 0, 0.45)]
    text = markdown(make(*rows))
    assert "PRANCE (prune): +2.00 ±1.00 points over Random policy; seed by seed" in text
    assert "PRANCE (merge): -5.00 points over Random policy (merge); seed by seed" in text


def test_pairs_are_listed_for_every_seed():
    """p by hand: 2 (1 + 12 + 66 + 220) / 2^12 = 0.146; as many won as lost says nothing; 2 / 2^8 = 0.0078."""
    rows = [row("dense", seed, 0.9, won=0, lost=0) for seed in range(3)]
    rows += [
        row("prance_prune", seed, 0.9, won=w, lost=n) for seed, (w, n) in enumerate([(3, 9), (5, 5), (8, 0)])
    ]
    text = markdown(make(*rows))
    assert "PRANCE (prune), image by image against the dense network: won 3, 5, 8; lost 9, 5, 0; " in text
    assert "McNemar's exact p 0.15, 1, 0.0078" in text
    assert "image by image" not in markdown(ONE)


def test_images_won_and_lost():
    correct, reference = np.array([1, 1, 1, 0, 0, 1], bool), np.array([1, 0, 0, 1, 0, 1], bool)
    assert won_and_lost(correct, reference) == (2, 1)
    assert won_and_lost(reference, reference) == (0, 0) and p_value(0, 0) == 1.0
    assert p_value(3, 9) == p_value(9, 3) == pytest.approx(598 / 4096)


def test_a_figure_that_some_seeds_lack_is_averaged_over_the_others():
    results = make(row("dense", 0, 0.9, speedup=None), row("dense", 1, 0.9, speedup=2.0))
    assert cells(results, "Dense")[9] == "2.00"


def test_the_full_table_fits_120_columns_and_its_lines_are_even():
    methods = "dense meta_largest best_static random_policy prance_prune prance_prune_merge".split()
    wide = dict(macs_kept=1.0, gmacs=17.58, active_params=102_504_424, images_per_s=123_456.0)
    full = make(
        *(
            row(method, seed, 0.9 + seed / 9, top1_change=-0.1 * seed, tokens_left=1 - seed / 9, **wide)
            for method in methods
            for seed in range(3)
        )
    )
    lines = format_table(full).splitlines()
    assert max(map(len, lines)) <= 120
    assert len({len(line) for line in lines[: 5 + len(methods)]}) == 1
    assert lines[1].split() == ["top-1", "MACs", "tokens", "tokens", "params", "achieved"]
    assert lines[2].split()[0] == "method"
    for line, method in zip(lines[4 : 4 + len(methods)], methods, strict=True):
        assert line.startswith(f"{display_name(method)}  ")
    assert "±" in lines[4]


def test_a_long_name_takes_two_lines_before_the_table_is_too_wide():
    method = "spvit_inserted_free_50_time"
    results = make(*(row(method, seed, 0.9 + seed / 9) for seed in range(2)))
    lines = format_table(results).splitlines()
    assert max(map(len, lines)) <= 120
    end = lines.index(lines[0], 4)
    first, *continued = lines[4:end]
    parts = [first.split("  ")[0], *(line.strip() for line in continued)]
    assert continued and " ".join(parts) == display_name(method)
    assert "±" in first


@pytest.mark.parametrize("text", ["{", "[]", '{"rows": [{"methud": "dense"}]}', '{"rows": []}'])
def test_a_broken_file_is_named(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(UserError, match=r"results\.json is not a results file"):
        load_results(tmp_path)


def test_no_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"results\.json does not exist"):
        load_results(tmp_path)


def test_a_crash_while_writing_leaves_the_old_results(tmp_path, monkeypatch):
    save_results(ONE, tmp_path)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("prance_jax.core.files.os.replace", full)
    with pytest.raises(UserError, match="the disk is full"):
        save_results(make(row("dense", 0, 0.1)), tmp_path)
    monkeypatch.undo()
    assert load_results(tmp_path) == ONE
    assert len(list(tmp_path.iterdir())) == 2


def test_hardware_names_cores_and_jax():
    import jax

    text = hardware()
    assert "cores" in text and jax.__version__ in text and "\n" not in text


@pytest.mark.parametrize(
    "value, text",
    [
        (0.01234, "0.0123"),
        (4.608, "4.61"),
        (20.507, "20.5"),
        (892.4, "892"),
        (12345.6, "12,346"),
        (0, "0.00"),
    ],
)
def test_three_figures_without_exponents(value, text):
    assert table._figures(value) == text
