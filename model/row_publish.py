"""The publisher's hand on the row store: what leaves the trainer's memory is there before a version says that it left.

0. rows that cooled, and removals of evicted ones, are written as of the version that is about to be published
1. - 4. the version itself (`model.store`)
5. what no kept version needs any more is removed

Records say from which version on they hold, so a crash between any two steps, or a candidate that the gate refuses,
changes no row of a version that is live: readers of those look past what is newer than they are.

Every trainer begins a generation of its own with its first version, of all its cold rows, and so it does where the
store has lost the rows, or they have become too many for their buckets. That happens with a full version only.
"""

import logging
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from model.exceptions import StoreError
from model.hashing import Int64Array
from model.row_records import FoundRows, Records, bucket_of, merged, records_of, removals_of
from model.row_store import PIECE, RowsAt, RowStore, fetch_rows
from model.store import SnapshotStore

logger = logging.getLogger(__name__)

MIN_BUCKETS = 4_096
FIRST_FILL = 8
"""Rows per bucket of a new generation, at most, where there are more than `MIN_BUCKETS` of them."""
MOST_FILL = 16
"""Rows per bucket, on the mean, from which a new generation with more buckets begins."""
DROPPED_AT_ONCE = 50 * PIECE
"""Buckets of old generations removed after one version: the trainer waits for it."""


class ColdModel(Protocol):
    """A model in training some of whose rows are not in memory."""

    @property
    def num_cold(self) -> int:
        """How many these are."""

    def cold_rows(self) -> Iterator[tuple[Int64Array, Tensor]]:
        """Yields the keys and weights of all of them, piece by piece."""

    def cooled(self) -> tuple[Int64Array, Tensor]:
        """Returns the keys and weights of those that left memory since the last promoted version."""

    def evicted(self) -> Int64Array:
        """Returns the keys that lost their row since then, wherever it was."""


@dataclass(slots=True)
class RowStats:
    """What one publisher did with the row store."""

    records: int = 0
    """Records it holds: rows out of memory, and what older versions need."""
    written: int = 0
    """Rows written, over all time."""
    generations: int = 0
    """Times all rows were written anew."""


