"""Result-to-Go: the reward of a decision is taken from the finished classification reached from it (PRANCE, eq. 9)."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from prance_jax.core.errors import UserError
from prance_jax.selector.cost_weight import LINEAR


@dataclass(frozen=True)
class RewardConfig:
    """r = quality - price x (MACs of the finished structure / MACs of the full network) - keep_weight x keep.

    quality, with p the finished prediction and f that of the full network:
      'correct' is the paper's, 1 when the finished prediction is right, and 1 for an image that the full network gets
        wrong; with `reward_mending` such an image is scored like any other, so that mending it pays;
      'probability' is the same with the probability of the true class in place of right or wrong: less noise;
      'agreement' is -KL(f || p), at least -agreement_floor: zero wherever nothing is lost, so the difficulty of the
        image, which is most of the noise of the other two, drops out. It needs no labels.
    Where the network says a class for every pixel, all three are taken pixel by pixel and averaged over an image.
    cost: 'macs', or 'latency' by a table measured on the device (`selector.latency_table`); shares below are then shares
      of the dense network's time.
    price: reward per dense network of MACs; the paper's 0.008 per 1e8 MACs is 0.008 x dense MACs / 1e8.
    keep_weight: per keep rate, the paper's 0.1.
    marginal: the reward is what this decision changed: quality and MACs are taken as the difference to those before it.
      With gamma 1 the return of an episode is then exactly the worth of its finished structure (the paper's sum weighs
      early decisions, whose costs come up in every later reward, more than late ones), and every step still has an
      immediate reward.
    target_macs: when given (a share of dense MACs), the price follows the budget by dual ascent: after every update it
      is multiplied by exp(price_rate x (MACs kept - target)); small prices move by addition, down to below zero.
    """

    quality: str = "correct"
    cost: str = "macs"
    agreement_floor: float = 4.0
    reward_mending: bool = False
    cost_weight: float = 0.4
    keep_weight: float = 0.1
    marginal: bool = False
    target_macs: float | None = None
    cost_weight_rate: float = 0.5

    def __post_init__(self):
        if self.quality not in ("correct", "probability", "agreement"):
            raise UserError(
                f"reward quality {self.quality!r} is not known; say 'correct', 'probability' or 'agreement'"
            )
        if self.cost not in ("macs", "latency"):
            raise UserError(f"reward cost {self.cost!r} is not known; say 'macs' or 'latency'")
        if self.target_macs is not None and not 0 < self.target_macs <= 1:
            raise UserError(
                f"target_macs={self.target_macs} is not a share of dense MACs; say a number above 0 and up to 1"
            )


def prediction_quality(
    config: RewardConfig, logits: jax.Array, labels: jax.Array, full_logits: jax.Array
) -> jax.Array:
    """float32 [B]. logits, full_logits (of the full network): [B, num_classes]; labels: int32 [B]. For pixels [B, S, S,
    num_classes] and [B, S, S]."""
    if config.quality == "agreement":
        log_full, log_own = jax.nn.log_softmax(full_logits), jax.nn.log_softmax(logits)
        kl_divergence = jnp.sum(jnp.exp(log_full) * (log_full - log_own), axis=-1)
        return mean_per_image(-jnp.minimum(kl_divergence, config.agreement_floor))
    if config.quality == "correct":
        score = (jnp.argmax(logits, -1) == labels).astype(jnp.float32)
    else:
        score = jnp.take_along_axis(jax.nn.softmax(logits), labels[..., None], axis=-1)[..., 0]
    full_correct = jnp.argmax(full_logits, -1) == labels
    return mean_per_image(score if config.reward_mending else jnp.where(full_correct, score, 1.0))


def mean_per_image(score: jax.Array) -> jax.Array:
    """[B]: scores of images as they are, those of pixels [B, S, S] averaged."""
    return score if score.ndim == 1 else score.mean(axis=tuple(range(1, score.ndim)))


def compute_reward(
    config: RewardConfig, utility: jax.Array, before: jax.Array, keep: tuple[jax.Array, ...]
) -> jax.Array:
    """float32 [B]. worth: of the structure finished after this decision, see `worth`; before: the same for the decision
    before, 0 for the first; keep: rates of this decision, [B] each."""
    return utility - (before if config.marginal else 0.0) - config.keep_weight * sum(keep)


def utility(quality: jax.Array, macs_share: jax.Array, cost_weight: jax.Array) -> jax.Array:
    """quality - price x macs_share, [B]; macs_share: [B], of the full network; price: scalar or [B]."""
    return quality - cost_weight * macs_share


def update_cost_weight(config: RewardConfig, cost_weight: jax.Array, macs_share: jax.Array) -> jax.Array:
    """The price after an update whose finished structures took `macs_share` (mean) of the full network."""
    if config.target_macs is None:
        return cost_weight
    step = config.cost_weight_rate * (macs_share - config.target_macs)
    # Near zero and below it a price moves by steps of its own size no longer.
    moved = jnp.where(cost_weight > LINEAR, cost_weight * jnp.exp(step), cost_weight + LINEAR * step)
    return jnp.clip(moved, -1e2, 1e2)
