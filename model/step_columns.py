"""What of a micro-batch goes to the one rank that keeps the metrics: a few numbers per row, and no features.

Letters: B rows, T tasks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from model.delayed_labels import DelayedLabels
from model.examples import TrainRows
from model.metrics import BoolArray, Int64Array

Records = npt.NDArray[np.void]
"""One record per row, [B]."""
_DELAYED = "delayed."


@dataclass(frozen=True, slots=True, kw_only=True)
class StepColumns:
    """Rows of a micro-batch, [B] or [B, T], with their scores from before they were learned."""

    scenario_B: Int64Array
    impression_ms_B: Int64Array
    version_B: Int64Array
    label_BT: npt.NDArray[np.floating]
    settled_BT: BoolArray
    first_BT: BoolArray
    served_BT: npt.NDArray[np.floating]
    logit_BT: npt.NDArray[np.floating]
    feedback_ms_BT: Int64Array
    delayed: DelayedLabels | None = None

    @staticmethod
    def of(rows: TrainRows, scenario_B: Int64Array, logit_BT: npt.NDArray[np.floating]) -> "StepColumns":
        """Returns them of some rows; `scenario_B` are the scenarios as the model has them."""
        given = {name: getattr(rows, name) for name in _COLUMNS if name not in ("scenario_B", "logit_BT")}
        return StepColumns(scenario_B=scenario_B, logit_BT=logit_BT, delayed=rows.delayed, **given)

    def records(self) -> Records:
        """Returns the rows as records, to be sent and put in order."""
        arrays = {name: getattr(self, name) for name in _COLUMNS}
        if self.delayed is not None:
            arrays |= {_DELAYED + one.name: getattr(self.delayed, one.name) for one in fields(DelayedLabels)}
        return _records(arrays)

    @staticmethod
    def from_records(records_B: Records) -> "StepColumns":
        """Returns the columns of records."""
        names = records_B.dtype.names or ()
        columns = {name: records_B[name] for name in _COLUMNS}
        delayed = {name.removeprefix(_DELAYED): records_B[name] for name in names if name.startswith(_DELAYED)}
        return StepColumns(**columns, delayed=DelayedLabels(**delayed) if delayed else None)


_COLUMNS = tuple(one.name for one in fields(StepColumns) if one.name != "delayed")


def _records(arrays: Mapping[str, npt.NDArray[Any]]) -> Records:
    dtype = np.dtype([(name, array.dtype, array.shape[1:]) for name, array in arrays.items()])
    records_B = np.empty(len(next(iter(arrays.values()))), dtype)
    for name, array in arrays.items():
        records_B[name] = array
    return records_B


def in_order(records_of_rank: Sequence[Records], rank_of_part: Sequence[int], num_rows: Sequence[int]) -> Records:
    """Returns the rows of all ranks in the order of the parts, which says whose each is and how many rows it has.

    >>> first, second = np.zeros(3, [("n", int)]), np.ones(2, [("n", int)])
    >>> in_order([first, second], rank_of_part=[1, 0, 1], num_rows=[1, 3, 1])["n"].tolist()
    [1, 0, 0, 0, 1]
    """
    taken = [0] * len(records_of_rank)
    parts = []
    for rank, num in zip(rank_of_part, num_rows, strict=True):
        parts.append(records_of_rank[rank][taken[rank] : taken[rank] + num])
        taken[rank] += num
    return np.concatenate(parts)
