"""A network around another one: it changes what goes in or comes out, and is the other one in all else.

Letters: B rows, M scenarios, T tasks, C width of the representation.
"""

import copy
from collections.abc import Sequence

from torch import Tensor, nn

from model.gate_usage import GateUsage
from model.network import Network, NetworkInputs, NetworkShape


class NetworkAround(Network):
    """Hands everything on to `network`; `shape` is what this one is built for, the other's may be wider."""

    def __init__(self, network: Network, shape: NetworkShape) -> None:
        super().__init__(shape, representation_width=network.representation_width)
        self.network = network
        self.num_scenarios = network.num_scenarios
        self.scores_as_it_learns = network.scores_as_it_learns
        self.uses_sequence = network.uses_sequence
        self.learns_foreign_heads = network.learns_foreign_heads
        self.cannot_grow = network.cannot_grow

    def inner_inputs(self, inputs: NetworkInputs) -> NetworkInputs:
        """Returns what the inner network sees."""
        return inputs

    def representation(self, inputs: NetworkInputs) -> Tensor:
        """Returns the inner network's, [B, C]."""
        return self.network.representation(self.inner_inputs(inputs))

    def task_logits(self, c_BC: Tensor, row_offsets: Sequence[int]) -> Tensor:
        """Returns the inner network's, [B, T]."""
        return self.network.task_logits(c_BC, row_offsets)

    def all_head_logits(self, c_BC: Tensor) -> Tensor:
        """Returns the inner network's, [B, M, T]."""
        return self.network.all_head_logits(c_BC)

    def start_at(self, task: int, prior: float) -> None:
        """Makes a task's logits start near the logit of `prior`, a probability, in every scenario."""
        self.network.start_at(task, prior)

    def auxiliary_loss(self) -> Tensor | None:
        """Returns what the last training forward adds to the loss, if anything."""
        return self.network.auxiliary_loss()

    def after_step(self) -> None:
        """Keeps the statistics of the last training forward; called only if its step was made."""
        self.network.after_step()

    def own_lists(self) -> list[nn.ModuleList]:
        """Returns the lists with one entry per scenario that it has beside the inner network's."""
        return []

    def scenario_lists(self) -> list[nn.ModuleList]:
        """Returns the inner network's, then its own."""
        return [*self.network.scenario_lists(), *self.own_lists()]

    def row_parameters(self) -> list[str]:
        """Returns the inner network's, by their names in here."""
        return [f"network.{name}" for name in self.network.row_parameters()]

    def open_scenario(self, index: int, share: float) -> None:
        """Lets the rows of other scenarios see a scenario added later by `share`, from 0 to 1."""
        self.network.open_scenario(index, share)

    def add_scenario(self, donor: int) -> int:
        """Adds a scenario that starts as a copy of `donor`. Returns its index."""
        index = self.network.add_scenario(donor)
        for modules in self.own_lists():
            modules.append(copy.deepcopy(modules[donor]))
        self.num_scenarios = self.network.num_scenarios
        return index

    def gate_usage(self, inputs: NetworkInputs) -> list[GateUsage]:
        """Returns the inner network's."""
        return self.network.gate_usage(self.inner_inputs(inputs))
