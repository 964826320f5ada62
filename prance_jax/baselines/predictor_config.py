"""Where the token predictors of a network stand, how many tokens they keep, and their cost."""

from __future__ import annotations

from dataclasses import dataclass

from prance_jax.baselines.token_predictor import predictor_macs
from prance_jax.core.errors import UserError
from prance_jax.core.sizes import Size
from prance_jax.spec.block_latency import BlockLatency, LatencyTargetError, first_fast_enough
from prance_jax.spec.macs import Macs, macs
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.spec.token_counts import TokenCounts, with_last_layer
from prance_jax.tokens.method import TokenMethod
from prance_jax.tokens.methods.registry import METHODS


@dataclass(frozen=True)
class PredictorConfig:
    """Token predictors of a network. Hashable: it selects a compiled program.

    Attributes:
      package: whether dropped tokens are pooled into a package token (SPViT); else they are lost
        (DynamicViT).
      layers: from 0, ascending; a predictor stands before each of them.
      keep_rates: share of the original patches that each predictor keeps, in (0, 1], never rising.
      heads: of the predictors; 1 as in DynamicViT, without a branch of head importance.
      by_threshold: whether evaluation keeps the tokens that are more likely kept than dropped, so
        that every image has its own number; else each image keeps the most likely tokens at
        `keep_rates`.

    Raises:
      UserError: `layers` or `keep_rates` are out of order, out of range or differ in length.
    """

    package: bool
    layers: tuple[int, ...]
    keep_rates: tuple[float, ...]
    heads: int = 1
    by_threshold: bool = False

    def __post_init__(self):
        if len(self.layers) != len(self.keep_rates) or list(self.layers) != sorted(set(self.layers)):
            raise UserError(
                f"predictor: layers={self.layers} must ascend, with one share of "
                f"keep_rates={self.keep_rates} for each"
            )
        if list(self.keep_rates) != sorted(self.keep_rates, reverse=True) or not all(
            0 < share <= 1 for share in self.keep_rates
        ):
            raise UserError(
                f"predictor: keep_rates={self.keep_rates} must be shares above 0 and up to 1 that never rise"
            )

    @property
    def method(self) -> TokenMethod:
        """The token method that removes what predictors drop."""
        return METHODS["package" if self.package else "prune"]

    @property
    def name(self) -> str:
        """Name in tables of block latencies: 'spvit_H' with H heads, or 'dynamicvit_1'."""
        return f"{'spvit' if self.package else 'dynamicvit'}_{self.heads}"

    def tokens_after(self, spec: ModelSpec) -> tuple[int, ...]:
        """Returns the tokens in each layer at `keep_rates`, CLS and the package counted."""
        count, counts, has_package = spec.tokens, [], False
        for layer in range(spec.space.depth):
            if layer in self.layers:
                num_patches = max(1, round(self.keep_rates[self.layers.index(layer)] * spec.patches))
                has_package |= self.package and num_patches < spec.patches
                count = min(count, 1 + num_patches + has_package)
            counts.append(count)
        return tuple(counts)

    def macs(self, spec: ModelSpec, tokens_after: tuple[Size, ...] | None = None) -> Macs:
        """Counts the multiply-accumulates of one image, predictors included.

        Args:
          spec: the network.
          tokens_after: tokens in each layer, ints or int32 [B]; by default those at `keep_rates`.
        """
        tokens_after = tokens_after or self.tokens_after(spec)
        tokens_before, width = self._tokens_before(spec, tokens_after), spec.space.max_width
        predictors = sum(predictor_macs(count - 1, width, self.heads) for count in tokens_before)
        return macs(spec, spec.largest, counts=_token_counts(spec, tokens_after))._replace(
            selector=predictors
        )

    def milliseconds(self, spec: ModelSpec, table: BlockLatency) -> float:
        """Looks up the time of one image at `keep_rates`, predictors included.

        Args:
          spec: the network.
          table: measured times of its layers and predictors.
        """
        tokens_after = self.tokens_after(spec)
        counts, tokens_before = _token_counts(spec, tokens_after), self._tokens_before(spec, tokens_after)
        return table.milliseconds(counts, self.name, tokens_before)

    def _tokens_before(self, spec: ModelSpec, tokens_after: tuple[Size, ...]) -> tuple[Size, ...]:
        """Tokens that arrive at each predictor."""
        before = (spec.tokens, *tokens_after)
        return tuple(before[layer] for layer in self.layers)


