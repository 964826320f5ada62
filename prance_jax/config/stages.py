"""The sections of a configuration that train: the dense network and PRANCE's three stages."""

from __future__ import annotations

from dataclasses import dataclass, field

from prance_jax.core.errors import UserError
from prance_jax.selector.actions import check_keep_choices
from prance_jax.selector.reward import RewardConfig
from prance_jax.selector.rl.types import PPOConfig


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
    cost_weights: tuple[float, float] | None = None
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
        if self.cost_weights is not None and not (
            self.cost_weights[0] < self.cost_weights[1] and 0 < self.cost_weights[1]
        ):
            raise UserError(
                f"selector.cost_weights={self.cost_weights} must be (lowest, highest), the highest above 0"
            )


@dataclass(frozen=True)
class FinetuneConfig:
    """Stage three: the meta-network under the decisions of the frozen selector.

    every_budget_steps: of a network that is to serve every budget, where they differ from `steps`.
    distillation: weight of the divergence from the predictions of the teacher. teacher, of stage three: stage one's full
      network ('meta'), the dense network ('dense'), or that one tuned by `compare.finetune` ('dense_tuned').
    on_plans: decisions are rounded up to the plans that will serve them, in training and ever after (`adaptive.rounding`): an
      image uses all the compute that it pays for.
    """

    steps: int = 500
    batch: int = 64
    distillation: float = 0.5
    teacher: str = "meta"
    label_smoothing: float = 0.0
    round_to_buckets: bool = False
    every_budget_steps: int | None = None
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=3e-4, warmup=50))

    def __post_init__(self):
        if self.teacher not in ("meta", "dense", "dense_tuned"):
            raise UserError(
                f"finetune.teacher {self.teacher!r} is not known; say 'meta', 'dense' or 'dense_tuned'"
            )
