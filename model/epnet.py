"""EPNet: a gate on the whole input that knows the scenario (Chang et al., KDD 2023).

    GateNU(z) = 2 sigma(W2 relu(W1 z + b1) + b2)          between 0 and 2, near 1 at first
    O         = GateNU([Emb(scenario), scenario fields, sg(x)]) x      element by element

sg stops the gradient: the gate may look at the embeddings but not drag them.

Letters: B rows, D input width, G gates, g hidden width of a gate, Z width of a gate's input.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.network import NetworkShape
from model.network_config import check_counts
from model.scenario_embedding import ScenarioEmbedding, embed_scenarios
from model.seeding import Drawn, draw_uniform


@dataclass(frozen=True, slots=True, kw_only=True)
class EPNetConfig:
    """The gate on the input."""

    scenario_fields: tuple[str, ...] = ()
    """Fields that describe the scenario to the gate, beside its own learnt embedding."""
    scenario_embedding: int = 16
    """Width of the scenario embedding; at least 1."""
    hidden: int = 128
    """Hidden width of the gate; at least 1."""

    def __post_init__(self) -> None:
        check_counts(self)


class GateNU(Drawn):
    """G gates on one input, z [B, Z] -> factors [G, B, out] between 0 and 2."""

    def __init__(self, num_gates: int, width: int, hidden: int, out: int) -> None:
        super().__init__()
        self.in_weight = nn.Parameter(torch.empty(num_gates * hidden, width))
        self.in_bias = nn.Parameter(torch.empty(num_gates * hidden))
        self.out_weight = nn.Parameter(torch.empty(num_gates, hidden, out))
        self.out_bias = nn.Parameter(torch.empty(num_gates, 1, out))

    def forward(self, z_BZ: Tensor) -> Tensor:
        """Returns the factors, [G, B, out]."""
        num_gates, hidden, _ = self.out_weight.shape
        hidden_BGg = F.relu(F.linear(z_BZ, self.in_weight, self.in_bias)).view(-1, num_gates, hidden)
        return 2.0 * torch.baddbmm(self.out_bias, hidden_BGg.transpose(0, 1), self.out_weight).sigmoid()

    def draw(self, generator_of: Callable[[str], torch.Generator]) -> None:
        """Draws the layers, the last ones narrowly and without a bias: gates begin near 1."""
        width, hidden = self.in_weight.shape[1], self.out_weight.shape[1]
        for name in ("in_weight", "in_bias"):
            draw_uniform(getattr(self, name), width, generator_of(name))
        draw_uniform(self.out_weight, hidden, generator_of("out_weight"), variance=1 / 9)
        self.out_bias.zero_()


class EPNet(nn.Module):
    """x, rows sorted by scenario -> O, [B, D].

    Raises:
        ValueError: the configuration names a field that is not there.
    """

    def __init__(self, config: EPNetConfig, shape: NetworkShape) -> None:
        super().__init__()
        self._columns = [shape.columns(one, setting="scenario_fields") for one in config.scenario_fields]
        width = config.scenario_embedding + shape.block_width * len(config.scenario_fields) + shape.width
        self.embeddings = nn.ModuleList(
            ScenarioEmbedding(config.scenario_embedding) for _ in range(shape.num_scenarios)
        )
        self.gate = GateNU(1, width, config.hidden, shape.width)

    def forward(self, x_BD: Tensor, row_offsets: Sequence[int]) -> Tensor:
        """Returns the gated rows, [B, D]."""
        described = [x_BD[:, columns] for columns in self._columns]
        known_BZ = torch.cat([embed_scenarios(self.embeddings, row_offsets), *described, x_BD.detach()], dim=1)
        gated_BD: Tensor = self.gate(known_BZ)[0] * x_BD
        return gated_BD
