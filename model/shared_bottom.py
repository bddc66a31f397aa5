"""Shared-Bottom: one network for all, then a tower per scenario and task (Caruana, 1997).

    h = f(x),   z_ij = tower_ij(h)

Letters: B rows, D input width, T tasks, d width of h, C width of the representation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.inputs import RowInputs
from model.network import Network, NetworkInputs, NetworkShape
from model.network_config import check_counts
from model.scenario_towers import ScenarioTowers
from model.seeding import Drawn, draw_layers, initialise


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedBottomConfig:
    """Widths. The default has 0.69 M parameters at D = 320, 3 scenarios, 2 tasks."""

    bottom: tuple[int, ...] = (1024, 256)
    """Widths of the layers that all scenarios and tasks share, each followed by ReLU; at least one."""
    tower: tuple[int, ...] = (64,)
    """Hidden widths of a tower."""

    def __post_init__(self) -> None:
        check_counts(self)
        if not self.bottom:
            raise ValueError(f"bottom: {self.bottom} is not allowed; at least one width")


class Bottom(Drawn):
    """Linear layers with ReLU after each, x -> [B, d]. No batch norm: it would mix the scenarios' statistics."""

    def __init__(self, width: int, hidden: Sequence[int]) -> None:
        super().__init__()
        shapes = list(zip(hidden, [width, *hidden], strict=False))
        self.weights = nn.ParameterList(torch.empty(shape) for shape in shapes)
        self.biases = nn.ParameterList(torch.empty(out) for out, _ in shapes)

    def forward(self, x: RowInputs) -> Tensor:
        """Returns the shared features, [B, d]."""
        h = x
        for weight, bias in zip(self.weights, self.biases, strict=True):
            h = RowInputs(F.relu(h.linear(weight, bias)))
        return h.whole()

    def draw(self, generator_of: Callable[[str], torch.Generator]) -> None:
        """Draws the layers."""
        draw_layers(self.weights, self.biases, generator_of)


class SharedBottom(Network):
    """The whole network; its representation is h.

    >>> shape = NetworkShape(blocks=("user_id", "item_id"), block_width=4, num_scenarios=2, tasks=("click", "order"))
    >>> net = SharedBottom(SharedBottomConfig(), shape, seed=0)
    >>> net(NetworkInputs(x=RowInputs(torch.ones(5, 8)), row_offsets=[0, 4, 5])).shape
    torch.Size([5, 2])
    """

    def __init__(self, config: SharedBottomConfig, shape: NetworkShape, *, seed: int | None) -> None:
        """With `seed` None the parameters are left undrawn, to be loaded."""
        width = config.bottom[-1]
        super().__init__(shape, representation_width=width)
        self.bottom = Bottom(shape.width, config.bottom)
        self.towers = ScenarioTowers(shape.num_scenarios, shape.num_tasks, width, config.tower)
        if seed is not None:
            initialise(self, seed)

    def representation(self, inputs: NetworkInputs) -> Tensor:
        """Returns h, [B, d]."""
        h_Bd: Tensor = self.bottom(inputs.x)
        return h_Bd

    def task_logits(self, c_BC: Tensor, row_offsets: Sequence[int]) -> Tensor:
        """Returns the logits, [B, T]."""
        logits_BT: Tensor = self.towers(c_BC.expand(self.shape.num_tasks, -1, -1), row_offsets)
        return logits_BT

    def start_at(self, task: int, prior: float) -> None:
        """Makes a task's logits start near the logit of `prior`, a probability, in every scenario."""
        self.towers.start_at(task, prior)

    def scenario_lists(self) -> list[nn.ModuleList]:
        """Returns the towers."""
        return [self.towers]
