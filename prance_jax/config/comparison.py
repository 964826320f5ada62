"""Configuration of the command `compare`."""

from __future__ import annotations

from dataclasses import dataclass, field

from prance_jax.config.stages import FinetuneConfig, OptimizerConfig
from prance_jax.core.errors import UserError
from prance_jax.models.reduction import METHODS
from prance_jax.tokens.methods.registry import get_method

MCTF_CONSISTENT = "mctf_consistent"
DIFFRATE_LEARNED = "diffrate_learned"
LEARNED = ("spvit", "dynamicvit", "cdcp", "cait_cdcp", MCTF_CONSISTENT, DIFFRATE_LEARNED)
SPVIT_INSERTED = "spvit_inserted"


@dataclass(frozen=True)
class PredictorLossConfig:
    """Losses of token predictors (SPViT, DynamicViT), added to cross-entropy and distillation.

    Attributes:
      ratio: weight of the squared distance between kept shares and their targets.
      tokens: weight of the squared distance between the last patch tokens and the teacher's.
      heads: heads of SPViT's predictors; None for those of the network.
    """

    ratio: float = 2.0
    tokens: float = 0.5
    heads: int | None = None


@dataclass(frozen=True)
class ConsistencyConfig:
    """MCTF's token reduction consistency, see `training.stages.consistency`.

    The published setting: weight 3, up to 8 of 16 tokens a layer, confidence 0.4.

    Attributes:
      weight: weight of the distance between class tokens.
      most: largest share of the schedule's removed tokens that the milder schedule removes.
      confidence: only images whose label has more than this probability count.
    """

    weight: float = 3.0
    most: float = 0.5
    confidence: float = 0.4

    def __post_init__(self):
        if self.weight < 0 or not 0 <= self.most <= 1 or not 0 <= self.confidence < 1:
            raise UserError(
                f"compare.consistency: weight={self.weight} must be 0 or more, most={self.most} and "
                f"confidence={self.confidence} from 0 to 1"
            )


@dataclass(frozen=True)
class DiffRateConfig:
    """DiffRate's training of its token counts, see `training.stages.diffrate_counts`.

    The network is frozen; only the counts are trained.

    Attributes:
      granularity: distance between the token counts to choose from (4 of 197 tokens in the paper).
      first: first layer, from 0, that reduces tokens (1 in the paper).
      weight: weight of the squared distance between the share of the dense MACs and its target. The
        paper's weight 5, for GMACs, is 106 on DeiT-S.
      steps: training steps.
      batch: images per step.
      optimizer: its optimizer.
    """

    granularity: int = 1
    first: int = 1
    weight: float = 100.0
    steps: int = 200
    batch: int = 64
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=5e-2, warmup=0, ema=0.9)
    )

    def __post_init__(self):
        if self.granularity < 1 or self.first < 0 or self.weight <= 0 or self.steps < 0:
            raise UserError(
                f"compare.counts: granularity={self.granularity} must be 1 or more, weight={self.weight} "
                f"above 0, first={self.first} and steps={self.steps} 0 or more"
            )


@dataclass(frozen=True)
class ChannelPruningConfig:
    """Channel pruning (CDCP), see `training.stages.channel_pruning`.

    Attributes:
      every: steps between two choices of the open gates.
      freeze: share of the steps after which the gates stay as they are.
      memory: decay of the moving average of the gates' importance.
      multiple: multiples to which the channels of a head and the hidden units of a layer are rounded.
    """

    every: int = 20
    freeze: float = 0.5
    memory: float = 0.95
    multiple: tuple[int, int] = (4, 8)


@dataclass(frozen=True)
class InsertionConfig:
    """Progressive insertion of SPViT's predictors, see `experiments.insertion`.

    Attributes:
      steps: fine-tuning steps after each change; all else as in `compare.finetune`.
      drop: accuracy on the validation images that may be lost against the dense network; 0.005 is
        half a point.
      shares: shares of the patches that a predictor keeps, tried one after the other, descending.
      phase: neighbouring predictors whose shares differ by less than this are merged.
    """

    steps: int = 100
    drop: float = 0.005
    shares: tuple[float, ...] = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
    phase: float = 0.085

    def __post_init__(self):
        descending = sorted(set(self.shares), reverse=True)
        if not self.shares or list(self.shares) != descending or not all(0 < s < 1 for s in self.shares):
            raise UserError(f"compare.insertion.shares={self.shares} must fall, between 1 and 0")
        if self.steps < 1 or self.drop < 0 or self.phase < 0:
            raise UserError("compare.insertion: steps must be 1 or more, drop and phase 0 or more")


@dataclass(frozen=True)
class CompareConfig:
    """The command `compare`: methods at the same shares of the dense MACs, on the run's dense network.

    Methods: every name of `models.reduction.METHODS`; and those with training of their own:

    - 'spvit', 'dynamicvit': token predictors (`predictor`);
    - 'cdcp': channel pruning (`prune`); 'cait_cdcp': the same with tokens reduced by 'cait';
    - 'mctf_consistent': MCTF fine-tuned as published (`consistency`), with two networks per step;
    - 'diffrate_learned': DiffRate with learned token counts (`counts`);
    - 'spvit_inserted': SPViT with its predictors placed by progressive insertion (`insertion`). It
      needs many trainings, so it is not a default.

    Attributes:
      methods: names of the methods.
      shares: shares of the dense MACs, above 0 and up to 1; one row per method and share.
      token_modes: token modes of PRANCE; None for those of the run, () for no row of PRANCE.
      latency_table: file of `profile --what blocks`. With it, `shares` are of the dense network's
        measured time, and methods that prune channels have no row, since the table lacks them.
      finetune: fine-tuning of every method and of the dense network. With 0 steps nothing is
        fine-tuned, and methods with training of their own have no row.
      insertion: settings of 'spvit_inserted'.
      predictor: settings of 'spvit', 'dynamicvit' and 'spvit_inserted'.
      prune: settings of 'cdcp' and 'cait_cdcp'.
      consistency: settings of 'mctf_consistent'.
      counts: settings of 'diffrate_learned'.
    """

    methods: tuple[str, ...] = tuple(METHODS) + LEARNED
    shares: tuple[float, ...] = (0.5, 0.35)
    token_modes: tuple[str, ...] | None = None
    latency_table: str | None = None
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    insertion: InsertionConfig = field(default_factory=InsertionConfig)
    predictor: PredictorLossConfig = field(default_factory=PredictorLossConfig)
    prune: ChannelPruningConfig = field(default_factory=ChannelPruningConfig)
    consistency: ConsistencyConfig = field(default_factory=ConsistencyConfig)
    counts: DiffRateConfig = field(default_factory=DiffRateConfig)

    def __post_init__(self):
        for name in self.methods:
            if name not in METHODS and name not in (*LEARNED, SPVIT_INSERTED):
                known = ", ".join((*METHODS, *LEARNED, SPVIT_INSERTED))
                raise UserError(f"compare.methods: {name!r} is not known; choose from {known}")
        for mode in self.token_modes or ():
            get_method(mode)
        if not all(0 < share <= 1 for share in self.shares):
            raise UserError(
                f"compare.shares={self.shares} must be shares of the dense network, above 0 and up to 1"
            )
