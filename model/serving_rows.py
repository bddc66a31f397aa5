"""The rows of a model as a ranker holds them: immutable for readers; a delta makes new ones at the cost of the delta.

Two tables take turns. While one serves, the one that served before waits, one delta behind. The next delta is applied
to that one, after the delta it lacks, and then it serves. Nothing is copied but what has changed.

A table is written only when nobody can read it: it is handed on by rows that no reference is left to. Whoever scores
holds the rows while it does, so Python's own count of references is the proof. Rows that somebody still holds when
their table is needed keep it for good; then, and after a full snapshot, the next delta pays for one copy.

Letters: N keys, W embedding width.
"""

import weakref
from collections.abc import Mapping
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from model.hashing import REMOVED_KEY, Int64Array
from model.id_table import NO_ROW, IdTable
from model.shapes import check_same


class RowDelta(NamedTuple):
    """What one snapshot says about rows. A full one is a delta on rows of no keys."""

    evicted: Int64Array
    cooled: Int64Array
    """Keys whose row is to be looked for elsewhere from now on (`model.row_store`)."""
    keys_N: Int64Array
    weights_NW: Tensor
    reserved: Tensor
    """Embeddings of the reserved rows, of which there is no delta: all of them."""

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], *, num_reserved: int, width: int, dtype: torch.dtype) -> Self:
        """Returns the `rows.` tensors of a snapshot whose weights are of `dtype`.

        Raises:
            ValueError: names, shapes or types are not those of such rows, or a key is to go twice.
        """
        rows = {name: tensor for name, tensor in tensors.items() if name.startswith("rows.")}
        rows.setdefault("rows.cooled", torch.empty(0, dtype=torch.int64))  # absent where all rows are in memory
        num_keys, num_evicted, num_cooled = (
            len(rows[name]) if name in rows else 0 for name in ("rows.keys", "rows.evicted", "rows.cooled")
        )
        expected = {
            "rows.evicted": torch.empty(num_evicted, dtype=torch.int64),
            "rows.cooled": torch.empty(num_cooled, dtype=torch.int64),
            "rows.keys": torch.empty(num_keys, dtype=torch.int64),
            "rows.weights": torch.empty(num_keys, width, dtype=dtype),
            "rows.reserved": torch.empty(num_reserved, width, dtype=dtype),
        }
        check_same(rows, expected)
        evicted, cooled, keys_N, weights_NW, reserved = (rows[name] for name in expected)
        if len(np.unique(np.concatenate([evicted.numpy(), cooled.numpy()]))) < num_evicted + num_cooled:
            raise ValueError("rows.evicted: a key stands there twice, or there and in rows.cooled")
        return cls(evicted.numpy(), cooled.numpy(), keys_N.numpy(), weights_NW, reserved)

    def copy(self) -> Self:
        """Returns a copy, to be kept when the payload is gone."""
        return self._replace(
            evicted=self.evicted.copy(),
            cooled=self.cooled.copy(),
            keys_N=self.keys_N.copy(),
            weights_NW=self.weights_NW.clone(),
            reserved=self.reserved.clone(),
        )


class RowTable:
    """Ids and the matrix of their embeddings, the reserved rows first. Changed in place, by one thread."""

    def __init__(self, ids: IdTable, weight: Tensor) -> None:
        self.ids = ids
        self.weight = weight
        """Longer than there are rows, so that most deltas with new keys find room; the rest is not initialised."""

    def apply(self, delta: RowDelta) -> None:
        """Takes out what was evicted or has cooled, and then takes in changed rows.

        Raises:
            ValueError: a key is not allowed or stands there twice; this table is of no use any more.
        """
        self.ids.remove(delta.evicted)
        self.ids.remove(delta.cooled)
        rows_N = self.ids.lookup(delta.keys_N)
        is_new_N = rows_N == NO_ROW
        rows_N[is_new_N] = self.ids.insert(delta.keys_N[is_new_N])
        if (delta.keys_N == REMOVED_KEY).any() or not np.array_equal(self.ids.lookup(delta.keys_N), rows_N):
            raise ValueError("rows.keys: a key is reserved, or stands there twice")
        if self.ids.num_rows > len(self.weight):
            self.weight = _with_room(self.weight, self.ids.num_rows)
        self.weight[: len(delta.reserved)] = delta.reserved
        self.weight[torch.from_numpy(rows_N)] = delta.weights_NW

    def copy(self) -> "RowTable":
        """Returns an independent copy."""
        return RowTable(self.ids.copy(), _with_room(self.weight[: self.ids.num_rows], self.ids.num_rows))


