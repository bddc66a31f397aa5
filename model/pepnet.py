"""PEPNet: gates that personalise embeddings by scenario and towers by user and item (Chang et al., KDD 2023).

    GateNU(z) = 2 sigma(W2 relu(W1 z + b1) + b2)          between 0 and 2, near 1 at first
    EPNet     O = GateNU([Emb(scenario), scenario fields, sg(x)]) x
    PPNet     u <- relu(W_tl (GateNU_tl(z) u) + b_tl) in layer l of task t, u = O at first, no relu after the last
              z = [prior fields, sg(O)]

sg stops the gradient: the gates may look at the embeddings but not drag them. Products with a gate are element by
element. Towers are the tasks', shared by all scenarios: what is a scenario's own is its embedding.

Letters: B rows, D input width, T tasks, Z width of z, g hidden width of a gate, e embedding width.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.network import Network, NetworkInputs, NetworkShape
from model.network_config import check_counts
from model.scenario_embedding import ScenarioEmbedding, embed_scenarios
from model.seeding import Drawn, draw_uniform, initialise


@dataclass(frozen=True, slots=True, kw_only=True)
class PEPNetConfig:
    """Fields and widths. The default has 0.72 M parameters at D = 320, three scenarios and two tasks."""

    prior_fields: tuple[str, ...] = ("user_id", "item_id")
    """Fields that the towers' gates see, beside the gated input: ids of user, item, author; at least one."""
    scenario_fields: tuple[str, ...] = ()
    """Fields that describe the scenario to the input's gate, beside its own learnt embedding."""
    scenario_embedding: int = 16
    """Width of the scenario embedding; at least 1."""
    gate_hidden: int = 128
    """Hidden width of a gate; at least 1."""
    tower: tuple[int, ...] = (256, 64)
    """Hidden widths of a tower."""

    def __post_init__(self) -> None:
        if not self.prior_fields:
            raise ValueError("prior_fields: () is not allowed; at least one field")
        check_counts(self)


class GateNU(Drawn):
    """T gates on one input, z [B, Z] -> factors [T, B, out] between 0 and 2."""

    def __init__(self, num_gates: int, width: int, hidden: int, out: int) -> None:
        super().__init__()
        self.in_weight = nn.Parameter(torch.empty(num_gates * hidden, width))
        self.in_bias = nn.Parameter(torch.empty(num_gates * hidden))
        self.out_weight = nn.Parameter(torch.empty(num_gates, hidden, out))
        self.out_bias = nn.Parameter(torch.empty(num_gates, 1, out))

    def forward(self, z_BZ: Tensor) -> Tensor:
        """Returns the factors, [T, B, out]."""
        num_gates, hidden, _ = self.out_weight.shape
        hidden_BTg = F.relu(F.linear(z_BZ, self.in_weight, self.in_bias)).view(-1, num_gates, hidden)
        return 2.0 * torch.baddbmm(self.out_bias, hidden_BTg.transpose(0, 1), self.out_weight).sigmoid()

    def draw(self, generator_of: Callable[[str], torch.Generator]) -> None:
        """Draws layers as `nn.Linear` does; the last biases are zero."""
        width, hidden = self.in_weight.shape[1], self.out_weight.shape[1]
        for name, fan_in in (("in_weight", width), ("in_bias", width), ("out_weight", hidden)):
            draw_uniform(getattr(self, name), fan_in, generator_of(name))
        self.out_bias.zero_()


