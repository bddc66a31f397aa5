"""Admission: a value gets its own row after n examples, counted in bounded memory, or by a draw at each of them."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from model.hashing import Int64Array, uniforms
from model.sharding import NUM_SHARDS, shard_of

AdmissionRule = Literal["count", "probability"]

_MULTIPLIERS = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F))
_MAX_COUNT = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionConfig:
    """Which values get a row of their own."""

    rule: AdmissionRule = "count"
    """`count`: with the n-th example; `probability`: each example admits with probability 1/n, which needs no memory.
    n is the field's number of examples."""
    counter_bits: int = 20
    """Counters are 2^this bytes, in [14, 30]; too few for the stream's new values admit some of them early."""

    def __post_init__(self) -> None:
        if not 14 <= self.counter_bits <= 30:
            raise ValueError(f"counter_bits: {self.counter_bits} is not allowed; 14 to 30")


class AdmissionCounts:
    """Counts examples per key in a count-min sketch of two counters per key, conservative update.

    A count is never too low (up to 255) until it fades: after as many counts as there are counters all are halved, so
    that the values of last month do not admit today's noise. Deterministic in the order of the counts. Every shard of
    the keys has counters of its own, which fade by themselves: a rank that has some of the shards counts as one that
    has all of them would.
    """

    def __init__(self, config: AdmissionConfig) -> None:
        num_cells = 1 << config.counter_bits
        self._shift = np.uint64(64 - config.counter_bits)
        self._width = num_cells // NUM_SHARDS
        self._counts = np.zeros(num_cells, np.uint8)
        self._num_counted = np.zeros(NUM_SHARDS, np.int64)

    def with_added(self, keys_N: Int64Array, added_N: Int64Array) -> Int64Array:
        """Returns what the counts of distinct keys will be after `add`, without changing anything."""
        first, second = self._cells(keys_N)
        lower_N = np.minimum(self._counts[first], self._counts[second]).astype(np.int64)
        counts_N: Int64Array = np.minimum(lower_N + added_N, _MAX_COUNT)
        return counts_N

    def add(self, keys_N: Int64Array, added_N: Int64Array) -> None:
        """Counts `added_N` examples of each of the distinct keys."""
        counts_N = self.with_added(keys_N, added_N).astype(np.uint8)
        for cells_N in self._cells(keys_N):
            np.maximum.at(self._counts, cells_N, counts_N)
        np.add.at(self._num_counted, shard_of(keys_N), added_N)
        for shard in np.flatnonzero(self._num_counted >= self._width).tolist():
            self._counts[shard * self._width : (shard + 1) * self._width] >>= 1
            self._num_counted[shard] = 0

    def state(self) -> dict[str, npt.NDArray[np.generic]]:
        """Returns what `load_state` needs: the counters of each shard, [shards, counters], and how many it counted."""
        return {"counts": self._counts.reshape(NUM_SHARDS, -1).copy(), "num_counted": self._num_counted.copy()}

    def load_state(self, state: dict[str, npt.NDArray[np.generic]]) -> None:
        """Becomes the counts `state` was taken from; the number of counters must be the same."""
        self._counts = state["counts"].ravel().astype(np.uint8)
        self._num_counted = state["num_counted"].astype(np.int64)

    def _cells(self, keys_N: Int64Array) -> list[Int64Array]:
        start_N, unsigned_N = shard_of(keys_N) * self._width, keys_N.view(np.uint64)
        within = self._width - 1  # a power of two
        return [start_N + (((unsigned_N * factor) >> self._shift).astype(np.int64) & within) for factor in _MULTIPLIERS]


class Admissions(NamedTuple):
    """What one micro-batch would change about the ids; K distinct keys each."""

    keys: Int64Array
    """Keys that get a row."""
    fields: Int64Array
    """The field of each of them."""
    counted_keys: Int64Array
    """Keys whose examples are counted towards their admission."""
    counted: Int64Array
    """Examples of each of them."""


class Admission:
    """Decides which values without a row get one.

    The draw of a value depends on the seed, its key and the number of the change, never on the other values: a resumed
    trainer draws the same.
    """

    def __init__(
        self, config: AdmissionConfig, examples_F: Int64Array, is_drawn_F: npt.NDArray[np.bool_], seed: int
    ) -> None:
        self.counts = AdmissionCounts(config)
        self._examples_F = examples_F
        self._is_drawn_F = is_drawn_F
        self._seed = seed

    def plan(self, keys_N: Int64Array, fields_N: Int64Array, examples_N: Int64Array, clock: int) -> Admissions:
        """Returns what `examples_N` examples of values without a row would count and admit; keys come out sorted.

        A field whose values need 0 examples admits none.
        """
        counts = (examples_N > 0) & (self._examples_F[fields_N] > 0)
        keys, first, inverse = np.unique(keys_N[counts], return_index=True, return_inverse=True)
        fields = fields_N[counts][first]
        added = np.bincount(inverse, weights=examples_N[counts], minlength=len(keys)).astype(np.int64)
        needed, is_drawn = self._examples_F[fields], self._is_drawn_F[fields]
        is_counted = (needed > 1) & ~is_drawn
        total = added.copy()
        total[is_counted] = self.counts.with_added(keys[is_counted], added[is_counted])
        is_admitted = total >= needed
        # One of the `added` draws succeeds with probability 1 - (1 - 1/n)^added.
        draw = uniforms(keys[is_drawn], self._seed, clock)
        is_admitted[is_drawn] = draw < 1.0 - (1.0 - 1.0 / needed[is_drawn]) ** added[is_drawn]
        return Admissions(keys[is_admitted], fields[is_admitted], keys[is_counted], added[is_counted])
