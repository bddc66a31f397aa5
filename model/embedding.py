"""The trainer's embedding rows: one table for all fields, its ids, and what changed since a snapshot.

Letters: F fields, N values of a batch, U distinct rows of a batch, W embedding width.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.admission import Admission, Admissions
from model.assembly import InputLayout
from model.cold_names import NO_NAMES
from model.cold_rows import ByteStore, ColdRows, RowValues
from model.embedding_config import EmbeddingConfig
from model.eviction import Due, Eviction, OldestRows
from model.features import EncodedBatch
from model.field_ids import IdRules
from model.hashing import MISSING_KEY, Int64Array
from model.id_table import NO_ROW, IdTable
from model.lookup import FieldCounters, Lookup, matched
from model.new_rows import drawn_rows
from model.optim import OptimConfig, faded, rowwise_adagrad
from model.ranks import Ranks
from model.rounding import rounded_by_chance
from model.row_arrays import RowArrays
from model.seeding import named_generator
from model.teacher_rows import BatchRows, FrozenRows

_NO_ROWS = np.empty(0, np.int64)
_COOLED_AT_ONCE = 10_000
"""Rows that one step lets leave memory, at most, beyond as many as it brought."""


class EmbeddingTable:
    """Rows of all fields in one table, changed by row-wise Adagrad only where a batch touched them.

    A clock ticks with every change; each row remembers its last change, so that a delta is "changed since". Weights
    and accumulators are on `device`, all that decides which value has which row on the host: the same on any device.
    On several ranks each has a table of the values that it owns (`model.sharded_rows`), with all reserved rows. Its
    clock, its reserved rows, its counters and how many rows there are, are then those of all ranks.

    Raises:
        ValueError: settings for a field that the model does not have, or whose ids are another field's.
    """

    def __init__(
        self,
        layout: InputLayout,
        config: EmbeddingConfig,
        seed: int,
        device: torch.device | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.layout = layout
        self.ids = IdTable(num_reserved=layout.num_reserved)
        self.counters = {one.name: FieldCounters() for one in layout.fields}
        self._config = config
        self._seed = seed
        self._device = device or torch.device("cpu")
        self._ranks = ranks or Ranks.alone()
        rules = IdRules(layout.fields, config.fields, config.admission.rule)
        self._own_lr_F = rules.row_lr_F
        self._admission = Admission(config.admission, rules.examples_F, rules.is_drawn_F, seed)
        self.cold: ColdRows | None = None
        """The rows that left memory; None: all stay."""
        self._oldest = OldestRows(None, self.ids)
        self._eviction = Eviction(rules, self.ids, config.max_rows, config.evictions_per_step, self._ranks)
        self._clock = 0
        self._evicted_at: dict[int, int] = {}
        self._has_exported = False
        weight = torch.zeros(2 * layout.num_reserved, config.width)
        for place, one in enumerate(layout.fields):
            generator = named_generator(seed, f"rows/{one.name}")
            rows = slice(2 * place, 2 * place + 2)
            weight[rows] = config.init_scale * torch.randn(2, config.width, generator=generator)
        self._rows = RowArrays(weight.to(self._device, config.torch_dtype))
        self._place = np.zeros(len(self._rows), np.int64)
        self._frozen: list[FrozenRows] = []

    @property
    def weight(self) -> Tensor:
        """The table, at least [rows, W]; do not write."""
        return self._rows.weight

    @property
    def clock(self) -> int:
        """Number of changes so far."""
        return self._clock

    def use_cold(self, store: ByteStore) -> None:
        """Lets the rows beyond `hot_rows` leave memory, into an empty store, or that of the state to be loaded next."""
        num_fields, weight = len(self.layout.fields), self._rows.weight
        self.cold = ColdRows(store, num_fields=num_fields, width=weight.shape[1], dtype=weight.dtype)

    def occupancy(self) -> dict[str, float]:
        """Returns rows over `max_rows` of each field that has a limit; "all" stands for the limit of all fields."""
        rows_F = self._num_rows_F()
        return {
            "all" if one is None else self.layout.fields[one].name: float(rows_F[one].sum() / most)
            for one, most in self._eviction.max_rows.items()
        }

    def lookup(self, batch: EncodedBatch, counts_B: npt.NDArray[np.bool_]) -> Lookup:
        """Returns the batch's rows, those that had left memory too, and planned admissions.

        Rows of the batch with `counts_B` count towards admission.
        """
        layout = self.layout
        keys_N = layout.flat_keys(batch)
        rows_N = layout.rows(batch, keys_N, self.ids)
        reserved = np.flatnonzero(rows_N < layout.num_reserved)
        fields = layout.field_of(reserved, batch)
        is_default = rows_N[reserved] == layout.default_row_F[fields]
        unknown, unknown_fields = reserved[is_default], fields[is_default]
        thawed = self.cold.find(keys_N[unknown]) if self.cold is not None else None
        thawed_rows = self._next_rows(len(thawed.keys)) if thawed is not None else _NO_ROWS
        if thawed is not None:
            back, place = matched(keys_N[unknown], thawed.keys)
            rows_N[unknown[back]] = thawed_rows[place]
            unknown, unknown_fields = np.delete(unknown, back), np.delete(unknown_fields, back)
        examples_N = layout.examples(batch, counts_B)
        admissions = self._admission.plan(keys_N[unknown], unknown_fields, examples_N[unknown], self._clock)
        new_rows = self._next_rows(len(admissions.keys), after=len(thawed_rows))
        new, place = matched(keys_N[unknown], admissions.keys)
        rows_N[unknown[new]] = new_rows[place]
        rows_U, index_N = self._distinct(rows_N)
        place_of_new = self._place[new_rows]
        weight_UW, accumulator_U = self._begun(rows_U, place_of_new, admissions, self._place[thawed_rows], thawed)
        num_fields = len(layout.fields)
        lookups = np.diff(layout.field_starts(batch))
        on_default = np.bincount(unknown_fields, minlength=num_fields)
        on_missing = np.bincount(fields[~is_default], minlength=num_fields)
        return Lookup(
            rows_U=rows_U,
            index_N=index_N,
            weight_UW=weight_UW,
            accumulator_U=accumulator_U,
            admissions=admissions,
            keys_N=keys_N,
            new_U=place_of_new,
            examples_U=np.bincount(index_N, weights=examples_N, minlength=len(rows_U)).astype(np.int64),
            lookups_F3=np.stack([lookups, on_default, on_missing], axis=1),
            admitted_F=np.bincount(admissions.fields, minlength=num_fields),
            thawed=thawed,
        )

    def lookup_keys(
        self, keys_K: Int64Array, field_K: Int64Array, counted_K: Int64Array, examples_K: Int64Array
    ) -> Lookup:
        """Returns the rows of values given by their distinct, sorted keys, then all reserved rows, used or not.

        `examples_K` of each key's examples are counted in its row, `counted_K` towards its admission; `field_K` says
        in which field. `index_N` is then per key: its row, or the default row where it has none.
        """
        rows_K = self.ids.lookup(keys_K)
        thawed = self.cold.find(keys_K[rows_K == NO_ROW]) if self.cold is not None else None
        thawed_rows = self._next_rows(len(thawed.keys)) if thawed is not None else _NO_ROWS
        thawed_K = np.searchsorted(keys_K, thawed.keys) if thawed is not None else _NO_ROWS
        rows_K[thawed_K] = thawed_rows
        unknown = np.flatnonzero(rows_K == NO_ROW)
        admissions = self._admission.plan(keys_K[unknown], field_K[unknown], counted_K[unknown], self._clock)
        new_rows = self._next_rows(len(admissions.keys), after=len(thawed_rows))
        new_K = np.searchsorted(keys_K, admissions.keys)
        rows_K[new_K] = new_rows
        has_row_K, num_reserved = rows_K != NO_ROW, self.layout.num_reserved
        rows_U = np.concatenate([rows_K[has_row_K], np.arange(num_reserved)])
        num_own, num_fields = len(rows_U) - num_reserved, len(self.layout.fields)
        index_K = np.where(has_row_K, np.cumsum(has_row_K) - 1, num_own + self.layout.default_row_F[field_K])
        weight_UW, accumulator_U = self._begun(rows_U, index_K[new_K], admissions, index_K[thawed_K], thawed)
        return Lookup(
            rows_U=rows_U,
            index_N=index_K,
            weight_UW=weight_UW,
            accumulator_U=accumulator_U,
            admissions=admissions,
            keys_N=keys_K,
            new_U=index_K[new_K],
            examples_U=np.concatenate([examples_K[has_row_K], np.zeros(num_reserved, np.int64)]),
            lookups_F3=np.zeros((num_fields, 3), np.int64),
            admitted_F=np.bincount(admissions.fields, minlength=num_fields),
            thawed=thawed,
        )

    def _next_rows(self, count: int, *, after: int = 0) -> Int64Array:
        """Returns rows that will be given out after the first so many; there is room for them now."""
        rows = self.ids.next_rows(after + count)[after:]
        self._rows.reserve(int(rows.max(initial=-1)) + 1)
        return rows

    def _begun(
        self,
        rows_U: Int64Array,
        new_U: Int64Array,
        admissions: Admissions,
        thawed_U: Int64Array,
        thawed: RowValues | None,
    ) -> tuple[Tensor, Tensor]:
        """Returns weights and accumulators of rows, [U, W] and [U]; those to be admitted as they start."""
        source_U = rows_U.copy()
        source_U[new_U] = self.layout.default_row_F[admissions.fields]
        source, new = self._index(source_U), self._index(new_U)
        weight_UW = self._rows.weight.index_select(0, source).float()
        accumulator_U = self._rows.accumulator[source]
        accumulator_U[new] = 0.0
        if self._config.new_rows == "random" and len(new_U):
            drawn = drawn_rows(admissions.keys, self._config.width, self._config.init_scale, self._seed)
            weight_UW[new] = torch.from_numpy(drawn).to(self._device)
        if thawed is not None:
            weight_UW[self._index(thawed_U)] = thawed.weight.to(self._device).float()
            accumulator_U[self._index(thawed_U)] = thawed.accumulator.to(self._device)
        return weight_UW, accumulator_U

    def read(self, rows_N: Int64Array, keys_N: Int64Array) -> tuple[Tensor, Int64Array]:
        """Returns float32 weights to look at only, and the place of each value among them.

        `rows_N` are the rows in memory of the values of these keys; rows that left memory are found by their keys.
        """
        unknown = np.flatnonzero((rows_N < self.layout.num_reserved) & (keys_N != MISSING_KEY))
        cold = self.cold.find(keys_N[unknown]) if self.cold is not None else None
        if cold is None and self._rows.weight.dtype == torch.float32:
            return self._rows.weight, rows_N
        rows_U, index_N = self._distinct(rows_N)
        weight_UW = self._rows.weight.index_select(0, self._index(rows_U)).float()
        if cold is None:
            return weight_UW, index_N
        back, place = matched(keys_N[unknown], cold.keys)
        index_N[unknown[back]] = len(rows_U) + place
        return torch.cat([weight_UW, cold.weight.to(self._device).float()]), index_N

    def read_keys(self, keys_K: Int64Array) -> tuple[Tensor, npt.NDArray[np.bool_]]:
        """Returns float32 weights by key, [K, W], to look at only, and which keys have a row; they may repeat."""
        rows_K = self.ids.lookup(keys_K)
        has_row_K = rows_K != NO_ROW
        weight_KW = self._rows.weight.index_select(0, self._index(rows_K.clip(min=0))).float()
        unknown = np.flatnonzero(~has_row_K)
        cold = self.cold.find(keys_K[unknown]) if self.cold is not None else None
        if cold is not None:
            back, place = matched(keys_K[unknown], cold.keys)
            weight_KW[self._index(unknown[back])] = cold.weight[torch.from_numpy(place)].to(self._device).float()
            has_row_K[unknown[back]] = True
        return weight_KW, has_row_K

    def apply(self, lookup: Lookup, grad_UW: Tensor, config: OptimConfig, *, watermark_ms: int = 0) -> None:
        """Steps the looked-up rows by their gradients, admits what the lookup planned, then evicts what is due.

        In the end the least recently seen rows beyond `hot_rows` leave memory.

        Nothing may have changed since the lookup. `watermark_ms` is the event time of the step; 0: not known.
        """
        # 1 time and admissions
        self._clock += 1
        self._rows.seen.advance(watermark_ms)
        admissions = lookup.admissions
        self._thaw(lookup.thawed)
        new_rows = self.ids.insert(admissions.keys)
        self._tell_frozen(lookup, new_rows)
        self._rows.examples[new_rows] = 0
        self._rows.seen.field[new_rows] = admissions.fields
        if self._evicted_at:
            for key in admissions.keys.tolist():
                self._evicted_at.pop(key, None)
        self._admission.counts.add(admissions.counted_keys, admissions.counted)
        # 2 weights
        accumulator_U = lookup.accumulator_U
        if config.row_half_life_ms is not None:
            accumulator_U = faded(accumulator_U, self._rows.seen.ages_ms(lookup.rows_U), config.row_half_life_ms)
        weight_UW, accumulator_U = rowwise_adagrad(
            lookup.weight_UW, accumulator_U, grad_UW, lr=self._rates(lookup.rows_U, config.row_lr), eps=config.row_eps
        )
        weight_UW = self._as_kept(weight_UW, lookup.rows_U)
        rows = self._index(lookup.rows_U)
        self._rows.weight[rows] = weight_UW
        self._rows.accumulator[rows] = accumulator_U
        self._rows.examples[lookup.rows_U] += lookup.examples_U
        has_changed_U = (weight_UW != lookup.weight_UW).any(dim=1).cpu().numpy()
        self._rows.changed_at[lookup.rows_U[has_changed_U]] = self._clock
        self._rows.changed_at[new_rows] = self._clock
        # 3 who was seen, and who has to go
        self._rows.seen.see(lookup.rows_U, self._clock)
        self._count(lookup)
        num_admitted = int(lookup.admitted_F.sum())
        for due in self._eviction.due(
            self._rows.seen, self._num_rows_F(), clock=self._clock, num_admitted=num_admitted, cold=self.cold
        ):
            self._remove(due)
        self._cool(num_came=len(lookup.new_U) + len(lookup.thawed.keys if lookup.thawed is not None else ()))

    def evict(self, keys: Int64Array) -> int:
        """Removes the rows of distinct keys; their values fall back to the default row. Returns how many had one.

        On several ranks each gives keys that it owns, or none.
        """
        self._clock += 1
        rows = self.ids.lookup(keys)
        cold = self.cold.find(keys[rows == NO_ROW]) if self.cold is not None else None
        rows, names = rows[rows != NO_ROW], NO_NAMES
        if self.cold is not None and cold is not None:
            names = cold.names()
            self.cold.remove(names)
        field_N = np.concatenate([self._rows.seen.field[rows], names.field])
        (evicted_F,) = self._ranks.sum_arrays([np.bincount(field_N, minlength=len(self.counters))])
        self._remove(Due("asked", rows, evicted_F, names))
        return int(evicted_F.sum())

    def _remove(self, due: Due) -> None:
        rows = due.rows
        keys = self.ids.key_of_row(rows)
        for frozen in self._frozen:
            frozen.removing(keys, rows, self._rows.weight[self._index(rows)].float(), self._rows.examples[rows])
        self.ids.remove(keys)
        self._rows.seen.free(rows)
        if self._has_exported:
            self._evicted_at.update(dict.fromkeys([*keys.tolist(), *due.cold.keys.tolist()], self._clock))
        for counters, evicted in zip(self.counters.values(), due.evicted_F.tolist(), strict=True):
            counters.rows -= evicted
            counters.evictions[due.cause] += evicted

    def _thaw(self, thawed: RowValues | None) -> None:
        """Takes rows back into memory, where they count as changed: readers of deltas do not have them in theirs."""
        if self.cold is not None and thawed is not None:
            self._rows.put(self.ids.insert(thawed.keys), thawed, clock=self._clock)
            self.cold.remove(thawed.names())

    def _cool(self, num_came: int) -> None:
        """Lets the rows leave memory that were seen the longest ago, none of the micro-batch just learned."""
        if self.cold is None or self._config.hot_rows is None:
            return
        # A limit that is new or was lowered is reached over several steps.
        too_many = min(len(self.ids) - self._config.hot_rows, num_came + _COOLED_AT_ONCE)
        oldest = self._oldest.take(self._rows.seen, too_many, clock=self._clock)
        self._let_go(self.cold, oldest.rows, oldest.clock)

    def _let_go(self, cold: ColdRows, rows: Int64Array, clock: Int64Array) -> None:
        """Lets rows leave memory, the oldest first, last seen at these clocks."""
        keys = self.ids.key_of_row(rows)
        cold.add(self._rows.values(rows, keys, clock))
        self.ids.remove(keys)
        self._rows.seen.free(rows)

    def freeze(self) -> FrozenRows:
        """Returns a view of the rows as they are now; it is kept true until `release`."""
        self._frozen.append(FrozenRows(self._rows.weight[: self.layout.num_reserved].float(), self.ids.num_rows))
        return self._frozen[-1]

    def refreeze(self, frozen: FrozenRows) -> None:
        """Takes a view of this table back that was restored from a checkpoint."""
        self._frozen.append(frozen)

    def release(self, frozen: FrozenRows) -> None:
        """Gives up a view."""
        self._frozen.remove(frozen)

    def batch_rows(self, lookup: Lookup) -> BatchRows:
        """Returns what a frozen view needs to know of a batch; nothing may have changed since the lookup."""
        rows_U = lookup.rows_U
        field_U = np.where(rows_U < self.layout.num_reserved, rows_U // 2, self._rows.seen.field[rows_U])
        field_U[lookup.new_U] = lookup.admissions.fields
        return BatchRows(
            rows_U=rows_U,
            index_N=lookup.index_N,
            keys_N=lookup.keys_N,
            field_U=field_U,
            new_U=lookup.new_U,
            new_keys=lookup.admissions.keys,
            weight_UW=lookup.weight_UW,
            examples_U=self._rows.examples[rows_U],
        )

    def _tell_frozen(self, lookup: Lookup, new_rows: Int64Array) -> None:
        if not self._frozen:
            return
        is_old_U = lookup.rows_U >= self.layout.num_reserved
        is_old_U[lookup.new_U] = False
        rows, weight = lookup.rows_U[is_old_U], lookup.weight_UW[self._index(np.flatnonzero(is_old_U))]
        for frozen in self._frozen:
            frozen.changing(rows, weight, self._rows.examples[rows])
            frozen.admitted(lookup.admissions.keys, new_rows)

    def changes(self, since: int) -> tuple[Int64Array, Tensor, Int64Array]:
        """Returns (keys, weights [N, W], evicted keys) changed after the clock showed `since`; 0 means everything.

        Rows that left memory are not among them (`ColdRows.cooled`); those that came back are.

        Evictions are told from the first call on: before it nobody has a row that could be out of date.
        """
        self._has_exported = True
        keys, rows = self.ids.items()
        if since:
            recent = self._rows.changed_at[rows] > since
            keys, rows = keys[recent], rows[recent]
        return keys, self._rows.weight[self._index(rows)].cpu(), self.evicted(since)

    def evicted(self, since: int) -> Int64Array:
        """Returns the keys of the rows removed after the clock showed `since` that have none again."""
        return np.array([key for key, at in self._evicted_at.items() if at > since], np.int64)

    def reserved(self) -> Tensor:
        """Returns a copy of the default and missing rows, [2F, W]."""
        return self._rows.weight[: self.layout.num_reserved].to("cpu", copy=True)

    def forget_evicted(self, until: int) -> None:
        """Drops the record of evictions that are in a promoted snapshot."""
        self._evicted_at = {key: at for key, at in self._evicted_at.items() if at > until}

    def state(self) -> dict[str, Tensor]:
        """Returns everything for a bit-exact resume."""
        arrays = {
            **{f"ids.{name}": array for name, array in self.ids.state().items()},
            **{f"admission.{name}": array for name, array in self._admission.counts.state().items()},
            "evicted": np.array(list(self._evicted_at.items()), np.int64).reshape(-1, 2),
            "has_exported": np.array(self._has_exported),
            "clock": np.array(self._clock),
            **{f"cold.{name}": array for name, array in (self.cold.state() if self.cold is not None else {}).items()},
        }
        return {name: torch.from_numpy(array) for name, array in arrays.items()} | self._rows.state(self.ids.num_rows)

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Becomes the table `state` was taken from, on any device."""
        arrays = {name: tensor.numpy() for name, tensor in state.items() if tensor.dtype != torch.bfloat16}
        self.ids.load_state({name: arrays[f"ids.{name}"] for name in ("key_of_row", "free")})
        self._admission.counts.load_state({name: arrays[f"admission.{name}"] for name in ("counts", "num_counted")})
        self._rows.load_state(state)
        self._load_cold(arrays)
        self._oldest = OldestRows(None, self.ids)
        self._eviction.restart()
        self._frozen = []
        self._place = np.zeros(len(self._rows), np.int64)
        self._evicted_at = dict(arrays["evicted"].tolist())
        self._has_exported = bool(arrays["has_exported"])
        self._clock = int(arrays["clock"])
        _, rows = self.ids.items()
        own_F = np.bincount(self._rows.seen.field[rows], minlength=len(self.layout.fields))
        (rows_F,) = self._ranks.sum_arrays([own_F + (self.cold.num_rows_F if self.cold is not None else 0)])
        for one, num_rows in zip(self.layout.fields, rows_F.tolist(), strict=True):
            self.counters[one.name].rows = num_rows

    def _load_cold(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        state = {name.removeprefix("cold."): array for name, array in arrays.items() if name.startswith("cold.")}
        if self.cold is None:
            if state and state["places"].any():
                raise ValueError("hot_rows: null is not allowed where rows have left memory; any number")
            return
        if state:
            self.cold.load_state(state)
        # Of rows that were on several ranks, some in memory may be older than some that left.
        keys, rows = self.ids.items()
        clock, (last_clock, last_key) = self._rows.seen.clock[rows], self.cold.last
        older = np.flatnonzero((clock < last_clock) | ((clock == last_clock) & (keys < last_key)))
        older = older[np.lexsort((keys[older], clock[older]))]
        for first in range(0, len(older), _COOLED_AT_ONCE):
            some = older[first : first + _COOLED_AT_ONCE]
            self._let_go(self.cold, rows[some], clock[some])

    def _rates(self, rows_U: Int64Array, lr: float) -> float | Tensor:
        """Returns the rows' learning rates, [U]; one for all where no field has its own."""
        if np.isnan(self._own_lr_F).all():
            return lr
        is_reserved_U = rows_U < self.layout.num_reserved
        field_U = np.where(is_reserved_U, rows_U // 2, self._rows.seen.field[rows_U])
        lr_F = np.where(np.isnan(self._own_lr_F), np.float32(lr), self._own_lr_F)
        return torch.from_numpy(lr_F[field_U]).to(self._device)

    def _as_kept(self, weight_UW: Tensor, rows_U: Int64Array) -> Tensor:
        """Returns new weights as the table keeps them; how bfloat16 is rounded depends on seed, clock and key alone."""
        if self._rows.weight.dtype == torch.float32:
            return weight_UW
        key_U = np.where(rows_U < self.layout.num_reserved, rows_U, self.ids.key_of_row(rows_U))
        return rounded_by_chance(weight_UW, self._index(key_U), f"{self._seed}/{self._clock}")

    def _index(self, rows: Int64Array) -> Tensor:
        return torch.from_numpy(rows).to(self._device)

    def _num_rows_F(self) -> Int64Array:
        """Returns how many rows each field has."""
        return np.array([counters.rows for counters in self.counters.values()], np.int64)

    def _distinct(self, rows_N: Int64Array) -> tuple[Int64Array, Int64Array]:
        """Returns the distinct rows and each value's place among them, without sorting."""
        if len(self._place) < len(self._rows):
            self._place = np.zeros(len(self._rows), np.int64)
        places_N = np.arange(len(rows_N))
        self._place[rows_N] = places_N
        rows_U = rows_N[self._place[rows_N] == places_N]
        self._place[rows_U] = np.arange(len(rows_U))
        return rows_U, self._place[rows_N]

    def _count(self, lookup: Lookup) -> None:
        admitted_F, lookups_F3 = lookup.admitted_F.tolist(), lookup.lookups_F3.tolist()
        for one, admitted, lookups in zip(self.layout.fields, admitted_F, lookups_F3, strict=True):
            counters = self.counters[one.name]
            counters.rows += admitted
            counters.admissions += admitted
            counters.lookups += lookups[0]
            counters.default_lookups += lookups[1]
            counters.missing_lookups += lookups[2]