class ServingRows:
    """Ids and their embeddings. Safe to share between threads: nothing changes while it is held."""

    def __init__(self, table: RowTable, former: "Former | None" = None) -> None:
        self._table = table
        self._former = former

    @classmethod
    def empty(cls, *, num_reserved: int, width: int, dtype: torch.dtype = torch.float32) -> "ServingRows":
        """Returns rows of no keys; the reserved ones are zero."""
        return cls(RowTable(IdTable(num_reserved=num_reserved), torch.zeros(num_reserved, width, dtype=dtype)))

    @property
    def ids(self) -> IdTable:
        """Which row each key has. To be read only as long as these rows are held."""
        return self._table.ids

    @property
    def weight(self) -> Tensor:
        """Embeddings, by row. To be read only as long as these rows are held."""
        return self._table.weight

    def read(self, rows_N: Int64Array) -> tuple[Tensor, Tensor]:
        """Returns float32 weights to look at only, and the place of each of these rows among them."""
        rows = torch.from_numpy(rows_N)
        if self.weight.dtype == torch.float32:
            return self.weight, rows
        return self.weight[rows].float(), torch.arange(len(rows))

    def __len__(self) -> int:
        return len(self.ids)

    def after(self, tensors: Mapping[str, Tensor]) -> "ServingRows":
        """Returns the rows after the evictions and then the changed rows of a delta; these go on as they are.

        Two threads must not call it at the same time.

        Raises:
            ValueError: the `rows.` tensors are not those of such rows.
        """
        reserved_RW = self.weight[: self.ids.num_reserved]
        delta = RowDelta.of(tensors, num_reserved=len(reserved_RW), width=reserved_RW.shape[1], dtype=reserved_RW.dtype)
        table = self._spare() or self._table.copy()
        table.apply(delta)
        # Ours without keys are where a full snapshot begins: to copy what it made is less than to make it twice.
        former = Former(weakref.ref(self), self._table, delta.copy()) if len(self) else None
        return ServingRows(table, former)

    def _spare(self) -> RowTable | None:
        """Returns a table equal to ours that nobody reads and nobody else will be given; None if there is none."""
        if self._former is None or self._former.rows() is not None:
            return None
        former, self._former = self._former, None
        former.table.apply(former.delta)
        return former.table

    def tensors(self) -> dict[str, Tensor]:
        """Returns the rows as a full export: equal rows are equal by key."""
        keys, rows = self.ids.items()
        return {
            "rows.keys": torch.from_numpy(keys),
            "rows.weights": self.weight[torch.from_numpy(rows)],
            "rows.evicted": torch.empty(0, dtype=torch.int64),
            "rows.reserved": self.weight[: self.ids.num_reserved].clone(),
        }


class Former(NamedTuple):
    """The table that served before, and what it lacks."""

    rows: "weakref.ref[ServingRows]"
    """Its readers hold these; None once there are none, for nobody can get hold of them any more."""
    table: RowTable
    delta: RowDelta


def _with_room(weight: Tensor, num_rows: int) -> Tensor:
    """Returns a copy with a quarter more rows than needed; memory that was never written costs nothing yet."""
    roomy = weight.new_empty(num_rows + num_rows // 4, weight.shape[1])
    roomy[: len(weight)] = weight
    return roomy
