"""Answers of the row store that are kept, rows and absences alike: bounded, the least recently used go first.

Letters: N keys, C capacity, W embedding width.
"""

import numpy as np
import numpy.typing as npt

from model.hashing import Int64Array
from model.id_table import NO_ROW, IdTable
from model.row_records import FloatArray, FoundRows

DROPPED_SHARE = 8
"""One in so many answers goes when there is no room, all at once: to look for the oldest costs a look at all."""


class RowCache:
    """What the store said of the last keys asked for. For one thread.

    >>> cache = RowCache(2, width=1)
    >>> cache.add(np.array([7, 8]), np.array([[0.5], [0]], np.float32), np.array([True, False]))
    >>> found, is_known = cache.find(np.array([6, 7, 8]))
    >>> is_known.tolist(), found.has_row_N.tolist(), found.weights_NW.tolist()
    ([False, True, True], [False, True, False], [[0.0], [0.5], [0.0]])
    """

    def __init__(self, capacity: int, *, width: int) -> None:
        self._capacity = capacity
        self._ids = IdTable(num_reserved=0)
        self._weights_CW = np.empty((capacity, width), np.float32)
        self._has_row_C = np.empty(capacity, np.bool_)
        self._used_C = np.empty(capacity, np.int64)
        self._clock = 0

    def __len__(self) -> int:
        return len(self._ids)

    def find(self, keys_N: Int64Array) -> tuple[FoundRows, npt.NDArray[np.bool_]]:
        """Returns what is known of these keys, and of which of them anything is."""
        self._clock += 1
        places_N = self._ids.lookup(keys_N)
        is_known_N = places_N != NO_ROW
        places = places_N[is_known_N]
        self._used_C[places] = self._clock
        weights_NW = np.zeros((len(keys_N), self._weights_CW.shape[1]), np.float32)
        weights_NW[is_known_N] = self._weights_CW[places]
        has_row_N = np.zeros(len(keys_N), np.bool_)
        has_row_N[is_known_N] = self._has_row_C[places]
        return FoundRows(weights_NW, has_row_N, np.zeros(len(keys_N), np.bool_)), is_known_N

    def add(self, keys_N: Int64Array, weights_NW: FloatArray, has_row_N: npt.NDArray[np.bool_]) -> None:
        """Takes the answers for distinct keys; those that were there stay as they are."""
        new = np.flatnonzero(self._ids.lookup(keys_N) == NO_ROW)[: self._capacity]
        self._make_room(len(new))
        places = self._ids.insert(keys_N[new])
        self._weights_CW[places], self._has_row_C[places] = weights_NW[new], has_row_N[new]
        self._used_C[places] = self._clock

    def drop(self, keys_N: Int64Array) -> None:
        """Forgets what was said of distinct keys."""
        self._ids.remove(keys_N)

    def _make_room(self, num_new: int) -> None:
        missing = len(self) + num_new - self._capacity
        if missing <= 0:
            return
        keys, places = self._ids.items()
        num_dropped = min(len(keys), max(missing, self._capacity // DROPPED_SHARE))
        oldest = np.argpartition(self._used_C[places], num_dropped - 1)[:num_dropped]
        self._ids.remove(keys[oldest])
