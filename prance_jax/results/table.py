"""The table of a run: stored as JSON, shown in a terminal and in Markdown.

The layout of ``results.json`` is fixed: every row has every column, shares are 0 to 1, and a figure
that was not measured is null. All rows of one file were measured on the same images, batch, machine
and run.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
import statistics
import textwrap
from collections.abc import Callable
from pathlib import Path

from prance_jax.core.files import write_atomic
from prance_jax.results.names import display_name
from prance_jax.results.rows import Results, Row
from prance_jax.results.significance import paired_remarks


def save_results(results: Results, workdir: str | Path, name: str = "results") -> None:
    """Writes ``NAME.json`` and ``NAME.md`` into a workdir.

    Args:
      results: all rows so far.
      workdir: the folder; created if needed.
      name: ``results``, or ``comparison`` for the compare command.

    Raises:
      UserError: the disk is full.
    """
    folder = Path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        **dataclasses.asdict(results),
        "rows": [_without_nan(dataclasses.asdict(row)) for row in results.rows],
    }
    write_atomic(folder / f"{name}.json", json.dumps(record, indent=1, allow_nan=False) + "\n")
    write_atomic(folder / f"{name}.md", markdown(results))


def format_table(results: Results) -> str:
    """Formats the table for a terminal.

    Several seeds are shown as mean ± sample standard deviation. The table has at most 120 columns.
    If it would be wider, the spread of the last columns is left out. If that is not enough, long
    names of methods are broken into two lines.
    """
    for num_spread in range(len(_SPREAD), 0, -1):
        lines = [*_header_lines(), *_lines(results.rows, _SPREAD[:num_spread])]
        widths = [max(map(len, column)) for column in zip(*lines)]
        excess = sum(widths) + 2 * (len(widths) - 1) - _WIDTH
        if excess <= 0:
            break
    else:
        lines = _break_names(lines, max(widths[0] - excess, _MIN_NAME))
        widths = [max(map(len, column)) for column in zip(*lines)]
    rule = "─" * (sum(widths) + 2 * (len(widths) - 1))
    text = []
    for name, *figures in lines:
        cells = [name.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(figures, widths[1:]))]
        text.append("  ".join(cells).rstrip())
    wrapped = [line for remark in remarks(results) for line in _wrap(remark, _WIDTH)]
    return "\n".join([rule, *text[:2], rule, *text[2:], rule, *wrapped])


def cells(results: Results) -> list[list[str]]:
    """Returns the table as text, a list of cells per line, header first, every spread shown."""
    return [list(_HEADERS), *_lines(results.rows, _SPREAD)]


def markdown(results: Results) -> str:
    """Returns the table in Markdown, as ``results.md`` keeps it."""
    lines = ["| " + " | ".join(line) + " |" for line in cells(results)]
    lines.insert(1, "|---" + "|---:" * (len(_HEADERS) - 1) + "|")
    below = [remark + "  " for remark in remarks(results)]  # two blanks: a line break in Markdown
    return "\n".join([*lines, "", *below, f"`{results.command}`", ""])


def hardware() -> str:
    """Describes the machine in one line: processor, usable cores, JAX devices and version."""
    import jax

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    devices = jax.devices()
    kinds = sorted({device.device_kind for device in devices})
    devices_text = f"{len(devices)} x {', '.join(kinds)}" if jax.default_backend() != "cpu" else "CPU"
    return f"{_processor()}, {cores} cores; JAX {jax.__version__} on {devices_text}"


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
    ("tokens_left", "tokens end %", _percent(1), False),
    ("tokens_mean", "tokens mean %", _percent(1), False),
    ("active_params", "params M", lambda value: _figures(value / 1e6), False),
    ("images_per_s", "img/s", lambda value: f"{value:,.0f}", False),
    ("speedup", "speed-up", lambda value: f"{value:.2f}", False),
    ("realised_share", "achieved %", _percent(0), False),
)
_HEADERS = ("method", *(header for _, header, _, _ in _COLUMNS))
_WIDTH = 120
_MIN_NAME = 16  # columns for the name of a method, at least
# Columns whose spread is shown, the most important first.
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


def _header_lines() -> list[list[str]]:
    """The header in two lines: the second word below the first, a single word in the lower line."""
    pairs = [header.split(" ", 1) if " " in header else ["", header] for header in _HEADERS]
    return [list(line) for line in zip(*pairs)]


def _lines(rows: tuple[Row, ...], spread: tuple[str, ...]) -> list[list[str]]:
    """A line of cells per method; `spread` names the columns that show one."""
    lines = []
    for method in dict.fromkeys(row.method for row in rows):
        group = [row for row in rows if row.method == method]
        cells = [
            _cell([getattr(row, name) for row in group], write, signed, name in spread)
            for name, _, write, signed in _COLUMNS
        ]
        lines.append([display_name(method), *cells])
    return lines


def _cell(values: list[float | None], write: Callable[[float], str], signed: bool, spread: bool) -> str:
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return "-"
    mean = statistics.fmean(known)
    text = ("+" if signed and not write(mean).startswith("-") else "") + write(mean)
    return f"{text} ±{write(statistics.stdev(known))}" if spread and len(known) > 1 else text


def _break_names(lines: list[list[str]], width: int) -> list[list[str]]:
    """The same lines, names longer than `width` continued in a line without figures."""
    broken = []
    for name, *figures in lines:
        first, *others = _wrap(name, width) or [""]
        broken.append([first, *figures])
        broken += [[other, *("" for _ in figures)] for other in others]
    return broken


def _wrap(text: str, width: int) -> list[str]:
    """Lines of at most `width` columns; a number stays together with its %."""
    joined = text.replace(" %", "\u00a0%")  # a blank at which nothing is broken
    lines = textwrap.wrap(
        joined, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )
    return [line.replace("\u00a0", " ") for line in lines]


def remarks(results: Results) -> list[str]:
    """Returns the remarks under the table, one line each."""
    seeds = sorted({row.seed for row in results.rows})
    several = f"{len(seeds)} seeds ({', '.join(map(str, seeds))}), mean ± sample standard deviation"
    seeds_text = several if len(seeds) > 1 else f"seed {seeds[0]}" if seeds else "no rows"
    minutes, seconds = divmod(round(results.seconds), 60)
    return [
        f"{results.images:,} images; {seeds_text}; {minutes} min {seconds:02d} s in all",
        results.hardware,
        "change: percentage points against the dense network; "
        "tokens: kept in the last group, and averaged over layers",
        "achieved: measured speed-up over the one that the MACs promise",
        *_margins(results.rows),
        *paired_remarks(results.rows),
    ]


def _margins(rows: tuple[Row, ...]) -> list[str]:
    """How far PRANCE is above the baselines of its token mode. Differences are within a seed."""
    top1 = {(row.method, row.seed): row.top1 for row in rows if row.top1 is not None}
    lines = []
    for method in dict.fromkeys(row.method for row in rows if row.method.startswith("prance_")):
        parts = []
        for baseline in ("best_static", "random_policy", "dense_tuned"):
            name = f"{baseline}{method.removeprefix('prance')}"
            name = name if any(row.method == name for row in rows) else baseline
            points = [
                100 * (value - top1[name, seed])
                for (row_method, seed), value in top1.items()
                if row_method == method and (name, seed) in top1
            ]
            if points:
                spread = f" ±{statistics.stdev(points):.2f}" if len(points) > 1 else ""
                parts.append(f"{statistics.fmean(points):+.2f}{spread} points over {display_name(name)}")
        if parts:
            lines.append(f"{display_name(method)}: {'; '.join(parts)}; seed by seed")
    return lines


def _without_nan(record: dict) -> dict:
    """Replaces NaN and infinity, which JSON lacks, by None: such figures were not measured."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in record.items()
    }
