"""Where token predictors stand in a network, how many tokens each keeps, and what that costs."""

from __future__ import annotations

from dataclasses import dataclass

from prance_jax.baselines.token_predictor import predictor_macs
from prance_jax.core.errors import UserError
from prance_jax.core.sizes import Size
from prance_jax.spec.block_latency import BlockLatency, OutOfReach, first_within
from prance_jax.spec.macs import Macs, TokenCounts, macs
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.tokens.method import TokenMethod
from prance_jax.tokens.methods.registry import METHODS


@dataclass(frozen=True)
class PredictorConfig:
    """What is selected where. Hashable: it selects a compiled program.

    package: what is dropped goes into a package token (SPViT); else it is gone (DynamicViT). sites: layers, from 0,
    before which a selector stands. kept: share of the original patches that stays at each, never rising. heads: of the
    selectors; 1 is DynamicViT's, which has no branch of head importance. by_threshold: evaluation keeps the tokens that
    are more likely to be kept than not, so every image has a number of its own; else the best `kept` of each.
    """

    package: bool
    layers: tuple[int, ...]
    keep_rates: tuple[float, ...]
    heads: int = 1
    by_threshold: bool = False

    def __post_init__(self):
        if len(self.layers) != len(self.keep_rates) or list(self.layers) != sorted(set(self.layers)):
            raise UserError(
                f"predictor: layers={self.layers} must rise, with a share of keep_rates={self.keep_rates} for each"
            )
        if list(self.keep_rates) != sorted(self.keep_rates, reverse=True) or not all(
            0 < share <= 1 for share in self.keep_rates
        ):
            raise UserError(
                f"predictor: keep_rates={self.keep_rates} must be shares above 0 and up to 1 that never rise"
            )

    @property
    def method(self) -> TokenMethod:
        """What removes the tokens."""
        return METHODS["package" if self.package else "prune"]

    @property
    def name(self) -> str:
        """By which tables of latencies know a selector: 'spvit_H' with H heads, or 'dynamicvit_1'."""
        return f"{'spvit' if self.package else 'dynamicvit'}_{self.heads}"

    def tokens_after(self, spec: ModelSpec) -> tuple[int, ...]:
        """Tokens (CLS and the package counted) in each layer at the shares of `kept`."""
        count, counts, dropped = spec.tokens, [], False
        for layer in range(spec.space.depth):
            if layer in self.layers:
                wanted = max(1, round(self.keep_rates[self.layers.index(layer)] * spec.patches))
                dropped |= wanted < spec.patches
                count = min(count, 1 + wanted + (self.package and dropped))
            counts.append(count)
        return tuple(counts)

    def macs(self, spec: ModelSpec, tokens_after: tuple[Size, ...] | None = None) -> Macs:
        """Multiply-accumulates of one image, selectors included, with CLS alone in the last MLP. left: tokens in each
        layer, ints or int32 [B]; by default those at the shares of `kept`."""
        tokens_after = tokens_after or self.tokens_after(spec)
        counts = TokenCounts(tokens_after, (*tokens_after[:-1], 1))
        before = (spec.tokens, *tokens_after)
        width = spec.space.max_width
        selectors = sum(predictor_macs(before[site] - 1, width, self.heads) for site in self.layers)
        return macs(spec, spec.largest, counts=counts)._replace(selector=selectors)

    def milliseconds(self, spec: ModelSpec, table: BlockLatency) -> float:
        """Of one image at the shares of `kept`, by a measured table, selectors included."""
        tokens_after = self.tokens_after(spec)
        before = (spec.tokens, *tokens_after)
        counts = TokenCounts(tokens_after, (*tokens_after[:-1], 1))
        return table.milliseconds(counts, self.name, tuple(before[site] for site in self.layers))


def predictor_at_share(
    spec: ModelSpec, package: bool, share: float, heads: int = 1, by_threshold: bool = False
) -> PredictorConfig:
    """Of `selections` the one whose multiply-accumulates come nearest to `share` of the full network's."""
    target = share * macs(spec, spec.largest).total
    own = candidate_predictors(spec, package, heads, by_threshold)
    return min(reversed(own), key=lambda choice: abs(choice.macs(spec).total - target))


def predictor_at_latency(
    spec: ModelSpec,
    package: bool,
    target: float,
    table: BlockLatency,
    heads: int = 1,
    by_threshold: bool = False,
) -> PredictorConfig:
    """Of `selections` the one that keeps the most of those whose time by a measured table is at most `target`
    milliseconds an image: SPViT's way from a budget of latency to kept shares. Raises OutOfReach, a UserError, where none
    is so fast."""
    own = candidate_predictors(spec, package, heads, by_threshold)
    try:
        return first_within(target, own, lambda choice: choice.milliseconds(spec, table), table)
    except OutOfReach as error:
        raise OutOfReach(f"{own[0].name}: {error}") from None


def candidate_predictors(
    spec: ModelSpec, package: bool, heads: int = 1, by_threshold: bool = False
) -> list[PredictorConfig]:
    """Selectors after a quarter, half and three quarters of the layers that keep rho, rho^2 and rho^3 of the patches, for
    rho from 1 down in steps of 0.01."""
    depth = spec.space.depth
    layers = tuple(sorted({depth // 4, depth // 2, 3 * depth // 4}))

    def choice(rho: float) -> PredictorConfig:
        keep_rates = tuple(rho ** (i + 1) for i in range(len(layers)))
        return PredictorConfig(package, layers, keep_rates, heads, by_threshold)

    return [choice(percent / 100) for percent in range(100, 0, -1)]
