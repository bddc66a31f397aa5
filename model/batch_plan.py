"""How several ranks come to the same micro-batches: each tells the others what it has read, without the rows.

Every rank runs the same `MicroBatcher` over the same parts in the same order, so that all of them know each micro-batch
of the job, every position and the watermark; the rows stay with the rank that has read them. One exchange of what is
read plans many micro-batches.
"""

from collections.abc import Sequence

import msgspec

from model.batching import Part, RowsAbout
from model.checkpoint import Position

SHARED_COUNTS = ("dead_letters", "repeated", "quarantined")
"""What a rank counts while it reads, and all have to know."""


class PartHead(msgspec.Struct, frozen=True, array_like=True):
    """A part without its rows."""

    partition: int
    offset: int
    order_ms: int
    watermark_ms: int
    settle_ms: int
    written_ms: int
    after: Position
    about: RowsAbout


class Offer(msgspec.Struct, frozen=True, array_like=True):
    """What a rank has read since the last exchange."""

    parts: list[PartHead] = []
    finished: list[int] = []
    """Its partitions of which nothing more will come."""
    counts: list[int] = []
    """How much more it has counted of `SHARED_COUNTS`."""
    is_overdue: bool = False
    """Whether rows have waited long enough for their micro-batch; the lead's word counts."""
    error: str = ""
    """Why this rank has to end; empty: it goes on."""


def head_of(part: Part) -> PartHead:
    """Returns what the other ranks need to know of a part."""
    return PartHead(
        partition=part.partition,
        offset=part.offset,
        order_ms=part.order_ms,
        watermark_ms=part.watermark_ms,
        settle_ms=part.settle_ms,
        written_ms=part.written_ms,
        after=part.after,
        about=part.about,
    )


def part_of(head: PartHead, arrived_ms: int) -> Part:
    """Returns a part of another rank."""
    return Part(
        partition=head.partition,
        offset=head.offset,
        order_ms=head.order_ms,
        watermark_ms=head.watermark_ms,
        settle_ms=head.settle_ms,
        arrived_ms=arrived_ms,
        written_ms=head.written_ms,
        about=head.about,
        rows=None,
        after=head.after,
    )


def in_turn(parts_of_rank: Sequence[Sequence[Part]]) -> list[Part]:
    """Returns the parts of all ranks in the order of arrival that they agree on: each rank's own, in turn by rows.

    Every micro-batch then has rows of every rank that has brought some, so that none of them waits for the others.

    >>> from model.batching import RowsAbout
    >>> from model.checkpoint import Position
    >>> def part(partition: int, offset: int, num_rows: int) -> Part:
    ...     head = PartHead(partition, offset, 0, 0, 0, 0, Position(offset + 1), RowsAbout(num_rows))
    ...     return part_of(head, arrived_ms=0)
    >>> found = in_turn([[part(0, 0, 8), part(0, 1, 8)], [part(1, n, 4) for n in range(3)]])
    >>> [(one.partition, one.offset) for one in found]
    [(0, 0), (1, 0), (1, 1), (0, 1), (1, 2)]
    """
    placed: list[tuple[int, int, Part]] = []
    for rank, parts in enumerate(parts_of_rank):
        num_before = 0
        for part in parts:
            placed.append((num_before, rank, part))
            num_before += part.num_rows
    return [part for _, _, part in sorted(placed, key=lambda one: one[:2])]


def spread(partitions_of_rank: Sequence[Sequence[int]]) -> str | None:
    """Returns in one line how unevenly partitions are spread over ranks; None if all have as many.

    >>> spread([[0, 2], [1, 3]]), spread([[0, 2, 4], [1, 3]])
    (None, '5 partitions over 2 ranks: the most that one reads is 3, the least 2')
    """
    counts = [len(partitions) for partitions in partitions_of_rank]
    if min(counts) == max(counts):
        return None
    total, most, least = sum(counts), max(counts), min(counts)
    return f"{total} partitions over {len(counts)} ranks: the most that one reads is {most}, the least {least}"
