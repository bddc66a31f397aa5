"""Which rows have to go: those not seen for too long in event time, and the least recently seen of too many.

Letters: F fields, N rows, Q rows in a queue.
"""

from typing import Literal, NamedTuple

import numpy as np

from model.cold_names import NO_NAMES, ColdNames
from model.cold_rows import ColdRows
from model.field_ids import NO_LIMIT, IdRules
from model.hashing import Int64Array
from model.id_table import IdTable
from model.oldest_of_all import evicted_of_all
from model.ranks import Ranks

EvictionCause = Literal["expired", "full", "asked"]

NO_FIELD = -1
"""The field of reserved and free rows, which are never evicted."""
_GONE = np.iinfo(np.int64).max
"""The clock of rows that no micro-batch can see, free ones for instance."""
_SAMPLE, _MIN_SAMPLE = 65_536, 1_024
_QUEUE_SHARE = 16


class Due(NamedTuple):
    """Rows to be evicted, and why."""

    cause: EvictionCause
    rows: Int64Array
    """This rank's."""
    evicted_F: Int64Array
    """How many of each field, of all ranks."""
    cold: ColdNames = NO_NAMES
    """This rank's that had left memory; they are gone from where they were."""


class Oldest(NamedTuple):
    """Rows, and the clock at which each was last seen."""

    rows: Int64Array
    clock: Int64Array


class LastSeen:
    """When each row was last in a learned micro-batch, by clock (order) and in event time (age).

    Event time never runs backwards: it is the greatest watermark so far. Rows seen before any was known count as seen
    when the first one came.
    """

    def __init__(self, capacity: int) -> None:
        self.field: Int64Array = np.full(capacity, NO_FIELD, np.int64)
        self.clock: Int64Array = np.full(capacity, _GONE, np.int64)
        self.ms: Int64Array = np.zeros(capacity, np.int64)
        self.first_ms = self.now_ms = 0

    def reserve(self, more: int) -> None:
        """Makes room for `more` rows."""
        self.field = np.concatenate([self.field, np.full(more, NO_FIELD, np.int64)])
        self.clock = np.concatenate([self.clock, np.full(more, _GONE, np.int64)])
        self.ms = np.concatenate([self.ms, np.zeros(more, np.int64)])

    def advance(self, watermark_ms: int) -> None:
        """Moves event time on; 0 where it is not known."""
        self.first_ms = self.first_ms or watermark_ms
        self.now_ms = max(self.now_ms, watermark_ms)

    def ages_ms(self, rows_N: Int64Array) -> Int64Array:
        """Returns the event time since each row was last seen, [N]."""
        ages_N: Int64Array = self.now_ms - np.maximum(self.ms[rows_N], self.first_ms)
        return ages_N

    def see(self, rows_N: Int64Array, clock: int) -> None:
        """Takes note that these rows are in the micro-batch of this clock."""
        self.clock[rows_N] = clock
        self.ms[rows_N] = self.now_ms

    def free(self, rows_N: Int64Array) -> None:
        """Takes note that these rows belong to no value any more."""
        self.field[rows_N] = NO_FIELD
        self.clock[rows_N] = _GONE

    def state(self, num_rows: int) -> dict[str, Int64Array]:
        """Returns what `load_state` needs of the first rows."""
        times = np.array([self.first_ms, self.now_ms])
        return {name: getattr(self, name)[:num_rows].copy() for name in ("field", "clock", "ms")} | {"now": times}

    def load_state(self, state: dict[str, Int64Array]) -> None:
        """Becomes what `state` was taken from."""
        self.field, self.clock, self.ms = (state[name].copy() for name in ("field", "clock", "ms"))
        self.first_ms, self.now_ms = state["now"].tolist()


