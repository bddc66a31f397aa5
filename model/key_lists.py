"""The keys of a list field: one list per request or row, in one array."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from model.hashing import Int64Array


@dataclass(frozen=True, slots=True)
class KeyLists:
    """Keys of one list field: entry n is `keys_N[offsets[n]:offsets[n + 1]]`, never empty (MISSING_KEY if it was).

    Also other integers that come in such lists.
    """

    keys_N: Int64Array
    offsets: Int64Array

    @property
    def lengths(self) -> Int64Array:
        """How many keys each entry has."""
        return np.diff(self.offsets)

    def take(self, entries: Int64Array) -> "KeyLists":
        """Returns the lists of `entries`, in their order."""
        lengths = self.lengths[entries]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        return KeyLists(self.keys_N[np.repeat(self.offsets[:-1][entries], lengths) + within], offsets)

    @staticmethod
    def of(keys: "Int64Array | KeyLists") -> "KeyLists":
        """Returns `keys` themselves, or single keys as lists of one."""
        return keys if isinstance(keys, KeyLists) else KeyLists(keys, np.arange(len(keys) + 1))

    @staticmethod
    def concat(parts: Sequence["KeyLists"]) -> "KeyLists":
        """Returns all lists of `parts`, one after the other."""
        lengths = np.concatenate([part.lengths for part in parts])
        return KeyLists(np.concatenate([part.keys_N for part in parts]), np.concatenate([[0], np.cumsum(lengths)]))
