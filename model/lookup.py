"""What a look-up in the embedding table finds, and what it counts.

Letters: F fields, N values of a batch, K keys, U distinct rows of a batch, W embedding width.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from torch import Tensor

from model.admission import Admissions
from model.cold_rows import RowValues
from model.hashing import Int64Array


@dataclass(slots=True)
class FieldCounters:
    """What happened to the ids of one field since the process started."""

    rows: int = 0
    """Values that have a row now."""
    admissions: int = 0
    evictions: Counter[str] = field(default_factory=lambda: Counter(expired=0, full=0, asked=0))
    """Values whose row was removed, by cause: `expired` (not seen for the field's ttl), `full` (too many rows), or
    `asked` (named by a caller)."""
    lookups: int = 0
    default_lookups: int = 0
    """Lookups of learned batches that found the default row."""
    missing_lookups: int = 0


class Lookup(NamedTuple):
    """The rows of one micro-batch and what learning from it would change: nothing is written before `apply`."""

    rows_U: Int64Array
    """Distinct rows; those to be admitted or to come back into memory have the numbers they will get."""
    index_N: Int64Array
    """Place in `rows_U` of each value of the flat order."""
    weight_UW: Tensor
    """The rows' weights in float32, on the table's device; to be admitted: those they start with."""
    accumulator_U: Tensor
    """The rows' accumulators, on the table's device; to be admitted: 0."""
    admissions: Admissions
    keys_N: Int64Array
    new_U: Int64Array
    """Place in `rows_U` of each row to be admitted."""
    examples_U: Int64Array
    """Examples of the batch in which each row stands."""
    lookups_F3: Int64Array
    """Per field: lookups, of these on the default row, of these on the missing row."""
    admitted_F: Int64Array
    """Rows to be admitted, per field."""
    thawed: RowValues | None
    """Rows that had left memory and will come back; None: none."""

    @property
    def num_own(self) -> int:
        """How many of the rows are this rank's alone: all, where there is one."""
        return len(self.rows_U)

    @property
    def counts(self) -> Int64Array:
        """What ranks would have to add up: nothing."""
        return np.empty(0, np.int64)


def matched(keys_N: Int64Array, keys_K: Int64Array) -> tuple[Int64Array, Int64Array]:
    """Returns which of N keys are among K sorted ones, and the places of those there."""
    if not len(keys_K):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    place_N = np.searchsorted(keys_K, keys_N).clip(max=len(keys_K) - 1)
    found = np.flatnonzero(keys_K[place_N] == keys_N)
    return found, place_N[found]
