"""The small columns of a micro-batch from all ranks to the lead, in the order one rank would have had."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from model.batching import Part
from model.gate_data import BatchCounts
from model.ranks import Ranks
from model.step_columns import StepColumns, in_order


def gathered(
    ranks: Ranks,
    seen: StepColumns,
    counts: BatchCounts | None,
    parts: Sequence[Part],
    rank_of: Callable[[Part], int],
) -> tuple[StepColumns, BatchCounts | None] | None:
    """Returns on the lead the rows of all ranks, and all their counts; None on the others.

    `seen` and `counts` are of the rows that are here, in the order of `parts`; whether there are counts is the same on
    all ranks.
    """
    if ranks.size == 1:
        return seen, counts
    records_B = seen.records()
    message = _counts_bytes(counts) + records_B.tobytes()
    messages = ranks.gather(message)
    if messages is None:
        return None
    ranks_of_parts = [rank_of(part) for part in parts]
    num_rows = [part.num_rows for part in parts]
    rows_of_rank = np.bincount(ranks_of_parts, weights=num_rows, minlength=ranks.size).astype(int).tolist()
    bodies = [one[len(one) - num * records_B.itemsize :] for one, num in zip(messages, rows_of_rank, strict=True)]
    records = [np.frombuffer(body, records_B.dtype) for body in bodies]
    whole = StepColumns.from_records(in_order(records, ranks_of_parts, num_rows))
    if counts is None:
        return whole, None
    return whole, BatchCounts.total([_counts_of(one, counts) for one in messages])


def _counts_bytes(counts: BatchCounts | None) -> bytes:
    if counts is None:
        return b""
    size = np.array([len(counts.user_R), len(counts.num_rows_R)], np.int64)
    arrays = (size, counts.values_FK, counts.lookups_F2, counts.user_R, counts.num_rows_R)
    return b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)


def _counts_of(message: bytes, like: BatchCounts) -> BatchCounts:
    """Returns the counts at the start of a message."""
    num_users, num_requests = np.frombuffer(message, np.int64, 2).tolist()
    at = 16

    def take(kind: type[np.generic], shape: tuple[int, ...]) -> npt.NDArray[Any]:
        nonlocal at
        array: npt.NDArray[Any] = np.frombuffer(message, kind, math.prod(shape), at).reshape(shape)
        at += array.nbytes
        return array

    return BatchCounts(
        values_FK=take(np.int64, like.values_FK.shape),
        lookups_F2=take(np.float64, like.lookups_F2.shape),
        user_R=take(np.int64, (num_users,)),
        num_rows_R=take(np.int64, (num_requests,)),
    )
