"""One experiment: for every seed the dense baseline, stage one, and per token mode stages two and three."""

from __future__ import annotations

import dataclasses

from prance_jax.adaptive.calibrate import calibrated_budget_table
from prance_jax.config.experiment import Config
from prance_jax.experiments.prance_stages import PranceStages
from prance_jax.experiments.stage_runner import TableEntry, percent
from prance_jax.selector.policies import PolicyWithCost
from prance_jax.training.metrics import Progress
from prance_jax.training.workdir import Workdir

STAGES = ("dense", "meta", "selector", "finetune")


class Experiment(PranceStages):
    """The stages of a config in a workdir, and the rows of one selector at several budgets."""

    def __init__(self, config: Config, workdir: Workdir, progress: Progress, *, train: bool = True):
        """train: whether a stage that is not there is trained; else it is a UserError."""
        super().__init__(config, workdir, progress, train=train)
        self._at_budgets: dict[tuple[int, str], list[TableEntry]] = {}

    def at_budgets(self, seed: int, mode: str) -> list[TableEntry]:
        """The rows of one selector that serves every budget, at prices calibrated on the validation images; before each
        that of a selector trained for its budget alone, where the config asks for it."""
        if (seed, mode) not in self._at_budgets:
            self._at_budgets[seed, mode] = self._calibrated(seed, mode)
        return self._at_budgets[seed, mode]

    def _calibrated(self, seed: int, mode: str) -> list[TableEntry]:
        every, cost_weights, rows = self.prance(seed, mode), self.config.selector.cost_weights, []
        budget_table, _ = calibrated_budget_table(
            every.spec,
            every.policy,
            every.params,
            every.policy_params,
            self.source.split("validation"),
            cost_weights,
            every.decision_cost,
        )
        for budget in self.config.budgets:
            if self.config.baselines.single_budget:
                rows.append(self.prance(seed, mode, budget))
            lowest, highest = budget_table.range
            if not lowest <= budget <= highest:
                self.progress.note(
                    f"budget {budget:g} is beyond what this selector spends, {lowest:.2f} to {highest:.2f}: "
                    "its row shows the nearest that there is"
                )
            policy_params = PolicyWithCost(
                every.policy_params, budget_table.cost_weight(min(max(budget, lowest), highest))
            )
            name = f"{every.method}{percent(budget)}"
            rows.append(dataclasses.replace(every, method=name, policy_params=policy_params))
        return rows

    def run(self, stage: str) -> None:
        """Trains one stage for all seeds and modes; those before it must be there or are trained first."""
        for seed in self.config.seeds:
            if stage == "dense":
                self.dense(seed)
            elif stage == "meta":
                self.meta(seed)
            else:
                for mode in self.config.token_modes:
                    self.policy_params(seed, mode) if stage == "selector" else self.prance(seed, mode)
