"""Latency of a network by its token counts: a table of one layer's times, measured on a device.

Times of a layer and of a reduction add up to the time of any schedule. The attention of the last layer
has the time of any other, although only class tokens have queries there: a table has one column for all
layers. `BlockLatency.outside` corrects it for the dense network.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Sequence, TypeVar

import numpy as np

from prance_jax.core.errors import UserError
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.spec.token_counts import TokenCounts

Setting = TypeVar("Setting")


class LatencyTargetError(UserError):
    """No setting of a method is fast enough."""


@dataclass(frozen=True)
class BlockLatency:
    """Milliseconds per image, measured on one device at the full widths of a network.

    Attributes:
      network: the network that was measured, see `network_name`.
      tokens: token counts that were measured, ascending, class tokens counted.
      attention: milliseconds of one layer's attention at each count, mean over the layers.
      mlp: milliseconds of one layer's MLP at each count, mean over the layers.
      dense: milliseconds of the dense network.
      outside: milliseconds outside the layers (embedding, classifier, the call itself): `dense`
        less the layers, so that the table gives the measured time of the dense network. It is negative
        where the last layer saves more than that.
      methods: (name, added milliseconds of one reduction by the tokens before it) of training-free
        methods and of token predictors (names as `PredictorConfig.name`).
      device: that was measured.
      batch: images in a measured batch.

    Raises:
      UserError: `tokens` does not ascend, or a column has missing or negative times.
    """

    network: str
    tokens: tuple[int, ...]
    attention: tuple[float, ...]
    mlp: tuple[float, ...]
    dense: float
    outside: float
    methods: tuple[tuple[str, tuple[float, ...]], ...] = ()
    device: str = ""
    batch: int = 1

    def __post_init__(self):
        columns = [self.attention, self.mlp, *(times for _, times in self.methods)]
        if len(self.tokens) < 2 or self.tokens[0] < 1 or list(self.tokens) != sorted(set(self.tokens)):
            raise UserError(f"block latencies: tokens={self.tokens} must be two or more counts, ascending")
        if any(len(times) != len(self.tokens) or min(times) < 0 for times in columns):
            raise UserError("block latencies: need one time of 0 or more for each token count")

    def milliseconds(self, counts: TokenCounts, method: str = "", tokens_before: Sequence[int] = ()) -> float:
        """Computes the milliseconds of one image.

        Times between two measured counts are interpolated linearly. Below the smallest count its
        own time holds, since no program was measured to be faster.

        Args:
          counts: tokens in the attention and the MLP of each layer.
          method: name of the token method.
          tokens_before: tokens before each of its reductions; empty for none.

        Raises:
          UserError: a count exceeds the largest measured one, or the method was not measured.
        """
        total = self.outside + self._sum(self.attention, counts.attention) + self._sum(self.mlp, counts.mlp)
        if not tokens_before:
            return total
        times = dict(self.methods)
        if method not in times:
            measured = ", ".join(times) or "none"
            raise UserError(f"block latencies: {method!r} was not measured, only {measured}; profile it, too")
        return total + self._sum(times[method], tokens_before)

    def save(self, path: str | Path, write: Callable[[Path, str], None]) -> None:
        """Writes the table as JSON.

        Args:
          path: of the file.
          write: (path, text) -> None, writes the file.
        """
        record = {
            "network": self.network,
            "device": self.device,
            "batch": self.batch,
            "dense_ms": self.dense,
            "outside_ms": self.outside,
            "tokens": self.tokens,
            "attend_ms": self.attention,
            "feed_ms": self.mlp,
            "methods_ms": dict(self.methods),
        }
        write(Path(path), json.dumps(record, indent=1) + "\n")

    def _sum(self, times: tuple[float, ...], counts: Sequence[int]) -> float:
        """Sum of a column's times at the given token counts."""
        if max(counts) > self.tokens[-1]:
            raise UserError(
                f"block latencies: {max(counts)} tokens exceed the {self.tokens[-1]} that were measured"
            )
        return float(np.interp(counts, self.tokens, times).sum())


def network_name(spec: ModelSpec) -> str:
    """Describes the sizes that set a network's speed, the number of classes excluded.

    A table serves all networks of the same name.
    """
    space = spec.space
    sizes = f"{space.depth} layers of {space.max_width} channels, {space.heads} heads of {space.head_dim}"
    pruned = "" if spec.channels_left is None else f", channels left {spec.channels_left}"
    maps = ", residual maps" if spec.residual_maps else ""
    return (
        f"{sizes}, {space.max_mlp_dim} hidden units, {spec.tokens} tokens of {spec.patch_values} values, "
        f"{spec.dtype}{maps}{pruned}"
    )


def load_block_latency(path: str | Path, spec: ModelSpec) -> BlockLatency:
    """Reads a table that `profile --what blocks` wrote.

    Args:
      path: of the JSON file.
      spec: of the network that the table is for.

    Raises:
      UserError: the file is missing or malformed, or was measured on a network of other sizes.
    """
    remedy = "write it with the profile command, --what blocks"
    try:
        record = json.loads(Path(path).read_text())
        table = BlockLatency(
            network=record["network"],
            tokens=tuple(record["tokens"]),
            attention=tuple(record["attend_ms"]),
            mlp=tuple(record["feed_ms"]),
            dense=float(record["dense_ms"]),
            outside=float(record["outside_ms"]),
            methods=tuple((name, tuple(times)) for name, times in record["methods_ms"].items()),
            device=record["device"],
            batch=record["batch"],
        )
    except FileNotFoundError:
        raise UserError(f"table of block latencies {path} does not exist; {remedy}") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is not a table of block latencies ({error}); {remedy}") from error
    if table.network != network_name(spec):
        raise UserError(
            f"table {path} was measured on another network ({table.network}; this one: {network_name(spec)})"
        )
    return table


def first_fast_enough(
    target: float, settings: Sequence[Setting], milliseconds: Callable[[Setting], float], table: BlockLatency
) -> Setting:
    """Returns the first setting that is fast enough, which keeps the most tokens.

    On some devices fewer tokens are slower at times; the order of the settings still holds.

    Args:
      target: milliseconds of an image at most.
      settings: of a token method, from the fewest to the most tokens removed.
      milliseconds: setting -> milliseconds of an image.
      table: that the times are from, for the error message.

    Raises:
      LatencyTargetError: no setting is fast enough.
    """
    fastest = float("inf")
    for setting in settings:
        time = milliseconds(setting)
        if time <= target:
            return setting
        fastest = min(fastest, time)
    raise LatencyTargetError(
        f"no setting takes {target:.4g} ms an image: the fastest takes {fastest:.4g} of the dense network's "
        f"{table.dense:.4g} ({table.device}, batch {table.batch}); ask for {fastest:.4g} ms or more"
    )
