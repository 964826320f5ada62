"""What the compare command asks of every method: a share of the dense network's MACs, or of its measured time."""

from __future__ import annotations

from dataclasses import dataclass

from prance_jax.baselines.predictor_config import PredictorConfig, predictor_at_latency, predictor_at_share
from prance_jax.config.comparison import CONSISTENT, INSERTED, CompareConfig
from prance_jax.models.reduction import METHODS, ScheduledReduction, at_macs, at_milliseconds
from prance_jax.spec.block_latency import BlockLatency
from prance_jax.spec.macs import macs
from prance_jax.spec.model_spec import ModelSpec


@dataclass(frozen=True)
class Target:
    """share: of MACs or, with a table, of the time that it holds for the dense network."""

    spec: ModelSpec
    share: float
    table: BlockLatency | None = None

    @property
    def label(self) -> str:
        """The end of a row's name: '_50' at half of the MACs, '_50_time' at half of the time."""
        return f"_{round(100 * self.share)}" + ("" if self.table is None else "_time")

    def reduction(self, name: str) -> ScheduledReduction:
        """A method's schedule: of the MACs nearest to the target, or the mildest within the time. Raises OutOfReach."""
        if self.table is None:
            return at_macs(self.spec, self.spec.largest, name, self._macs)
        return at_milliseconds(self.spec, name, self._milliseconds, self.table)

    def predictor(self, package: bool, heads: int) -> PredictorConfig:
        """Learned selectors, by the same measure. Raises OutOfReach."""
        if self.table is None:
            return predictor_at_share(self.spec, package, self.share, heads)
        return predictor_at_latency(self.spec, package, self._milliseconds, self.table, heads)

    def met(self, what: PredictorConfig) -> bool:
        """Whether selectors spend no more than the target."""
        if self.table is None:
            return what.macs(self.spec).total <= self._macs
        return what.milliseconds(self.spec, self.table) <= self._milliseconds

    @property
    def _macs(self) -> float:
        return self.share * macs(self.spec, self.spec.largest).total

    @property
    def _milliseconds(self) -> float:
        return self.share * self.table.dense


def heads_of(spec: ModelSpec, name: str, config: CompareConfig) -> int:
    """Of a method's selectors: DynamicViT has one."""
    return 1 if name == "dynamicvit" else config.predictor.heads or spec.space.heads


def measurable(spec: ModelSpec, config: CompareConfig) -> list[str | PredictorConfig]:
    """What a table of block latencies must know for the methods of a comparison; those that prune channels it cannot."""
    learned = {
        name: PredictorConfig(name != "dynamicvit", (0,), (1.0,), heads_of(spec, name, config))
        for name in ("spvit", "dynamicvit", INSERTED)
    }
    known = {**{name: name for name in METHODS}, CONSISTENT: "mctf", **learned}
    wanted = [known[name] for name in config.methods if name in known]
    return list(dict.fromkeys(wanted))
