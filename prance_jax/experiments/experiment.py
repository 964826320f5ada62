"""One experiment: all stages for every seed and token mode, and rows at several budgets."""

from __future__ import annotations

import dataclasses
import functools

from prance_jax.adaptive.calibrate import calibrate_budget_table
from prance_jax.experiments.prance_stages import PranceStages
from prance_jax.experiments.stage_runner import TableEntry, budget_suffix
from prance_jax.selector.policies import PolicyWithCost

STAGES = ("dense", "meta", "selector", "finetune")


class Experiment(PranceStages):
    """The stages of a config in a workdir, and the rows of one selector at several budgets."""

    @functools.cached_property
    def _at_budgets(self) -> dict[tuple[int, str], list[TableEntry]]:
        return {}

    def run(self, stage: str) -> None:
        """Trains one of `STAGES` for all seeds and modes, missing earlier ones first."""
        for seed in self.config.seeds:
            if stage == "dense":
                self.dense(seed)
            elif stage == "meta":
                self.meta(seed)
            else:
                for mode in self.config.token_modes:
                    self.policy_params(seed, mode) if stage == "selector" else self.prance(seed, mode)

    def at_budgets(self, seed: int, mode: str) -> list[TableEntry]:
        """Returns one selector at every budget of the config.

        The cost weight of a budget is calibrated on the validation images.
        With `baselines.single_budget`, a selector trained for the budget alone stands before each.

        Args:
          seed: of the run.
          mode: token mode.
        """
        if (seed, mode) not in self._at_budgets:
            self._at_budgets[seed, mode] = self._calibrate(seed, mode)
        return self._at_budgets[seed, mode]

    def _calibrate(self, seed: int, mode: str) -> list[TableEntry]:
        all_budgets, rows = self.prance(seed, mode), []
        budget_table, _ = calibrate_budget_table(
            all_budgets.spec,
            all_budgets.policy,
            all_budgets.params,
            all_budgets.policy_params,
            self.source.split("validation"),
            self.config.selector.cost_weights,
            all_budgets.decision_cost,
        )
        lowest, highest = budget_table.range
        for budget in self.config.budgets:
            if self.config.baselines.single_budget:
                rows.append(self.prance(seed, mode, budget))
            if not lowest <= budget <= highest:
                self.progress.note(
                    f"budget {budget:g} is outside the range of this selector, "
                    f"{lowest:.2f} to {highest:.2f}: its row shows the nearest budget"
                )
            policy_params = PolicyWithCost(
                all_budgets.policy_params, budget_table.cost_weight(min(max(budget, lowest), highest))
            )
            method = f"{all_budgets.method}{budget_suffix(budget)}"
            rows.append(dataclasses.replace(all_budgets, method=method, policy_params=policy_params))
        return rows
