"""Runs parts of measurements under a time limit; every figure is written at once, and a second call measures what is missing."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from prance_jax.core.files import write_atomic

Figures = dict[str, Any]


class Measurement(NamedTuple):
    """One measurement.

    Attributes:
      name: of its figures in the part's file, such as 'tiny forward'.
      run: (seconds that are left for the part) -> figures.
    """

    name: str
    run: Callable[[float], Figures]


class Part(NamedTuple):
    """Measurements that share a file and a time limit.

    Attributes:
      name: of the file.
      title: what is measured, one line.
      share: of all the time; what a part leaves, later ones have.
      measurements: in order of worth; may be a generator.
    """

    name: str
    title: str
    share: float
    measurements: Iterable[Measurement]


def run_suite(
    parts: Sequence[Part],
    seconds: float,
    folder: str | Path,
    header: Figures,
    show: Callable[[str], None] = print,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Figures]:
    """Measures all parts in order, and writes NAME.json for each, summary.json and summary.md.

    A measurement begins only before the limit of its part; one that has begun is not stopped. A measurement that fails is
    written down with its error, and the others go on. Figures that the folder has from an earlier call on the same device
    are kept.

    Args:
      parts: in order of worth.
      seconds: for all parts together.
      folder: created if needed.
      header: device and command, stored beside the figures; figures under another `hardware` are measured anew.
      show: prints a line.
      clock: seconds that pass.

    Returns:
      Part -> measurement -> figures.

    Raises:
      UserError: the disk is full.
    """
    folder, start, planned, records = Path(folder), clock(), 0.0, {}
    folder.mkdir(parents=True, exist_ok=True)
    for part in parts:
        planned += part.share
        limit = start + seconds * min(planned, 1.0)
        file = folder / f"{part.name}.json"
        figures = _earlier(file, header)
        write = lambda: write_atomic(
            file, json.dumps({**header, "title": part.title, "figures": figures}, indent=1) + "\n"
        )
        show(f"{part.name}: {part.title}")
        for name, run in part.measurements:
            if name in figures:
                show(f"  {name}: measured before")
                continue
            left = limit - clock()
            if left <= 0:
                show(f"  {name}: no time left; the next call measures it")
                continue
            begun = clock()
            try:
                measured = run(left)
            except Exception as error:  # one failure must not cost the other figures
                measured = {"error": f"{type(error).__name__}: {error}"}
                write_atomic(folder / f"{part.name}_error.txt", traceback.format_exc())
            figures[name] = {**measured, "seconds": round(clock() - begun, 1)}
            show(f"  {name}: {line(figures[name])}")
            write()
        records[part.name] = figures
    write_atomic(folder / "summary.json", json.dumps({**header, **records}, indent=1) + "\n")
    write_atomic(folder / "summary.md", summary(parts, records, header))
    return records


def _earlier(file: Path, header: Figures) -> dict[str, Figures]:
    """Figures of an earlier call on the same device; failures are measured again."""
    try:
        record = json.loads(file.read_text())
        if record["hardware"] != header["hardware"]:
            return {}
        return {name: figures for name, figures in record["figures"].items() if "error" not in figures}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def line(figures: Figures) -> str:
    """Writes figures in one line: numbers with four figures; lists and tables are left to the file."""
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in figures.items()
        if not isinstance(value, (dict, list, tuple))
    )


def summary(parts: Sequence[Part], records: dict[str, dict[str, Figures]], header: Figures) -> str:
    """Writes all figures in Markdown, a list for each part.

    Args:
      parts: that were to be measured.
      records: from `run_suite`.
      header: device and command.
    """
    lines = ["# Accelerator", "", *(f"- {name}: {value}" for name, value in header.items()), ""]
    for part in parts:
        figures = records.get(part.name, {})
        lines += [f"## {part.name}", "", f"{part.title}.", ""]
        lines += [f"- {name}: {line(values)}" for name, values in figures.items()] or ["Not measured."]
        lines.append("")
    return "\n".join(lines)
