"""Names of the rows that left memory, in a store of bytes: by key, and in the order in which they were last seen.

    r + key                 the row
    o + field + clock + key its place in the order of its field

Letters: K rows.
"""

from collections.abc import Iterable
from itertools import islice, takewhile
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from model.hashing import Int64Array

PLACE_BYTES = 16
"""Length of a place in the order: clock and key."""
_ROW = np.dtype([("prefix", "S1"), ("key", ">u8")])
_ORDER = np.dtype([("prefix", "S1"), ("field", ">u2"), ("clock", ">u8"), ("key", ">u8")])
_SIGN = np.uint64(1 << 63)
"""Added to keys, which are signed, so that their bytes are in their order."""


class ColdNames(NamedTuple):
    """Which rows, K of them, without what is kept of them."""

    keys: Int64Array
    field: Int64Array
    clock: Int64Array
    """When each was last seen."""

    def first(self, count: int) -> "ColdNames":
        """Returns the first of them."""
        return ColdNames(self.keys[:count], self.field[:count], self.clock[:count])


NO_NAMES = ColdNames(*np.empty((3, 0), np.int64))


def row_names(keys_K: Int64Array) -> list[bytes]:
    """Returns the name of each key's row."""
    names = np.zeros(len(keys_K), _ROW)
    names["prefix"], names["key"] = b"r", keys_K.view(np.uint64) ^ _SIGN
    return split(names)


def order_names(names: ColdNames) -> list[bytes]:
    """Returns the name of each row's entry in the order."""
    order = np.zeros(len(names.keys), _ORDER)
    order["prefix"], order["field"], order["clock"] = b"o", names.field, names.clock
    order["key"] = names.keys.view(np.uint64) ^ _SIGN
    return split(order)


def parsed(order_names: Iterable[bytes]) -> ColdNames:
    """Returns the rows whose entries in the order are given."""
    order = np.frombuffer(b"".join(order_names), _ORDER)
    keys = (order["key"].astype(np.uint64) ^ _SIGN).view(np.int64)
    return ColdNames(keys, order["field"].astype(np.int64), order["clock"].astype(np.int64))


def place(order_name: bytes) -> bytes:
    """Returns what tells before and after in the order of all fields."""
    return order_name[-PLACE_BYTES:]


def range_of(field: int, after: bytes) -> tuple[bytes, bytes]:
    """Returns the first name and the end of what comes after a place in the order of a field."""
    return b"o" + field.to_bytes(2, "big") + after + b"\0", b"o" + (field + 1).to_bytes(2, "big")


def all_names() -> tuple[bytes, bytes]:
    """Returns the first name and the end of the order of all fields, one after the other."""
    return b"o", b"p"


def cold_name(rank: int, size: int) -> str:
    """Returns the name of the folder with the rows that left the memory of one of `size` ranks."""
    return f"cold-{rank:05d}-of-{size:05d}"


def split(array: npt.NDArray[Any]) -> list[bytes]:
    """Returns the bytes of each entry."""
    data, size = array.tobytes(), array.itemsize
    return [data[first : first + size] for first in range(0, len(data), size)]


class OldestNames:
    """The oldest rows of one field or of all, some of them read ahead: nothing older can come."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[int, int, int]] = {}
        """By key: field, clock and event time when last seen; the oldest first."""
        self.read_to = bytes(PLACE_BYTES)

    def __len__(self) -> int:
        return len(self._seen)

    def read(self, entries: Iterable[tuple[bytes, bytes]]) -> None:
        """Takes entries of the order that come next after `read_to`, at least one."""
        names, values = zip(*entries, strict=True)
        rows, ms = parsed(names), np.frombuffer(b"".join(values), "<i8")
        columns = zip(rows.field.tolist(), rows.clock.tolist(), ms.tolist(), strict=True)
        self._seen.update(zip(rows.keys.tolist(), columns, strict=True))
        self.read_to = place(names[-1])

    def first(self, count: int, before_ms: int) -> ColdNames:
        """Returns the first rows: at most `count`, all last seen before `before_ms`."""
        first = islice(self._seen.items(), max(count, 0))
        old = takewhile(lambda item: item[1][2] < before_ms, first)
        rows = [(key, field, clock) for key, (field, clock, _) in old]
        return ColdNames(*np.array(rows, np.int64).reshape(-1, 3).T)

    def forget(self, keys_K: Int64Array) -> None:
        """Takes note that some rows are not there any more."""
        for key in keys_K.tolist() if self._seen else ():
            self._seen.pop(key, None)
