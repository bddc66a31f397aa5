"""Rows that left memory: all that is kept of each, in a store of bytes on a local disk.

What leaves is always older than what stays: every row in the store comes before all rows in memory in the order (clock
when last seen, key), and each one that leaves comes after all that left before. So one index answers what eviction asks
(who is the oldest?) and what publishing asks (who left since?), and nothing about a row has to stay in memory.

    name of the row         -> all that is kept of it
    its place in the order  -> the event time when it was last seen

Letters: F fields, K rows, W embedding width.
"""

import heapq
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.cold_names import PLACE_BYTES, ColdNames, OldestNames, order_names, parsed, place, range_of, row_names, split
from model.field_ids import NO_LIMIT
from model.hashing import Int64Array

_AHEAD = 1_024
"""Names of the oldest rows that are read at a time."""


_PIECE = 10_000
"""Rows that are read at a time where all are."""


class ByteStore(Protocol):
    """Keys and values on a disk, in the order of the keys."""

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Returns the value of each key; None where there is none."""

    def write(self, changes: Iterable[tuple[bytes, bytes | None]]) -> None:
        """Applies changes in order; the value None deletes."""

    def scan(self, first: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yields keys and values from `first` to before `end`, as they were when the scan began."""

    def checkpoint(self, path: Path) -> None:
        """Keeps the store as it is now in a new folder."""

    def close(self) -> None:
        """Gives the files back."""


class ColdStores(Protocol):
    """Opens stores of bytes."""

    def open(self, checkpoint: Path | None) -> ByteStore:
        """Returns the store to work with, as a checkpoint's folder has it, or empty; the one before is closed."""

    def read(self, checkpoint: Path) -> ByteStore:
        """Returns a second store, as a checkpoint's folder has it, to be read and closed."""


class RowValues(NamedTuple):
    """All that is kept of K rows, in host memory, and whose they are."""

    keys: Int64Array
    field: Int64Array
    weight: Tensor
    """[K, W], as the table keeps them."""
    accumulator: Tensor
    examples: Int64Array
    clock: Int64Array
    """When each was last seen, by the table's clock."""
    ms: Int64Array
    """When each was last seen, in event time."""

    def names(self) -> ColdNames:
        """Returns which rows these are."""
        return ColdNames(self.keys, self.field, self.clock)


@dataclass(slots=True)
class ColdStats:
    """What was done with the store since the process started."""

    asked: int = 0
    """Values without a row in memory that were looked for in the store."""
    found: int = 0
    """Of these, those that had a row there."""
    cooled: int = 0
    """Rows that left memory."""
    store_s: float = 0.0
    """Seconds that training waited for the store."""


