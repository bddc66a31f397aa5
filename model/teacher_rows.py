"""The embedding rows as they were at one moment, while the table goes on learning, admitting and evicting.

Nothing is copied but the reserved rows: the old value of a row is kept at its first change since. So it costs as much
memory as rows were touched, and reading costs a look at each row of the batch.

Letters: F fields, N values of a batch, U distinct rows of a batch, K rows kept, W embedding width.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from model.assembly import InputLayout
from model.hashing import Int64Array
from model.id_table import NO_ROW, IdTable

_UNCHANGED, ABSENT = -1, -2
"""In place of a kept row: the table still has the old value; or the value that owns the row now had none then."""


class BatchRows(NamedTuple):
    """Which rows of the table a batch has now, as `EmbeddingTable.lookup` found them."""

    rows_U: Int64Array
    index_N: Int64Array
    """Place in `rows_U` of each value."""
    keys_N: Int64Array
    field_U: Int64Array
    new_U: Int64Array
    """Places of the rows that the step will admit: nobody's so far."""
    new_keys: Int64Array
    weight_UW: Tensor
    examples_U: Int64Array


class OldRows(NamedTuple):
    """The rows of a batch as they were."""

    source_VW: Tensor
    """Rows, at least U of them."""
    index_N: Int64Array
    """Place in `source_VW` of each value."""
    examples_N: Int64Array
    """Examples of each value that had a row of its own; -1 where it had none."""


