"""The trainer's embedding rows: one table for all fields, its ids, admission, and what changed since a snapshot.

Letters: N values of a batch, U distinct rows of a batch, W embedding width.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.admission import AdmissionConfig, AdmissionCounts
from model.assembly import InputLayout
from model.features import EncodedBatch
from model.hashing import Int64Array
from model.id_table import IdTable
from model.optim import OptimConfig, rowwise_adagrad
from model.seeding import named_generator


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingConfig:
    """Width and start of the embedding rows."""

    width: int = 16
    """Floats per row; at least 1."""
    init_scale: float = 0.05
    """Standard deviation of the default and missing rows at the start; every other row starts as a default row."""
    admission: AdmissionConfig = AdmissionConfig()
    """Counting of values that have no row yet."""

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"width: {self.width} is not allowed; at least 1")
        if not self.init_scale >= 0:
            raise ValueError(f"init_scale: {self.init_scale} is not allowed; at least 0")


@dataclass(slots=True)
class FieldCounters:
    """What happened to the ids of one field since the process started."""

    rows: int = 0
    """Values that have a row now."""
    admissions: int = 0
    evictions: int = 0
    lookups: int = 0
    default_lookups: int = 0
    """Lookups of learned batches that found the default row."""
    missing_lookups: int = 0


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


class Lookup(NamedTuple):
    """The rows of one micro-batch and what learning from it would change: nothing is written before `apply`."""

    rows_U: Int64Array
    """Distinct rows; those to be admitted have the numbers they will get."""
    index_N: Int64Array
    """Place in `rows_U` of each value of the flat order."""
    weight_UW: Tensor
    """The rows' weights; to be admitted: copies of their field's default row."""
    accumulator_U: Tensor
    """The rows' accumulators; to be admitted: 0."""
    admissions: Admissions
    lookups_F3: Int64Array
    """Per field: lookups, of these on the default row, of these on the missing row."""


