"""What is kept for each row of the trainer's embedding table, by the number of the row.

Letters: R rows that there is room for, K some of them, W embedding width.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from model.cold_rows import RowValues
from model.eviction import LastSeen
from model.hashing import Int64Array


class RowArrays:
    """Weights and accumulators on the table's device; all that decides which value has which row on the host."""

    def __init__(self, weight_RW: Tensor) -> None:
        """Begins with these weights, of either dtype; nothing was learned or seen."""
        num_rows = len(weight_RW)
        self.weight = weight_RW
        """[R, W]"""
        self.accumulator = torch.zeros(num_rows, device=weight_RW.device)
        """Row-wise Adagrad's, [R] float32."""
        self.changed_at: Int64Array = np.zeros(num_rows, np.int64)
        """The table's clock at each row's last change, [R]."""
        self.examples: Int64Array = np.zeros(num_rows, np.int64)
        """Examples learned since the row was admitted, [R]."""
        self.seen = LastSeen(num_rows)

    def __len__(self) -> int:
        return len(self.changed_at)

    def reserve(self, num_rows: int) -> None:
        """Makes room for rows 0..num_rows - 1, doubling."""
        capacity = len(self)
        if num_rows <= capacity:
            return
        more = max(num_rows, 2 * capacity) - capacity
        self.weight = torch.cat([self.weight, self.weight.new_zeros(more, self.weight.shape[1])])
        self.accumulator = torch.cat([self.accumulator, self.accumulator.new_zeros(more)])
        self.changed_at = np.concatenate([self.changed_at, np.zeros(more, np.int64)])
        self.examples = np.concatenate([self.examples, np.zeros(more, np.int64)])
        self.seen.reserve(more)

    def values(self, rows_K: Int64Array, keys_K: Int64Array, clock_K: Int64Array) -> RowValues:
        """Returns what is kept of the rows of these keys, last seen at these clocks."""
        rows = torch.from_numpy(rows_K).to(self.weight.device)
        return RowValues(
            keys=keys_K,
            field=self.seen.field[rows_K],
            weight=self.weight[rows].cpu(),
            accumulator=self.accumulator[rows].cpu(),
            examples=self.examples[rows_K],
            clock=clock_K,
            ms=self.seen.ms[rows_K],
        )

    def put(self, rows_K: Int64Array, values: RowValues, *, clock: int) -> None:
        """Makes rows what `values` were taken from; they count as changed at `clock`."""
        rows = torch.from_numpy(rows_K).to(self.weight.device)
        self.weight[rows] = values.weight.to(self.weight.device)
        self.accumulator[rows] = values.accumulator.to(self.weight.device)
        self.examples[rows_K] = values.examples
        self.changed_at[rows_K] = clock
        self.seen.field[rows_K], self.seen.clock[rows_K], self.seen.ms[rows_K] = values.field, values.clock, values.ms

    def state(self, num_rows: int) -> dict[str, Tensor]:
        """Returns copies of everything about the first rows, in host memory."""
        seen = {f"seen.{name}": torch.from_numpy(array) for name, array in self.seen.state(num_rows).items()}
        return seen | {
            "changed_at": torch.from_numpy(self.changed_at[:num_rows].copy()),
            "examples": torch.from_numpy(self.examples[:num_rows].copy()),
            "weight": self.weight[:num_rows].to("cpu", copy=True),
            "accumulator": self.accumulator[:num_rows].to("cpu", copy=True),
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Becomes what `state` was taken from; the device and the weights' dtype stay."""
        device = self.weight.device
        self.weight = state["weight"].to(device, self.weight.dtype, copy=True)
        self.accumulator = state["accumulator"].to(device, copy=True)
        self.changed_at = state["changed_at"].numpy().copy()
        self.examples = state["examples"].numpy().copy()
        self.seen.load_state({name: state[f"seen.{name}"].numpy() for name in ("field", "clock", "ms", "now")})