class PersonalisedTowers(Drawn):
    """PPNet: T towers, every layer's input gated by z; O [B, D], z [B, Z] -> logits [B, T]."""

    def __init__(self, num_tasks: int, width: int, z_width: int, config: PEPNetConfig) -> None:
        super().__init__()
        widths = [width, *config.tower, 1]
        shapes = [(num_tasks, fan_in, out) for fan_in, out in zip(widths, widths[1:], strict=False)]
        self.gates = nn.ModuleList(GateNU(num_tasks, z_width, config.gate_hidden, fan_in) for _, fan_in, _ in shapes)
        self.weights = nn.ParameterList(torch.empty(shape) for shape in shapes)
        self.biases = nn.ParameterList(torch.empty(num_tasks, 1, out) for _, _, out in shapes)

    def forward(self, o_BD: Tensor, z_BZ: Tensor) -> Tensor:
        """Returns the logits, [B, T]."""
        u_TBd = o_BD
        for layer, (gate, weight, bias) in enumerate(zip(self.gates, self.weights, self.biases, strict=True)):
            if layer:
                u_TBd = F.relu(u_TBd)
            u_TBd = torch.baddbmm(bias, gate(z_BZ) * u_TBd, weight)
        return u_TBd.squeeze(2).t()

    def start_at(self, task: int, prior: float) -> None:
        """Makes a task's logits start near the logit of `prior`, a probability."""
        with torch.no_grad():
            self.biases[-1][task] = math.log(prior / (1 - prior))

    def draw(self, generator_of: Callable[[str], torch.Generator]) -> None:
        """Draws layers as `nn.Linear` does."""
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            draw_uniform(weight, weight.shape[1], generator_of(f"weights.{layer}"))
            draw_uniform(bias, weight.shape[1], generator_of(f"biases.{layer}"))


class PEPNet(Network):
    """The whole network; C is [prior fields, O].

    Raises:
        ValueError: the configuration names a field that is not there.
    """

    def __init__(self, config: PEPNetConfig, shape: NetworkShape, *, seed: int | None) -> None:
        """With `seed` None the parameters are left undrawn, to be loaded."""
        prior_width = shape.block_width * len(config.prior_fields)
        super().__init__(shape, representation_width=prior_width + shape.width)
        self._prior_columns = _columns("prior_fields", config.prior_fields, shape)
        self._scenario_columns = _columns("scenario_fields", config.scenario_fields, shape)
        self._prior_width = prior_width
        domain_width = config.scenario_embedding + shape.block_width * len(config.scenario_fields) + shape.width
        self.embeddings = nn.ModuleList(
            ScenarioEmbedding(config.scenario_embedding) for _ in range(shape.num_scenarios)
        )
        self.domain_gate = GateNU(1, domain_width, config.gate_hidden, shape.width)
        self.towers = PersonalisedTowers(shape.num_tasks, shape.width, self.representation_width, config)
        if seed is not None:
            initialise(self, seed)

    def scenario_lists(self) -> list[nn.ModuleList]:
        """Returns the scenario embeddings."""
        return [self.embeddings]

    def start_at(self, task: int, prior: float) -> None:
        """Makes a task's logits start near the logit of `prior`, a probability, in every scenario."""
        self.towers.start_at(task, prior)

    def representation(self, inputs: NetworkInputs) -> Tensor:
        """Returns the prior fields and the gated input, [B, C]."""
        x_BD = inputs.x.whole()
        described = [x_BD[:, columns] for columns in self._scenario_columns]
        known = [embed_scenarios(self.embeddings, inputs.row_offsets), *described, x_BD.detach()]
        o_BD = self.domain_gate(torch.cat(known, dim=1))[0] * x_BD
        return torch.cat([*(x_BD[:, columns] for columns in self._prior_columns), o_BD], dim=1)

    def task_logits(self, c_BC: Tensor, row_offsets: Sequence[int]) -> Tensor:
        """Returns the logits, [B, T], from what `representation` returned."""
        prior_BP, o_BD = c_BC[:, : self._prior_width], c_BC[:, self._prior_width :]
        logits_BT: Tensor = self.towers(o_BD, torch.cat([prior_BP, o_BD.detach()], dim=1))
        return logits_BT


def _columns(setting: str, fields: Sequence[str], shape: NetworkShape) -> list[slice]:
    try:
        return [shape.columns(field) for field in fields]
    except ValueError as error:
        raise ValueError(f"{setting}: {error}") from error