class FrozenRows:
    """A view of a table as it was when this was made; the table tells it what it is about to change."""

    def __init__(self, reserved_RW: Tensor, num_rows: int) -> None:
        """`reserved_RW`: the default and missing rows; `num_rows`: rows that the table has given out so far."""
        self._reserved_RW = reserved_RW.clone()
        self._place_of_row = np.full(num_rows, _UNCHANGED, np.int64)
        self._weight_KW = reserved_RW.new_zeros(0, reserved_RW.shape[1])
        self._examples_K: Int64Array = np.zeros(0, np.int64)
        self._num_kept = 0
        self._gone = IdTable(num_reserved=0)
        self._place_of_gone: Int64Array = np.zeros(0, np.int64)

    @property
    def reserved_RW(self) -> Tensor:
        """The default and missing rows as they were."""
        return self._reserved_RW

    @property
    def num_kept(self) -> int:
        """Rows whose old value is kept here."""
        return self._num_kept

    def changing(self, rows: Int64Array, weight: Tensor, examples: Int64Array) -> None:
        """Takes note that these distinct rows of values are about to change; with what they are before."""
        first = np.flatnonzero(self._places(rows) == _UNCHANGED)
        if not len(first):
            return
        kept = np.arange(self._num_kept, self._num_kept + len(first))
        self._reserve(self._num_kept + len(first))
        self._weight_KW[kept[0] : kept[-1] + 1] = weight[torch.from_numpy(first).to(weight.device)]
        self._examples_K[kept] = examples[first]
        self._place_of_row[rows[first]] = kept
        self._num_kept += len(first)

    def admitted(self, keys: Int64Array, rows: Int64Array) -> None:
        """Takes note that values got rows; one that had a row then, and lost it since, finds its old value again."""
        if not len(rows):
            return
        self._cover(int(rows.max()) + 1)
        self._place_of_row[rows] = self._of_gone(keys)
        self._gone.remove(keys)

    def removing(self, keys: Int64Array, rows: Int64Array, weight: Tensor, examples: Int64Array) -> None:
        """Takes note that values are about to lose their rows; with what the rows are before."""
        self.changing(rows, weight, examples)
        place = self._places(rows)
        existed = place != ABSENT
        if existed.any():
            gone = self._gone.insert(keys[existed])
            more = self._gone.num_rows - len(self._place_of_gone)
            self._place_of_gone = np.concatenate([self._place_of_gone, np.zeros(max(2 * more, 0), np.int64)])
            self._place_of_gone[gone] = place[existed]
        self._place_of_row[rows] = ABSENT

    def rows_of(self, batch: BatchRows, layout: InputLayout) -> OldRows:
        """Returns the batch's rows as they were; a value that had none has its field's default row of then."""
        place_U = self._places(batch.rows_U)
        place_U[batch.new_U] = self._of_gone(batch.new_keys)
        is_reserved_U = batch.rows_U < layout.num_reserved
        is_kept_U, is_absent_U = ~is_reserved_U & (place_U >= 0), ~is_reserved_U & (place_U == ABSENT)
        source_UW, examples_U = batch.weight_UW.detach().clone(), np.where(is_reserved_U, -1, batch.examples_U)
        reserved_U = np.where(is_reserved_U, batch.rows_U, layout.default_row_F[batch.field_U])
        from_reserved = np.flatnonzero(is_reserved_U | is_absent_U)
        source_UW[self._index(from_reserved)] = self._reserved_RW[self._index(reserved_U[from_reserved])]
        source_UW[self._index(np.flatnonzero(is_kept_U))] = self._weight_KW[self._index(place_U[is_kept_U])]
        examples_U[is_kept_U], examples_U[is_absent_U] = self._examples_K[place_U[is_kept_U]], -1
        if not len(self._gone):
            return OldRows(source_UW, batch.index_N, examples_U[batch.index_N])
        # Values on a default row now may have had a row of their own then.
        is_default_U = is_reserved_U & np.isin(batch.rows_U, layout.default_row_F)
        on_default = np.flatnonzero(is_default_U[batch.index_N])
        place = self._of_gone(batch.keys_N[on_default])
        back, place = on_default[place >= 0], place[place >= 0]
        index_N = batch.index_N.copy()
        index_N[back] = len(source_UW) + np.arange(len(back))
        source_VW = torch.cat([source_UW, self._weight_KW[self._index(place)]])
        return OldRows(source_VW, index_N, np.concatenate([examples_U, self._examples_K[place]])[index_N])

    def _places(self, rows: Int64Array) -> Int64Array:
        """Returns the place of each row's old value; rows given out later belonged to nobody."""
        is_covered = rows < len(self._place_of_row)
        places: Int64Array = np.where(is_covered, self._place_of_row[np.where(is_covered, rows, 0)], ABSENT)
        return places

    def _of_gone(self, keys: Int64Array) -> Int64Array:
        rows = self._gone.lookup(keys)
        place = np.full(len(keys), ABSENT, np.int64)
        place[rows != NO_ROW] = self._place_of_gone[rows[rows != NO_ROW]]
        return place

    def _cover(self, num_rows: int) -> None:
        more = num_rows - len(self._place_of_row)
        if more > 0:
            more = max(more, len(self._place_of_row))
            self._place_of_row = np.concatenate([self._place_of_row, np.full(more, ABSENT, np.int64)])

    def _reserve(self, num_kept: int) -> None:
        more = num_kept - len(self._examples_K)
        if more > 0:
            more = max(more, len(self._examples_K))
            self._weight_KW = torch.cat([self._weight_KW, self._weight_KW.new_zeros(more, self._weight_KW.shape[1])])
            self._examples_K = np.concatenate([self._examples_K, np.zeros(more, np.int64)])

    def _index(self, places: Int64Array) -> Tensor:
        return torch.from_numpy(places).to(self._weight_KW.device)

    def state(self) -> dict[str, Tensor]:
        """Returns everything, as copies in host memory."""
        keys, gone = self._gone.items()
        arrays = {
            "place_of_row": self._place_of_row.copy(),
            "examples": self._examples_K[: self._num_kept].copy(),
            "gone_keys": keys.copy(),
            "gone_places": self._place_of_gone[gone].copy(),
        }
        return {name: torch.from_numpy(array) for name, array in arrays.items()} | {
            "reserved": self._reserved_RW.to("cpu", copy=True),
            "weight": self._weight_KW[: self._num_kept].to("cpu", copy=True),
        }

    @classmethod
    def restored(cls, state: dict[str, Tensor], device: torch.device) -> "FrozenRows":
        """Returns the view that `state` was taken from."""
        rows = cls(state["reserved"].to(device), 0)
        rows._place_of_row = state["place_of_row"].numpy().copy()
        rows._weight_KW = state["weight"].to(device, copy=True)
        rows._examples_K = state["examples"].numpy().copy()
        rows._num_kept = len(rows._examples_K)
        gone = rows._gone.insert(state["gone_keys"].numpy())
        rows._place_of_gone = np.zeros(rows._gone.num_rows, np.int64)
        rows._place_of_gone[gone] = state["gone_places"].numpy()
        return rows
