"""What the tests of all networks need: shapes, inputs, rows in any order."""

import numpy as np
from torch import Tensor

from model.inputs import RowInputs
from model.network import Network, NetworkInputs, NetworkShape


def shape(num_scenarios: int, num_tasks: int, *, width: int) -> NetworkShape:
    """Returns the shape for an input of one block."""
    tasks = tuple(f"task-{index}" for index in range(num_tasks))
    return NetworkShape(blocks=("x",), block_width=width, num_scenarios=num_scenarios, tasks=tasks)


def offsets(scenario_B: list[int], num_scenarios: int) -> list[int]:
    """Returns where the rows of each scenario start once they are sorted."""
    return [0, *np.cumsum(np.bincount(scenario_B, minlength=num_scenarios)).tolist()]


def inputs(x_BD: Tensor, row_offsets: list[int]) -> NetworkInputs:
    """Returns whole rows, sorted by scenario, for an evaluation forward."""
    return NetworkInputs(x=RowInputs(x_BD), row_offsets=row_offsets)


def run(net: Network, x_BD: Tensor, scenario_B: list[int]) -> Tensor:
    """Returns the logits of rows in any order, [B, T]."""
    order = np.argsort(scenario_B, kind="stable")
    sorted_BT = net(inputs(x_BD[order], offsets(scenario_B, net.num_scenarios)))
    return sorted_BT[np.argsort(order)]
