"""Gate logits that are linear in the gate's input.

Letters: B rows, D input width, N logits, M scenarios.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from model.inputs import RowInputs
from model.network import scenario_slices
from model.seeding import Drawn, draw_uniform


class LinearGate(Drawn):
    """N gate logits, W x + b, [B, N]; the bias is zero at the start."""

    def __init__(self, width: int, num_logits: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_logits, width))
        self.bias = nn.Parameter(torch.empty(num_logits))

    def forward(self, x: RowInputs) -> Tensor:
        """Returns the logits, [B, N]."""
        return x.linear(self.weight, self.bias)

    def draw(self, generator_of: Callable[[str], torch.Generator]) -> None:
        """Draws the weight."""
        draw_uniform(self.weight, self.weight.shape[1], generator_of("weight"))
        self.bias.zero_()


class ScenarioGates(nn.ModuleList):
    """A linear gate per scenario; a row runs that of its own scenario. As a list it grows with the scenarios."""

    def __init__(self, num_scenarios: int, width: int, num_logits: int) -> None:
        super().__init__(LinearGate(width, num_logits) for _ in range(num_scenarios))
        self._num_logits = num_logits

    def forward(self, x: RowInputs, row_offsets: Sequence[int]) -> Tensor:
        """Returns the logits, [B, N], of rows sorted by scenario."""
        rows_M = x.split(row_offsets)
        logits = [self[scenario](rows_M[scenario]) for scenario, _, _ in scenario_slices(row_offsets)]
        return torch.cat(logits) if logits else x.whole().new_empty(0, self._num_logits)
