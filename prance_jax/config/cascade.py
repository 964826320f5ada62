"""Configuration of a cascade: its looks, the structures that it chooses from, and the training of its selector."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Annotated, Literal

from prance_jax.config.stages import check_cost_weights
from prance_jax.core.errors import UserError
from prance_jax.core.fields import (
    CostWeight,
    Entries,
    Fraction,
    Index,
    NumChannels,
    NumImages,
    PoolSize,
    Range,
    Repeats,
    Share,
    Side,
    Steps,
    Updates,
    Weight,
)
from prance_jax.models.reduction import METHODS
from prance_jax.selector.rl.types import PPOConfig
from prance_jax.spec.cascade import CascadeSpec, Look
from prance_jax.spec.model_spec import ModelSpec

# Rows of the table, and "cascade": files of the workdir begin so. A peer must not have such a name or beginning.
_TAKEN = ("best_static", "random_routing", "confidence", "oracle", "prance", "dense", "cascade", *METHODS)


@dataclass(frozen=True)
class LookConfig:
    """One look of a cascade. Its search space is that of the network.

    Attributes:
      image_size: side to which the image is resized, pixels; None for that of the data.
      shares: weights in common with the last look: 'all' (except positions and classifiers),
        'all_but_norms' (without norms and biases either) or 'none'. The last look is the network itself.
      exits: groups, from 0 and without the last one, at whose end the network can answer.
      structures: shares of the dense MACs, ascending. For each one the search finds the best static
        structure that costs at most so much; 1.0 is the largest structure. Structures are searched and
        counted without `refined`, which makes them cheaper.
      begins: number of its structures, from the cheapest on, at which an image may begin; 0 for a look that
        only follows another one.
      refined: share of the cells of 2 x 2 patches that enter as four tokens, those with the most attention in
        the look before; every other cell enters as one token. Needs begins=0. None: every patch is a token.

    Reference: `refined`, CF-ViT, arXiv 2203.03821.
    """

    image_size: Side | None = None
    shares: Literal["all", "all_but_norms", "none"] = "none"
    exits: tuple[Index, ...] = ()
    structures: Annotated[tuple[Share, ...], Entries("ascending", fewest=1)] = (0.2, 0.5, 1.0)
    begins: Index = 0
    refined: Share | None = None

    def __post_init__(self):
        if self.begins > len(self.structures):
            raise UserError(
                f"begins={self.begins} must be 0 to {len(self.structures)}, the number of structures"
            )
        if self.refined is not None and self.begins:
            raise UserError(
                f"refined={self.refined} needs begins=0, since an earlier look chooses the cells; begins is {self.begins}"
            )


@dataclass(frozen=True)
class TableSelectorConfig:
    """The selector of a cascade, trained by PPO on the table of its decision process.

    Attributes:
      pool: images of the table; drawn once from the training data.
      held_out: validation images that calibrate cost weights and thresholds; None for all.
      quality: what an answer is worth: 'correct' (1 or 0) or 'probability' of the true class.
      cost_weights: (lowest, highest) cost weight; every episode draws its own and the selector observes it.
        A lowest one below 0 makes the selector spend where compute hardly helps, for large budgets.
      updates: updates of PPO.
      batch: episodes per update.
      hidden: widths of the hidden layers of actor and critic.
      restarts: PPO runs side by side from as many random starts; the one with the best utility on the
        validation images is kept. Single runs can miss a range of budgets.
      clone_steps: steps of behaviour cloning from the best confidence thresholds before PPO; 0 for none.
      ppo: settings of PPO.
    """

    pool: PoolSize = 8192
    held_out: NumImages | None = None
    quality: Literal["correct", "probability"] = "correct"
    cost_weights: tuple[CostWeight, CostWeight] = (-0.1, 4.0)
    updates: Updates = 300
    batch: Annotated[int, Range(1, 2**20)] = 4096
    hidden: tuple[NumChannels, ...] = (64, 64)
    restarts: Repeats = 4
    clone_steps: Steps = 0
    ppo: PPOConfig = field(
        default_factory=lambda: PPOConfig(
            gamma=1.0, lam=0.95, epochs=2, minibatches=4, actor_lr=1e-3, critic_lr=3e-3, entropy=1e-3
        )
    )

    def __post_init__(self):
        check_cost_weights(self.cost_weights)
        self.ppo.check_minibatches(self.batch)


@dataclass(frozen=True)
class PeerConfig:
    """Another cascade in the same table: trained for as many steps with the same teacher, routed by confidence.

    Its images go from one look to the next and leave none out. Where all looks have their largest structure alone,
    stage one trains no other.

    Attributes:
      name: of its rows, lower-case letters, digits and underscores.
      looks: its looks.
    """

    name: str
    looks: tuple[LookConfig, ...]

    def __post_init__(self):
        is_taken = any(self.name == name or self.name.startswith(f"{name}_") for name in _TAKEN)
        if is_taken or not re.fullmatch("[a-z][a-z0-9_]*", self.name):
            raise UserError(
                f"cascade.peers: name={self.name!r} must be lower-case letters, digits and underscores, and not that "
                f"of another row of the table, so not {', '.join(_TAKEN)}, nor one of these with an underscore behind it"
            )
        check_looks(f"cascade.peers, {self.name}", self.looks)

    @property
    def is_elastic(self) -> bool:
        """Whether a look has structures beside its largest one."""
        return any(look.structures != (1.0,) for look in self.looks)


def check_looks(where: str, looks: tuple[LookConfig, ...]) -> None:
    """Checks that an image can begin, and that the first look needs no other.

    Args:
      where: what the looks are of, for the message.
      looks: the looks of a cascade.

    Raises:
      UserError: no look can be the first, or the first one has `refined`.
    """
    if not any(look.begins for look in looks):
        raise UserError(f"{where}: at least one look must have begins=1 or more")
    if looks[0].refined is not None:
        raise UserError(f"{where}: the first look follows no other, so its `refined` must be None")


def cascade_spec(looks: tuple[LookConfig, ...], network: ModelSpec) -> CascadeSpec:
    """Returns the networks of all looks.

    Args:
      looks: the looks of a cascade.
      network: the network of the run, which the last look is.

    Raises:
      UserError: a look does not fit the network.
    """
    specs = []
    for number, look in enumerate(looks):
        spec = dataclasses.replace(
            network,
            image_size=look.image_size or network.image_size,
            exits=look.exits,
            full_last_layer=number < len(looks) - 1,
        )
        if look.refined is not None:
            spec = dataclasses.replace(spec, refined_cells=max(1, round(look.refined * spec.cells)))
        specs.append(spec)
    shares = [*(look.shares for look in looks[:-1]), "none"]
    return CascadeSpec(tuple(map(Look, specs, shares)))


@dataclass(frozen=True)
class CascadeConfig:
    """A network that answers at exits and looks at the image more than once.

    Attributes:
      looks: the looks, in order; the last one is the network itself.
      exit_weight: in stage one, weight of the mean loss of a look's exits beside that of its head.
      budgets: mean shares of the dense MACs; a row of the table each, and for every baseline.
      rounds: how often stages two and three alternate; 0 fine-tunes under random routing alone.
      explore: share of the images of stage three that are routed at random.
      selector: stage two.
      peers: other cascades in the same table, without a selector.
      methods: token methods in the same table, for example 'tome': the dense network with a fixed
        schedule at each budget, fine-tuned by `compare.finetune`.
    """

    looks: tuple[LookConfig, ...] = (
        LookConfig(structures=(0.1, 1.0), begins=2),
        LookConfig(structures=(0.2, 0.5, 1.0), exits=(1,), begins=1),
    )
    exit_weight: Weight = 0.5
    budgets: Annotated[tuple[Share, ...], Entries("distinct", fewest=1, decimals=2)] = (0.2, 0.33, 0.5)
    rounds: Index = 1
    explore: Fraction = 0.5
    selector: TableSelectorConfig = field(default_factory=TableSelectorConfig)
    peers: tuple[PeerConfig, ...] = ()
    methods: Annotated[tuple[str, ...], Entries("distinct")] = ()

    def __post_init__(self):
        check_looks("cascade.looks", self.looks)
        names = [peer.name for peer in self.peers]
        if len(set(names)) < len(names):
            raise UserError(f"cascade.peers: the names {names} must differ")
        for name in self.methods:
            if name not in METHODS:
                raise UserError(f"cascade.methods: {name!r} is not known; choose from {', '.join(METHODS)}")

    @property
    def all_looks(self) -> list[tuple[LookConfig, ...]]:
        """Looks of the cascade, then those of each peer."""
        return [self.looks, *(peer.looks for peer in self.peers)]
