"""Sections of a configuration that train: the dense network and PRANCE's three stages."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from prance_jax.core.errors import UserError
from prance_jax.core.fields import (
    Batch,
    CostWeight,
    Decay,
    Entries,
    Fraction,
    LearningRate,
    NumChannels,
    NumImages,
    PoolSize,
    Positive,
    Share,
    Steps,
    Updates,
    Weight,
)
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

    name: Literal["adamw", "muon"] = "adamw"
    learning_rate: LearningRate = 1e-3
    warmup: Steps = 100
    weight_decay: Weight = 0.05
    beta2: Decay = 0.99
    adam_share: Weight = 0.5
    max_grad_norm: Positive = 1.0
    ema: Decay = 0.99
    accumulate: Batch = 1


@dataclass(frozen=True)
class ValidationConfig:
    """Validation while a network is trained, on the moving average of its parameters.

    Stages that are validated: dense, meta (largest and smallest structure; the score is the mean of both),
    finetune, fine-tuned baselines and the command `pit`. The selector, the looks of a cascade, pruning of
    channels and the insertion of predictors are not. Metrics are named val_..., for example `val_accuracy`.

    Attributes:
      every: steps between validations, the last step included; None for none.
      images: first images of the shuffled validation set that are used; None for all.
      patience: validations without a better score after which a stage ends early; None for never.
      use_checkpoint: checkpoint whose parameters a stage hands on: 'last', or 'best' by the score. The
        best one is kept beside the last in either case.
    """

    every: Updates | None = None
    images: NumImages | None = None
    patience: Updates | None = None
    use_checkpoint: Literal["last", "best"] = "last"

    def __post_init__(self):
        if self.every is None and (self.patience is not None or self.use_checkpoint == "best"):
            raise UserError(
                "validation.patience and use_checkpoint 'best' need validation.every, steps between validations"
            )


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

    steps: Steps = 1000
    batch: Batch = 64
    init_from: str | None = None
    label_smoothing: Fraction = 0.0
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

    steps: Steps = 1500
    batch: Batch = 64
    random_batch: Batch = 32
    smallest_keep: Share = 0.6
    largest_alone: Fraction = 0.0
    reduce_from: Fraction = 0.3
    init_from: str | None = None
    distillation: Fraction = 0.5
    label_smoothing: Fraction = 0.0
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self):
        if self.random_batch > self.batch:
            raise UserError(
                f"random_batch={self.random_batch} are images of the batch, so it should be from 1 to {self.batch}"
            )


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

    updates: Updates = 200
    batch: Batch = 256
    pool: PoolSize = 8192
    policy: Literal["lattice", "gaussian"] = "lattice"
    state: Literal["rich", "lean", "keys"] = "rich"
    keep_choices: Annotated[tuple[Share, ...], Entries("ascending", fewest=1)] = (
        0.25,
        0.4,
        0.55,
        0.7,
        0.85,
        1.0,
    )
    hidden: tuple[NumChannels, ...] = (256, 256)
    cost_weights: tuple[CostWeight, CostWeight] | None = None
    latency_table: str | None = None
    reward: RewardConfig = field(default_factory=RewardConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)

    def __post_init__(self):
        if (self.reward.cost == "latency") != (self.latency_table is not None):
            raise UserError(
                "selector: reward.cost 'latency' and latency_table belong together; give both or neither"
            )
        if self.cost_weights is not None:
            check_cost_weights(self.cost_weights)


def check_cost_weights(cost_weights: tuple[float, float]) -> None:
    """Checks that cost weights are (lowest, highest); raises UserError if not."""
    if not cost_weights[0] < cost_weights[1] or cost_weights[1] <= 0:
        raise UserError(f"cost_weights={cost_weights} must be (lowest, highest), the highest above 0")


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

    steps: Steps = 500
    batch: Batch = 64
    distillation: Fraction = 0.5
    teacher: Literal["meta", "dense", "dense_tuned"] = "meta"
    label_smoothing: Fraction = 0.0
    round_to_buckets: bool = False
    every_budget_steps: Steps | None = None
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=3e-4, warmup=50))
