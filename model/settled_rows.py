"""Settled rows of all ranks, in the order of one: auxiliary heads are small, and every rank learns them from all rows.

Letters: N rows of one task, Q rows of all tasks, C width of the representation.
"""

from collections.abc import Mapping

import numpy as np
import torch

from model.hashing import Int64Array
from model.ranks import Ranks
from model.task_heads import SettledRows

_INTEGERS = ("scenario_N", "delay_ms_N", "observe_ms_N", "window_ms_N", "place_N")


def settled_of_all(ranks: Ranks, by_task: Mapping[int, SettledRows], width: int) -> dict[int, SettledRows]:
    """Returns the rows of all ranks by task, sorted by their place (stable); `width` is C."""
    if ranks.size == 1:
        return dict(by_task)
    floats = [np.empty((0, width + 2), np.float32)]
    integers = [np.empty((0, 1 + len(_INTEGERS)), np.int64)]
    for task, rows in by_task.items():
        floats.append(np.column_stack([rows.c_NC.numpy(), rows.label_N, rows.weight_N]))
        columns = [np.full(len(rows.label_N), task), *(np.asarray(getattr(rows, name)) for name in _INTEGERS)]
        integers.append(np.stack(columns, axis=1))
    floats_Q = np.concatenate(ranks.exchange([np.concatenate(floats)] * ranks.size))
    integers_Q = np.concatenate(ranks.exchange([np.concatenate(integers)] * ranks.size))
    return {task: _of_task(task, floats_Q, integers_Q) for task in np.unique(integers_Q[:, 0]).tolist()}


def _of_task(
    task: int, floats_Q: np.ndarray[tuple[int, ...], np.dtype[np.float32]], integers_Q: Int64Array
) -> SettledRows:
    of_task = np.flatnonzero(integers_Q[:, 0] == task)
    order_N = of_task[np.argsort(integers_Q[of_task, -1], kind="stable")]
    scenario_N, delay_ms_N, observe_ms_N, window_ms_N, place_N = integers_Q[order_N, 1:].T.copy()
    return SettledRows(
        c_NC=torch.from_numpy(floats_Q[order_N, :-2].copy()),
        scenario_N=torch.from_numpy(scenario_N),
        label_N=floats_Q[order_N, -2],
        weight_N=floats_Q[order_N, -1],
        delay_ms_N=delay_ms_N,
        observe_ms_N=observe_ms_N,
        window_ms_N=window_ms_N,
        place_N=place_N,
    )