def _token_counts(spec: ModelSpec, tokens_after: tuple[Size, ...]) -> TokenCounts:
    """Tokens in attention and MLP of each layer; a predictor stands before both."""
    return with_last_layer(spec, tokens_after, tokens_after)


def predictor_at_share(
    spec: ModelSpec, package: bool, share: float, heads: int = 1, by_threshold: bool = False
) -> PredictorConfig:
    """Finds the predictors whose MACs come nearest to a share of the dense network's.

    Args:
      spec: the network.
      package: see `PredictorConfig`.
      share: of the dense network's MACs.
      heads: of the predictors.
      by_threshold: see `PredictorConfig`.

    Returns:
      One of `candidate_predictors`.
    """
    target = share * macs(spec, spec.largest).total
    candidates = candidate_predictors(spec, package, heads, by_threshold)
    return min(reversed(candidates), key=lambda predictor: abs(predictor.macs(spec).total - target))


def predictor_at_latency(
    spec: ModelSpec,
    package: bool,
    target: float,
    table: BlockLatency,
    heads: int = 1,
    by_threshold: bool = False,
) -> PredictorConfig:
    """Finds the predictors that keep the most tokens within a target latency, as SPViT does.

    Args:
      spec: the network.
      package: see `PredictorConfig`.
      target: milliseconds of one image at most.
      table: measured times of the network's layers and predictors.
      heads: of the predictors.
      by_threshold: see `PredictorConfig`.

    Returns:
      One of `candidate_predictors`.

    Raises:
      LatencyTargetError: no candidate is so fast. It is a UserError.
    """
    candidates = candidate_predictors(spec, package, heads, by_threshold)
    try:
        return first_fast_enough(
            target, candidates, lambda predictor: predictor.milliseconds(spec, table), table
        )
    except LatencyTargetError as error:
        raise LatencyTargetError(f"{candidates[0].name}: {error}") from None


def candidate_predictors(
    spec: ModelSpec, package: bool, heads: int = 1, by_threshold: bool = False
) -> list[PredictorConfig]:
    """Lists the usual predictors, from those that keep everything to those that keep the least.

    They stand at a quarter, half and three quarters of the depth and keep rho, rho^2 and rho^3 of
    the patches, for rho from 1 down in steps of 0.01.

    Args:
      spec: the network.
      package: see `PredictorConfig`.
      heads: of the predictors.
      by_threshold: see `PredictorConfig`.
    """
    depth = spec.space.depth
    layers = tuple(sorted({depth // 4, depth // 2, 3 * depth // 4}))

    def at_rate(rho: float) -> PredictorConfig:
        keep_rates = tuple(rho ** (i + 1) for i in range(len(layers)))
        return PredictorConfig(package, layers, keep_rates, heads, by_threshold)

    return [at_rate(percent / 100) for percent in range(100, 0, -1)]


def check_network(spec: ModelSpec) -> None:
    """Checks that token predictors support a network.

    Raises:
      UserError: the network is distilled, predicts pixels, or does not classify a CLS before its patches.
    """
    parts = spec.architecture
    if spec.distilled:
        raise UserError("token predictors support one class token; a distilled network has two")
    if spec.pixels:
        raise UserError(
            "token predictors keep what the class token needs; with pixels=True use a token method"
        )
    if parts.global_pool != "token" or parts.reg_tokens or parts.rope_temperature or not spec.num_classes:
        raise UserError(
            "token predictors support a classified CLS and patches without rotation; set global_pool='token', "
            f"reg_tokens=0, rope_temperature=None and num_classes above 0; there are {parts} and "
            f"num_classes={spec.num_classes}"
        )
