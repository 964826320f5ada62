"""The target of the compare command: a share of the dense network's MACs or measured time."""

from __future__ import annotations

from dataclasses import dataclass

from prance_jax.baselines.predictor_config import PredictorConfig, predictor_at_latency, predictor_at_share
from prance_jax.config.comparison import MCTF_CONSISTENT, SPVIT_INSERTED, CompareConfig
from prance_jax.models.reduction import METHODS, ScheduledReduction, reduction_at_latency, reduction_at_macs
from prance_jax.spec.block_latency import BlockLatency
from prance_jax.spec.macs import macs
from prance_jax.spec.model_spec import ModelSpec


@dataclass(frozen=True)
class Target:
    """A budget for a method.

    Attributes:
      spec: the network.
      share: of the dense network's MACs or, with a table, of its time.
      table: measured block latencies; None for targets in MACs.
    """

    spec: ModelSpec
    share: float
    table: BlockLatency | None = None

    @property
    def label(self) -> str:
        """The end of a row's key: '_50' at half of the MACs, '_50_time' at half of the time."""
        return f"_{round(100 * self.share)}" + ("" if self.table is None else "_time")

    def reduction(self, name: str) -> ScheduledReduction:
        """Returns a method's schedule: nearest in MACs, or the mildest within the time.

        Raises:
          LatencyTargetError: no schedule is fast enough.
        """
        if self.table is None:
            return reduction_at_macs(self.spec, self.spec.largest, name, self._macs)
        return reduction_at_latency(self.spec, name, self._milliseconds, self.table)

    def predictor(self, package: bool, heads: int) -> PredictorConfig:
        """Returns token predictors at the target.

        Args:
          package: whether removed tokens are collected in a package token (SPViT) or dropped
            (DynamicViT).
          heads: of each predictor.

        Raises:
          LatencyTargetError: no setting is cheap enough.
        """
        if self.table is None:
            return predictor_at_share(self.spec, package, self.share, heads)
        return predictor_at_latency(self.spec, package, self._milliseconds, self.table, heads)

    def met(self, predictor: PredictorConfig) -> bool:
        """Returns whether token predictors spend no more than the target."""
        if self.table is None:
            return predictor.macs(self.spec).total <= self._macs
        return predictor.milliseconds(self.spec, self.table) <= self._milliseconds

    @property
    def _macs(self) -> float:
        return self.share * macs(self.spec, self.spec.largest).total

    @property
    def _milliseconds(self) -> float:
        return self.share * self.table.dense


def predictor_heads(spec: ModelSpec, name: str, config: CompareConfig) -> int:
    """Returns the number of heads of a method's token predictors: one for DynamicViT.

    Args:
      spec: the network, whose heads are the default.
      name: 'spvit' or 'dynamicvit'.
      config: of the compare command.
    """
    return 1 if name == "dynamicvit" else config.predictor.heads or spec.space.heads


def measurable(spec: ModelSpec, config: CompareConfig) -> list[str | PredictorConfig]:
    """Returns what a table of block latencies must contain for the methods of a comparison.

    Methods that prune channels are left out: such a table cannot time them.

    Args:
      spec: the network.
      config: of the compare command.
    """
    predictors = {
        name: PredictorConfig(name != "dynamicvit", (0,), (1.0,), predictor_heads(spec, name, config))
        for name in ("spvit", "dynamicvit", SPVIT_INSERTED)
    }
    known = {**{name: name for name in METHODS}, MCTF_CONSISTENT: "mctf", **predictors}
    return list(dict.fromkeys(known[name] for name in config.methods if name in known))
