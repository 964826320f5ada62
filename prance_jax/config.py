"""What an experiment is made of, as frozen dataclasses; config files fill them (see `config_io`)."""

from __future__ import annotations

from dataclasses import dataclass, field

from prance_jax.data.load import DataConfig
from prance_jax.errors import UserError
from prance_jax.mesh import MeshConfig
from prance_jax.models.pit import PiTSpec
from prance_jax.models.reduced import METHODS
from prance_jax.selector.actions import check_keep_choices
from prance_jax.selector.ppo import PPOConfig
from prance_jax.selector.reward import RewardConfig
from prance_jax.space import SPACES, SearchSpace
from prance_jax.spec import ModelSpec
from prance_jax.tokens import get_method

LEARNED = ("spvit", "dynamicvit", "cdcp", "cait_cdcp")
INSERTED = "spvit_inserted"


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
class OptimizerConfig:
    """name: 'adamw' or 'muon'; linear warm-up (steps), cosine decay to zero. weight_decay: on matrices only.

    adam_share: with Muon, the learning rate of what is no matrix, as a share of `learning_rate`. ema: decay of the
    moving average of the parameters, which is what a stage hands on. accumulate: steps whose gradients are averaged into one
    update; rates and warm-up are of updates, `ema` of steps.
    """

    name: str = "adamw"
    learning_rate: float = 1e-3
    warmup: int = 100
    weight_decay: float = 0.05
    beta2: float = 0.99
    adam_share: float = 0.5
    max_grad_norm: float = 1.0
    ema: float = 0.99
    accumulate: int = 1

    def __post_init__(self):
        if self.accumulate < 1:
            raise UserError(f"optimizer.accumulate is {self.accumulate}; it must be 1 or more")
        if self.name not in ("adamw", "muon"):
            raise UserError(f"optimizer {self.name!r} is not known; say 'adamw' or 'muon'")


@dataclass(frozen=True)
class DenseConfig:
    """A plain ViT (the largest structure) trained alone: the baseline of every table."""

    steps: int = 1000
    batch: int = 64
    label_smoothing: float = 0.0
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)


@dataclass(frozen=True)
class MetaConfig:
    """Stage one. Every step trains the largest structure on the labels and smaller ones on its predictions.

    random_batch: images (of the same batch) that run under random structures, one per image; the smallest structure
      runs on as many, at keep rate smallest_keep. largest_alone: share of the steps in which only the largest structure
      learns, before it begins to teach (as once-for-all networks grow, Cai et al. 2020). reduce_from: share of the steps
      after which random structures reduce tokens as well.
    distillation: weight of the divergence from the largest structure's predictions; the rest is cross-entropy.
    init_from: 'dense', the run's own dense network, or a weight file (a dense ViT, or a meta-network of the same space): where
      the parameters start, see `models.from_dense`; fresh ones by default. Then `largest_alone` is best 0.
    """

    steps: int = 1500
    batch: int = 64
    random_batch: int = 32
    smallest_keep: float = 0.6
    largest_alone: float = 0.0
    reduce_from: float = 0.3
    init_from: str | None = None
    distillation: float = 0.5
    label_smoothing: float = 0.0
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)


