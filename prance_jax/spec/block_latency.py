"""Latency by token count on a device: a measured table of one layer, from which the time of any schedule follows."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Sequence, TypeVar

import numpy as np

from prance_jax.core.errors import UserError
from prance_jax.spec.macs import TokenCounts
from prance_jax.spec.model_spec import ModelSpec

Setting = TypeVar("Setting")


class OutOfReach(UserError):
    """No setting of a method is fast enough."""


@dataclass(frozen=True)
class BlockLatency:
    """Milliseconds of one image, measured in batches of `batch` on one device, on the full widths of `network`.

    tokens: counts that were measured, rising (class tokens counted). attend, feed: attention and MLP of a layer at those
    counts, mean over the layers. dense: the whole network. outside: what of it is not in the layers (embedding,
    classifier, the call itself): the difference, so that what was measured of the dense network is what the table says
    of it. methods: (name, what one reduction takes besides when so many tokens arrive), of training-free methods and of
    learned selectors (named as by `Selective.name`).
    """

    network: str
    tokens: tuple[int, ...]
    attend: tuple[float, ...]
    feed: tuple[float, ...]
    dense: float
    outside: float
    methods: tuple[tuple[str, tuple[float, ...]], ...] = ()
    device: str = ""
    batch: int = 1

    def __post_init__(self):
        columns = [self.attend, self.feed, *(times for _, times in self.methods)]
        if len(self.tokens) < 2 or self.tokens[0] < 1 or list(self.tokens) != sorted(set(self.tokens)):
            raise UserError(f"block latencies: tokens={self.tokens} must be two or more counts that rise")
        if any(len(times) != len(self.tokens) or min(times) < 0 for times in columns):
            raise UserError("block latencies: need one time of 0 or more for each number of tokens")

    def milliseconds(self, counts: TokenCounts, method: str = "", arriving: Sequence[int] = ()) -> float:
        """Of an image with so many tokens in the attention and in the MLP of each layer, where `method` reduces tokens
        when `arriving` come, once for each of them.

        Between two measured counts a time is on the line through both. Below the smallest it is that of the smallest: no
        program was seen to be faster. Raises UserError above the largest, and for a method that was not measured.
        """
        total = self.outside + self._sum(self.attend, counts.attention) + self._sum(self.feed, counts.mlp)
        if not arriving:
            return total
        times = dict(self.methods)
        if method not in times:
            known = ", ".join(times) or "none"
            raise UserError(f"block latencies: {method!r} was not measured, only {known}; profile it, too")
        return total + self._sum(times[method], arriving)

    def save(self, path: str | Path, write: Callable[[Path, str], None]) -> None:
        """Writes JSON by `write(path, text)`."""
        record = {
            "network": self.network,
            "device": self.device,
            "batch": self.batch,
            "dense_ms": self.dense,
            "outside_ms": self.outside,
            "tokens": self.tokens,
            "attend_ms": self.attend,
            "feed_ms": self.feed,
            "methods_ms": dict(self.methods),
        }
        write(Path(path), json.dumps(record, indent=1) + "\n")

    def _sum(self, times: tuple[float, ...], counts: Sequence[int]) -> float:
        if max(counts) > self.tokens[-1]:
            raise UserError(
                f"block latencies: {max(counts)} tokens are beyond the {self.tokens[-1]} that were measured"
            )
        return float(np.interp(counts, self.tokens, times).sum())


def network_name(spec: ModelSpec) -> str:
    """What decides how fast a network is, the number of classes aside: tables are for networks of the same name."""
    space = spec.space
    sizes = f"{space.depth} layers of {space.max_width} channels, {space.heads} heads of {space.head_dim}"
    pruned = "" if spec.channels_left is None else f", channels left {spec.channels_left}"
    maps = ", residual maps" if spec.residual_maps else ""
    return (
        f"{sizes}, {space.max_mlp_dim} hidden units, {spec.tokens} tokens of {spec.patch_values} values, "
        f"{spec.dtype}{maps}{pruned}"
    )


def load_block_latency(path: str | Path, spec: ModelSpec) -> BlockLatency:
    """A table that `profile --what blocks` wrote, for a network of the same sizes.

    Raises UserError where there is none, it is broken, or it belongs to another network.
    """
    how = "write it with the profile command, --what blocks"
    try:
        record = json.loads(Path(path).read_text())
        methods = tuple((name, tuple(times)) for name, times in record["methods_ms"].items())
        columns = (tuple(record[name]) for name in ("tokens", "attend_ms", "feed_ms"))
        totals = float(record["dense_ms"]), float(record["outside_ms"])
        table = BlockLatency(record["network"], *columns, *totals, methods, record["device"], record["batch"])
    except FileNotFoundError:
        raise UserError(f"table of block latencies {path} does not exist; {how}") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is not a table of block latencies ({error}); {how}") from error
    if table.network != network_name(spec):
        raise UserError(
            f"table {path} was measured on another network ({table.network}; this one: {network_name(spec)})"
        )
    return table


def first_within(
    target: float, settings: Sequence[Setting], milliseconds: Callable[[Setting], float], table: BlockLatency
) -> Setting:
    """Of settings from little to much removed the first that takes at most `target` milliseconds: the one that keeps the
    most, also on a device where fewer tokens are slower at times. Raises OutOfReach where none is so fast."""
    fastest = float("inf")
    for setting in settings:
        taken = milliseconds(setting)
        if taken <= target:
            return setting
        fastest = min(fastest, taken)
    raise OutOfReach(
        f"no setting takes {target:.4g} ms an image: the fastest takes {fastest:.4g} of the dense network's "
        f"{table.dense:.4g} ({table.device}, batch {table.batch}); ask for {fastest:.4g} ms or more"
    )
