"""Which rank has the row of a key.

Keys fall into a fixed number of shards, and shards are dealt to ranks: whatever is kept by shard can be handed to any
other number of ranks without a look at the keys.
"""

import numpy as np
import numpy.typing as npt

from model.hashing import Int64Array

NUM_SHARDS = 1024
"""Shards of the keys, and the most ranks there can be; many, so that ranks get about equally many."""
_SHIFT = np.uint64(32)


def shard_of(keys_N: Int64Array) -> Int64Array:
    """Returns the shard of each key, [N]: from its upper half, as the lower one chooses the slot in an id table."""
    shard_N: Int64Array = ((keys_N.view(np.uint64) >> _SHIFT) % np.uint64(NUM_SHARDS)).astype(np.int64)
    return shard_N


def shards_of_rank(rank: int, size: int) -> Int64Array:
    """Returns the shards that a rank has."""
    return np.arange(rank, NUM_SHARDS, size)


def owner_of(keys_N: Int64Array, size: int) -> Int64Array:
    """Returns the rank, in [0, size), that has the row of each key and all that is known of it, [N].

    >>> owner_of(np.array([5, 5 + (1 << 32), -1]), 3).tolist()
    [0, 1, 0]
    """
    owner_N: Int64Array = shard_of(keys_N) % size
    return owner_N


def by_owner(keys_N: Int64Array, size: int) -> tuple[Int64Array, npt.NDArray[np.int64]]:
    """Returns the places of the keys sorted by owner (stable), [N], and how many each owner has, [size]."""
    owner_N = owner_of(keys_N, size)
    return np.argsort(owner_N, kind="stable"), np.bincount(owner_N, minlength=size)