@dataclass(frozen=True)
class SelectorConfig:
    """Stage two. One update plays `batch` images through all decisions.

    policy: 'lattice' (categorical over a finite lattice, default) or 'gaussian' (the paper's).
    state: 'rich', 'lean' or 'keys' (the paper's), see `selector.state`. keep_choices: the lattice of keep rates, for every rate.
    pool: images that episodes are drawn from, drawn once from the training data.
    prices: when given, (lowest, highest) price of compute, see `selector.price`: every episode draws its own and the
      selector sees it, so that one selector serves every budget; `reward.price` and `reward.target_macs` are then not
      used.
    latency_table: file of the profile command, for `reward.cost` 'latency'.
    """

    updates: int = 200
    batch: int = 256
    pool: int = 8192
    policy: str = "lattice"
    state: str = "rich"
    keep_choices: tuple[float, ...] = (0.25, 0.4, 0.55, 0.7, 0.85, 1.0)
    hidden: tuple[int, ...] = (256, 256)
    prices: tuple[float, float] | None = None
    latency_table: str | None = None
    reward: RewardConfig = field(default_factory=RewardConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)

    def __post_init__(self):
        if self.policy not in ("lattice", "gaussian"):
            raise UserError(f"selector policy {self.policy!r} is not known; say 'lattice' or 'gaussian'")
        check_keep_choices(self.keep_choices)
        if (self.reward.cost == "latency") != (self.latency_table is not None):
            raise UserError(
                "selector: reward.cost 'latency' and latency_table belong together; give both or neither"
            )
        if self.prices is not None and not (self.prices[0] < self.prices[1] and 0 < self.prices[1]):
            raise UserError(f"selector.prices={self.prices} must be (lowest, highest), the highest above 0")


@dataclass(frozen=True)
class FinetuneConfig:
    """Stage three: the meta-network under the decisions of the frozen selector.

    every_budget_steps: of a network that is to serve every budget, where they differ from `steps`.
    distillation: weight of the divergence from the predictions of stage one's full network. on_plans: decisions are
      rounded up to the plans that will serve them, in training and ever after (`adaptive.rounding`): an image uses all
      the compute that it pays for.
    """

    steps: int = 500
    batch: int = 64
    distillation: float = 0.5
    label_smoothing: float = 0.0
    on_plans: bool = False
    every_budget_steps: int | None = None
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=3e-4, warmup=50))


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
class SelectiveConfig:
    """Losses of learned selectors (SPViT, DynamicViT) beside cross-entropy and the divergence from the teacher.

    ratio: weight of the squared distance of kept shares from their targets; tokens: of the squared distance of the last
    patches from the teacher's. heads: of SPViT's selectors; by default those of the network.
    """

    ratio: float = 2.0
    tokens: float = 0.5
    heads: int | None = None


@dataclass(frozen=True)
class PruneConfig:
    """Channel pruning (CDCP): gates are chosen anew every `every` steps until `freeze` of the steps; memory: of the moving
    average of their importance; multiple: to which the channels of a head and the hidden units of a layer are rounded.
    """

    every: int = 20
    freeze: float = 0.5
    memory: float = 0.95
    multiple: tuple[int, int] = (4, 8)


@dataclass(frozen=True)
class InsertionConfig:
    """Progressive insertion of SPViT's selectors, see `training.insertion`.

    steps: of the tuning after every change, otherwise like `compare.finetune`. drop: by how much the accuracy on the
    validation images may lie below the dense network's, 0.005 being half a point. shares: of the patches, falling, which a
    selector is lowered through. phase: neighbouring selectors whose shares differ by less than this become one.
    """

    steps: int = 100
    drop: float = 0.005
    shares: tuple[float, ...] = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
    phase: float = 0.085

    def __post_init__(self):
        falling = sorted(set(self.shares), reverse=True)
        if not self.shares or list(self.shares) != falling or not all(0 < s < 1 for s in self.shares):
            raise UserError(f"compare.insertion.shares={self.shares} must fall, between 1 and 0")
        if self.steps < 1 or self.drop < 0 or self.phase < 0:
            raise UserError("compare.insertion: steps must be 1 or more, drop and phase 0 or more")


