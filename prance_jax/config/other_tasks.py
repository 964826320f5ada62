"""Configuration of the commands `segment` and `pit`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from prance_jax.baselines.pit_spec import PiTSizes, PiTSpec
from prance_jax.config.comparison import PredictorLossConfig
from prance_jax.config.stages import FinetuneConfig, MetaConfig, SelectorConfig
from prance_jax.core.errors import UserError
from prance_jax.models.reduction import METHODS
from prance_jax.selector.reward import RewardConfig
from prance_jax.tokens.methods.registry import get_method


@dataclass(frozen=True)
class SegmentConfig:
    """The segment command: a segmenter on the embedded task, token methods on it, and PRANCE.

    train: of the dense one. tune: of each method from it, with it as the teacher; steps 0 leaves it out. methods: of
    `models.reduced`. share: of the dense segmenter's MACs that all of them run at.
    token_modes: of PRANCE, a row each; by default those of the run, () for none. meta, selector, finetune: its three stages, as
    for classification; `share` takes the place of `reward.target_macs`. Quality is a mean over pixels, most of
    which are background, so prices are smaller than in classification.
    """

    train: FinetuneConfig = field(default_factory=lambda: FinetuneConfig(steps=2000, batch=32))
    tune: FinetuneConfig = field(default_factory=FinetuneConfig)
    methods: tuple[str, ...] = ("tome", "cait", "prune", "merge")
    share: float = 0.7
    token_modes: tuple[str, ...] | None = None
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
        if not 0 < self.share <= 1:
            raise UserError(f"segment.share={self.share} must be a share of dense MACs, above 0 and up to 1")
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
    """The pit command: a pooling-based ViT trained, then tuned with SPViT's selectors in each of its stages.

    share: of the dense network's MACs; sites, powers: where selectors stand and how the stages share it, see
    `models.pit.pit_at_share`. train: of the dense network. tune: from it, with it as the teacher, once with selectors and
    once as it is; steps 0 leaves both out.
    """

    share: float = 0.6
    predictor_blocks: tuple[int, ...] | None = None
    powers: tuple[float, ...] | None = None
    train: FinetuneConfig = field(default_factory=FinetuneConfig)
    tune: FinetuneConfig = field(default_factory=FinetuneConfig)
    predictor: PredictorLossConfig = field(default_factory=PredictorLossConfig)

    def __post_init__(self):
        if not 0 < self.share <= 1:
            raise UserError(f"pit.share={self.share} must be a share of dense MACs, above 0 and up to 1")

    def spec(self, source) -> PiTSpec:
        """The plain network for a data source."""
        sizes = {size.name: getattr(self, size.name) for size in dataclasses.fields(PiTSizes)}
        return PiTSpec(source.image_size, source.num_classes, channels=source.channels, **sizes)
