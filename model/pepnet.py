"""PEPNet: gates that personalise embeddings by scenario and towers by user and item (Chang et al., KDD 2023).

    EPNet     O = gated x (`model.epnet`, GateNU as well)
    PPNet     u <- relu(W_tl (GateNU_tl(z) u) + b_tl) in layer l of task t, u = O at first, no relu after the last
              z = [prior fields, sg(O)]

sg stops the gradient; products with a gate are element by element. Towers are the tasks', shared by all scenarios: what
is a scenario's own is its embedding.

Letters: B rows, D input width, T tasks, Z width of z, P of its prior fields, C width of the representation.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.epnet import EPNet, EPNetConfig, GateNU
from model.network import Network, NetworkInputs, NetworkShape
from model.network_config import check_counts
from model.seeding import initialise
from model.towers import TowerLayers


@dataclass(frozen=True, slots=True, kw_only=True)
class PEPNetConfig:
    """Fields and widths. The default has 0.72 M parameters at D = 320, three scenarios and two tasks."""

    prior_fields: tuple[str, ...] = ("user_id", "item_id")
    """Fields that the towers' gates see, beside the gated input: ids of user, item, author; at least one."""
    domain_gate: EPNetConfig = EPNetConfig()
    """EPNet: the gate on the input."""
    gate_hidden: int = 128
    """Hidden width of a tower's gates; at least 1."""
    tower: tuple[int, ...] = (256, 64)
    """Hidden widths of a tower."""

    def __post_init__(self) -> None:
        if not self.prior_fields:
            raise ValueError("prior_fields: () is not allowed; at least one field")
        check_counts(self)


class PersonalisedTowers(TowerLayers):
    """PPNet: T towers, every layer's input gated by z; O [B, D], z [B, Z] -> logits [B, T]."""

    def __init__(self, num_tasks: int, width: int, z_width: int, config: PEPNetConfig) -> None:
        super().__init__(num_tasks, width, config.tower)
        self.gates = nn.ModuleList(
            GateNU(num_tasks, z_width, config.gate_hidden, weight.shape[1]) for weight in self.weights
        )

    def forward(self, o_BD: Tensor, z_BZ: Tensor) -> Tensor:
        """Returns the logits, [B, T]."""
        u_TBd = o_BD
        for layer, (gate, weight, bias) in enumerate(zip(self.gates, self.weights, self.biases, strict=True)):
            if layer:
                u_TBd = F.relu(u_TBd)
            u_TBd = torch.baddbmm(bias, gate(z_BZ) * u_TBd, weight)
        return u_TBd.squeeze(2).t()


class PEPNet(Network):
    """The whole network; C is [prior fields, O].

    Raises:
        ValueError: the configuration names a field that is not there.
    """

    def __init__(self, config: PEPNetConfig, shape: NetworkShape, *, seed: int | None) -> None:
        """With `seed` None the parameters are left undrawn, to be loaded."""
        prior_width = shape.block_width * len(config.prior_fields)
        super().__init__(shape, representation_width=prior_width + shape.width)
        self._prior_width = prior_width
        self._prior_columns = [shape.columns(one, setting="pepnet.prior_fields") for one in config.prior_fields]
        self.domain_gate = EPNet(config.domain_gate, shape)
        self.towers = PersonalisedTowers(shape.num_tasks, shape.width, self.representation_width, config)
        if seed is not None:
            initialise(self, seed)

    def scenario_lists(self) -> list[nn.ModuleList]:
        """Returns the gate's scenario embeddings."""
        return [self.domain_gate.embeddings]

    def start_at(self, task: int, prior: float) -> None:
        """Makes a task's logits start near the logit of `prior`, a probability, in every scenario."""
        self.towers.start_at(task, prior)

    def representation(self, inputs: NetworkInputs) -> Tensor:
        """Returns the prior fields and the gated input, [B, C]."""
        x_BD = inputs.x.whole()
        o_BD = self.domain_gate(x_BD, inputs.row_offsets)
        return torch.cat([*(x_BD[:, columns] for columns in self._prior_columns), o_BD], dim=1)

    def task_logits(self, c_BC: Tensor, row_offsets: Sequence[int]) -> Tensor:
        """Returns the logits, [B, T], from what `representation` returned."""
        prior_BP, o_BD = c_BC[:, : self._prior_width], c_BC[:, self._prior_width :]
        logits_BT: Tensor = self.towers(o_BD, torch.cat([prior_BP, o_BD.detach()], dim=1))
        return logits_BT
