"""Rows of results, as they are stored."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

from prance_jax.core.errors import UserError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Speed:
    """One measurement of a program's speed. Times are medians over interleaved repeats.

    Attributes:
      method: ``dense``, ``masked``, ``adaptive``, ``largest`` (all images in the largest buckets),
        ``tome`` or ``evit``.
      batch: images per call.
      dtype: type of the computation, for example ``float32``.
      images_per_s: images per second.
      latency_ms: milliseconds per call.
      macs_kept: mean MACs as a share of the dense network's.
      speedup: images_per_s over that of the dense network at the same batch and type.
      realised_share: achieved share, ``speedup * macs_kept``; 1 where every MAC saved is time
        saved.
      spread: first and third quartile of the latency, ms.
      peak_mb: memory of the program by the compiler's own analysis, MiB, weights and images
        included; None if the compiler gives none.
      top1: share of the test images classified correctly; None for random weights.
    """

    method: str
    batch: int
    dtype: str
    images_per_s: float
    latency_ms: float
    macs_kept: float
    speedup: float
    realised_share: float
    spread: tuple[float, float]
    peak_mb: float | None
    top1: float | None = None


@dataclass(frozen=True)
class ExitShare:
    """Images that stopped at one exit of a cascade.

    Attributes:
      look: index of the look.
      group: group at whose end the exit is.
      share: share of the images that stopped there.
      top1: share of these that are classified correctly.
      macs_kept: their mean MACs as a share of the dense network's.
    """

    look: int
    group: int
    share: float
    top1: float
    macs_kept: float


@dataclass(frozen=True)
class Row:
    """One method with one seed. A figure that was not measured is None.

    Attributes:
      method: ``dense``, ``meta_largest``, ``best_static``, ``random_policy``, ``prance_prune``,
        ...; `names.display_name` gives the name for readers.
      seed: seed of the training run.
      top1: share of the images classified correctly; None where images have several labels.
      top1_change: top1 minus that of the dense network of the same seed.
      mean_ap: mean average precision where images have several labels.
      mean_ap_change: mean_ap minus that of the dense network of the same seed.
      gmacs: mean multiply-accumulates per image, in 1e9.
      macs_kept: gmacs over those of the dense network.
      tokens_left: share of the tokens kept at the end, in the last group. PRANCE's paper prints
        this one.
      tokens_mean: share of the tokens kept, averaged over the layers; larger than tokens_left.
      active_params: mean number of parameters used for an image.
      images_per_s: measured throughput, images per second.
      speedup: images_per_s over that of the dense network.
      realised_share: achieved share: measured speed-up over the one that the MACs promise,
        ``speedup * macs_kept``.
      won: images classified correctly here and wrongly by the dense network.
      lost: images classified wrongly here and correctly by the dense network.
      won_static: of a cascade, images classified correctly here and wrongly by the best static structure,
        fine-tuned, at the same budget.
      lost_static: images classified wrongly here and correctly by that structure.
      macs_p05: 5th percentile over images of their MACs, as a share of the dense network's.
      macs_p50: 50th percentile, the median.
      macs_p95: 95th percentile.
      difficulty_rho: Spearman's correlation over images of their MACs with the loss of the dense
        network (fine-tuned as long) on them; None where all images cost the same.
      gap_won: share of the distance between random routing (0) and the oracle (1) in top1.
      exits: of a cascade, where images stopped.
    """

    method: str
    seed: int
    top1: float | None = None
    top1_change: float | None = None
    gmacs: float | None = None
    macs_kept: float | None = None
    tokens_left: float | None = None
    tokens_mean: float | None = None
    active_params: float | None = None
    images_per_s: float | None = None
    speedup: float | None = None
    realised_share: float | None = None
    won: int | None = None
    lost: int | None = None
    won_static: int | None = None
    lost_static: int | None = None
    macs_p05: float | None = None
    macs_p50: float | None = None
    macs_p95: float | None = None
    difficulty_rho: float | None = None
    gap_won: float | None = None
    mean_ap: float | None = None
    mean_ap_change: float | None = None
    exits: tuple[ExitShare, ...] = ()


@dataclass(frozen=True)
class Results:
    """All rows of a run.

    Attributes:
      rows: methods and seeds, in the order of the table.
      images: number of test images evaluated.
      hardware: the machine in one line.
      command: the command line of the run.
      seconds: time of the whole run.
    """

    rows: tuple[Row, ...]
    images: int
    hardware: str
    command: str
    seconds: float


def load_results(workdir: str | Path) -> Results:
    """Reads ``results.json`` of a workdir.

    Raises:
      UserError: the file does not exist, or is not a results file.
    """
    path = Path(workdir) / "results.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        rows = tuple(_row(row) for row in record.pop("rows"))
        return Results(rows=rows, **record)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run evaluate on this workdir first") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is not a results file ({error}); run evaluate again") from error


def stored_results(workdir: str | Path) -> Results | None:
    """Returns the results of a workdir; None before its first evaluation, or, with a warning, if damaged."""
    if not (Path(workdir) / "results.json").exists():
        return None
    try:
        return load_results(workdir)
    except UserError as error:
        _log.warning("%s", error)
        return None


def _row(record: dict) -> Row:
    """A row as JSON keeps it."""
    return Row(**{**record, "exits": tuple(ExitShare(**item) for item in record.get("exits", ()))})
