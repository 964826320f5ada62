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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from prance_jax.core.files import write_atomic
from prance_jax.results.names import display_name
from prance_jax.results.rows import ExitShare, Results, Row
from prance_jax.results.significance import CASCADE, margin_remarks, paired_remarks, reference_name


def save_results(results: Results, workdir: str | Path, name: str = "results") -> None:
    """Writes ``NAME.json`` and ``NAME.md`` into a workdir.

    Args:
      results: all rows so far.
      workdir: the folder; created if needed.
      name: ``results``, or ``comparison`` for the compare command.

    Raises:
      WriteError: a file cannot be written.
    """
    folder = Path(workdir)
    record = {
        **dataclasses.asdict(results),
        "rows": [_without_nan(dataclasses.asdict(row)) for row in results.rows],
    }
    write_atomic(folder / f"{name}.json", json.dumps(record, indent=1, allow_nan=False) + "\n")
    write_atomic(folder / f"{name}.md", markdown(results))


def format_table(results: Results) -> str:
    """Formats the table for a terminal.

    Several seeds are shown as mean ± sample standard deviation. A column without any figure is left
    out. The table has at most 120 columns.
    If it would be wider, the spread of the last columns is left out. If that is not enough, long
    names of methods are broken into two lines.
    """
    columns = _columns(results.rows)
    for num_spread in range(len(_SPREAD), 0, -1):
        lines = [*_header_lines(columns), *_lines(results.rows, columns, _SPREAD[:num_spread])]
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
    columns = _columns(results.rows)
    head = ["method", *(column.header for column in columns)]
    return [head, *_lines(results.rows, columns, _SPREAD)]


def markdown(results: Results) -> str:
    """Returns the table in Markdown, as ``results.md`` keeps it."""
    head, *rows = cells(results)
    lines = ["| " + " | ".join(line) + " |" for line in (head, *rows)]
    lines.insert(1, "|---" + "|---:" * (len(head) - 1) + "|")
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


class _Column(NamedTuple):
    """A column; `fields` of a row are written side by side, with a stroke between them."""

    fields: tuple[str, ...]
    header: str
    write: Callable[[float], str]
    is_difference: bool = False


_COLUMNS = (
    _Column(("top1",), "top-1 %", _percent(2)),
    _Column(("top1_change",), "change", _percent(2), True),
    _Column(("mean_ap",), "mAP %", _percent(2)),
    _Column(("mean_ap_change",), "change", _percent(2), True),
    _Column(("gmacs",), "GMACs", _figures),
    _Column(("macs_kept",), "MACs %", _percent(1)),
    _Column(("macs_p05", "macs_p50", "macs_p95"), "MACs 5/50/95 %", _percent(0)),
    _Column(("difficulty_rho",), "difficulty rho", lambda value: f"{value:.2f}"),
    _Column(("gap_won",), "gap won %", _percent(0)),
    _Column(("tokens_left",), "tokens end %", _percent(1)),
    _Column(("tokens_mean",), "tokens mean %", _percent(1)),
    _Column(("active_params",), "params M", lambda value: _figures(value / 1e6)),
    _Column(("images_per_s",), "img/s", lambda value: f"{value:,.0f}"),
    _Column(("speedup",), "speed-up", lambda value: f"{value:.2f}"),
    _Column(("realised_share",), "achieved %", _percent(0)),
)
# What the remarks say of a column, where it is shown.
_MEANINGS = {
    "macs_p05": "MACs 5/50/95 %: percentiles over images, of the dense MACs",
    "difficulty_rho": "difficulty rho: Spearman's correlation over images of MACs and the loss of {reference}",
    "gap_won": "gap won: share of the way from random routing to the label oracle, in top-1",
    "realised_share": "achieved: measured speed-up over the one that the MACs promise",
}
_WIDTH = 120
_MIN_NAME = 16  # columns for the name of a method, at least
# Columns whose spread is shown, the most important first.
_SPREAD = (
    "top1",
    "top1_change",
    "mean_ap",
    "macs_kept",
    "tokens_left",
    "speedup",
    "tokens_mean",
    "realised_share",
    "images_per_s",
    "gmacs",
    "active_params",
    "difficulty_rho",
    "gap_won",
)


