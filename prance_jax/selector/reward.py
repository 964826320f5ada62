"""The reward of a decision (PRANCE, arXiv 2407.05010, section 3.3).

Result-to-Go (eq. 9): the reward is taken from the classification that is finished after decision t,
with every later group at the largest structure and all tokens.

    u_t = quality_t - cost_weight x cost_t
    r_t = u_t - [marginal] u_tm1 - keep_weight x sum(keep_t),    t = 1, ..., T,    u_0 = 0

t: number of the decision, which is also the group that it decides. u_t: utility of the finished
structure. cost_t: share of the dense MACs (or of the dense network's time). keep_t: keep rates of
decision t. [marginal]: 1 if `RewardConfig.marginal`, else 0.

A selector of all budgets has another cost weight in each episode; `environment` then multiplies r_t by
`cost_weight.reward_scale`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from prance_jax.core.errors import UserError
from prance_jax.core.fields import CostWeight, Positive, Share, Weight, check_fields
from prance_jax.core.losses import binary_kl_divergence, has_several_labels
from prance_jax.selector.cost_weight import ASINH_SCALE


@dataclass(frozen=True)
class RewardConfig:
    """Settings of the reward; the formula is in the docstring of this module.

    Quality, from the finished prediction p and the prediction f of the full network (largest
    structure, all tokens):

    * 'correct', the paper's: 1 if p is right, else 0. Images that the full network gets wrong score
      1, unless `reward_mending`.
    * 'probability': the same with the probability of the true class in place of right or wrong;
      less noise.
    * 'agreement': -KL(f || p), at least -agreement_floor. It is zero wherever nothing is lost, so
      the difficulty of the image, which is most of the noise of the other two, drops out. It needs
      no labels.

    For segmentation all three are computed per pixel and averaged over the image. With several labels per
    image there is 'agreement' alone: the KL divergences of all labels together.

    Attributes:
      quality: 'correct', 'probability' or 'agreement'.
      cost: 'macs', or 'latency' by a table measured on the device (`selector.latency_table`); every
        share of MACs below is then a share of the dense network's time.
      agreement_floor: largest loss of 'agreement', in nats.
      reward_mending: images that the full network gets wrong are scored like all others, so mending
        them pays.
      cost_weight: reward lost per dense network of MACs; the paper's 0.008 per 1e8 MACs is 0.008 x
        dense MACs / 1e8.
      keep_weight: reward lost per unit of keep rate; the paper's is 0.1.
      marginal: rewards what this decision changed. With gamma 1 the return of an episode is then
        exactly the utility of its finished structure, and every step still has an immediate reward.
        The paper's sum counts the cost of an early decision in every later reward as well.
      target_macs: share of dense MACs; if given, the cost weight follows it by dual ascent, see
        `update_cost_weight`.
      cost_weight_rate: step size of the dual ascent.
    """

    quality: Literal["correct", "probability", "agreement"] = "correct"
    cost: Literal["macs", "latency"] = "macs"
    agreement_floor: Positive = 4.0
    reward_mending: bool = False
    cost_weight: CostWeight = 0.4
    keep_weight: Weight = 0.1
    marginal: bool = False
    target_macs: Share | None = None
    cost_weight_rate: Weight = 0.5

    def __post_init__(self):
        check_fields(self, "reward")


def prediction_quality(
    config: RewardConfig, logits: jax.Array, labels: jax.Array, full_logits: jax.Array
) -> jax.Array:
    """Scores finished predictions by `RewardConfig.quality`.

    Args:
      config: settings of the reward.
      logits: float32 [B, num_classes] of the finished structure; for segmentation [B, S, S,
        num_classes].
      labels: int32 [B]; for segmentation [B, S, S]; with several labels per image [B, num_classes].
      full_logits: logits of the full network, shaped like `logits`.

    Returns:
      quality_t, float32 [B].

    Raises:
      UserError: images have several labels and the quality is not 'agreement'.
    """
    if has_several_labels(logits, labels):
        if config.quality != "agreement":
            raise UserError(
                f"selector.reward.quality is {config.quality!r}; with several labels per image it must be "
                "'agreement'"
            )
        kl_divergence = binary_kl_divergence(logits, full_logits).sum(axis=-1)
        return -jnp.minimum(kl_divergence, config.agreement_floor)
    if config.quality == "agreement":
        log_full, log_prob = jax.nn.log_softmax(full_logits), jax.nn.log_softmax(logits)
        kl_divergence = jnp.sum(jnp.exp(log_full) * (log_full - log_prob), axis=-1)
        return mean_per_image(-jnp.minimum(kl_divergence, config.agreement_floor))
    if config.quality == "correct":
        score = (jnp.argmax(logits, -1) == labels).astype(jnp.float32)
    else:
        score = jnp.take_along_axis(jax.nn.softmax(logits), labels[..., None], axis=-1)[..., 0]
    full_correct = jnp.argmax(full_logits, -1) == labels
    return mean_per_image(score if config.reward_mending else jnp.where(full_correct, score, 1.0))


def mean_per_image(score: jax.Array) -> jax.Array:
    """Averages scores of pixels [B, S, S] or labels [B, K] to [B]; returns scores of images [B] as they are."""
    return score if score.ndim == 1 else score.mean(axis=tuple(range(1, score.ndim)))


def utility(quality_t: jax.Array, cost_t: jax.Array, cost_weight: jax.Array) -> jax.Array:
    """Computes u_t = quality_t - cost_weight x cost_t.

    Args:
      quality_t: float32 [B], see `prediction_quality`.
      cost_t: float32 [B], share of the dense MACs (or time) of the finished structure.
      cost_weight: float32, scalar or [B].

    Returns:
      u_t, float32 [B].
    """
    return quality_t - cost_weight * cost_t


def compute_reward(
    config: RewardConfig, utility_t: jax.Array, utility_tm1: jax.Array, keep_t: tuple[jax.Array, ...]
) -> jax.Array:
    """Computes r_t = u_t - [marginal] u_tm1 - keep_weight x sum(keep_t).

    Args:
      config: settings of the reward.
      utility_t: float32 [B], utility of the structure finished after this decision.
      utility_tm1: float32 [B], the same after the decision before; 0 for the first.
      keep_t: keep rates of this decision, float32 [B] each.

    Returns:
      r_t, float32 [B].

    Reference: PRANCE, arXiv 2407.05010, eq. 9; the marginal form is this package's.
    """
    return utility_t - (utility_tm1 if config.marginal else 0.0) - config.keep_weight * sum(keep_t)


def update_cost_weight(config: RewardConfig, cost_weight: jax.Array, cost_share: jax.Array) -> jax.Array:
    """Moves the cost weight so that the MACs approach their target, by dual ascent.

    With step = cost_weight_rate x (cost_share - target_macs), the next weight is cost_weight x
    exp(step) if the weight is above 0.01, else cost_weight + 0.01 x step, which also goes below
    zero. Weights stay within -100 and 100.

    Args:
      config: settings of the reward; without `target_macs` the weight does not change.
      cost_weight: float32 scalar before the update.
      cost_share: float32 scalar, mean cost of the update's finished structures, as a share of the dense network's.

    Returns:
      Cost weight after the update, float32 scalar.
    """
    if config.target_macs is None:
        return cost_weight
    step = config.cost_weight_rate * (cost_share - config.target_macs)
    # A step proportional to the weight would never cross zero.
    updated = jnp.where(
        cost_weight > ASINH_SCALE, cost_weight * jnp.exp(step), cost_weight + ASINH_SCALE * step
    )
    return jnp.clip(updated, -1e2, 1e2)
