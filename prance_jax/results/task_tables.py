"""The tables of the commands `segment` and `pit`."""

from __future__ import annotations

from prance_jax.experiments.pit import PiTRow
from prance_jax.experiments.segmentation import SegmentRow
from prance_jax.results.names import display_name


def segmentation_table(rows: list[SegmentRow]) -> str:
    """Returns the table of the segmentation task in Markdown, a line per method and seed."""
    lines = [
        "| method | seed | mIoU % | change | pixel accuracy % | GMACs | MACs % |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        lines.append(
            f"| {display_name(row.method)} | {row.seed} | {100 * row.miou:.2f} "
            f"| {100 * row.miou_change:+.2f} | {100 * row.accuracy:.2f} "
            f"| {row.gmacs:.5f} | {100 * row.macs_kept:.1f} |"
        )
    return "\n".join(lines)


def pit_table(rows: list[PiTRow]) -> str:
    """Returns the table of PiT in Markdown, a line per method and seed."""
    lines = [
        "| method | seed | top-1 % | change | GMACs | MACs % | kept % in training (target), by stage |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    for row in rows:
        shares = [f"{100 * kept:.1f} ({100 * target:.1f})" for kept, target in zip(row.kept, row.target)]
        lines.append(
            f"| {display_name(row.method)} | {row.seed} | {100 * row.top1:.2f} | {100 * row.change:+.2f} "
            f"| {row.gmacs:.5f} | {100 * row.macs_kept:.1f} | {', '.join(shares) or '-'} |"
        )
    return "\n".join(lines)
