"""Configuration of the command `compare`."""

from __future__ import annotations

from dataclasses import dataclass, field

from prance_jax.config.stages import FinetuneConfig, OptimizerConfig
from prance_jax.core.errors import UserError
from prance_jax.models.reduction import METHODS
from prance_jax.tokens.methods.registry import get_method

CONSISTENT = "mctf_consistent"
COUNTED = "diffrate_learned"
LEARNED = ("spvit", "dynamicvit", "cdcp", "cait_cdcp", CONSISTENT, COUNTED)
INSERTED = "spvit_inserted"


@dataclass(frozen=True)
class PredictorLossConfig:
    """Losses of learned selectors (SPViT, DynamicViT) beside cross-entropy and the divergence from the teacher.

    ratio: weight of the squared distance of kept shares from their targets; tokens: of the squared distance of the last
    patches from the teacher's. heads: of SPViT's selectors; by default those of the network.
    """

    ratio: float = 2.0
    tokens: float = 0.5
    heads: int | None = None


@dataclass(frozen=True)
class ConsistencyConfig:
    """MCTF's training, see `training.consistency`. weight: of the distance of class tokens. most: of what a schedule removes,
    the largest share that the milder one removes. confidence: the class tokens of images count whose label is given more
    than this probability. The published setting: weight 3, up to 8 of 16 tokens a layer, 0.4.
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
class CountsConfig:
    """DiffRate's learning of its counts, see `training.learn_counts`. granularity: tokens between the numbers to choose from
    (the paper's: 4 of 197). first: the first layer, from 0, that reduces tokens (the paper's: the second). weight: of the
    squared distance of the MACs from their share of the dense network's (the paper's 5, of GMACs, is 106 on DeiT-S). steps,
    batch, optimizer: of the counts alone; the network is frozen.
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
                f"compare.counts: granularity={self.granularity} must be 1 or more, weight={self.weight} above 0, "
                f"first={self.first} and steps={self.steps} 0 or more"
            )


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
    tokens by 'cait'), 'mctf_consistent', MCTF tuned as published (`consistency`; two networks a step), and 'diffrate_learned',
    DiffRate with learned counts (`counts`). Not among the
    defaults, since it is many trainings in a row: 'spvit_inserted', SPViT with its selectors where progressive insertion puts
    them. shares: of dense MACs. latency_table: file of `profile --what blocks`; then `shares` are of the dense network's
    measured time in place of its MACs, and methods that prune channels, of which the table knows nothing, have no row.
    finetune: what every method is tuned with, the dense network too; steps 0 leaves it out, then learned ones have no row.
    token_modes: of PRANCE; by default those of the run, () for none.
    """

    methods: tuple[str, ...] = tuple(METHODS) + LEARNED
    shares: tuple[float, ...] = (0.5, 0.35)
    token_modes: tuple[str, ...] | None = None
    latency_table: str | None = None
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    insertion: InsertionConfig = field(default_factory=InsertionConfig)
    predictor: PredictorLossConfig = field(default_factory=PredictorLossConfig)
    prune: PruneConfig = field(default_factory=PruneConfig)
    consistency: ConsistencyConfig = field(default_factory=ConsistencyConfig)
    counts: CountsConfig = field(default_factory=CountsConfig)

    def __post_init__(self):
        for name in self.methods:
            if name not in METHODS and name not in (*LEARNED, INSERTED):
                known = ", ".join((*METHODS, *LEARNED, INSERTED))
                raise UserError(f"compare.methods: {name!r} is not known; choose from {known}")
        for mode in self.token_modes or ():
            get_method(mode)
        if not all(0 < share <= 1 for share in self.shares):
            raise UserError(
                f"compare.shares={self.shares} must be shares of the dense network, above 0 and up to 1"
            )
