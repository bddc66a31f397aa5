"""Scores of first emissions, kept until the label settles: in memory, bounded, vectorised.

Letter: N cells (one task of one item).
"""

import numpy as np

from model.hashing import MISSING_KEY, REMOVED_KEY, Int64Array
from model.id_table import NO_ROW, IdTable
from model.metrics import Arrays, Float64Array


class KeptScores:
    """Logits by cell key. When it is full, what should have settled long ago goes first, then new scores are refused.

    A key is kept once: the first score of a cell stays.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._ids = IdTable(num_reserved=0)
        self._logit = np.zeros(0)
        self._settles_ms = np.zeros(0, np.int64)
        self.num_dropped = 0
        """Scores refused because there was no room, or given up because their label never came."""

    def __len__(self) -> int:
        return len(self._ids)

    def keep(self, key_N: Int64Array, logit_N: Float64Array, settles_ms_N: Int64Array, watermark_ms: int) -> None:
        """Takes scores in. `settles_ms_N` is when, by the watermark, the label must be out."""
        key_N, first = np.unique(_proper(key_N), return_index=True)
        is_new = self._ids.lookup(key_N) == NO_ROW
        key_N, first = key_N[is_new], first[is_new]
        if len(self._ids) + len(key_N) > self._most:
            self._give_up(watermark_ms)
        room = max(self._most - len(self._ids), 0)
        self.num_dropped += max(len(key_N) - room, 0)
        key_N, first = key_N[:room], first[:room]
        rows = self._ids.insert(key_N)
        self._reserve(self._ids.num_rows)
        self._logit[rows], self._settles_ms[rows] = logit_N[first], settles_ms_N[first]

    def take(self, key_N: Int64Array) -> Float64Array:
        """Returns the score of each cell, NaN where none was kept, and forgets them."""
        key_N = _proper(key_N)
        rows_N = self._ids.lookup(key_N)
        logit_N = np.full(len(key_N), np.nan)
        found_N = rows_N != NO_ROW
        logit_N[found_N] = self._logit[rows_N[found_N]]
        self._ids.remove(np.unique(key_N[found_N]))
        return logit_N

    def state(self) -> Arrays:
        """Returns all that is needed to go on exactly."""
        used = slice(self._ids.num_rows)
        here = {"logit": self._logit[used].copy(), "settles_ms": self._settles_ms[used].copy()}
        return here | {"dropped": np.array([self.num_dropped])} | dict(self._ids.state())

    def load_state(self, state: Arrays) -> None:
        """Takes up a state."""
        self._ids.load_state({name: state[name] for name in ("key_of_row", "free")})
        self._logit, self._settles_ms = state["logit"].copy(), state["settles_ms"].copy()
        self.num_dropped = int(state["dropped"][0])

    def _give_up(self, watermark_ms: int) -> None:
        keys, rows = self._ids.items()
        overdue = self._settles_ms[rows] < watermark_ms
        self.num_dropped += int(overdue.sum())
        self._ids.remove(keys[overdue])

    def _reserve(self, num_rows: int) -> None:
        more = num_rows - len(self._logit)
        if more > 0:
            more = max(more, len(self._logit))
            self._logit = np.concatenate([self._logit, np.zeros(more)])
            self._settles_ms = np.concatenate([self._settles_ms, np.zeros(more, np.int64)])


def _proper(key_N: Int64Array) -> Int64Array:
    """Moves the two keys that the table reserves to others."""
    return np.where((key_N == MISSING_KEY) | (key_N == REMOVED_KEY), 1, key_N)
