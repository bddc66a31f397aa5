"""What every network is: from input rows of several scenarios to the logits of several tasks.

Letters: B rows, D input width, W block width, M scenarios, T tasks, C width of the representation, X width of a table.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from model.gate_usage import GateUsage
from model.inputs import RowInputs
from model.sequence_inputs import SequenceInputs


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkShape:
    """What a network is built for."""

    blocks: tuple[str, ...]
    """The blocks of x in their order, each `block_width` wide: a field's name (`model.features.Field.name`), or
    `history_item*item_id` for their product."""
    block_width: int
    """W."""
    num_scenarios: int
    """M."""
    tasks: tuple[str, ...]

    @property
    def width(self) -> int:
        """D, the width of x."""
        return self.block_width * len(self.blocks)

    @property
    def num_tasks(self) -> int:
        """T."""
        return len(self.tasks)

    def columns(self, block: str, *, setting: str = "blocks") -> slice:
        """Returns the columns of a block in x; `setting` is what names it in the configuration.

        Raises:
            ValueError: there is no such block.
        """
        if block not in self.blocks:
            raise ValueError(f"{setting}: {block!r} is not a field of this model; {', '.join(self.blocks)}")
        start = self.blocks.index(block) * self.block_width
        return slice(start, start + self.block_width)


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkInputs:
    """What a network sees of B rows."""

    x: RowInputs
    row_offsets: Sequence[int]
    """M + 1 places: rows come sorted by scenario, those of scenario i are `row_offsets[i]` to `row_offsets[i + 1]`."""
    sequence: SequenceInputs | None = None
    """The users' histories; given to networks that say `uses_sequence`."""
    position_B: Tensor | None = None
    """Where each item was shown, -1 where it was not; for `position_bias` only."""
    noise: torch.Generator | None = None
    """None: evaluation. Given: a training forward, and dropout masks or gate noise are drawn from it."""


class Network(nn.Module):
    """Logits of each row's own scenario, [B, T].

    In an evaluation forward what a row gets does not depend on the other rows. Heads of a scenario without rows are not
    run, so their gradients stay None and Adam leaves them alone.
    """

    scores_as_it_learns = True
    """Whether a training forward gives the logits of an evaluation forward: no dropout, no statistics of the batch."""

    uses_sequence = False
    """Whether it reads `NetworkInputs.sequence`."""

    learns_foreign_heads = False
    """Whether a row also trains the other scenarios' heads, with label 0 (an ablation: HiNet's `loss_rows: all`)."""

    cannot_grow: str | None = None
    """Why no scenario can be added, in the words of an error; None: one can."""

    def __init__(self, shape: NetworkShape, *, representation_width: int) -> None:
        super().__init__()
        self.shape = shape
        self.num_scenarios = shape.num_scenarios
        self.representation_width = representation_width
        """C."""

    def forward(self, inputs: NetworkInputs) -> Tensor:
        """Returns the logits, [B, T]."""
        return self.task_logits(self.representation(inputs), inputs.row_offsets)

    def representation(self, inputs: NetworkInputs) -> Tensor:
        """Returns all that the network makes of the rows before its tasks part, [B, C]."""
        raise NotImplementedError

    def task_logits(self, c_BC: Tensor, row_offsets: Sequence[int]) -> Tensor:
        """Returns the logits, [B, T], from what `representation` returned."""
        raise NotImplementedError

    def all_head_logits(self, c_BC: Tensor) -> Tensor:
        """Returns every scenario's logits from the rows' own C, [B, M, T]; for networks that learn foreign heads."""
        raise NotImplementedError

    def start_at(self, task: int, prior: float) -> None:
        """Makes a task's logits start near the logit of `prior`, a probability, in every scenario."""
        raise NotImplementedError

    def position_bias(self, inputs: NetworkInputs, logits_BT: Tensor) -> Tensor | None:
        """Returns what a training forward adds for the positions shown to its `task_logits`, [B, T]; None: nothing."""
        return None

    def auxiliary_loss(self) -> Tensor | None:
        """Returns what the last training forward adds to the loss, if anything."""
        return None

    def after_step(self) -> None:
        """Keeps the statistics of the last training forward; called only if its step was made."""

    def scenario_lists(self) -> list[nn.ModuleList]:
        """Returns the lists with one entry per scenario; all that belongs to one scenario only is in one of them."""
        raise NotImplementedError

    def add_scenario(self, donor: int) -> int:
        """Adds a scenario that starts as a copy of `donor`. Returns its index; the optimiser's state is the caller's.

        What the rows of the other scenarios get stays the same, bit for bit.

        Raises:
            ValueError: it cannot grow.
        """
        if self.cannot_grow is not None:
            raise ValueError(self.cannot_grow)
        for modules in self.scenario_lists():
            modules.append(copy.deepcopy(modules[donor]))
        self.num_scenarios += 1
        return self.num_scenarios - 1

    def row_parameters(self) -> list[str]:
        """Returns the names of the parameters with one row (dimension 0) per scenario.

        There may be more rows than scenarios. `add_scenario` copies the donor's row into the new one's.
        """
        return []

    def open_scenario(self, index: int, share: float) -> None:
        """Lets the rows of other scenarios see a scenario added later by `share`, from 0 to 1.

        Nothing to do in a network whose rows see nothing of other scenarios.
        """

    def for_serving(self) -> "Network":
        """Returns the network without the parts that only training needs; it shares the others."""
        return self

    def gate_usage(self, inputs: NetworkInputs) -> list[GateUsage]:
        """Returns what each gate gave to each of its experts, row by row; empty for a network without gates."""
        return []


def scenario_slices(row_offsets: Sequence[int]) -> list[tuple[int, int, int]]:
    """Returns (scenario, first row, end) of each scenario that has rows.

    >>> scenario_slices([0, 2, 2, 5])
    [(0, 0, 2), (2, 2, 5)]
    """
    bounds = enumerate(pairwise(row_offsets))
    return [(scenario, start, stop) for scenario, (start, stop) in bounds if stop > start]


def of_each_row(table_MX: Tensor, row_offsets: Sequence[int]) -> Tensor:
    """Returns what a table with a row per scenario has for the scenario of each row, [B, X].

    >>> of_each_row(torch.tensor([[1], [2], [3]]), [0, 2, 2, 3]).tolist()
    [[1], [1], [3]]
    """
    num_rows_M = torch.tensor([stop - start for start, stop in pairwise(row_offsets)], device=table_MX.device)
    return table_MX.repeat_interleave(num_rows_M, dim=0, output_size=row_offsets[-1])
