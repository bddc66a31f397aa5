"""Exact map of 64-bit keys to rows: open addressing, vectorised; rows of removed keys are used again.

Keys are hashes (`model.hashing`), so their low bits are the slot. Two keys never share a row.
"""

import numpy as np

from model.hashing import MISSING_KEY, REMOVED_KEY, Int64Array

NO_ROW = -1

_MIN_SLOTS = 1024
_MAX_LOAD = 0.5


class IdTable:
    """Keys -> rows `num_reserved, num_reserved + 1, ...`; the reserved rows below belong to no key.

    A freed row is given out again before a fresh one, the last freed first. Not safe for concurrent writers;
    concurrent readers are.

    >>> table = IdTable(num_reserved=2)
    >>> table.insert(np.array([70, 80])).tolist(), table.lookup(np.array([80, 90, 70])).tolist()
    ([2, 3], [3, -1, 2])
    >>> table.remove(np.array([70, 90])).tolist(), table.insert(np.array([90])).tolist()
    ([2], [2])
    """

    def __init__(self, *, num_reserved: int) -> None:
        self.num_reserved = num_reserved
        self.num_rows = num_reserved
        """Rows ever given out, reserved and free ones included."""
        self._free: list[int] = []
        self._key_of_row = np.zeros(max(2 * num_reserved, _MIN_SLOTS), np.int64)
        self._slot_keys = np.full(_MIN_SLOTS, MISSING_KEY, np.int64)
        self._slot_rows = np.zeros(_MIN_SLOTS, np.int64)
        self._num_used_slots = 0

    def __len__(self) -> int:
        return self.num_rows - self.num_reserved - len(self._free)

    def lookup(self, keys_N: Int64Array) -> Int64Array:
        """Returns the row of each key, [N]; `NO_ROW` for keys not in the table and for `MISSING_KEY`."""
        rows_N, found_N, slot_N = self._probe(keys_N)
        rows_N[(found_N != keys_N) | (keys_N == MISSING_KEY)] = NO_ROW
        return rows_N

    def next_rows(self, count: int) -> Int64Array:
        """Returns the rows that the next `insert` of `count` keys will give out, without changing anything."""
        reused = self._free[-count:][::-1] if count else []
        fresh = np.arange(self.num_rows, self.num_rows + count - len(reused))
        rows: Int64Array = np.concatenate([np.array(reused, np.int64), fresh])
        return rows

    def insert(self, keys_N: Int64Array) -> Int64Array:
        """Adds keys that are distinct and not in the table. Returns their new rows."""
        if self._num_used_slots + len(keys_N) > _MAX_LOAD * len(self._slot_keys):
            self._rebuild_slots(num_new=len(keys_N))
        rows_N = self.next_rows(len(keys_N))
        num_reused = min(len(keys_N), len(self._free))
        del self._free[len(self._free) - num_reused :]
        self.num_rows += len(keys_N) - num_reused
        if self.num_rows > len(self._key_of_row):
            self._key_of_row = np.concatenate([self._key_of_row, np.zeros(self.num_rows, np.int64)])
        self._key_of_row[rows_N] = keys_N
        self._fill(keys_N, rows_N)
        return rows_N

    def remove(self, keys_N: Int64Array) -> Int64Array:
        """Removes distinct keys. Returns the rows set free; keys not in the table are passed over."""
        rows_N, found_N, slot_N = self._probe(keys_N)
        present_N = (found_N == keys_N) & (keys_N != MISSING_KEY)
        rows: Int64Array = rows_N[present_N]
        self._slot_keys[slot_N[present_N]] = REMOVED_KEY
        self._key_of_row[rows] = MISSING_KEY
        self._free.extend(rows.tolist())
        return rows

    def items(self) -> tuple[Int64Array, Int64Array]:
        """Returns all keys and their rows, in the order of the rows."""
        rows = np.flatnonzero(self._key_of_row[: self.num_rows])
        return self._key_of_row[rows], rows

    def key_of_row(self, rows_N: Int64Array) -> Int64Array:
        """Returns the key of each row; `MISSING_KEY` for reserved and free rows."""
        keys_N: Int64Array = self._key_of_row[rows_N]
        return keys_N

    def copy(self) -> "IdTable":
        """Returns an independent copy."""
        twin = IdTable(num_reserved=self.num_reserved)
        twin.num_rows = self.num_rows
        twin._free = self._free.copy()
        twin._key_of_row = self._key_of_row.copy()
        twin._slot_keys = self._slot_keys.copy()
        twin._slot_rows = self._slot_rows.copy()
        twin._num_used_slots = self._num_used_slots
        return twin

    def state(self) -> dict[str, Int64Array]:
        """Returns what `load_state` needs: the key of every row and the free rows in their order."""
        return {"key_of_row": self._key_of_row[: self.num_rows].copy(), "free": np.array(self._free, np.int64)}

    def load_state(self, state: dict[str, Int64Array]) -> None:
        """Becomes the table `state` was taken from; `num_reserved` must be the same."""
        self._key_of_row = state["key_of_row"].copy()
        self.num_rows = len(self._key_of_row)
        self._free = state["free"].tolist()
        self._rebuild_slots(num_new=0)

    def _probe(self, keys_N: Int64Array) -> tuple[Int64Array, Int64Array, Int64Array]:
        """Returns per key the row, key and number of the slot where linear probing ends: its own or a free one."""
        mask = len(self._slot_keys) - 1
        slot_N = keys_N & mask
        found_N = self._slot_keys.take(slot_N)
        rows_N = self._slot_rows.take(slot_N)
        going = np.flatnonzero((found_N != keys_N) & (found_N != MISSING_KEY))
        while len(going):
            slots = (slot_N[going] + 1) & mask
            found = self._slot_keys[slots]
            slot_N[going], found_N[going], rows_N[going] = slots, found, self._slot_rows[slots]
            going = going[(found != keys_N[going]) & (found != MISSING_KEY)]
        return rows_N, found_N, slot_N

    def _fill(self, keys_N: Int64Array, rows_N: Int64Array) -> None:
        """Writes new keys into the first free slot of their probe sequence, all of them one slot further per round."""
        mask = len(self._slot_keys) - 1
        self._num_used_slots += len(keys_N)
        slot_N = keys_N & mask
        going = np.arange(len(keys_N))
        while len(going):
            slots = slot_N[going]
            free = self._slot_keys[slots] == MISSING_KEY
            # Several keys may want one slot: the last one written has it, the others see that and go on.
            self._slot_keys[slots[free]] = keys_N[going[free]]
            done = self._slot_keys[slots] == keys_N[going]
            self._slot_rows[slots[done]] = rows_N[going[done]]
            going = going[~done]
            slot_N[going] = (slot_N[going] + 1) & mask

    def _rebuild_slots(self, *, num_new: int) -> None:
        """Drops the slots of removed keys and leaves room for as many keys again as there will be."""
        keys, rows = self.items()
        num_slots = _MIN_SLOTS
        while 2 * (len(keys) + num_new) > _MAX_LOAD * num_slots:
            num_slots *= 2
        self._slot_keys = np.full(num_slots, MISSING_KEY, np.int64)
        self._slot_rows = np.zeros(num_slots, np.int64)
        self._num_used_slots = 0
        self._fill(keys, rows)
