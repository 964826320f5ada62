"""What an experiment is made of, as frozen dataclasses; config files fill them (see `config_io`).

Sections that train are in `config_stages`, those of the other methods of the field in `config_field`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from prance_jax.config.comparison import CompareConfig
from prance_jax.config.other_tasks import PiTConfig, SegmentConfig
from prance_jax.config.stages import DenseConfig, FinetuneConfig, MetaConfig, SelectorConfig
from prance_jax.core.errors import UserError
from prance_jax.core.sharding import MeshConfig
from prance_jax.data.load import DataConfig
from prance_jax.models.reduction import METHODS
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.spec.search_space import SPACES, SearchSpace
from prance_jax.tokens.methods.registry import get_method


@dataclass(frozen=True)
class SpaceConfig:
    """A search space: a preset by name, any field given here taking the place of the preset's."""

    preset: str = "nano"
    super_width: int | None = None
    super_ratio: float | None = None
    heads: int | None = None
    head_dim: int | None = None
    widths: tuple[int, ...] | None = None
    ratios: tuple[float, ...] | None = None
    layers: tuple[int, ...] | None = None

    def build(self) -> SearchSpace:
        """Raises UserError for an unknown preset or choices that do not fit."""
        if self.preset not in SPACES:
            raise UserError(
                f"search space preset {self.preset!r} is not known; choose from {', '.join(SPACES)}"
            )
        names = ("super_width", "super_ratio", "heads", "head_dim", "widths", "ratios", "layers")
        base = SPACES[self.preset]
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        return SearchSpace(
            **{
                "name": self.preset if not given else f"{self.preset}*",
                **{n: getattr(base, n) for n in names},
                **given,
            }
        )


@dataclass(frozen=True)
class ModelConfig:
    """The network; image size, channels and classes come from the data.

    distilled, residual_maps: see `ModelSpec`.
    first_group: the fixed structure of group 0 under a selector: 'min', 'max' or WIDTHxRATIO, say '48x2'.
    """

    space: SpaceConfig = field(default_factory=SpaceConfig)
    patch_size: int = 4
    weighted_merge: bool = False
    norm_epsilon: float = 1e-6
    dtype: str = "float32"
    remat: bool = False
    distilled: bool = False
    residual_maps: bool = True
    first_group: str = "min"


@dataclass(frozen=True)
class BaselineConfig:
    """What PRANCE is compared with.

    candidates: static structures looked at in the search. finetune: baselines get a stage three of their own, with as
      many steps as PRANCE's; else they run on stage one's weights.
    reductions: of `models.reduced`, run on the dense network as they are, at PRANCE's MACs.
    single_budget: beside a selector of every budget, one trained for each of `budgets` alone.
    """

    candidates: int = 200
    images: int = 512
    finetune: bool = False
    single_budget: bool = False
    reductions: tuple[str, ...] = ("tome", "evit")

    def __post_init__(self):
        for name in self.reductions:
            if name not in METHODS:
                raise UserError(
                    f"baselines.reductions: {name!r} is not known; choose from {', '.join(METHODS)}"
                )


@dataclass(frozen=True)
class EvaluationConfig:
    """batch: images per compiled call. speed_seconds: time given to the speed measurement of all methods together.

    plans, token_multiple, chunk, calibration_images: of the adaptive executor, see `inference`.
    """

    batch: int = 250
    speed_seconds: float = 4.0
    buckets: int = 4
    token_multiple: int = 4
    chunk: int = 25
    calibration_images: int = 1000


@dataclass(frozen=True)
class Config:
    """One experiment. token_modes: a selector and a fine-tuned network for each; seeds: everything once per seed.

    budgets: shares of dense MACs at which a selector of every budget (`selector.cost_weights`) is evaluated, a row each.
    """

    name: str = "experiment"
    seeds: tuple[int, ...] = (0,)
    token_modes: tuple[str, ...] = ("prune",)
    budgets: tuple[float, ...] = ()
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    dense: DenseConfig = field(default_factory=DenseConfig)
    meta: MetaConfig = field(default_factory=MetaConfig)
    selector: SelectorConfig = field(default_factory=SelectorConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    baselines: BaselineConfig = field(default_factory=BaselineConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    compare: CompareConfig = field(default_factory=CompareConfig)
    segment: SegmentConfig = field(default_factory=SegmentConfig)
    pit: PiTConfig = field(default_factory=PiTConfig)
    checkpoint_seconds: float = 30.0
    mesh: MeshConfig = field(default_factory=MeshConfig)

    def __post_init__(self):
        if not self.seeds or not self.token_modes:
            raise UserError("config: seeds and token_modes need at least one entry each")
        for mode in self.token_modes:
            get_method(mode)
        if (self.selector.cost_weights is None) != (not self.budgets):
            raise UserError("config: selector.cost_weights and budgets belong together; give both or neither")
        if not all(0 < budget <= 1 for budget in self.budgets):
            raise UserError(f"budgets={self.budgets} must be shares of dense MACs, above 0 and up to 1")

    def spec(self, source, mode: str) -> ModelSpec:
        """The network for a data source under one token mode."""
        model = self.model
        return ModelSpec(
            space=model.space.build(),
            image_size=source.image_size,
            patch_size=model.patch_size,
            num_classes=source.num_classes,
            channels=source.channels,
            token_optimization=mode,
            weighted_merge=model.weighted_merge,
            norm_epsilon=model.norm_epsilon,
            dtype=model.dtype,
            remat=model.remat,
            distilled=model.distilled,
            residual_maps=model.residual_maps,
            pixels=getattr(source, "pixels", False),
        )
