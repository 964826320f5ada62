"""The configuration of an experiment as frozen dataclasses, filled by config files (see `config.io`).

Sections that train are in `config.stages`, those of single commands in `config.comparison` and
`config.other_tasks`.
"""

from __future__ import annotations

import types
from dataclasses import dataclass, field
from typing import Annotated, Literal

from prance_jax.config.cascade import CascadeConfig, cascade_spec
from prance_jax.config.comparison import CompareConfig
from prance_jax.config.other_tasks import PiTConfig, SegmentConfig
from prance_jax.config.stages import DenseConfig, FinetuneConfig, MetaConfig, SelectorConfig, ValidationConfig
from prance_jax.core.errors import UserError
from prance_jax.core.fields import (
    Batch,
    Entries,
    NumChannels,
    NumImages,
    Range,
    Ratio,
    Repeats,
    Seed,
    Share,
    Side,
    Weight,
)
from prance_jax.core.sharding import MeshConfig
from prance_jax.data.load import DataConfig
from prance_jax.models.reduction import METHODS
from prance_jax.spec.model_spec import ModelSpec
from prance_jax.spec.search_space import SPACES, SearchSpace
from prance_jax.tokens.methods.registry import get_method


@dataclass(frozen=True)
class SpaceConfig:
    """A search space: a preset, with the fields given here in place of the preset's.

    Attributes:
      preset: name of a preset, one of `spec.search_space.SPACES`.
      super_width: stored embedding width, channels; this and all fields below: None for the preset's.
      super_ratio: stored MLP ratio.
      heads: attention heads.
      head_dim: channels of a head.
      widths: embedding widths to choose from, ascending.
      ratios: MLP ratios to choose from, ascending.
      layers: layers of each group.
    """

    preset: str = "nano"
    super_width: NumChannels | None = None
    super_ratio: Ratio | None = None
    heads: NumChannels | None = None
    head_dim: NumChannels | None = None
    widths: tuple[NumChannels, ...] | None = None
    ratios: tuple[Ratio, ...] | None = None
    layers: tuple[Repeats, ...] | None = None

    def __post_init__(self):
        self.build()

    def build(self) -> SearchSpace:
        """Returns the search space; raises UserError for an unknown preset or wrong choices."""
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

    Attributes:
      space: its search space.
      patch_size: side of a patch, pixels.
      weighted_merge: whether tokens merge by the mean weighted by their sizes, not the plain mean.
      norm_epsilon: epsilon of the layer norms.
      dtype: type of the computation, 'float32' or 'bfloat16'.
      remat: whether the backward pass computes activations again to save memory.
      distilled: whether the network has a distillation token with a classifier of its own.
      residual_maps: whether a learned linear map replaces the plain residual at the end of a group.
      first_group: fixed structure of group 0 under a selector: 'min', 'max' or WIDTHxRATIO, for example
        '48x2'.
    """

    space: SpaceConfig = field(default_factory=SpaceConfig)
    patch_size: Side = 4
    weighted_merge: bool = False
    norm_epsilon: Share = 1e-6
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False
    distilled: bool = False
    residual_maps: bool = True
    first_group: str = "min"


@dataclass(frozen=True)
class BaselineConfig:
    """The baselines in the table of the command `train`.

    Attributes:
      candidates: static structures that the search for the best one evaluates.
      images: validation images of that search.
      finetune: whether best static structure and random policy are fine-tuned, for as many steps as
        PRANCE; else they run on the weights of stage one.
      single_budget: whether a selector for all budgets is compared with one selector per budget.
      reductions: names of `models.reduction.METHODS`, run on the dense network without training, at the
        MACs of PRANCE.
    """

    candidates: NumImages = 200
    images: NumImages = 512
    finetune: bool = False
    single_budget: bool = False
    reductions: Annotated[tuple[str, ...], Entries("distinct")] = ("tome", "evit")

    def __post_init__(self):
        for name in self.reductions:
            if name not in METHODS:
                raise UserError(
                    f"baselines.reductions: {name!r} is not known; choose from {', '.join(METHODS)}"
                )


@dataclass(frozen=True)
class EvaluationConfig:
    """Evaluation, and the adaptive execution whose speed is measured.

    Attributes:
      batch: images per compiled call.
      speed_seconds: seconds that measuring the speed of all methods may take together.
      buckets: buckets per group, at most, beside the one that covers every decision.
      token_multiple: multiple to which the token counts of buckets are rounded up.
      chunk: images that run together in one bucket, at most.
      calibration_images: validation images from which the buckets are chosen.
    """

    batch: Batch = 250
    speed_seconds: Annotated[float, Range(0, 86_400)] = 4.0
    buckets: Repeats = 4
    token_multiple: NumChannels = 4
    chunk: Batch = 25
    calibration_images: NumImages = 1000


@dataclass(frozen=True)
class Config:
    """One experiment.

    Attributes:
      name: name of the experiment.
      seeds: seeds; everything is trained once per seed.
      token_modes: token modes; each has a selector and a fine-tuned network.
      budgets: shares of the dense MACs at which a selector for all budgets (`selector.cost_weights`) is
        evaluated, one row each.
      data: the images.
      model: the network.
      dense: training of the dense network.
      meta: stage one.
      selector: stage two.
      finetune: stage three.
      validation: validation while networks are trained, best checkpoint and early stopping.
      baselines: baselines in the table.
      evaluation: evaluation and adaptive execution.
      compare: the command `compare`.
      cascade: looks and exits; with it, the command `train` trains and compares a cascade. None: the
        paper's mode, one look that every image passes to its end.
      segment: the command `segment`.
      pit: the command `pit`.
      checkpoint_seconds: seconds between checkpoints.
      mesh: layout of the devices.
    """

    name: str = "experiment"
    seeds: Annotated[tuple[Seed, ...], Entries("distinct", fewest=1)] = (0,)
    token_modes: Annotated[tuple[str, ...], Entries("distinct", fewest=1)] = ("prune",)
    budgets: Annotated[tuple[Share, ...], Entries("distinct", decimals=2)] = ()
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    dense: DenseConfig = field(default_factory=DenseConfig)
    meta: MetaConfig = field(default_factory=MetaConfig)
    selector: SelectorConfig = field(default_factory=SelectorConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    baselines: BaselineConfig = field(default_factory=BaselineConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    compare: CompareConfig = field(default_factory=CompareConfig)
    cascade: CascadeConfig | None = None
    segment: SegmentConfig = field(default_factory=SegmentConfig)
    pit: PiTConfig = field(default_factory=PiTConfig)
    checkpoint_seconds: Weight = 30.0
    mesh: MeshConfig = field(default_factory=MeshConfig)

    def __post_init__(self):
        for mode in self.token_modes:
            get_method(mode)
        if (self.selector.cost_weights is None) != (not self.budgets):
            raise UserError("config: selector.cost_weights and budgets belong together; give both or neither")
        if self.cascade is not None and len(self.token_modes) != 1:
            raise UserError(f"token_modes={self.token_modes}: a cascade has one token mode")
        if self.cascade is not None and self.budgets:
            raise UserError("budgets: those of a cascade are cascade.budgets")
        self._check_network()

    def _check_network(self):
        """Builds the networks for images as the config describes them, so that a misfit is found before any work."""
        image_size, channels = self.data.image_shape
        space, section = self.model.space.build(), "config.model"
        try:
            space.first_group(self.model.first_group)
            images = types.SimpleNamespace(image_size=image_size, channels=channels, num_classes=1)
            spec = self.spec(images, self.token_modes[0])
            section = "config.cascade"
            for looks in [] if self.cascade is None else self.cascade.all_looks:
                cascade_spec(looks, spec)
            for section, selector in (
                ("config.selector", self.selector),
                ("config.segment.selector", self.segment.selector),
            ):
                selector.ppo.check_minibatches((space.groups - 1) * selector.batch)
        except UserError as error:
            raise UserError(f"{section}: {error}") from error

    def spec(self, source, mode: str) -> ModelSpec:
        """Returns the specification of the network.

        Args:
          source: data source; gives image size, channels and classes.
          mode: token mode.
        """
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
            multi_label=getattr(source, "multi_label", False),
        )
