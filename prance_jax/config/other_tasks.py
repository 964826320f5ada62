"""Sections of a configuration for the commands `segment` and `pit`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated

from prance_jax.baselines.pit_spec import PiTSizes, PiTSpec
from prance_jax.config.comparison import PredictorLossConfig
from prance_jax.config.stages import FinetuneConfig, MetaConfig, SelectorConfig
from prance_jax.core.errors import UserError
from prance_jax.core.fields import Entries, Index, Positive, Share
from prance_jax.models.reduction import METHODS
from prance_jax.selector.reward import RewardConfig
from prance_jax.tokens.methods.registry import get_method


@dataclass(frozen=True)
class SegmentConfig:
    """The command `segment`: a segmenter on the embedded task, token methods on it, and PRANCE.

    Quality is a mean over pixels, most of which are background, so cost weights are smaller than in
    classification.

    Attributes:
      train: training of the dense segmenter.
      tune: fine-tuning of the dense segmenter under each method, with itself as the teacher; 0 steps
        for none.
      methods: names of `models.reduction.METHODS`.
      share: share of the dense segmenter's MACs at which all methods run, above 0 and up to 1. It
        replaces `selector.reward.target_macs`.
      token_modes: token modes of PRANCE, one row each; None for those of the run, () for none.
      meta: stage one of PRANCE.
      selector: stage two of PRANCE.
      finetune: stage three of PRANCE.
    """

    train: FinetuneConfig = field(default_factory=lambda: FinetuneConfig(steps=2000, batch=32))
    tune: FinetuneConfig = field(default_factory=FinetuneConfig)
    methods: Annotated[tuple[str, ...], Entries("distinct")] = ("tome", "cait", "prune", "merge")
    share: Share = 0.7
    token_modes: Annotated[tuple[str, ...], Entries("distinct")] | None = None
    meta: MetaConfig = field(
        default_factory=lambda: MetaConfig(steps=1500, batch=32, random_batch=24, init_from="dense")
    )
    selector: SelectorConfig = field(
        default_factory=lambda: SelectorConfig(
            pool=4096, state="lean", reward=RewardConfig(quality="agreement", marginal=True, keep_weight=0.0)
        )
    )
    finetune: FinetuneConfig = field(default_factory=lambda: FinetuneConfig(steps=500, batch=32))

    def __post_init__(self):
        if self.selector.cost_weights is not None:
            raise UserError(
                "segment.selector.cost_weights: the segment command trains for one budget, segment.share"
            )
        for mode in self.token_modes or ():
            get_method(mode)
        for name in self.methods:
            if name not in METHODS:
                raise UserError(f"segment.methods: {name!r} is not known; choose from {', '.join(METHODS)}")


@dataclass(frozen=True)
class PiTConfig(PiTSizes):
    """The command `pit`: a pooling-based ViT, then fine-tuned with SPViT's predictors in its stages.

    Attributes:
      share: share of the dense network's MACs, above 0 and up to 1.
      predictor_blocks: block of each stage, from 0, before which its predictor stands; None for the
        middle of each stage.
      powers: for each stage the power of the common keep rate, see `baselines.pit_spec.pit_at_share`;
        None for 1, 2, 3 and so on.
      train: training of the dense network.
      tune: fine-tuning of the dense network with itself as the teacher, once with predictors and once
        without; 0 steps for neither.
      predictor: losses and heads of the predictors.
    """

    share: Share = 0.6
    predictor_blocks: tuple[Index, ...] | None = None
    powers: tuple[Positive, ...] | None = None
    train: FinetuneConfig = field(default_factory=FinetuneConfig)
    tune: FinetuneConfig = field(default_factory=FinetuneConfig)
    predictor: PredictorLossConfig = field(default_factory=PredictorLossConfig)

    def spec(self, source) -> PiTSpec:
        """Returns the specification of the network without predictors, for a data source."""
        sizes = {size.name: getattr(self, size.name) for size in dataclasses.fields(PiTSizes)}
        return PiTSpec(source.image_size, source.num_classes, channels=source.channels, **sizes)
