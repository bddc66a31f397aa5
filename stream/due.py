"""What is due when the watermark passes a time: a priority queue for many entries with few distinct times.

Entries are kept in buckets of `_BUCKET_MS`, so that adding and taking one is an append and a step of a loop instead of
a comparison per level of a heap; only the buckets are in a heap.
"""

from collections.abc import Iterator
from heapq import heappop, heappush
from typing import Generic, TypeVar

from stream.watermark import has_passed

_BUCKET_MS = 64

T = TypeVar("T")


class DueQueue(Generic[T]):
    """Entries by the time that the watermark must pass for them to be due."""

    def __init__(self) -> None:
        self._entries: dict[int, list[tuple[int, T]]] = {}
        self._buckets: list[int] = []

    def add(self, due_ms: int, entry: T) -> None:
        """Adds an entry that is due once the watermark has passed `due_ms`."""
        bucket = due_ms // _BUCKET_MS
        entries = self._entries.get(bucket)
        if entries is None:
            self._entries[bucket] = [(due_ms, entry)]
            heappush(self._buckets, bucket)
        else:
            entries.append((due_ms, entry))

    def take(self, watermark_ms: int) -> Iterator[T]:
        """Yields and removes what is due, bucket by bucket; entries may be added meanwhile, and come too if due."""
        # Below this bucket everything is due; in it, entry by entry.
        last = watermark_ms // _BUCKET_MS
        while self._buckets and self._buckets[0] < last:
            bucket = heappop(self._buckets)
            for _, entry in self._entries.pop(bucket):
                yield entry
        while self._buckets and self._buckets[0] == last:
            entries = self._entries[last]
            due = [entry for due_ms, entry in entries if has_passed(watermark_ms, due_ms)]
            if not due:
                return
            entries[:] = [pair for pair in entries if not has_passed(watermark_ms, pair[0])]
            if not entries:
                del self._entries[heappop(self._buckets)]
            yield from due