class EmbeddingTable:
    """Rows of all fields in one float table, changed by row-wise Adagrad only where a batch touched them.

    A clock ticks with every change; each row remembers its last change, so that a delta is "changed since".
    """

    def __init__(self, layout: InputLayout, config: EmbeddingConfig, seed: int) -> None:
        self.layout = layout
        self.ids = IdTable(num_reserved=layout.num_reserved)
        self.counters = {one.name: FieldCounters() for one in layout.fields}
        self._counts = AdmissionCounts(config.admission)
        self._clock = 0
        self._evicted_at: dict[int, int] = {}
        capacity = 2 * layout.num_reserved
        self._weight = torch.zeros(capacity, config.width)
        self._accumulator = torch.zeros(capacity)
        self._changed_at = np.zeros(capacity, np.int64)
        self._generation = np.zeros(capacity, np.int64)
        self._field_of_row = np.zeros(capacity, np.int64)
        self._place = np.zeros(capacity, np.int64)
        for field, one in enumerate(layout.fields):
            generator = named_generator(seed, f"rows/{one.name}")
            rows = slice(2 * field, 2 * field + 2)
            self._weight[rows] = config.init_scale * torch.randn(2, config.width, generator=generator)
            self._field_of_row[rows] = field

    @property
    def weight(self) -> Tensor:
        """The table, at least [rows, W]; do not write."""
        return self._weight

    @property
    def clock(self) -> int:
        """Number of changes so far."""
        return self._clock

    def lookup(self, batch: EncodedBatch, counts_B: npt.NDArray[np.bool_]) -> Lookup:
        """Returns the batch's rows and planned admissions; rows with `counts_B` count towards admission."""
        layout = self.layout
        keys_N = layout.flat_keys(batch)
        rows_N = layout.rows(batch, keys_N, self.ids)
        reserved = np.flatnonzero(rows_N < layout.num_reserved)
        fields = layout.field_of(reserved, batch)
        is_default = rows_N[reserved] == layout.default_row_F[fields]
        unknown, unknown_fields = reserved[is_default], fields[is_default]
        admissions = self._plan(keys_N[unknown], unknown_fields, layout.examples(batch, counts_B)[unknown])
        new_rows = self.ids.next_rows(len(admissions.keys))
        self._reserve(int(new_rows.max(initial=-1)) + 1)
        if len(new_rows):
            found = np.searchsorted(admissions.keys, keys_N[unknown]).clip(max=len(new_rows) - 1)
            is_new = admissions.keys[found] == keys_N[unknown]
            rows_N[unknown[is_new]] = new_rows[found[is_new]]
        rows_U, index_N = self._distinct(rows_N)
        place_of_new = self._place[new_rows]
        source_U = rows_U.copy()
        source_U[place_of_new] = layout.default_row_F[admissions.fields]
        accumulator_U = self._accumulator[torch.from_numpy(source_U)]
        accumulator_U[torch.from_numpy(place_of_new)] = 0.0
        num_fields = len(layout.fields)
        lookups = np.diff(layout.field_starts(batch))
        on_default = np.bincount(unknown_fields, minlength=num_fields)
        on_missing = np.bincount(fields[~is_default], minlength=num_fields)
        return Lookup(
            rows_U=rows_U,
            index_N=index_N,
            weight_UW=self._weight.index_select(0, torch.from_numpy(source_U)),
            accumulator_U=accumulator_U,
            admissions=admissions,
            lookups_F3=np.stack([lookups, on_default, on_missing], axis=1),
        )

    def _plan(self, keys_N: Int64Array, fields_N: Int64Array, examples_N: Int64Array) -> Admissions:
        """Returns what `examples_N` examples of values without a row would count and admit; keys come out sorted."""
        threshold_F = self.layout.admission_F
        counts = (examples_N > 0) & (threshold_F[fields_N] > 0)
        keys, first, inverse = np.unique(keys_N[counts], return_index=True, return_inverse=True)
        fields = fields_N[counts][first]
        added = np.bincount(inverse, weights=examples_N[counts], minlength=len(keys)).astype(np.int64)
        is_counted = threshold_F[fields] > 1
        total = added.copy()
        total[is_counted] = self._counts.with_added(keys[is_counted], added[is_counted])
        is_admitted = total >= threshold_F[fields]
        return Admissions(keys[is_admitted], fields[is_admitted], keys[is_counted], added[is_counted])

    def apply(self, lookup: Lookup, grad_UW: Tensor, config: OptimConfig) -> None:
        """Steps the looked-up rows by their gradients and admits what the lookup planned.

        Nothing may have changed since the lookup.
        """
        self._clock += 1
        admissions = lookup.admissions
        new_rows = self.ids.insert(admissions.keys)
        self._generation[new_rows] += 1
        self._field_of_row[new_rows] = admissions.fields
        for key in admissions.keys.tolist():
            self._evicted_at.pop(key, None)
        self._counts.add(admissions.counted_keys, admissions.counted)
        weight_UW, accumulator_U = rowwise_adagrad(
            lookup.weight_UW, lookup.accumulator_U, grad_UW, lr=config.row_lr, eps=config.row_eps
        )
        rows = torch.from_numpy(lookup.rows_U)
        self._weight[rows] = weight_UW
        self._accumulator[rows] = accumulator_U
        has_changed_U = (weight_UW != lookup.weight_UW).any(dim=1).numpy()
        self._changed_at[lookup.rows_U[has_changed_U]] = self._clock
        self._changed_at[new_rows] = self._clock
        self._count(lookup)

    def evict(self, keys: Int64Array) -> int:
        """Removes the rows of distinct keys; their values fall back to the default row. Returns how many had one."""
        self._clock += 1
        present = keys[self.ids.lookup(keys) >= 0]
        rows = self.ids.remove(present)
        for key, row in zip(present.tolist(), rows.tolist(), strict=True):
            self._evicted_at[key] = self._clock
            counters = self.counters[self.layout.fields[self._field_of_row[row]].name]
            counters.rows -= 1
            counters.evictions += 1
        return len(rows)

    def changes(self, since: int) -> tuple[Int64Array, Tensor, Int64Array]:
        """Returns (keys, weights [N, W], evicted keys) changed after the clock showed `since`; 0 means everything."""
        keys, rows = self.ids.items()
        if since:
            recent = self._changed_at[rows] > since
            keys, rows = keys[recent], rows[recent]
        evicted = [key for key, at in self._evicted_at.items() if at > since > 0]
        return keys, self._weight[torch.from_numpy(rows)], np.array(evicted, np.int64)

    def reserved(self) -> Tensor:
        """Returns a copy of the default and missing rows, [2F, W]."""
        return self._weight[: self.layout.num_reserved].clone()

    def forget_evicted(self, until: int) -> None:
        """Drops the record of evictions that are in a promoted snapshot."""
        self._evicted_at = {key: at for key, at in self._evicted_at.items() if at > until}

    def state(self) -> dict[str, Tensor]:
        """Returns everything for a bit-exact resume."""
        num_rows = self.ids.num_rows
        arrays: dict[str, npt.NDArray[Any]] = {
            **{f"ids.{name}": array for name, array in self.ids.state().items()},
            **{f"admission.{name}": array for name, array in self._counts.state().items()},
            "changed_at": self._changed_at[:num_rows].copy(),
            "generation": self._generation[:num_rows].copy(),
            "field": self._field_of_row[:num_rows].copy(),
            "evicted": np.array(list(self._evicted_at.items()), np.int64).reshape(-1, 2),
            "clock": np.array(self._clock),
        }
        state = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return state | {
            "weight": self._weight[:num_rows].clone(),
            "accumulator": self._accumulator[:num_rows].clone(),
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Becomes the table `state` was taken from."""
        arrays = {name: tensor.numpy() for name, tensor in state.items()}
        self.ids.load_state({name: arrays[f"ids.{name}"] for name in ("key_of_row", "free")})
        self._counts.load_state({name: arrays[f"admission.{name}"] for name in ("counts", "num_counted")})
        self._weight = state["weight"].clone()
        self._accumulator = state["accumulator"].clone()
        self._changed_at = arrays["changed_at"].copy()
        self._generation = arrays["generation"].copy()
        self._field_of_row = arrays["field"].copy()
        self._place = np.zeros(len(self._changed_at), np.int64)
        self._evicted_at = dict(arrays["evicted"].tolist())
        self._clock = int(arrays["clock"])
        _, rows = self.ids.items()
        rows_F = np.bincount(self._field_of_row[rows], minlength=len(self.layout.fields))
        for one, num_rows in zip(self.layout.fields, rows_F.tolist(), strict=True):
            self.counters[one.name].rows = num_rows

    def _distinct(self, rows_N: Int64Array) -> tuple[Int64Array, Int64Array]:
        """Returns the distinct rows and each value's place among them, without sorting."""
        places_N = np.arange(len(rows_N))
        self._place[rows_N] = places_N
        rows_U = rows_N[self._place[rows_N] == places_N]
        self._place[rows_U] = np.arange(len(rows_U))
        return rows_U, self._place[rows_N]

    def _reserve(self, num_rows: int) -> None:
        """Makes room for rows 0..num_rows - 1, doubling."""
        capacity = len(self._changed_at)
        if num_rows <= capacity:
            return
        more = max(num_rows, 2 * capacity) - capacity
        self._weight = torch.cat([self._weight, torch.zeros(more, self._weight.shape[1])])
        self._accumulator = torch.cat([self._accumulator, torch.zeros(more)])
        for name in ("_changed_at", "_generation", "_field_of_row", "_place"):
            setattr(self, name, np.concatenate([getattr(self, name), np.zeros(more, np.int64)]))

    def _count(self, lookup: Lookup) -> None:
        admitted_F = np.bincount(lookup.admissions.fields, minlength=len(self.layout.fields)).tolist()
        for one, admitted, lookups in zip(self.layout.fields, admitted_F, lookup.lookups_F3.tolist(), strict=True):
            counters = self.counters[one.name]
            counters.rows += admitted
            counters.admissions += admitted
            counters.lookups += lookups[0]
            counters.default_lookups += lookups[1]
            counters.missing_lookups += lookups[2]