class OldestRows:
    """The rows of one field (None: of all) in the order in which they were last seen, ties by key; exact.

    A scan over all rows finds about the least recently seen sixteenth. Until those are used up nothing older can
    appear, because a row that is seen again only becomes younger: so one scan serves many steps, and keeping track of
    what is seen costs a step no more than two writes per row.
    """

    def __init__(self, field: int | None, ids: IdTable) -> None:
        self._field = field
        self._ids = ids
        self._rows_Q = self._clock_Q = self._ms_Q = np.empty(0, np.int64)
        self._next = 0
        self._others_ms = 0
        """No row outside the queue was last seen before this event time."""

    def take(self, seen: LastSeen, count: int, *, clock: int, before_ms: int = NO_LIMIT) -> Oldest:
        """Returns the oldest rows: at most `count`, none of the micro-batch `clock`, all last seen before `before_ms`.

        They are marked as gone, so that no other queue returns them too.
        """
        taken = [Oldest(np.empty(0, np.int64), np.empty(0, np.int64))]
        while count > 0:
            if self._next == len(self._rows_Q) and (self._others_ms >= before_ms or not self._scan(seen, clock)):
                break
            end = min(int(np.searchsorted(self._ms_Q, before_ms)), self._next + count)
            if end <= self._next:
                break
            chunk = slice(self._next, end)
            rows = self._rows_Q[chunk]
            is_as_found = seen.clock[rows] == self._clock_Q[chunk]
            taken.append(Oldest(rows[is_as_found], self._clock_Q[chunk][is_as_found]))
            seen.clock[taken[-1].rows] = _GONE
            self._next = end
            count -= len(taken[-1].rows)
        return Oldest(*(np.concatenate(parts) for parts in zip(*taken, strict=True)))

    def put_back(self, seen: LastSeen, oldest: Oldest) -> None:
        """Takes back the last ones of what `take` has just returned."""
        if not len(oldest.rows):
            return
        seen.clock[oldest.rows] = oldest.clock
        found = np.flatnonzero(self._rows_Q[: self._next] == oldest.rows[0])
        if len(found):
            self._next = int(found[-1])
        else:  # of a queue before this one: it is found again
            self._rows_Q, self._next, self._others_ms = self._rows_Q[:0], 0, 0
            self._clock_Q, self._ms_Q = self._clock_Q[:0], self._ms_Q[:0]

    def _scan(self, seen: LastSeen, clock: int) -> bool:
        """Fills the queue with all rows up to some clock. Returns whether there is anything in it."""
        is_ours = seen.field != NO_FIELD if self._field is None else seen.field == self._field
        is_ours &= seen.clock < clock
        # A sample finds the clock below which about a sixteenth is. Which one is chosen changes no result.
        stride = len(is_ours) // _SAMPLE + 1
        sample = seen.clock[::stride][is_ours[::stride]]
        is_part = len(sample) > _MIN_SAMPLE
        if is_part:
            place = len(sample) // _QUEUE_SHARE
            is_ours &= seen.clock <= np.partition(sample, place)[place]
        rows = np.flatnonzero(is_ours)
        self._rows_Q, self._next = rows[np.lexsort((self._ids.key_of_row(rows), seen.clock[rows]))], 0
        self._clock_Q, self._ms_Q = seen.clock[self._rows_Q], seen.ms[self._rows_Q]
        self._others_ms = int(self._ms_Q[-1]) if is_part else seen.now_ms
        return len(rows) > 0


class Eviction:
    """Finds the rows that have to go after a step: the expired ones of each field, then what is too many.

    Of a field at most `per_step` expired rows go after one step, and at most `per_step` beyond as many as the step
    admitted because there are too many: a limit that was lowered is reached over several steps. Rows of the
    micro-batch just learned stay, even if they alone are too many.
    """

    def __init__(self, rules: IdRules, ids: IdTable, max_rows: int | None, per_step: int, ranks: Ranks) -> None:
        ttl_ms_F, max_rows_F = rules.ttl_ms_F.tolist(), rules.max_rows_F.tolist()
        self._ttl_ms = {field: ttl_ms for field, ttl_ms in enumerate(ttl_ms_F) if ttl_ms != NO_LIMIT}
        self.max_rows: dict[int | None, int] = {
            field: most for field, most in enumerate(max_rows_F) if most != NO_LIMIT
        }
        """The limit of each field that has one; that of None is for all fields together."""
        if max_rows is not None:
            self.max_rows[None] = max_rows
        self._per_step = per_step
        self._ids = ids
        self._ranks = ranks
        self.restart()

    def restart(self) -> None:
        """Forgets what is known of the order of the rows; it is found again."""
        self._oldest = {field: OldestRows(field, self._ids) for field in (*self._ttl_ms, *self.max_rows)}

    def due(
        self, seen: LastSeen, rows_F: Int64Array, *, clock: int, num_admitted: int, cold: ColdRows | None = None
    ) -> list[Due]:
        """Returns the rows to evict after the step `clock`; `rows_F` is how many rows each field has on all ranks.

        Rows in `cold` are older than those in memory: they go first, and are removed from there. On several ranks they
        are those that one rank with all the rows would find: a collective per limit in question.
        """
        found: list[Due] = []
        rows_F = rows_F.copy()

        def evict(cause: EvictionCause, limited: int | None, most: int, before_ms: int = NO_LIMIT) -> None:
            names = NO_NAMES if cold is None else cold.oldest(limited, most, before_ms=before_ms)
            oldest = self._oldest[limited].take(seen, most - len(names.keys), clock=clock, before_ms=before_ms)
            field_N, num_fields = np.concatenate([names.field, seen.field[oldest.rows]]), len(rows_F)
            if self._ranks.size == 1:
                num_own, evicted_F = len(field_N), np.bincount(field_N, minlength=num_fields)
            else:
                clock_N = np.concatenate([names.clock, oldest.clock])
                keys_N = np.concatenate([names.keys, self._ids.key_of_row(oldest.rows)])
                num_own, evicted_F = evicted_of_all(
                    self._ranks, clock_N, keys_N, field_N, most=most, num_fields=num_fields
                )
            num_hot = max(num_own - len(names.keys), 0)
            self._oldest[limited].put_back(seen, Oldest(oldest.rows[num_hot:], oldest.clock[num_hot:]))
            if cold is not None:
                names = names.first(num_own)
                cold.remove(names)
            if evicted_F.any():
                found.append(Due(cause, oldest.rows[:num_hot], evicted_F, names))
                rows_F[:] -= evicted_F

        for field, ttl_ms in self._ttl_ms.items():
            before_ms = seen.now_ms - ttl_ms
            if before_ms > seen.first_ms:
                evict("expired", field, self._per_step, before_ms)
        for limited, max_rows in self.max_rows.items():
            too_many = int(rows_F.sum() if limited is None else rows_F[limited]) - max_rows
            if too_many > 0:
                evict("full", limited, min(too_many, self._per_step + num_admitted))
        return found
