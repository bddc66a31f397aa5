"""Rows that left the trainer's memory, for rankers that hold only the hot ones: the protocol, and it in memory.

The rows of one trainer are a *generation* of their own, named by its epoch and the version it began with. Nobody else
ever writes into it: a paused old trainer that wakes up cannot touch the rows of a newer one. It exists from `create`
to `drop`; a store that lost what it held has lost the mark of the generation, too, and whoever reads or writes is told.

Within a generation rows are spread over buckets by key (`model.row_records`), and a manifest says which generation, as
of which version.
"""

import threading
from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec
import numpy as np

from model.exceptions import RowsLostError
from model.hashing import Int64Array
from model.row_records import FoundRows, bucket_of, rows_as_of

PIECE = 1_000
"""Buckets written by one command, at most: nobody else waits long for it."""


class RowsAt(msgspec.Struct, frozen=True):
    """Where a version finds the rows that its payload does not hold."""

    generation: str
    num_buckets: int
    """A power of two."""
    version: int
    """As of which version: a copy of an older version, after a rollback, keeps that of the older one."""
    since: int = 0
    """Rows that have become others in the store since this version are in the payload's `rows.cooled` and
    `rows.evicted`."""


class RowStore(Protocol):
    """The rows of one model line. Every method raises `StoreUnavailableError` if the store does not answer."""

    def create(self, generation: str, num_buckets: int) -> None:
        """Makes an empty generation."""

    def generations(self) -> dict[str, int]:
        """Returns the generations that were made and not forgotten, with their number of buckets."""

    def has(self, generation: str) -> bool:
        """Returns whether a generation is there, so that what it lacks does not exist."""

    def read(self, generation: str, buckets: Sequence[int]) -> list[bytes | None]:
        """Returns buckets, None for those without a row, in one round trip.

        Raises:
            RowsLostError: the generation is not there.
        """

    def write(self, generation: str, values: Mapping[int, bytes]) -> None:
        """Replaces buckets; an empty one is removed. Each `PIECE` of them as one act, or not at all.

        Raises:
            RowsLostError: the generation is not there; nothing of this piece was written.
        """

    def drop(self, generation: str, buckets: range) -> None:
        """Unmakes a generation, so that nobody writes into it any more, and removes some of its buckets."""

    def forget(self, generation: str) -> None:
        """Takes a generation whose buckets are all removed off the list."""

    def close(self) -> None:
        """Releases the connection."""


def fetch_rows(store: RowStore, at: RowsAt, keys_N: Int64Array, width: int) -> FoundRows:
    """Returns the rows of distinct, rising keys, in one round trip.

    Raises:
        RowsLostError: the store has lost them all.
    """
    buckets_U, bucket_N = np.unique(bucket_of(keys_N, at.num_buckets), return_inverse=True)
    values_U = store.read(at.generation, buckets_U.tolist())
    return rows_as_of(values_U, keys_N, bucket_N, version=at.version, width=width)


class MemoryRowStore:
    """A `RowStore` in one process, for tests and replay. Readers may be other threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sizes: dict[str, int] = {}
        self._buckets: dict[str, dict[int, bytes]] = {}

    def create(self, generation: str, num_buckets: int) -> None:
        """See `RowStore.create`."""
        with self._lock:
            self._sizes[generation] = num_buckets
            self._buckets[generation] = {}

    def generations(self) -> dict[str, int]:
        """See `RowStore.generations`."""
        with self._lock:
            return dict(self._sizes)

    def has(self, generation: str) -> bool:
        """See `RowStore.has`."""
        with self._lock:
            return generation in self._buckets

    def read(self, generation: str, buckets: Sequence[int]) -> list[bytes | None]:
        """See `RowStore.read`."""
        with self._lock:
            held = self._held(generation)
            return [held.get(bucket) for bucket in buckets]

    def write(self, generation: str, values: Mapping[int, bytes]) -> None:
        """See `RowStore.write`."""
        with self._lock:
            held = self._held(generation)
            held.update(values)
            for bucket in [bucket for bucket, value in values.items() if not value]:
                del held[bucket]

    def drop(self, generation: str, buckets: range) -> None:
        """See `RowStore.drop`. All at once."""
        with self._lock:
            self._buckets.pop(generation, None)

    def forget(self, generation: str) -> None:
        """See `RowStore.forget`."""
        with self._lock:
            self._sizes.pop(generation, None)

    def close(self) -> None:
        """See `RowStore.close`."""

    def _held(self, generation: str) -> dict[int, bytes]:
        if generation not in self._buckets:
            raise rows_lost(generation)
        return self._buckets[generation]


def rows_lost(generation: str) -> RowsLostError:
    """Returns the error every store raises for a generation that is not there."""
    return RowsLostError(f"the row store does not hold generation {generation}; the next full version writes it anew")


class RowKeys:
    """Names of the keys of one model line in a Redis, all in one hash slot.

    P = `<prefix>:{<model>}:rows`

        P                       hash {generation: number of buckets}
        P:<generation>          its mark: there as long as the generation is
        P:<generation>:<n>      bucket n
    """

    def __init__(self, prefix: str, model: str) -> None:
        self.generations = f"{prefix}:{{{model}}}:rows"

    def mark(self, generation: str) -> str:
        """Returns the key that is there as long as the generation is."""
        return f"{self.generations}:{generation}"

    def buckets(self, generation: str, buckets: Sequence[int] | range) -> list[str]:
        """Returns the keys of buckets."""
        head = self.mark(generation)
        return [f"{head}:{bucket}" for bucket in buckets]
