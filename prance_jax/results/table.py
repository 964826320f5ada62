"""The results of a run: rows of one comparison, kept as JSON and shown as a table.

The layout of ``results.json`` is fixed: every row carries every column, shares are 0 to 1, and a figure that
was not measured is null. All rows of one file were measured on the same images, batch, machine and run.
"""

import dataclasses
import json
import math
import os
import platform
import statistics
from collections.abc import Callable
from pathlib import Path

from prance_jax.core.files import write_atomic
from prance_jax.results.rows import Results, Row
from prance_jax.results.significance import paired_remarks


def save_results(results: Results, workdir: str | Path, name: str = "results") -> None:
    """Writes ``NAME.json`` and ``NAME.md`` into the workdir. Raises UserError on a full disk."""
    folder = Path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        **dataclasses.asdict(results),
        "rows": [_nulls(dataclasses.asdict(row)) for row in results.rows],
    }
    write_atomic(folder / f"{name}.json", json.dumps(record, indent=1, allow_nan=False) + "\n")
    write_atomic(folder / f"{name}.md", markdown(results))


def format_table(results: Results) -> str:
    """The table for a terminal: one line a method, with several seeds mean ± spread.

    The spread of the later columns is left out where the table would be wider than 120 columns.
    """
    for most in range(len(_SPREAD), -1, -1):
        lines = [list(_HEADERS), *_lines(results.rows, _SPREAD[:most])]
        widths = [max(len(line[i]) for line in lines) for i in range(len(_HEADERS))]
        if sum(widths) + 2 * (len(widths) - 1) <= _WIDTH:
            break
    rule = "─" * (sum(widths) + 2 * (len(widths) - 1))
    text = []
    for first, *others in lines:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:]))]
        text.append("  ".join(cells))
    return "\n".join([rule, text[0], rule, *text[1:], rule, *remarks(results)])


def cells(results: Results) -> list[list[str]]:
    """The same table as text, header first, every spread shown."""
    return [list(_HEADERS), *_lines(results.rows, _SPREAD)]


def markdown(results: Results) -> str:
    """The same table as ``results.md`` keeps it."""
    lines = ["| " + " | ".join(line) + " |" for line in cells(results)]
    lines.insert(1, "|---" + "|---:" * (len(_HEADERS) - 1) + "|")
    told = [remark + "  " for remark in remarks(results)]  # two blanks: a line break in Markdown
    return "\n".join([*lines, "", *told, f"`{results.command}`", ""])


def hardware() -> str:
    """The machine in one line: processor, cores this process may use, JAX devices and version."""
    import jax

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    devices = jax.devices()
    kinds = sorted({device.device_kind for device in devices})
    where = f"{len(devices)} x {', '.join(kinds)}" if jax.default_backend() != "cpu" else "CPU"
    return f"{_processor()}, {cores} cores; JAX {jax.__version__} on {where}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine() or "unknown processor"


def _percent(digits: int) -> Callable[[float], str]:
    return lambda value: f"{100 * value:.{digits}f}"


def _figures(value: float) -> str:
    """Three figures, without exponents: 0.0123, 4.61, 892."""
    digits = 2 - math.floor(math.log10(abs(value))) if value else 2
    return f"{value:,.{max(0, min(digits, 6))}f}"


# column, header, how a value is written, whether it is a difference
_COLUMNS: tuple[tuple[str, str, Callable[[float], str], bool], ...] = (
    ("top1", "top-1 %", _percent(2), False),
    ("top1_change", "change", _percent(2), True),
    ("gmacs", "GMACs", _figures, False),
    ("macs_kept", "MACs %", _percent(1), False),
    ("tokens_left", "tok end %", _percent(1), False),
    ("tokens_mean", "tok mean %", _percent(1), False),
    ("active_params", "params M", lambda value: _figures(value / 1e6), False),
    ("images_per_s", "img/s", lambda value: f"{value:,.0f}", False),
    ("speedup", "speed-up", lambda value: f"{value:.2f}", False),
    ("realised_share", "real. %", _percent(0), False),
)
_HEADERS = ("method", *(header for _, header, _, _ in _COLUMNS))
_WIDTH = 120
# Columns whose spread is shown, the ones worth most first.
_SPREAD = (
    "top1",
    "top1_change",
    "macs_kept",
    "tokens_left",
    "speedup",
    "tokens_mean",
    "realised_share",
    "images_per_s",
    "gmacs",
    "active_params",
)


def _lines(rows: tuple[Row, ...], spread: tuple[str, ...]) -> list[list[str]]:
    """One line of cells a method, in the order in which the methods first appear."""
    lines = []
    for method in dict.fromkeys(row.method for row in rows):
        group = [row for row in rows if row.method == method]
        cells = [
            _cell([getattr(row, name) for row in group], write, signed, name in spread)
            for name, _, write, signed in _COLUMNS
        ]
        lines.append([method, *cells])
    return lines


def _cell(values: list[float | None], write: Callable[[float], str], signed: bool, spread: bool) -> str:
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return "-"
    mean = statistics.fmean(known)
    text = ("+" if signed and not write(mean).startswith("-") else "") + write(mean)
    return f"{text} ±{write(statistics.stdev(known))}" if spread and len(known) > 1 else text


def remarks(results: Results) -> list[str]:
    """What is to be said under the table: one line each."""
    seeds = sorted({row.seed for row in results.rows})
    several = f"{len(seeds)} seeds ({', '.join(map(str, seeds))}), mean ± sample standard deviation"
    told = several if len(seeds) > 1 else f"seed {seeds[0]}" if seeds else "no rows"
    minutes, seconds = divmod(round(results.seconds), 60)
    return [
        f"{results.images:,} images; {told}; {minutes} min {seconds:02d} s in all",
        results.hardware,
        "change: points against dense; tok: tokens left, in the last group and averaged over layers; "
        "real.: speed-up / MACs ratio",
        *_margins(results.rows),
        *paired_remarks(results.rows),
    ]


def _margins(rows: tuple[Row, ...]) -> list[str]:
    """How far PRANCE is above the baselines of its own token mode, seed by seed; the seed's luck drops out."""
    top1 = {(row.method, row.seed): row.top1 for row in rows if row.top1 is not None}
    lines = []
    for method in dict.fromkeys(row.method for row in rows if row.method.startswith("prance_")):
        parts = []
        for baseline in ("best_static", "random_policy", "dense_tuned"):
            name = f"{baseline}{method.removeprefix('prance')}"
            name = name if any(row.method == name for row in rows) else baseline
            points = [
                100 * (value - top1[name, seed])
                for (own, seed), value in top1.items()
                if own == method and (name, seed) in top1
            ]
            if points:
                spread = f" ±{statistics.stdev(points):.2f}" if len(points) > 1 else ""
                parts.append(f"{statistics.fmean(points):+.2f}{spread} points on {name}")
        if parts:
            lines.append(f"{method}: {', '.join(parts)}, seed by seed")
    return lines


def _nulls(record: dict) -> dict:
    """Without NaN and infinity, which JSON does not have: they were not measured."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in record.items()
    }
