"""A dict whose values are due at a time, most of it on disk: recent and touched values in memory, the others frozen.

    put ---> hot (memory, oldest first) -- beyond the limit --> frozen (local store, ordered by due time)
              ^---------------- get, due ---------------------------'

A frozen value leaves nothing in memory. In the store it stands once, under its due time, so that what comes due is read
in one sweep however large the store is; a second, small record finds it by its key.
"""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Generic, TypeVar

from stream.due import DueQueue
from stream.local_store import LocalStore
from stream.watermark import has_passed

_FREEZE = 512
"""Most values written at a time: about five milliseconds."""
_SWEEP = 256
"""Values read at a time when they come due."""

V = TypeVar("V")


class _Hot(Generic[V]):
    """A value in memory."""

    __slots__ = ("due_ms", "is_stored", "value")

    def __init__(self, value: V, due_ms: int, *, is_stored: bool) -> None:
        self.value = value
        self.due_ms = due_ms
        self.is_stored = is_stored
        """Whether the store holds a copy, perhaps an old one."""


class SpilledMap(Generic[V]):
    """Values by key, each due once the watermark has passed its time.

    `prefix` (one byte) keeps several maps apart in one store; `weigh` says how much a value counts towards `limit`.
    """

    def __init__(
        self,
        store: LocalStore,
        prefix: bytes,
        encode: Callable[[V], bytes],
        decode: Callable[[bytes], V],
        weigh: Callable[[V], int],
        limit: int,
    ) -> None:
        self.limit = limit
        """Most weight in memory; the newest value stays whatever it weighs."""
        self.num_frozen = 0
        """Values that only the store holds."""
        self.num_thawed = 0
        """How often a frozen value was read back because it was asked for."""
        self.hot_weight = 0
        """Weight of the values in memory."""
        self._store, self._encode, self._decode, self._weigh = store, encode, decode, weigh
        self._by_due, self._by_key = prefix + b"d", prefix + b"k"
        self._hot: dict[str, _Hot[V]] = {}
        self._dirty: dict[str, None] = {}
        """Keys of values in memory of which the store has no copy, or perhaps an old one; the oldest first."""
        # A value that is frozen, removed or due anew leaves its old entry behind: an entry counts only if its value is
        # due, and the queue is built anew when most do not count.
        self._due: DueQueue[str] = DueQueue()
        self._num_entries = 0
        self._lowest_ms = 0
        """Nothing frozen is due before: a sweep begins here, not among the remains of what was swept before."""

    def __len__(self) -> int:
        return len(self._hot) + self.num_frozen

    def get(self, key: str) -> V | None:
        """Returns a value, which stays; None if there is none.

        It may be changed in place until the next call, as long as its weight is the same.
        """
        hot = self._hot.get(key)
        if hot is not None:
            self._dirty[key] = None
            return hot.value
        if not self.num_frozen:
            return None
        place = self._store.get(self._by_key + key.encode())
        if place is None:
            return None
        data = self._store.get(self._by_due + place + key.encode())
        assert data is not None, "both records are written and deleted together"
        value, due_ms = self._decode(data), int.from_bytes(place, "big")
        self.num_frozen -= 1
        self.num_thawed += 1
        self._keep(key, _Hot(value, due_ms, is_stored=True))
        return value

    def put(self, key: str, value: V, due_ms: int) -> None:
        """Adds a value whose key is not there: one that is due anew has been taken before."""
        self._keep(key, _Hot(value, due_ms, is_stored=False))

    def pop(self, key: str) -> V | None:
        """Returns and removes a value; None if there is none."""
        if self.get(key) is None:
            return None
        hot = self._drop(key)
        removal = self._removal(key, hot)
        if removal:
            self._store.write(removal)
        return hot.value

    def take_due(self, watermark_ms: int) -> Iterator[V]:
        """Yields and removes what is due; values may be put meanwhile, and come too if due."""
        while True:
            num_taken = 0
            for batch in (self._due_hot(watermark_ms), self._due_frozen(watermark_ms)):
                num_taken += len(batch)
                yield from batch
            if not num_taken:
                return

    def values(self) -> Iterator[V]:
        """Yields all values, the frozen ones as copies."""
        yield from [hot.value for hot in self._hot.values()]
        for key, data in self._store.scan(self._by_due, _after(self._by_due)):
            if key[10:].decode() not in self._hot:
                yield self._decode(data)

    def save(self, at_most: int | None = None) -> None:
        """Brings the store up to date, in parts if need be; all of it done, it holds every value.

        What is in memory stays there.
        """
        keys = list(islice(self._dirty, at_most))
        for first in range(0, len(keys), _FREEZE):
            self._write(keys[first : first + _FREEZE])

    def load(self, num_values: int) -> None:
        """Takes up a store that a `save` of as many values left."""
        self.num_frozen = num_values

    def _keep(self, key: str, hot: _Hot[V]) -> None:
        """Takes a value into memory as the newest, and freezes the oldest beyond the limit."""
        self._hot[key] = hot
        self._dirty[key] = None
        self.hot_weight += self._weigh(hot.value)
        self._due.add(hot.due_ms, key)
        self._num_entries += 1
        while self.hot_weight > self.limit and len(self._hot) > 1:
            self._freeze()
        if self._num_entries > 2 * len(self._hot) + _FREEZE:
            self._due, self._num_entries = DueQueue(), len(self._hot)
            for key, hot in self._hot.items():
                self._due.add(hot.due_ms, key)

    def _freeze(self) -> None:
        """Moves the oldest values out of memory, at most a tenth of them and never the newest."""
        num_keys = min(_FREEZE, max(1, len(self._hot) // 10))
        oldest = list(islice(self._hot, num_keys))
        self._write([key for key in oldest if key in self._dirty])
        for key in oldest:
            self._drop(key)
        self.num_frozen += len(oldest)

    def _drop(self, key: str) -> _Hot[V]:
        """Takes a value out of memory."""
        hot = self._hot.pop(key)
        self._dirty.pop(key, None)
        self.hot_weight -= self._weigh(hot.value)
        return hot

    def _write(self, keys: list[str]) -> None:
        """Brings the store's copies of values in memory up to date."""
        changes: list[tuple[bytes, bytes | None]] = []
        for key in keys:
            hot = self._hot[key]
            name, place = key.encode(), _place(hot.due_ms)
            changes.append((self._by_due + place + name, self._encode(hot.value)))
            if not hot.is_stored:
                changes.append((self._by_key + name, place))
            self._lowest_ms = min(self._lowest_ms, hot.due_ms)
        self._store.write(changes)
        for key in keys:
            self._hot[key].is_stored = True
            del self._dirty[key]

    def _removal(self, key: str, hot: _Hot[V]) -> list[tuple[bytes, bytes | None]]:
        """Returns the changes that remove the store's copy of a value, if there is one."""
        if not hot.is_stored:
            return []
        name = key.encode()
        return [(self._by_due + _place(hot.due_ms) + name, None), (self._by_key + name, None)]

    def _due_hot(self, watermark_ms: int) -> list[V]:
        """Returns and removes what is due in memory."""
        due: list[V] = []
        removals: list[tuple[bytes, bytes | None]] = []
        for key in self._due.take(watermark_ms):
            self._num_entries -= 1
            hot = self._hot.get(key)
            if hot is not None and has_passed(watermark_ms, hot.due_ms):
                self._drop(key)
                removals += self._removal(key, hot)
                due.append(hot.value)
        if removals:
            self._store.write(removals)
        return due

    def _due_frozen(self, watermark_ms: int) -> list[V]:
        """Returns and removes the first of what is due in the store, once nothing in memory is."""
        due: list[V] = []
        if not self.num_frozen or self._lowest_ms >= watermark_ms:
            return due
        removals: list[tuple[bytes, bytes | None]] = []
        lowest_ms = watermark_ms
        first, end = (self._by_due + _place(at_ms) for at_ms in (self._lowest_ms, watermark_ms))
        for record, data in self._store.scan(first, end):
            if len(due) == _SWEEP:
                lowest_ms = int.from_bytes(record[2:10], "big")
                break
            due.append(self._decode(data))
            removals += [(record, None), (self._by_key + record[10:], None)]
        self._lowest_ms = lowest_ms
        self.num_frozen -= len(due)
        if removals:
            self._store.write(removals)
        return due


def _place(due_ms: int) -> bytes:
    return due_ms.to_bytes(8, "big")


def _after(prefix: bytes) -> bytes:
    return prefix[:-1] + bytes([prefix[-1] + 1])
