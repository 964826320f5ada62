"""The looks of a cascade, stage one, and the tree of steps from the structures that the search finds.

The structures are kept in `cascade_seedN.json`.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from prance_jax.cascade.looks import images_of_look, init_from_network, init_params, look_params
from prance_jax.cascade.tree import grow_tree
from prance_jax.config.cascade import CascadeConfig, cascade_spec
from prance_jax.core.files import read_json, try_write
from prance_jax.evaluation.static_search import search_static_structures
from prance_jax.experiments.prance_stages import PranceStages
from prance_jax.experiments.stage_runner import budget_suffix
from prance_jax.models import forward
from prance_jax.models.vit import ViT
from prance_jax.spec.cascade import Cascade, CascadeSpec
from prance_jax.spec.macs import single_look_macs
from prance_jax.spec.structure import GroupChoice, Structure
from prance_jax.training import optimizer
from prance_jax.training.checkpoint import Checkpoints
from prance_jax.training.stages import cascade as cascade_stage


class CascadeNetwork(PranceStages):
    """The network of a cascade up to the end of stage one, and its tree. Methods train what is missing.

    Attributes:
      folder: folder of its stages inside that of a seed.
      is_elastic: whether stage one trains structures beside the largest ones.
      skips_looks: whether an image may leave out a look.
    """

    folder = "cascade"
    is_elastic = True
    skips_looks = True

    def check(self) -> None:
        """Builds the looks as well."""
        super().check()
        self.cascade_spec

    @property
    def settings(self) -> CascadeConfig:
        """The section `cascade` of the config."""
        return self.config.cascade

    @functools.cached_property
    def cascade_spec(self) -> CascadeSpec:
        """The looks."""
        return cascade_spec(self.settings.looks, self.spec(self.config.token_modes[0]))

    def meta(self, seed: int) -> Any:
        """Returns the parameters of all looks after stage one."""
        spec, config, name = self.cascade_spec, self.config.meta, f"seed{seed}/{self.folder}/meta"
        keep_choices = (self.config.selector.keep_choices,) * spec.last.rates
        step = cascade_stage.cascade_meta_step(
            spec,
            config,
            keep_choices,
            self.settings.exit_weight,
            self.source.sample,
            self.mesh,
            self.is_elastic,
        )

        def init():
            key, transform = self.key(seed, "init"), optimizer.make_optimizer(config.optimizer, config.steps)
            has_begun = Checkpoints(self.workdir.checkpoints / name).latest() is not None
            if has_begun or config.init_from is None:
                return optimizer.init_state(init_params(spec, key), transform)
            network = self._meta_start(seed)(forward.init_params(ViT(self.meta_spec), key))
            return optimizer.init_state(init_from_network(spec, network, key), transform)

        headline = ("loss", "accuracy", "accuracy_random")
        return self.train_stage(
            name, config.steps, init, step, config.batch, (self.key(seed, "meta"),), headline
        )["ema"]

    def _teacher(self, seed: int) -> Any:
        """Parameters of the teacher of stage three, a plain network; of stage one's cascade its last look."""
        teacher = super()._teacher(seed)
        if self.config.finetune.teacher != "meta":
            return teacher
        return look_params(self.cascade_spec, teacher, len(self.settings.looks) - 1)

    def structures(self, seed: int) -> tuple[tuple[Structure, ...], ...]:
        """Returns the structures of each look that the search found, from the cheapest to the dearest."""
        file = self.workdir.path / f"{Path(self.folder).name}_seed{seed}.json"
        stored = read_json(file, lambda record: _stored_looks(record, len(self.settings.looks)))
        if stored is not None:
            return stored
        looks = []
        for number, look in enumerate(self.settings.looks):
            spec = self.cascade_spec.unrefined.looks[number].spec
            candidates = self.search(seed, number, tuple(share for share in look.structures if share < 1))
            structures = [structure for structure, _ in candidates]
            structures += [spec.largest] if look.structures[-1] == 1 else []
            structures = list(dict.fromkeys(structures))
            looks.append(tuple(sorted(structures, key=lambda item: single_look_macs(spec, item))))
        try_write(file, json.dumps({"structures": [[item.groups for item in look] for look in looks]}))
        return tuple(looks)

    def search(self, seed: int, look: int, shares: tuple[float, ...]) -> list[tuple[Structure, float]]:
        """Returns the best static structure of a look at each share of the dense MACs, and its validation loss.

        A look of refined cells is searched with every patch as a token.

        Args:
          seed: of the run.
          look: index of the look.
          shares: of the dense MACs.
        """
        if not shares:
            return []
        baselines, spec = self.config.baselines, self.cascade_spec.unrefined
        split = self.source.split("validation").some(baselines.images)
        small = split._replace(images=images_of_look(spec, jnp.asarray(split.images), look))
        self.progress.note(f"seed{seed}: searching static structures of look {look} at {shares}")
        return search_static_structures(
            spec.looks[look].spec,
            self.selector(self.config.token_modes[0]).finite_actions,
            look_params(spec, self.meta(seed), look),
            small,
            tuple(share * spec.dense_macs for share in shares),
            candidates=baselines.candidates,
            images=baselines.images,
            seed=seed,
        )

    def static_structure(self, seed: int, budget: float) -> tuple[int, Structure]:
        """Returns the look and the structure that are best at a budget, by the validation loss after stage one.

        Args:
          seed: of the run.
          budget: share of the dense MACs.
        """
        file = self.workdir.path / f"static_seed{seed}{budget_suffix(budget)}.json"
        stored = read_json(
            file,
            lambda record: (
                range(len(self.settings.looks))[record["look"]],
                _structure(record["structure"]),
            ),
        )
        if stored is not None:
            return stored
        candidates, full = [], self.cascade_spec.dense_macs
        for look, spec in enumerate(look.spec for look in self.cascade_spec.unrefined.looks):
            largest = single_look_macs(spec, spec.largest) / full
            ((structure, loss),) = self.search(seed, look, (min(budget, largest),))
            over_budget = max(0.0, single_look_macs(spec, structure) / full - budget)
            candidates.append(((over_budget, loss), look, structure))
        _, look, structure = min(candidates, key=lambda item: item[0])
        try_write(file, json.dumps({"look": look, "structure": structure.groups}))
        return look, structure

    def cascade(self, seed: int) -> Cascade:
        """Returns the tree of steps."""
        begin = [
            (number, index) for number, look in enumerate(self.settings.looks) for index in range(look.begins)
        ]
        return grow_tree(self.cascade_spec, self.structures(seed), tuple(begin), self.skips_looks)


def _stored_looks(record: dict, num_looks: int) -> tuple[tuple[Structure, ...], ...]:
    looks = tuple(tuple(_structure(item) for item in look) for look in record["structures"])
    if len(looks) != num_looks or not all(looks):
        raise ValueError(f"structures of {num_looks} looks expected")
    return looks


def _structure(groups: list) -> Structure:
    return Structure(tuple(GroupChoice(*(tuple(field) for field in group)) for group in groups))
