"""The way in: messages of examples to parts of micro-batches, and how far each partition is learned.

The unit of progress is (partition, offset, row). It is in the checkpoint and nowhere else, so every example is trained
exactly once.
"""

import logging
from collections.abc import Callable, Mapping, Sequence

from model.batching import Part, RowsAbout
from model.checkpoint import Position
from model.examples import DecodedExamples, ExampleDecoder
from model.exceptions import ExampleError
from model.source import ExampleMessage
from model.trainer_stats import TrainerStats

logger = logging.getLogger(__name__)


class Intake:
    """Takes messages in the order of their partition, each once."""

    def __init__(
        self,
        decoder: ExampleDecoder,
        *,
        most_rows: int,
        dead_letter: Callable[[ExampleMessage, str], None],
        now_ms: Callable[[], int],
        stats: TrainerStats,
    ) -> None:
        self.decode: Callable[[bytes], DecodedExamples] = decoder.decode
        """Makes rows of a message."""
        self._most_rows = most_rows
        self._dead_letter = dead_letter
        self._now_ms = now_ms
        self._stats = stats
        self._next_offset: dict[int, int] = {}
        self.positions: dict[int, Position] = {}
        """Per partition, the next thing to train on."""
        self.watermarks_ms: dict[int, int] = {}
        """Per partition, the watermark of the last message that is learned."""
        self.quarantine: Mapping[int, tuple[int, int]] = {}
        """Per partition, offsets [from, to) whose rows are counted and skipped."""

    @property
    def watermark_ms(self) -> int:
        """Labels up to here are learned, in every partition that has brought any; 0 before the first."""
        return min(self.watermarks_ms.values(), default=0)

    def start_at(self, positions: Mapping[int, Position], watermarks_ms: Mapping[int, int]) -> None:
        """Goes on from where a checkpoint ends."""
        self.positions, self.watermarks_ms = dict(positions), dict(watermarks_ms)
        self._next_offset = {}

    def take(self, message: ExampleMessage) -> list[Part]:
        """Returns the parts of a message for the batcher: of a dead letter an empty one, of a repeated one none."""
        position = self.positions.get(message.partition, Position(0))
        if message.offset < self._next_offset.get(message.partition, position.offset):
            self._stats.repeated += 1
            return []
        self._next_offset[message.partition] = message.offset + 1
        order_ms, watermark_ms, settle_ms, rows = -1, -1, 0, None
        try:
            decoded = self.decode(message.value)
        except ExampleError as error:
            self._stats.dead_letters += 1
            self._dead_letter(message, str(error))
            logger.warning(
                "Examples set aside partition=%d offset=%d error=%s", message.partition, message.offset, error
            )
        else:
            order_ms, watermark_ms, settle_ms = decoded.order_ms, decoded.watermark_ms, decoded.settle_ms
            rows = decoded.rows if decoded.rows.num_rows else None
            first, end = self.quarantine.get(message.partition, (0, 0))
            if first <= message.offset < end:
                self._stats.quarantined += 1
                rows = None
        part = Part(
            partition=message.partition,
            offset=message.offset,
            order_ms=order_ms,
            watermark_ms=watermark_ms,
            settle_ms=settle_ms,
            arrived_ms=self._now_ms(),
            written_ms=message.written_ms,
            about=RowsAbout() if rows is None else RowsAbout.of(rows),
            rows=rows,
            after=Position(message.offset + 1),
        )
        first_row = position.row if message.offset == position.offset else 0
        return list(part.pieces(self._most_rows, first_row))

    def learned(self, parts: Sequence[Part]) -> None:
        """Moves the positions behind the parts of a micro-batch."""
        for part in parts:
            self.positions[part.partition] = part.after
            self._stats.messages += part.after.row == 0
            if part.watermark_ms >= 0 and part.after.row == 0:
                self.watermarks_ms[part.partition] = part.watermark_ms
