"""Micro-batches out of whole messages, and the progress that a batch means.

A message is never spread over two batches unless it alone has more than `batch_rows` rows; then it is cut at multiples
of `batch_rows`, counted from its first row, so that a resume in the middle cuts at the same places.

Two orders: `arrival`, as polled; and `log`, a merge of the partitions by (watermark of the message, partition) that
depends on nothing but the log, at the price of waiting for every partition that is not finished.
"""

from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from model.checkpoint import Position
from model.examples import TrainRows

Order = Literal["arrival", "log"]


class RowsAbout(msgspec.Struct, frozen=True, array_like=True):
    """What is known of rows where they are not."""

    num_rows: int = 0
    has_delayed: bool = False
    """Whether some have labels that are corrected later."""
    unknown: dict[str, tuple[int, int]] = {}
    """Scenarios that are not listed: name -> its rows, and how many of them are first emissions."""

    @staticmethod
    def of(rows: TrainRows) -> "RowsAbout":
        """Returns it of some rows."""
        unknown: dict[str, tuple[int, int]] = {}
        if rows.batch.unknown_scenarios:
            is_first_B: npt.NDArray[np.bool_] = np.any(rows.first_BT, axis=1)
            all_rows, first = (rows.batch.rows_of_unknown(mask_B) for mask_B in (np.ones_like(is_first_B), is_first_B))
            unknown = {name: (all_rows.get(name, 0), first.get(name, 0)) for name in rows.batch.unknown_scenarios}
        return RowsAbout(rows.num_rows, rows.delayed is not None, unknown)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One message of `examples`, or a piece of one that is too long for a batch."""

    partition: int
    offset: int
    order_ms: int
    """`emitted_watermark_ms` of the message's first row: its place in the log order."""
    watermark_ms: int
    """Labels up to here are in this or an earlier message; -1 unknown."""
    settle_ms: int
    """How long after an impression all its labels are out."""
    arrived_ms: int
    """Processing time."""
    written_ms: int = -1
    """When the joiner wrote the message; -1 unknown."""
    about: RowsAbout = RowsAbout()
    """Without rows: a message that teaches nothing (dead letter, empty); it only moves the position."""
    rows: TrainRows | None
    """None: there are none, or another rank has them."""
    after: Position
    """Where to go on once this part is learned."""

    @property
    def num_rows(self) -> int:
        """Rows (items) to train on."""
        return self.about.num_rows

    def pieces(self, batch_rows: int, first_row: int) -> Iterator["Part"]:
        """Yields the message from `first_row` on, cut where it has to be."""
        if self.rows is None or (self.num_rows <= batch_rows and first_row == 0):
            yield self
            return
        for start in range(first_row, self.num_rows, batch_rows):
            end = min(start + batch_rows, self.num_rows)
            after = self.after if end == self.num_rows else Position(self.offset, end)
            rows = self.rows.take(slice(start, end))
            yield replace(self, about=RowsAbout.of(rows), rows=rows, after=after)


class MicroBatcher:
    """Collects parts until a batch has at least `batch_rows` rows."""

    def __init__(self, partitions: Collection[int], *, batch_rows: int, order: Order) -> None:
        self._batch_rows = batch_rows
        self._order = order
        self._queues: dict[int, deque[Part]] = {partition: deque() for partition in sorted(partitions)}
        self._arrival: deque[Part] = deque()
        self._filling: list[Part] = []
        self._num_filling = 0

    def push(self, part: Part) -> None:
        """Takes a part: a message, or one of its pieces (`Part.pieces`)."""
        queue = self._arrival if self._order == "arrival" else self._queues[part.partition]
        queue.append(part)

    def full_batch(self, finished: Collection[int] = ()) -> list[Part] | None:
        """Returns the next batch of at least `batch_rows` rows; None until there is one.

        In `log` order, also the last, shorter one, as soon as all partitions are `finished`: nothing more will come.
        """
        while self._num_filling < self._batch_rows:
            part = self._next(finished)
            if part is None:
                at_end = self._order == "log" and all(partition in finished for partition in self._queues)
                return self.partial_batch() if at_end else None
            self._filling.append(part)
            self._num_filling += part.num_rows
        return self.partial_batch()

    def partial_batch(self) -> list[Part] | None:
        """Returns what `full_batch` has collected and not returned; None if that is nothing."""
        batch, self._filling, self._num_filling = self._filling, [], 0
        return batch or None

    def oldest_ms(self) -> int | None:
        """Returns the processing time at which the oldest part of the unfinished batch arrived."""
        return self._filling[0].arrived_ms if self._filling else None

    def _next(self, finished: Collection[int]) -> Part | None:
        if self._order == "arrival":
            return self._arrival.popleft() if self._arrival else None
        heads = [queue[0] for queue in self._queues.values() if queue]
        if not heads or any(not queue and partition not in finished for partition, queue in self._queues.items()):
            return None
        earliest = min(heads, key=lambda part: (part.order_ms, part.partition))
        return self._queues[earliest.partition].popleft()
