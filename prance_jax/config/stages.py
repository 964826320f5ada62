"""Sections of a configuration that train: the dense network and PRANCE's three stages."""

from __future__ import annotations

from dataclasses import dataclass, field

from prance_jax.core.errors import UserError
from prance_jax.selector.actions import check_keep_choices
from prance_jax.selector.reward import RewardConfig
from prance_jax.selector.rl.types import PPOConfig


@dataclass(frozen=True)
class OptimizerConfig:
    """An optimizer with linear warm-up and cosine decay to zero.

    Attributes:
      name: 'adamw' or 'muon'.
      learning_rate: peak learning rate; with Muon that of the matrices.
      warmup: updates of linear warm-up.
      weight_decay: decoupled weight decay, on matrices only.
      beta2: decay of AdamW's second moment.
      adam_share: with Muon, learning rate of all parameters that are no matrix, as a share of
        `learning_rate`.
      max_grad_norm: global norm to which gradients are clipped.
      ema: decay of the moving average of the parameters, per step. A stage hands on the average.
      accumulate: steps whose gradients are averaged into one update. Learning rates and warm-up count
        updates.
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
            raise UserError(f"optimizer {self.name!r} is not known; choose 'adamw' or 'muon'")


@dataclass(frozen=True)
class DenseConfig:
    """The dense network, a plain ViT of the largest structure: the baseline of every table.

    Attributes:
      steps: training steps.
      batch: images per step.
      init_from: initial parameters: a weight file, or 'hf-hub:OWNER/NAME' of the Hugging Face hub, as
        `MetaConfig.init_from`; None for random ones. Exact if the file has the largest structure's width.
      label_smoothing: smoothing of the labels, from 0 to 1.
      optimizer: its optimizer.
    """

    steps: int = 1000
    batch: int = 64
    init_from: str | None = None
    label_smoothing: float = 0.0
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)


@dataclass(frozen=True)
class MetaConfig:
    """Stage one: the meta-network, trained by sandwich sampling.

    Every step trains the largest structure on the labels and smaller structures on its predictions.

    Attributes:
      steps: training steps.
      batch: images per step.
      random_batch: images of the batch that run under random structures, one structure per image. As
        many run under the smallest structure.
      smallest_keep: keep rate of the smallest structure.
      largest_alone: share of the steps at the start in which only the largest structure is trained
        (as once-for-all networks grow, Cai et al. 2020).
      reduce_from: share of the steps after which random structures reduce tokens as well.
      init_from: initial parameters: 'dense' for the run's own dense network, or a weight file of a
        dense ViT or of a meta-network of the same space (see `zoo.from_dense`), or a name of the Hugging Face
        hub, 'hf-hub:OWNER/NAME'; None for random ones.
        With a start, `largest_alone` is best 0.
      distillation: weight of the KL divergence from the predictions of the largest structure; the
        rest of the weight is on the cross-entropy.
      label_smoothing: smoothing of the labels, from 0 to 1.
      optimizer: its optimizer.
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
    """Stage two: the selector, trained by PPO.

    Attributes:
      updates: updates of PPO.
      batch: images per update; each passes through all decision points.
      pool: images that the batches are drawn from; drawn once from the training data.
      policy: 'lattice' (categorical over finitely many choices) or 'gaussian' (the paper's).
      state: observation of the selector, 'rich', 'lean' or 'keys' (the paper's), see
        `selector.observation`.
      keep_choices: keep rates to choose from, ascending; the same for each rate of a decision.
      hidden: widths of the hidden layers of actor and critic.
      cost_weights: (lowest, highest) cost weight, see `selector.cost_weight`. Every episode draws its
        own and the selector observes it, so one selector serves all budgets; `reward.cost_weight` and
        `reward.target_macs` are then not used. None: a selector for one budget.
      latency_table: file of the command `profile`, for `reward.cost` 'latency'.
      reward: the reward.
      ppo: settings of PPO.
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
            raise UserError(f"selector policy {self.policy!r} is not known; choose 'lattice' or 'gaussian'")
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

    Also the fine-tuning of other networks: `compare.finetune`, `segment.train` and so on.

    Attributes:
      steps: training steps.
      batch: images per step.
      distillation: weight of the KL divergence from the predictions of the teacher; the rest of the
        weight is on the cross-entropy.
      teacher: teacher of stage three: 'meta' (largest structure of stage one), 'dense' (the dense
        network) or 'dense_tuned' (the dense network fine-tuned by `compare.finetune`).
      label_smoothing: smoothing of the labels, from 0 to 1.
      round_to_buckets: whether decisions are rounded up to the buckets that will serve them, in
        training and afterwards (see `adaptive.rounding`). An image then uses all compute it pays for.
      every_budget_steps: training steps of a network for all budgets; None for `steps`.
      optimizer: its optimizer.
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
                f"finetune.teacher {self.teacher!r} is not known; choose 'meta', 'dense' or 'dense_tuned'"
            )
