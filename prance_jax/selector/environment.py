"""The Markov decision process of PRANCE (section 3.3): one image, three decisions, a classification after each.

The state of inference before a decision does not depend on later ones, so it is kept: an episode over four groups
takes 1 + 3 + 2 + 1 = 7 group evaluations, not 4 x 4. What the full network says of an image is known before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from prance_jax.core.sharding import keep_rows
from prance_jax.models.forward import advance, begin, complete
from prance_jax.models.vit import Midway, ViT
from prance_jax.selector.actions import ActionSpace
from prance_jax.selector.cost_weight import draw_prices, weight
from prance_jax.selector.observation import Observer
from prance_jax.selector.reward import RewardConfig, per_image, quality, reward, worth
from prance_jax.spec.macs import macs, token_counts
from prance_jax.spec.structure import GroupChoice, Structure


class Context(NamedTuple):
    """What an update of the selector holds fixed.

    params: of the meta-network, frozen. images [P, S, S, C], labels [P], full_logits [P, num_classes]: the pool that
    episodes draw from; for pixels labels [P, S, S] and full_logits [P, S, S, num_classes]. price: of compute; a
    scalar, or the (lowest, highest) that episodes draw theirs from, see `selector.price`.
    """

    params: Any
    images: jax.Array
    labels: jax.Array
    full_logits: jax.Array
    price: jax.Array | tuple[jax.Array, jax.Array]


class Episode(NamedTuple):
    """B episodes between two decisions. worth: [B], of the structure finished after the decision before; price: [B]."""

    midway: Midway
    chosen: tuple[GroupChoice, ...]
    labels: jax.Array
    full_logits: jax.Array
    worth: jax.Array
    price: jax.Array


@dataclass(frozen=True)
class PranceProcess:
    """`reset` and `step` are pure; `horizon` decisions end an episode, always by termination.

    first: choice of group 0, which the selector does not decide. batch: images per update. decision_cost: MACs of one
    decision. cost: what a structure costs as a share of the dense network, float32 [B] of per-image structures; its MACs
    by default. mesh: devices over which the episodes are divided. Hashable.
    """

    model: ViT
    actions: ActionSpace
    observer: Observer
    config: RewardConfig
    first: GroupChoice
    batch: int
    decision_cost: int = 0
    cost: Callable[[Structure], jax.Array] | None = None
    mesh: Mesh | None = None

    @property
    def horizon(self) -> int:
        return self.model.spec.space.groups - 1

    def reset(self, context: Context, key: jax.Array) -> tuple[Episode, jax.Array]:
        """Draws images from the pool and runs group 0. Returns the episodes and the first observation [B, D]."""
        drawn = jax.random.randint(key, (self.batch,), 0, context.labels.shape[0])
        images = keep_rows(self.mesh, context.images[drawn])
        midway = begin(self.model, context.params, images, self.first)
        episode = Episode(
            midway=midway,
            chosen=(self.first,),
            labels=context.labels[drawn],
            full_logits=context.full_logits[drawn],
            worth=jnp.zeros(self.batch),
            price=self._prices(context, jax.random.fold_in(key, 1)),
        )
        return episode, self.observer(midway, 1, episode.price)

    def step(self, context: Context, t: int, episode: Episode, action: jax.Array):
        """Takes decision t (0, 1, ...): returns (episode, observation [B, D], reward [B], info of [B] arrays).

        Result-to-Go: the groups still undecided run at the largest structure with all tokens, and that finished
        classification gives the reward. The observation after the last decision is zero: nothing follows it.
        """
        spec, group = self.model.spec, t + 1
        choice = self.actions.decode(action, group)
        chosen = (*episode.chosen, choice)
        midway = advance(self.model, context.params, episode.midway, choice, group)
        rest = spec.largest.groups[group + 1 :]
        logits = complete(self.model, context.params, midway, rest, group + 1)

        structure = Structure(chosen + rest)
        share = macs(spec, structure, self.decision_cost).total / float(macs(spec, spec.largest).total)
        cost = share if self.cost is None else self.cost(structure)
        good = quality(self.config, logits, episode.labels, episode.full_logits)
        info = {
            "correct": per_image((jnp.argmax(logits, -1) == episode.labels).astype(jnp.float32)),
            "macs_kept": share,
            "cost": cost,
            "tokens_left": token_counts(spec, structure).mlp[-1] / spec.tokens,
        }
        observation = (
            self.observer(midway, group + 1, episode.price)
            if group < self.horizon
            else jnp.zeros((self.batch, self.observer.size))
        )
        now = worth(good, cost, episode.price)
        gained = reward(self.config, now, episode.worth, choice.keep)
        if self.observer.priced:
            gained = gained * weight(episode.price)
        return episode._replace(midway=midway, chosen=chosen, worth=now), observation, gained, info

    def _prices(self, context: Context, key: jax.Array) -> jax.Array:
        if not isinstance(context.price, tuple):
            return jnp.broadcast_to(context.price, (self.batch,))
        return draw_prices(key, context.price, self.batch)
