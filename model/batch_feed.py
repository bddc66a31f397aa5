"""The micro-batches of a training job, the same on every rank: what each reads, and what all make of it."""

import logging
from collections.abc import Callable, Collection, Sequence

import msgspec

from model.batch_plan import SHARED_COUNTS, Offer, head_of, in_turn, part_of, spread
from model.batching import MicroBatcher, Order, Part
from model.exceptions import RankLostError, RanksDifferError
from model.intake import Intake
from model.lead import sentence_of
from model.ranks import Ranks
from model.source import ExampleSource
from model.trainer_stats import TrainerStats

logger = logging.getLogger(__name__)


class Hello(msgspec.Struct, frozen=True, array_like=True):
    """What a rank says of itself when the job starts."""

    partitions: list[int]
    hashes: dict[str, str]
    """Of what has to be the same on all ranks."""
    publishes: bool
    """Whether it has a store to publish to; the lead's word counts."""


class BatchFeed:
    """Reads this rank's partitions and plans the micro-batches of all ranks. Every rank makes the same calls."""

    def __init__(
        self,
        intake: Intake,
        ranks: Ranks,
        partitions: Collection[int],
        *,
        batch_rows: int,
        max_wait_ms: int,
        order: Order,
        now_ms: Callable[[], int],
        stats: TrainerStats,
    ) -> None:
        """`partitions`: this rank's. `max_wait_ms`: how long a row may wait for its micro-batch; in `arrival` order."""
        self._intake, self._ranks, self._stats, self._now_ms = intake, ranks, stats, now_ms
        self._batch_rows, self._max_wait_ms, self._order = batch_rows, max_wait_ms, order
        self._finished: set[int] = set()
        self._rank_of = dict.fromkeys(partitions, ranks.rank)
        self.batcher = MicroBatcher(partitions, batch_rows=batch_rows, order=order)
        self.was_fruitful = False
        """Whether any rank read something at the last fetch."""
        self._was_overdue = False

    @property
    def is_at_end(self) -> bool:
        """Whether nothing more will come, on any rank."""
        return self._finished >= self._rank_of.keys()

    def meet(self, hello: Hello) -> bool:
        """Hears from every rank what it reads, once. Returns whether the lead publishes.

        Raises:
            RanksDifferError: a rank has another configuration, or reads what another one reads.
        """
        if self._ranks.size == 1:
            return hello.publishes
        hellos = [msgspec.msgpack.decode(m, type=Hello) for m in self._ranks.all_gather(msgspec.msgpack.encode(hello))]
        rank_of: dict[int, int] = {}
        for rank, other in enumerate(hellos):
            for name, value in hellos[0].hashes.items():
                if other.hashes[name] != value:
                    raise RanksDifferError(
                        f"{name}: rank {rank} has {other.hashes[name]}, rank 0 has {value};"
                        " start all ranks with one configuration"
                    )
            for partition in other.partitions:
                if rank_of.setdefault(partition, rank) != rank:
                    raise RanksDifferError(f"partition {partition} is read by ranks {rank_of[partition]} and {rank}")
        self._rank_of = rank_of
        self.batcher = MicroBatcher(rank_of, batch_rows=self._batch_rows, order=self._order)
        uneven = spread([one.partitions for one in hellos])
        if uneven is not None and self._ranks.is_lead:
            logger.warning("Ranks read unevenly: %s", uneven)
        if not hello.partitions:
            logger.warning("This rank reads nothing, it only keeps its share of the rows rank=%d", self._ranks.rank)
        return hellos[0].publishes

    def rank_of(self, part: Part) -> int:
        """Returns the rank that has the rows of a part."""
        return self._rank_of[part.partition]

    def next_batch(self) -> list[Part] | None:
        """Returns the next micro-batch, as far as what is read makes one."""
        batch = self.batcher.full_batch(self._finished)
        if batch is None and self._order == "arrival" and (self.is_at_end or self._is_overdue()):
            batch = self.batcher.partial_batch()
        return batch

    def _is_overdue(self) -> bool:
        """Returns whether rows have waited long enough: the lead's word at the last fetch counts, once."""
        if self._ranks.size == 1:
            return self._has_waited()
        was_overdue, self._was_overdue = self._was_overdue, False
        return was_overdue

    def _has_waited(self) -> bool:
        oldest_ms = self.batcher.oldest_ms()
        return oldest_ms is not None and not 0 <= self._now_ms() - oldest_ms < self._max_wait_ms

    def fetch(self, source: ExampleSource, *, max_messages: int, timeout_ms: int) -> None:
        """Reads what there is, after `timeout_ms` at the latest, and exchanges with the others what was read.

        Raises:
            RankLostError: another rank could not read on, and ends.
        """
        before = [getattr(self._stats, name) for name in SHARED_COUNTS]
        parts: list[Part] = []
        failure: Exception | None = None
        try:
            for message in source.poll(max_messages, timeout_ms):
                parts += self._intake.take(message)
        except Exception as error:
            if self._ranks.size == 1:
                raise
            failure = error
        if self._ranks.size == 1:
            self._finished = set(source.finished())
            self._take([parts])
            return
        counts = [getattr(self._stats, name) - count for name, count in zip(SHARED_COUNTS, before, strict=True)]
        offer = Offer(
            parts=[head_of(part) for part in parts],
            finished=sorted(source.finished()) if failure is None else [],
            counts=counts,
            is_overdue=self._has_waited(),
            error="" if failure is None else sentence_of(failure),
        )
        offers = [msgspec.msgpack.decode(m, type=Offer) for m in self._ranks.all_gather(msgspec.msgpack.encode(offer))]
        if failure is not None:
            raise failure
        for rank, other in enumerate(offers):
            if other.error:
                raise RankLostError(f"rank {rank} ends: {other.error}")
            if rank != self._ranks.rank:
                for name, count in zip(SHARED_COUNTS, other.counts, strict=True):
                    setattr(self._stats, name, getattr(self._stats, name) + count)
        self._finished = {partition for other in offers for partition in other.finished}
        now_ms = self._now_ms()
        theirs = [[part_of(head, now_ms) for head in other.parts] for other in offers]
        theirs[self._ranks.rank] = parts
        self._was_overdue = offers[0].is_overdue
        self._take(theirs)

    def _take(self, parts_of_rank: Sequence[Sequence[Part]]) -> None:
        for part in in_turn(parts_of_rank):
            self.batcher.push(part)
        self.was_fruitful = any(parts_of_rank)
