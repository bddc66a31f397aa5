"""The joiner worker: reads both input topics, runs one core per partition pair, commits outputs and offsets together.

    poll -> decode -> core -> every commit_interval_ms:  1 outputs produced
                                                         2 offsets added to the transaction
                                                         3 transaction committed
                                                         4 memory of what was emitted pruned

A crash before 3 leaves nothing of the transaction; after 3 it leaves all of it. Either way the next owner of the
partition rebuilds the core from the committed offsets (`stream.pair`) and goes on. `docs/joiner.md` tells each failure
as a story.
"""

import logging
from collections.abc import Callable, Mapping

from stream.codec import EventDecoder
from stream.emission import JoinCounters
from stream.examples import ExampleEncoder
from stream.exceptions import CopartitionError, LogUnavailableError, LostMessagesError, TransactionAbortedError
from stream.join import JoinConfig
from stream.log import (
    DEAD_LETTER,
    EXAMPLES,
    FEEDBACK,
    IMPRESSIONS,
    OUTCOMES,
    GroupMember,
    KafkaConfig,
    OffsetAndMetadata,
    Poll,
    TopicPartition,
    TransactionalProducer,
    topic_name,
)
from stream.offsets import labels_hash
from stream.outcomes import OutcomeEncoder
from stream.pair import PartitionPair, StartPoint, start_point
from stream.schema import SchemaConfig
from stream.spill import Spill

_LOG = logging.getLogger(__name__)

_MAX_MESSAGES = 2_000
"""Most messages of one poll: a bound on how long a commit can be overdue, not a tuning knob."""
_IDLE_POLL_MS = 100
"""Longest wait for a message; also how often a quiet partition looks at the processing clock."""