@dataclass(frozen=True)
class CompareConfig:
    """The compare command: every method at the same shares of dense MACs, on the dense network of the run.

    methods: of `models.reduced`, and the learned 'spvit', 'dynamicvit', 'cdcp' (channels) and 'cait_cdcp' (channels, and
    tokens by 'cait'); not among the defaults, since it is many trainings in a row: 'spvit_inserted', SPViT with its
    selectors where progressive insertion puts them. shares: of dense MACs. latency_table: file of `profile --what blocks`;
    then `shares` are of the dense network's measured time in place of its MACs, and methods that prune channels, of
    which the table knows nothing, have no row. finetune: what every
    method is tuned with, the dense network too; steps 0 leaves it out, then learned ones have no row.
    """

    methods: tuple[str, ...] = tuple(METHODS) + LEARNED
    shares: tuple[float, ...] = (0.5, 0.35)
    latency_table: str | None = None
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    insertion: InsertionConfig = field(default_factory=InsertionConfig)
    selective: SelectiveConfig = field(default_factory=SelectiveConfig)
    prune: PruneConfig = field(default_factory=PruneConfig)

    def __post_init__(self):
        for name in self.methods:
            if name not in METHODS and name not in (*LEARNED, INSERTED):
                known = ", ".join((*METHODS, *LEARNED, INSERTED))
                raise UserError(f"compare.methods: {name!r} is not known; choose from {known}")
        if not all(0 < share <= 1 for share in self.shares):
            raise UserError(
                f"compare.shares={self.shares} must be shares of the dense network, above 0 and up to 1"
            )


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
        if self.selector.prices is not None:
            raise UserError(
                "segment.selector.prices: the segment command trains for one budget, segment.share"
            )
        for mode in self.token_modes or ():
            get_method(mode)
        for name in self.methods:
            if name not in METHODS:
                raise UserError(f"segment.methods: {name!r} is not known; choose from {', '.join(METHODS)}")


@dataclass(frozen=True)
class PiTConfig:
    """The pit command: a pooling-based ViT trained, then tuned with SPViT's selectors in each of its stages.

    patch_size ... mlp_ratio: see `models.pit.PiTSpec`. share: of the dense network's MACs; sites, powers: where selectors stand
    and how the stages share it, see `models.pit.pit_at_share`. train: of the dense network. tune: from it, with it as
    the teacher, once with selectors and once as it is; steps 0 leaves both out.
    """

    patch_size: int = 16
    stride: int = 8
    dims: tuple[int, ...] = (144, 288, 576)
    heads: tuple[int, ...] = (3, 6, 12)
    depths: tuple[int, ...] = (2, 6, 4)
    mlp_ratio: float = 4.0
    share: float = 0.6
    sites: tuple[int, ...] | None = None
    powers: tuple[float, ...] | None = None
    train: FinetuneConfig = field(default_factory=FinetuneConfig)
    tune: FinetuneConfig = field(default_factory=FinetuneConfig)
    selective: SelectiveConfig = field(default_factory=SelectiveConfig)

    def __post_init__(self):
        if not 0 < self.share <= 1:
            raise UserError(f"pit.share={self.share} must be a share of dense MACs, above 0 and up to 1")

    def spec(self, source) -> PiTSpec:
        """The plain network for a data source."""
        names = ("patch_size", "stride", "dims", "heads", "depths", "mlp_ratio")
        sizes = {name: getattr(self, name) for name in names}
        return PiTSpec(source.image_size, source.num_classes, channels=source.channels, **sizes)


@dataclass(frozen=True)
class EvaluationConfig:
    """batch: images per compiled call. speed_seconds: time given to the speed measurement of all methods together.

    plans, token_multiple, chunk, calibration_images: of the adaptive executor, see `inference`.
    """

    batch: int = 250
    speed_seconds: float = 4.0
    plans: int = 4
    token_multiple: int = 4
    chunk: int = 25
    calibration_images: int = 1000


@dataclass(frozen=True)
class Config:
    """One experiment. token_modes: a selector and a fine-tuned network for each; seeds: everything once per seed.

    budgets: shares of dense MACs at which a selector of every budget (`selector.prices`) is evaluated, a row each.
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
        if (self.selector.prices is None) != (not self.budgets):
            raise UserError("config: selector.prices and budgets belong together; give both or neither")
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
