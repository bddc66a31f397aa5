"""Every scenario's towers; a row runs those of its own scenario.

Letters: B rows, T tasks, d feature width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.network import scenario_slices
from model.towers import Towers


class ScenarioTowers(nn.ModuleList):
    """T towers per scenario: features [T, B, d] of rows sorted by scenario -> logits [B, T].

    Towers of a scenario without rows are not run. As a list it grows with the scenarios.
    """

    def __init__(self, num_scenarios: int, num_tasks: int, width: int, hidden: Sequence[int]) -> None:
        super().__init__(Towers(num_tasks, width, hidden) for _ in range(num_scenarios))

    def forward(self, features_TBd: Tensor, row_offsets: Sequence[int]) -> Tensor:
        """Returns the logits, [B, T]."""
        logits = [features_TBd.new_empty(0, len(features_TBd))]
        for scenario, start, stop in scenario_slices(row_offsets):
            logits.append(self[scenario](features_TBd[:, start:stop]))
        return torch.cat(logits)

    def start_at(self, task: int, prior: float) -> None:
        """Makes a task's logits start near the logit of `prior`, a probability, in every scenario."""
        for towers in self:
            assert isinstance(towers, Towers)
            towers.start_at(task, prior)