class Joiner:
    """One member of the consumer group that joins impressions with feedback. Single-threaded.

    The caller keeps `member`, `producer` and `spill` (None: all state stays in memory) and closes them after `run` has
    returned or raised.
    """

    def __init__(
        self,
        schema: SchemaConfig,
        config: JoinConfig,
        member: GroupMember,
        producer: TransactionalProducer,
        kafka: KafkaConfig,
        now_ms: Callable[[], int],
        spill: Spill | None = None,
    ) -> None:
        self._schema = schema
        self._config = config
        self._member = member
        self._producer = producer
        self._now_ms = now_ms
        self._spill = spill
        self._impressions = topic_name(kafka, IMPRESSIONS)
        self._feedback = topic_name(kafka, FEEDBACK)
        self._examples = topic_name(kafka, EXAMPLES)
        self._dead_letter = topic_name(kafka, DEAD_LETTER)
        self._decoder = EventDecoder(schema)
        self._encoder = ExampleEncoder(schema, config)
        self._outcomes: tuple[str, OutcomeEncoder] | None = None
        if config.outcome_window_ms is not None:
            outcome_encoder = OutcomeEncoder(
                schema, outcome_window_ms=config.outcome_window_ms, grace_ms=config.grace_ms
            )
            self._outcomes = (topic_name(kafka, OUTCOMES), outcome_encoder)
        self._labels = labels_hash(schema, config.grace_ms, config.duplicate_ms, config.outcome_window_ms)
        self._pairs: dict[int, PartitionPair] = {}
        self._owned: set[TopicPartition] = set()
        self._committed_ms = now_ms()
        self.counters = JoinCounters()
        """What was committed by this process, all partitions together."""
        self.num_commits = 0
        """Transactions committed by this process."""
        self.num_aborted = 0
        """Transactions that the broker could not complete; what they held went out with the next one."""
        self._num_partitions = self._count_partitions()

    @property
    def pairs(self) -> dict[int, PartitionPair]:
        """The partition pairs this member owns, by partition number. For metrics; do not touch."""
        return self._pairs

    @property
    def spill(self) -> Spill | None:
        """What keeps the state on disk, if anything does. For metrics; do not touch."""
        return self._spill

    @property
    def unknown_fields(self) -> dict[str, int]:
        """How often each field that the schema does not know was met and ignored, by its path."""
        return dict(self._decoder.unknown_fields)

    def run(self, should_stop: Callable[[], bool]) -> None:
        """Joins until `should_stop()`, then commits what is at hand and returns.

        Raises:
            CopartitionError: the topics or the assignment do not fit together.
            FencedError: another joiner has taken over; nothing was committed that it will not find.
            OffsetMetadataError: the committed offsets are not of this release or of these label settings.
            LostMessagesError: the log no longer holds what open slates need, and `when_lost` is `stop`.
            LogUnavailableError: the broker is gone, or a topic is missing.
        """
        while not should_stop():
            self.run_once()
        self._commit([pair for pair in self._pairs.values() if pair.has_changed or self._may_save(pair)])
        for pair in self._pairs.values():
            self._save(pair)

    def run_once(self) -> None:
        """Polls once, joins what came, and commits if it is time."""
        poll = self._member.poll(_MAX_MESSAGES, self._poll_timeout_ms())
        if poll.revoked or poll.is_dealt:
            self._rebalance(poll)
        now_ms = self._now_ms()
        for message in poll.messages:
            pair = self._pairs.get(message.partition)
            # Of a partition that is assigned by this very poll, only messages after the seek count.
            if pair is not None and (message.topic, message.partition) not in poll.assigned:
                pair.observe(message, self._decoder, now_ms)
        self._read_on()
        self._look_for_ends(now_ms)
        for pair in self._pairs.values():
            pair.advance(now_ms)
        if not 0 <= now_ms - self._committed_ms < self._config.commit_interval_ms:
            self.commit()

    def commit(self) -> None:
        """Commits one transaction with everything observed so far; does nothing if nothing has changed.

        The transaction is open only in here, so that the outputs of a pair and its offsets always share one.
        """
        self._commit([pair for pair in self._pairs.values() if pair.has_changed or self._is_overdue(pair)])

    def _commit(self, changed: list[PartitionPair]) -> None:
        if not changed:
            return
        try:
            self._write(changed)
        except TransactionAbortedError as error:
            # Nothing of it is visible, and nothing was pruned: the next transaction holds it all again.
            self.num_aborted += 1
            self._committed_ms = self._now_ms()
            _LOG.warning("a transaction was aborted, trying again in %d ms. %s", self._config.commit_interval_ms, error)
            return
        # 4 memory of what was emitted pruned
        for pair in changed:
            self.counters.add(pair.forget_committed())
        self.num_commits += 1
        self._committed_ms = self._now_ms()
        self._save_overdue()

    def _write(self, changed: list[PartitionPair]) -> None:
        """Writes outputs and offsets of these pairs in one transaction."""
        self._producer.begin()
        # 1 outputs produced
        for pair in changed:
            self._produce(pair)
        # 2 offsets added to the transaction
        offsets: dict[TopicPartition, OffsetAndMetadata] = {}
        for pair in changed:
            offsets |= pair.offsets(self._labels, self._num_partitions)
        self._producer.send_offsets(offsets, self._member)
        # 3 transaction committed
        self._producer.commit()

    def _save_overdue(self) -> None:
        """Takes a snapshot of the pair that has waited longest for one; one per commit, to keep the pauses short.

        Much of what it will write is written before, little by little in the second half of the interval.
        """
        waiting = [pair for pair in self._pairs.values() if self._may_save(pair)]
        if self._spill is None or not waiting:
            return
        pair = min(waiting, key=lambda pair: pair.saved_ms)
        if self._is_overdue(pair):
            self._save(pair)
        elif self._is_overdue(pair, parts=2):
            self._spill.states[pair.impressions].prepare()

    def _may_save(self, pair: PartitionPair) -> bool:
        return self._spill is not None and pair.has_unsaved

    def _is_overdue(self, pair: PartitionPair, parts: int = 1) -> bool:
        """Returns whether a pair has waited for a snapshot for the interval, or one of some parts of it."""
        if self._spill is None or not pair.has_unsaved:
            return False
        return not 0 <= parts * (self._now_ms() - pair.saved_ms) < self._spill.config.snapshot_interval_ms

    def _save(self, pair: PartitionPair) -> None:
        if self._spill is not None and pair.has_unsaved and pair.is_as_committed:
            self._spill.save(pair.impressions, pair.snapshot_record(self._labels))
            pair.take_note_of_snapshot(self._now_ms())

    def _produce(self, pair: PartitionPair) -> None:
        for letter in pair.dead_letters:
            self._producer.produce(self._dead_letter, letter.key, letter.value, letter.headers)
        if pair.emissions:
            # All topics have the same number of partitions and the same partitioner, so that the key of any user of
            # input partition i leads to partition i of the examples: there they stay in order.
            key = pair.emissions[0].impression.user_id.encode()
            for value in self._encoder.encode(pair.emissions):
                self._producer.produce(self._examples, key, value)
        if self._outcomes is not None and pair.core.outcomes:
            topic, encoder = self._outcomes
            key = pair.core.outcomes[0].impression.user_id.encode()
            for value in encoder.encode(pair.core.outcomes):
                self._producer.produce(topic, key, value)

    def _poll_timeout_ms(self) -> int:
        """Returns how long a poll may wait: until the next commit is due, if there is something to commit."""
        if not any(pair.has_changed for pair in self._pairs.values()):
            return _IDLE_POLL_MS
        due_ms = self._committed_ms + self._config.commit_interval_ms
        return min(max(0, due_ms - self._now_ms()), _IDLE_POLL_MS)

    def _read_on(self) -> None:
        """Goes back to what was passed over while the other topic was replayed."""
        for pair in self._pairs.values():
            if pair.must_seek and pair.is_caught_up:
                pair.must_seek = False
                for partition, offset in pair.next_offsets.items():
                    self._member.seek(partition, offset)

    def _look_for_ends(self, now_ms: int) -> None:
        """Finds out which quiet partitions are at their end, so that they do not hold back the watermark."""
        pair_of = {partition: pair for pair in self._pairs.values() for partition in pair.to_look_at(now_ms)}
        if not pair_of:
            return
        ends: Mapping[TopicPartition, int] = {}
        try:
            ends = self._member.end_offsets(list(pair_of))
        except LogUnavailableError as error:
            # A broker that restarts: as long as nobody knows the end, nobody is at it, and the watermark waits.
            _LOG.warning("the ends of quiet partitions are not known, asking again. %s", error)
        for partition, pair in pair_of.items():
            pair.look(partition, ends.get(partition), now_ms)

    def _count_partitions(self) -> int:
        """Returns how many partitions the topics have.

        Refuses a broker on which labels would have nowhere to go, or a user's events would not meet.
        """
        keyed = [self._impressions, self._feedback, self._examples]
        if self._outcomes is not None:
            keyed.append(self._outcomes[0])
        counts = {topic: self._member.num_partitions(topic) for topic in (*keyed, self._dead_letter)}
        for topic, count in counts.items():
            if count == 0:
                raise LogUnavailableError(f"topic {topic} does not exist; create it with `freshrank topics create`")
        if len({counts[topic] for topic in keyed}) > 1:
            described = ", ".join(f"{topic} {counts[topic]}" for topic in keyed)
            raise CopartitionError(
                f"{described} partitions: all of them need the same number, and the same partitioner"
            )
        return counts[self._impressions]

    def _rebalance(self, poll: Poll) -> None:
        """Drops revoked pairs with what they had not committed, and takes up assigned ones where it was committed."""
        self._owned -= set(poll.revoked)
        self._owned |= set(poll.assigned)
        for partition in (*poll.revoked, *poll.assigned):
            self._pairs.pop(partition.partition, None)
            if self._spill is not None:
                self._spill.drop(TopicPartition(self._impressions, partition.partition))
        num_partitions = self._count_partitions()
        if num_partitions != self._num_partitions:
            raise CopartitionError(
                f"{self._impressions} had {self._num_partitions} partitions and has {num_partitions} now: users move "
                "to other partitions, and open slates would miss their feedback; docs/operations.md, Another number of "
                "partitions, says what to do"
            )
        if poll.is_dealt and not poll.assigned:
            _LOG.info(
                "no partition for this joiner, others have them all: waiting to take over. partitions=%d",
                num_partitions,
            )
        shown = {number for topic, number in self._owned if topic == self._impressions}
        done = {number for topic, number in self._owned if topic == self._feedback}
        if shown != done:
            raise CopartitionError(
                f"this member was given partitions {sorted(shown)} of {self._impressions} but {sorted(done)} of "
                f"{self._feedback}; every member of the group must use the range assignor on both topics"
            )
        for number in sorted({partition.partition for partition in poll.assigned}):
            self._take_up(number)

    def _take_up(self, number: int) -> None:
        """Rebuilds a pair: seeks both topics to what was committed; the replay follows with the next polls."""
        impressions, feedback = TopicPartition(self._impressions, number), TopicPartition(self._feedback, number)
        both = (impressions, feedback)
        start = start_point(
            impressions,
            feedback,
            committed=self._member.committed(both),
            begin=self._member.begin_offsets(both),
            end=self._member.end_offsets(both),
            labels=self._labels,
            lineage=f"{self._now_ms():x}",
            num_partitions=self._num_partitions,
        )
        self._check_start(number, start)
        taken = None
        if self._spill is not None:
            taken = self._spill.take_up(impressions, start.resume, self._labels, start.lineage)
        pair = PartitionPair(impressions, feedback, start, self._schema, self._config, self._now_ms(), taken)
        self._pairs[number] = pair
        for partition, offset in pair.next_offsets.items():
            self._member.seek(partition, offset)
        _LOG.info(
            "taking up a partition. partition=%d replay_impressions=%d replay_feedback=%d slates=%d watermark_ms=%d",
            number,
            start.resume.next_impression - pair.next_offsets[impressions],
            start.resume.next_feedback - pair.next_offsets[feedback],
            pair.core.state.num_slates,
            start.resume.watermark_ms,
        )

    def _check_start(self, number: int, start: StartPoint) -> None:
        """Refuses to give open slates up without having been told to."""
        if not (start.num_lost or start.num_moved):
            return
        if start.num_moved:
            problem = (
                f"slates are open since the topics had {start.partitions_before} partitions, {self._num_partitions} "
                "now: their feedback may be in another one; start all who write to the topics again"
            )
        else:
            problem = (
                f"{start.num_lost} messages that open slates need are deleted by retention; "
                "raise the topics' retention.ms"
            )
        where = f"partition {number} of {self._impressions} and {self._feedback}"
        if self._config.when_lost == "stop":
            raise LostMessagesError(
                f"{where}: {problem}, and set join.when_lost: give_up once, to go on without the labels of these slates"
            )
        _LOG.error("open slates are given up. where=%s reason=%s", where, problem)
