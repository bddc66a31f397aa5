"""Which rank has the row of a key."""

import numpy as np
import numpy.typing as npt

from model.hashing import Int64Array

_SHIFT = np.uint64(32)


def owner_of(keys_N: Int64Array, size: int) -> Int64Array:
    """Returns the rank, in [0, size), that has the row of each key and all that is known of it, [N].

    It is taken from the upper half of the key, since the lower one chooses the slot in a rank's id table.

    >>> owner_of(np.array([5, 5 + (1 << 32), -1]), 3).tolist()
    [0, 1, 0]
    """
    owner_N: Int64Array = ((keys_N.view(np.uint64) >> _SHIFT) % np.uint64(size)).astype(np.int64)
    return owner_N


def by_owner(keys_N: Int64Array, size: int) -> tuple[Int64Array, npt.NDArray[np.int64]]:
    """Returns the places of the keys sorted by owner (stable), [N], and how many each owner has, [size]."""
    owner_N = owner_of(keys_N, size)
    return np.argsort(owner_N, kind="stable"), np.bincount(owner_N, minlength=size)