class RowPublisher:
    """Writes the rows of one trainer. Every method raises what the store raises, unless it says otherwise."""

    def __init__(self, store: RowStore, model: ColdModel, *, width: int, stats: RowStats) -> None:
        self._store = store
        self._model = model
        self._width = width
        self._stats = stats
        self._at: RowsAt | None = None
        self._live_version = 0
        self._floor = 0  # the oldest version that must find its rows
        self._untidy: deque[tuple[int, Int64Array]] = deque()  # by version, buckets in which some key has several
        self._unneeded: set[str] = set()  # generations that no lane served when we last looked
        self._to_drop: dict[str, int] = {}  # of those, the buckets removed so far

    def needs_full(self) -> bool:
        """Returns whether the next version must be a full one, because all rows will be written anew."""
        at = self._at
        return (
            at is None
            or self._stats.records > MOST_FILL * at.num_buckets
            or not self._store.has(at.generation)  # it has lost them
        )

    def write(self, *, epoch: int, version: int, is_full: bool) -> RowsAt:
        """Step 0. Returns where the version finds its rows; it must be a full one if `needs_full` says so."""
        if is_full and self.needs_full():
            return self._begin(epoch, version)
        assert self._at is not None, "the first version is a full one"
        self._at = RowsAt(self._at.generation, self._at.num_buckets, version, self._live_version)
        keys_N, weights_NW = self._model.cooled()
        self._merge(self._at, records_of(keys_N, version, weights_NW.float().numpy()))
        self._merge(self._at, removals_of(self._model.evicted(), version, self._width))
        self._stats.written += len(keys_N)
        return self._at

    def read(self, at: RowsAt, keys_N: Int64Array) -> FoundRows:
        """Returns rows of distinct, rising keys as a reader of this version finds them."""
        return fetch_rows(self._store, at, keys_N, self._width)

    def went_live(self, snapshots: SnapshotStore, *, is_full: bool) -> None:
        """Step 5. What fails is logged, and done after a later version: nothing hangs on it."""
        assert self._at is not None, "a version that went live was written"
        self._live_version = self._at.version
        try:
            if is_full:
                self._floor = min(snapshots.versions(), default=0)
                self._tidy()
                self._look_for_unneeded(snapshots)
            self._drop_some()
        except StoreError as error:
            logger.warning("Old rows not removed, tried again later error=%s", error)

    def _begin(self, epoch: int, version: int) -> RowsAt:
        num_buckets = MIN_BUCKETS
        while FIRST_FILL * num_buckets < self._model.num_cold:
            num_buckets *= 2
        self._at = None  # until all are there
        self._stats.records = 0
        self._untidy.clear()
        at = RowsAt(f"{epoch}.{version}", num_buckets, version)
        self._store.create(at.generation, num_buckets)
        for keys_N, weights_NW in self._model.cold_rows():
            self._merge(at, records_of(keys_N, version, weights_NW.float().numpy()))
            self._stats.written += len(keys_N)
        self._stats.generations += 1
        self._at = at
        logger.info("All rows out of memory written generation=%s rows=%d", at.generation, self._stats.records)
        return at

    def _merge(self, at: RowsAt, new_N: Records) -> None:
        bucket_N = bucket_of(new_N["key"], at.num_buckets)
        order_N = np.argsort(bucket_N, kind="stable")
        self._rewrite(at, np.unique(bucket_N), new_N[order_N])

    def _rewrite(self, at: RowsAt, buckets_U: Int64Array, new_N: Records) -> None:
        """Merges records, sorted by bucket, into these buckets, piece by piece. Those that stay as they are go not."""
        bucket_N = bucket_of(new_N["key"], at.num_buckets)
        for start in range(0, len(buckets_U), PIECE):
            piece_U = buckets_U[start : start + PIECE]
            first, end = np.searchsorted(bucket_N, (piece_U[0], piece_U[-1] + 1)).tolist()
            before = self._store.read(at.generation, piece_U.tolist())
            after, has_several_U = merged(
                before, piece_U, new_N[first:end], num_buckets=at.num_buckets, floor=self._floor
            )
            pairs = zip(piece_U.tolist(), before, after, strict=True)
            self._store.write(at.generation, {bucket: new for bucket, old, new in pairs if (old or b"") != new})
            num_bytes = sum(map(len, after)) - sum(len(old) for old in before if old is not None)
            self._stats.records += num_bytes // new_N.dtype.itemsize
            if has_several_U.any():
                self._untidy.append((at.version, piece_U[has_several_U]))

    def _tidy(self) -> None:
        if self._at is None:
            return
        waiting, self._untidy = self._untidy, deque()
        due = [buckets for version, buckets in waiting if version <= self._floor]
        self._untidy.extend(entry for entry in waiting if entry[0] > self._floor)
        if due:
            self._rewrite(self._at, np.unique(np.concatenate(due)), removals_of(np.empty(0, np.int64), 0, self._width))

    def _look_for_unneeded(self, snapshots: SnapshotStore) -> None:
        """Finds generations of earlier trainers that no lane serves, twice in a row: some ranker may be late."""
        assert self._at is not None
        live = (snapshots.pointer("canary"), snapshots.pointer("stable"))
        served = {manifest.cold_rows.generation for manifest in live if manifest is not None and manifest.cold_rows}
        old = {one for one in self._store.generations() if _place(one) < _place(self._at.generation)} - served
        self._to_drop = {one: self._to_drop.get(one, 0) for one in old & self._unneeded}
        self._unneeded = old

    def _drop_some(self) -> None:
        """Removes some buckets of generations that nobody needs."""
        left = DROPPED_AT_ONCE
        sizes = self._store.generations() if self._to_drop else {}
        for generation, start in list(self._to_drop.items()):
            num_buckets = sizes.get(generation, 0)
            end = min(num_buckets, start + left)
            self._store.drop(generation, range(start, end))
            left -= end - start
            self._to_drop[generation] = end
            if end == num_buckets:
                self._store.forget(generation)
                del self._to_drop[generation]


def _place(generation: str) -> tuple[int, ...]:
    """Returns epoch and first version of a generation."""
    return tuple(int(part) for part in generation.split("."))
