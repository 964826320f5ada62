"""Rows of results, as they are stored."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from prance_jax.core.errors import UserError


@dataclass(frozen=True)
class Speed:
    """One measurement. Times are medians over interleaved repeats.

    macs_kept: share of the dense network's MACs. speedup: against dense at the same batch and type. realised_share:
    speedup x macs_kept, 1 where every MAC saved is time saved. spread: quartiles of the latency, ms. peak_mb: memory of
    the program by the compiler's own analysis, weights and images included; None where it does not tell. top1: accuracy on
    the test images, of a trained workdir.
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
class Row:
    """One method with one seed.

    Attributes:
      method: ``dense``, ``meta_largest``, ``best_static``, ``random_policy``, ``prance_prune``, ...
      seed: of the training run.
      top1: share of the images that are classified rightly.
      top1_change: top1 minus that of the dense network of the same seed.
      gmacs: mean multiply-accumulates an image, in 1e9.
      macs_kept: gmacs over those of the dense network.
      tokens_left: tokens in the last group over the original ones.
      tokens_mean: the same, averaged over the layers.
      active_params: mean number of parameters used for an image.
      images_per_s: measured throughput.
      speedup: images_per_s over that of the dense network.
      realised_share: measured speed-up over the one that the MACs promise, ``speedup * macs_kept``.
      won, lost: images that are right here and wrong in the dense network, and the other way round.
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


@dataclass(frozen=True)
class Results:
    """All rows of a run; `images` evaluated, on `hardware`, by `command`, in `seconds` altogether."""

    rows: tuple[Row, ...]
    images: int
    hardware: str
    command: str
    seconds: float


def load_results(workdir: str | Path) -> Results:
    """Reads ``results.json`` of a workdir.

    Raises:
      UserError: there is none, or it is not one.
    """
    path = Path(workdir) / "results.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        rows = tuple(Row(**row) for row in record.pop("rows"))
        return Results(rows=rows, **record)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run evaluate on this workdir first") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is not a results file ({error}); run evaluate again") from error
