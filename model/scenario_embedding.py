"""What a network knows of a scenario by name: a learnt row of its own.

Letters: B rows, e embedding width.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from model.network import scenario_slices
from model.seeding import Drawn, draw_uniform


class ScenarioEmbedding(Drawn):
    """The learnt row of one scenario."""

    def __init__(self, width: int, *, fan_in: int = 1) -> None:
        """It is drawn within 1 / sqrt(fan_in)."""
        super().__init__()
        self._fan_in = fan_in
        self.row = nn.Parameter(torch.empty(width))

    def forward(self, num_rows: int) -> Tensor:
        """Returns it that many times, [num_rows, e]."""
        return self.row.expand(num_rows, -1)

    def draw(self, generator_of: Callable[[str], torch.Generator]) -> None:
        """Draws the row."""
        draw_uniform(self.row, self._fan_in, generator_of("row"))


def embed_scenarios(embeddings: nn.ModuleList, row_offsets: Sequence[int]) -> Tensor:
    """Returns the row of each row's scenario, [B, e]; that of a scenario without rows gets no gradient."""
    none = embeddings[0](0).detach()
    return torch.cat([none, *(embeddings[one](stop - start) for one, start, stop in scenario_slices(row_offsets))])
