"""Configuration of the command `compare`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from prance_jax.config.stages import FinetuneConfig, OptimizerConfig
from prance_jax.core.errors import UserError
from prance_jax.core.fields import (
    Batch,
    Decay,
    Entries,
    Fraction,
    Index,
    NumChannels,
    Positive,
    Range,
    Share,
    Steps,
    Updates,
    Weight,
)
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

    ratio: Weight = 2.0
    tokens: Weight = 0.5
    heads: NumChannels | None = None


@dataclass(frozen=True)
class ConsistencyConfig:
    """MCTF's token reduction consistency, see `training.stages.consistency`.

    The published setting: weight 3, up to 8 of 16 tokens a layer, confidence 0.4.

    Attributes:
      weight: weight of the distance between class tokens.
      most: largest share of the schedule's removed tokens that the milder schedule removes.
      confidence: only images whose label has more than this probability count.
    """

    weight: Weight = 3.0
    most: Fraction = 0.5
    confidence: Decay = 0.4


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

    granularity: NumChannels = 1
    first: Index = 1
    weight: Positive = 100.0
    steps: Steps = 200
    batch: Batch = 64
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=5e-2, warmup=0, ema=0.9)
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

    every: Updates = 20
    freeze: Fraction = 0.5
    memory: Decay = 0.95
    multiple: tuple[NumChannels, NumChannels] = (4, 8)


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

    steps: Updates = 100
    drop: Fraction = 0.005
    shares: Annotated[
        tuple[Annotated[float, Range(0, 1, above=True, below=True)], ...], Entries("descending", fewest=1)
    ] = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
    phase: Fraction = 0.085


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

    methods: Annotated[tuple[str, ...], Entries("distinct")] = tuple(METHODS) + LEARNED
    shares: Annotated[tuple[Share, ...], Entries("distinct", decimals=2)] = (0.5, 0.35)
    token_modes: Annotated[tuple[str, ...], Entries("distinct")] | None = None
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