def _columns(rows: Sequence[Row]) -> list[_Column]:
    """The columns that have a figure in some row."""
    return [column for column in _COLUMNS if _known([getattr(row, column.fields[0]) for row in rows])]


def _header_lines(columns: Sequence[_Column]) -> list[list[str]]:
    """The header in two lines: the second word below the first, a single word in the lower line."""
    headers = ["method", *(column.header for column in columns)]
    pairs = [header.split(" ", 1) if " " in header else ["", header] for header in headers]
    return [list(line) for line in zip(*pairs)]


def _lines(rows: Sequence[Row], columns: Sequence[_Column], spread: Sequence[str]) -> list[list[str]]:
    """A line of cells per method; `spread` names the columns that show one."""
    lines = []
    for method in dict.fromkeys(row.method for row in rows):
        group = [row for row in rows if row.method == method]
        lines.append([display_name(method), *(_cell(group, column, spread) for column in columns)])
    return lines


def _cell(group: Sequence[Row], column: _Column, spread: Sequence[str]) -> str:
    parts = []
    for field in column.fields:
        known = _known([getattr(row, field) for row in group])
        if not known:
            return "-"
        mean = column.write(statistics.fmean(known))
        text = ("+" if column.is_difference and not mean.startswith("-") else "") + mean
        has_spread = field in spread and len(known) > 1
        parts.append(f"{text} ±{column.write(statistics.stdev(known))}" if has_spread else text)
    return "/".join(parts)


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value)]


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
    shown, reference = {column.fields[0] for column in _columns(results.rows)}, reference_name(results.rows)
    tokens = "; tokens: kept in the last group, and averaged over layers" if "tokens_left" in shown else ""
    return [
        f"{results.images:,} images; {seeds_text}; {minutes} min {seconds:02d} s in all",
        results.hardware,
        f"change: percentage points against {reference}{tokens}",
        *(text.format(reference=reference) for field, text in _MEANINGS.items() if field in shown),
        *margin_remarks(results.rows),
        *paired_remarks(results.rows),
        *_exit_remarks(results.rows),
    ]


def mean_exits(rows: Sequence[Row]) -> list[ExitShare]:
    """Averages over seeds where images stopped.

    Args:
      rows: of one method, a seed each.

    Returns:
      An entry per exit at which an image stopped in some seed, in order of looks and groups. Accuracy
      and MACs are means over the images that stopped there.
    """
    means = []
    for look, group in sorted({(part.look, part.group) for row in rows for part in row.exits}):
        parts = [part for row in rows for part in row.exits if (part.look, part.group) == (look, group)]
        total = sum(part.share for part in parts)
        top1, macs_kept = (
            sum(part.share * getattr(part, name) for part in parts) / total for name in ("top1", "macs_kept")
        )
        means.append(ExitShare(look, group, total / len(rows), top1, macs_kept))
    return means


def _exit_remarks(rows: Sequence[Row]) -> list[str]:
    """Writes where images stopped, a line for each PRANCE row of a cascade."""
    lines = []
    for method in dict.fromkeys(row.method for row in rows if row.exits and row.method.startswith(CASCADE)):
        parts = [
            f"{_percent(0)(part.share)} %{' of the images stop' * (index == 0)} at look {part.look + 1}, "
            f"group {part.group + 1} (right {_percent(1)(part.top1)} %, {_percent(0)(part.macs_kept)} % of the MACs)"
            for index, part in enumerate(mean_exits([row for row in rows if row.method == method]))
        ]
        lines.append(f"{display_name(method)}: {', '.join(parts)}")
    return [*lines, "looks and groups are counted from 1"] if lines else []


def _without_nan(record: dict) -> dict:
    """Replaces NaN and infinity, which JSON lacks, by None: such figures were not measured."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in record.items()
    }
