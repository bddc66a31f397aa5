"""Rows of several ranks that have to go: which of those that each would evict are the oldest of all.

Letters: F fields, N rows offered by this rank, Q rows offered by all.
"""

import numpy as np

from model.hashing import Int64Array
from model.ranks import Ranks


def evicted_of_all(
    ranks: Ranks, clock_N: Int64Array, keys_N: Int64Array, field_N: Int64Array, *, most: int, num_fields: int
) -> tuple[int, Int64Array]:
    """Returns how many of this rank's rows are among the `most` oldest of all ranks', and per field how many of all.

    A rank's rows come in their order: by the clock when they were last seen, then by key. So those that are among the
    oldest are its first ones. Two collectives where there are too many rows, one where all can go.
    """
    (num_F,) = ranks.sum_arrays([np.bincount(field_N, minlength=num_fields)])
    if int(num_F.sum()) <= most:
        return len(keys_N), num_F
    offered = ranks.exchange([np.stack([clock_N, keys_N, field_N], axis=1)] * ranks.size)
    clock_Q, keys_Q, field_Q = np.concatenate(offered).T
    rank_Q = np.repeat(np.arange(ranks.size), [len(one) for one in offered])
    oldest = np.lexsort((keys_Q, clock_Q))[:most]
    return int((rank_Q[oldest] == ranks.rank).sum()), np.bincount(field_Q[oldest], minlength=num_fields)