class ColdRows:
    """The rows that left memory. One thread only. Every method raises what the store raises."""

    def __init__(
        self,
        store: ByteStore,
        *,
        num_fields: int,
        width: int,
        dtype: torch.dtype,
        now_s: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Begins with an empty store, or with one that `load_state` will tell about."""
        self.stats = ColdStats()
        self.num_rows_F: Int64Array = np.zeros(num_fields, np.int64)
        """Rows of each field."""
        self._store, self._dtype, self._now_s = store, dtype, now_s
        self._record = np.dtype(
            [("weight", "u1", width * dtype.itemsize), ("accumulator", "<f4")]
            + [("examples", "<i8"), ("clock", "<i8"), ("ms", "<i8"), ("field", "<u2")]
        )
        self._last = self._exported = self._promoted = bytes(PLACE_BYTES)
        """Places in the order: of the last row that left; of the last one when the last export, and the last promoted
        one, was made."""
        self._queues: dict[int | None, OldestNames] = {}

    def __len__(self) -> int:
        return int(self.num_rows_F.sum())

    @property
    def last(self) -> tuple[int, int]:
        """Last seen and key of the youngest row that ever left memory: none that is there may come before it."""
        return int.from_bytes(self._last[:8], "big"), int.from_bytes(self._last[8:], "big") - (1 << 63)

    def find(self, keys_N: Int64Array) -> RowValues | None:
        """Returns the rows that some of these keys have here, sorted by key; None if none has. They stay."""
        keys = np.unique(keys_N) if len(self) else keys_N[:0]
        rows = self._get(keys)
        self.stats.asked += len(keys)
        self.stats.found += len(rows.keys) if rows is not None else 0
        return rows

    def _get(self, keys: Int64Array) -> RowValues | None:
        with self._timed():
            values = self._store.get_many(row_names(keys)) if len(keys) else []
        is_found = np.fromiter((value is not None for value in values), np.bool_, len(keys))
        if not is_found.any():
            return None
        record = np.frombuffer(b"".join(value for value in values if value is not None), self._record)
        return RowValues(
            keys=keys[is_found],
            field=record["field"].astype(np.int64),
            weight=torch.from_numpy(record["weight"].copy()).view(self._dtype),
            accumulator=torch.from_numpy(record["accumulator"].copy()),
            examples=record["examples"].copy(),
            clock=record["clock"].copy(),
            ms=record["ms"].copy(),
        )

    def add(self, rows: RowValues) -> None:
        """Takes in rows in the order (last seen, key); all that stay in memory come after all that are here."""
        if not len(rows.keys):
            return
        record = np.zeros(len(rows.keys), self._record)
        record["weight"] = rows.weight.contiguous().view(torch.uint8).numpy()
        record["accumulator"] = rows.accumulator.numpy()
        for name in ("examples", "clock", "ms", "field"):
            record[name] = getattr(rows, name)
        order = order_names(ColdNames(rows.keys, rows.field, rows.clock))
        changes = list(zip(row_names(rows.keys), split(record), strict=True))
        changes += zip(order, split(rows.ms.astype("<i8")), strict=True)
        with self._timed():
            self._store.write(changes)
        self._last = max(self._last, place(order[-1]))
        self.num_rows_F += np.bincount(rows.field, minlength=len(self.num_rows_F))
        self.stats.cooled += len(rows.keys)

    def remove(self, names: ColdNames) -> None:
        """Takes rows away that are here."""
        if not len(names.keys):
            return
        with self._timed():
            self._store.write((entry, None) for entry in row_names(names.keys) + order_names(names))
        self.num_rows_F -= np.bincount(names.field, minlength=len(self.num_rows_F))
        for queue in self._queues.values():
            queue.forget(names.keys)

    def oldest(self, field: int | None, count: int, *, before_ms: int = NO_LIMIT) -> ColdNames:
        """Returns the rows of a field (None: of all) that were seen the longest ago, ties by key. They stay.

        At most `count`, all last seen before `before_ms`.
        """
        queue = self._queues.setdefault(field, OldestNames())
        count = min(count, len(self) if field is None else int(self.num_rows_F[field]))
        with self._timed():
            while len(queue) < count:
                queue.read(islice(self._in_order(field, queue.read_to), _AHEAD))
        return queue.first(count, before_ms)

    def cooled_keys(self) -> Int64Array:
        """Returns the keys of the rows here that left memory after the promoted export, the oldest first."""
        with self._timed():
            return parsed(name for name, _ in self._in_order(None, self._promoted)).keys

    def cooled(self) -> Iterator[RowValues]:
        """Yields the rows of `cooled_keys`, piece by piece; nothing may change meanwhile."""
        return self._pieces(self._promoted)

    def all(self) -> Iterator[RowValues]:
        """Yields all rows here, the oldest first, piece by piece; nothing may change meanwhile."""
        return self._pieces(bytes(PLACE_BYTES))

    def _pieces(self, after: bytes) -> Iterator[RowValues]:
        names = (name for name, _ in self._in_order(None, after))
        while piece := list(islice(names, _PIECE)):
            rows = self._get(parsed(piece).keys)
            assert rows is not None, "a row and its place are written and deleted together"
            yield rows

    def mark_exported(self) -> None:
        """Takes note that an export is made now."""
        self._exported = self._last

    def mark_promoted(self) -> None:
        """Takes note that the last export was promoted: what it told is not `cooled` any more."""
        self._promoted = self._exported

    def save(self, path: Path) -> None:
        """Keeps the rows as they are now in a new folder."""
        self._store.checkpoint(path)

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Returns what `load_state` needs besides what `save` keeps."""
        places = np.frombuffer(self._last + self._exported + self._promoted, np.uint8)
        return {"num_rows": self.num_rows_F.copy(), "places": places.copy()}

    def load_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Becomes what `state` was taken from; the store is what was saved with it.

        Without `num_rows` they are counted: the store was put together from others (`model.cold_deal`).
        """
        places = state["places"].tobytes()
        self._last, self._exported, self._promoted = (
            places[first : first + PLACE_BYTES] for first in range(0, 3 * PLACE_BYTES, PLACE_BYTES)
        )
        if "num_rows" in state:
            self.num_rows_F = state["num_rows"].copy()
        else:
            for field in range(len(self.num_rows_F)):
                self.num_rows_F[field] = sum(1 for _ in self._store.scan(*range_of(field, bytes(PLACE_BYTES))))

    def close(self) -> None:
        """Gives the store's files back."""
        self._store.close()

    def _in_order(self, field: int | None, after: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yields the order of a field (None: of all) after a place."""
        fields = np.flatnonzero(self.num_rows_F).tolist() if field is None else [field]
        scans = [self._store.scan(*range_of(one, after)) for one in fields]
        return heapq.merge(*scans, key=lambda entry: place(entry[0]))

    @contextmanager
    def _timed(self) -> Iterator[None]:
        start_s = self._now_s()
        yield
        self.stats.store_s += self._now_s() - start_s
