"""One partition pair in the joiner: its core, its clocks, how far it has read, and what it has not committed yet."""

from collections.abc import Mapping
from typing import NamedTuple

from stream.codec import EventDecoder
from stream.dead_letter import DeadLetter, dead_letter
from stream.emission import Emission, JoinCounters
from stream.exceptions import DecodeError, OffsetMetadataError
from stream.join import JoinConfig, JoinCore, Resume
from stream.log import Message, OffsetAndMetadata, TopicPartition
from stream.offsets import METADATA_VERSION, Progress, decode_progress, encode_progress
from stream.schema import Feedback, Impression, SchemaConfig
from stream.snapshot_record import SnapshotRecord
from stream.spill import TakenUp
from stream.watermark import NO_WATERMARK, PairWatermark, TopicClock


class StartPoint(NamedTuple):
    """Where to begin reading a pair, and what is in the outputs already."""

    impressions_offset: int
    feedback_offset: int
    resume: Resume
    impressions_event_ms: int = NO_WATERMARK
    feedback_event_ms: int = NO_WATERMARK
    num_lost: int = 0
    """Messages that open slates still needed and the log no longer keeps."""
    num_moved: int = 0
    """Messages of slates that were open when the topics got another number of partitions, of which there were
    `partitions_before`: feedback for them may be in another partition now."""
    partitions_before: int = 0
    lineage: str = ""
    """Which life of the log it is."""


def start_point(
    impressions: TopicPartition,
    feedback: TopicPartition,
    *,
    committed: Mapping[TopicPartition, OffsetAndMetadata | None],
    begin: Mapping[TopicPartition, int],
    end: Mapping[TopicPartition, int],
    labels: str,
    lineage: str,
    num_partitions: int,
) -> StartPoint:
    """Returns where to take up a pair: where the last transaction left it, or at the beginning of both topics.

    Where the log no longer keeps what is needed, or the topics have got another number of partitions meanwhile, the
    open slates are given up: reading goes on after what was read before, so that no label can contradict one that is
    out already. There, and where nothing was committed, a new life of the log begins, called `lineage`.

    Raises:
        OffsetMetadataError: what is committed cannot be continued.
    """
    at_impressions, at_feedback = committed[impressions], committed[feedback]
    if at_impressions is None and at_feedback is None:
        return StartPoint(
            begin[impressions],
            begin[feedback],
            Resume(next_impression=begin[impressions], next_feedback=begin[feedback]),
            lineage=lineage,
        )
    if at_impressions is None or at_feedback is None:
        missing = impressions if at_impressions is None else feedback
        raise OffsetMetadataError(
            f"{missing.topic}[{missing.partition}] has no committed offset but its counterpart has; reset the group"
        )
    shown = decode_progress(impressions, at_impressions, labels)
    done = decode_progress(feedback, at_feedback, labels)
    for partition, progress in ((impressions, shown), (feedback, done)):
        if progress.next > end[partition]:
            raise OffsetMetadataError(
                f"{partition.topic}[{partition.partition}] ends at {end[partition]}, but messages up to "
                f"{progress.next} were read: was the topic created anew? reset the group"
            )
    lost_impressions = max(0, begin[impressions] - at_impressions.offset)
    lost_feedback = max(0, begin[feedback] - at_feedback.offset)
    watermark_ms = max(shown.watermark, done.watermark)
    has_moved = shown.partitions not in (0, num_partitions)
    num_open = shown.next - at_impressions.offset + done.next - at_feedback.offset
    if lost_impressions or lost_feedback or (has_moved and num_open):
        resume = Resume(max(shown.next, begin[impressions]), max(done.next, begin[feedback]), watermark_ms)
        offsets = (resume.next_impression, resume.next_feedback)
    else:
        resume = Resume(shown.next, done.next, watermark_ms)
        offsets = (at_impressions.offset, at_feedback.offset)
        lineage = shown.lineage
    return StartPoint(
        *offsets,
        resume,
        shown.event,
        done.event,
        num_lost=lost_impressions + lost_feedback,
        num_moved=num_open if has_moved else 0,
        partitions_before=shown.partitions,
        lineage=lineage,
    )


class PartitionPair:
    """Partition *i* of both topics. Its state is rebuilt when it is taken up, and dropped when it is revoked.

    Until both topics have been read up to where the last transaction had read them (`is_caught_up`), the watermark
    stands still and nothing may be committed.
    """

    def __init__(
        self,
        impressions: TopicPartition,
        feedback: TopicPartition,
        start: StartPoint,
        schema: SchemaConfig,
        config: JoinConfig,
        now_ms: int,
        taken: TakenUp | None = None,
    ) -> None:
        self.impressions = impressions
        self.feedback = feedback
        self.core = JoinCore(schema, config, start.resume, None if taken is None else taken.state)
        self.core.counters.lost_messages = start.num_moved or start.num_lost
        self._config = config
        self._resume = start.resume
        self._lineage = start.lineage
        self._next_impression = start.impressions_offset
        self._next_feedback = start.feedback_offset
        if taken is not None and taken.record is not None:
            # What the snapshot knows is not read again; what lies before the committed offsets is not needed any more.
            self._next_impression = max(self._next_impression, taken.record.next_impression)
            self._next_feedback = max(self._next_feedback, taken.record.next_feedback)
            for task, traffic in self.core.traffic.items():
                traffic.load_state(taken.record.traffic[task])
        self._committed = self._reach()
        self._committed_watermark_ms = start.resume.watermark_ms
        self._saved: tuple[int, ...] | None = None
        self.saved_ms = now_ms
        """Processing time of the last snapshot; before the first, of being taken up."""
        clock = {"max_ahead_ms": config.max_ahead_ms, "idle_ms": config.idle_ms}
        self._watermark = PairWatermark(
            TopicClock(now_ms, event_ms=start.impressions_event_ms, **clock),
            TopicClock(now_ms, event_ms=start.feedback_event_ms, **clock),
            out_of_orderness_ms=config.out_of_orderness_ms,
            start_ms=start.resume.watermark_ms,
        )
        self.emissions: list[Emission] = []
        """Labels that go out with the next commit. Outcomes wait in `core.outcomes`."""
        self.dead_letters: list[DeadLetter] = []
        """Messages that could not be decoded and go out with the next commit."""
        self.must_seek = False
        """Messages came ahead of the replay and were passed over: read on from `next_offsets` when it is over."""

    @property
    def next_offsets(self) -> dict[TopicPartition, int]:
        """Where to go on reading both topics."""
        return {self.impressions: self._next_impression, self.feedback: self._next_feedback}

    @property
    def is_caught_up(self) -> bool:
        """Whether the replay is over: all that was read before has been read again."""
        return (
            self._next_impression >= self._resume.next_impression and self._next_feedback >= self._resume.next_feedback
        )

    @property
    def has_changed(self) -> bool:
        """Whether there is something to commit."""
        has_output = bool(self.emissions or self.core.outcomes)
        return self.is_caught_up and (has_output or self._reach() != self._committed)

    @property
    def is_as_committed(self) -> bool:
        """Whether the state is that of the last commit, so that a snapshot may be taken of it."""
        return self.is_caught_up and not self.has_changed and self.core.watermark_ms == self._committed_watermark_ms

    @property
    def has_unsaved(self) -> bool:
        """Whether a snapshot would spare a restart more than the last one does."""
        return self.is_caught_up and self._reach() != self._saved

    def _reach(self) -> tuple[int, ...]:
        """Returns the offsets that a commit now would hold: how far was read, and what is still needed."""
        read = (self._next_impression, self._next_feedback)
        return *read, *self.core.oldest_needed(*read)

    def observe(self, message: Message, decoder: EventDecoder, now_ms: int) -> None:
        """Takes one message of either topic."""
        is_impression = message.topic == self.impressions.topic
        is_replayed = message.offset < (self._resume.next_impression if is_impression else self._resume.next_feedback)
        if not is_replayed and (self.must_seek or not self.is_caught_up):
            # First all that was read before, in both topics: then the state is the committed one, whatever comes next.
            self.must_seek = True
            return
        if is_impression:
            self._next_impression = message.offset + 1
            clock = self._watermark.impressions
        else:
            self._next_feedback = message.offset + 1
            clock = self._watermark.feedback
        try:
            event = self._decode(message, decoder)
        except DecodeError as error:
            if not is_replayed:
                self.core.counters.malformed += 1
                self.dead_letters.append(dead_letter(message, error))
            return
        is_ahead = clock.observe(event.ts, now_ms)
        self.core.counters.clock_ahead += is_ahead and not is_replayed
        if isinstance(event, Impression):
            self.emissions += self.core.observe_impression(event, message.offset)
        else:
            self.emissions += self.core.observe_feedback(event, message.offset)

    def advance(self, now_ms: int) -> None:
        """Moves the watermark as far as the clocks allow."""
        if self.is_caught_up:
            self.emissions += self.core.advance(self._watermark.advance(now_ms))

    def to_look_at(self, now_ms: int) -> list[TopicPartition]:
        """Returns the partitions of which it is time to find out whether they have been read to their end."""
        looks = ((self.impressions, self._watermark.impressions), (self.feedback, self._watermark.feedback))
        return [partition for partition, clock in looks if clock.should_look(now_ms)]

    def look(self, partition: TopicPartition, end_offset: int | None, now_ms: int) -> None:
        """Takes note of where one of the two partitions ends; None: nobody knows."""
        clock, read = self._watermark.feedback, self._next_feedback
        if partition == self.impressions:
            clock, read = self._watermark.impressions, self._next_impression
        clock.look(is_at_end=end_offset is not None and read >= end_offset, now_ms=now_ms)

    def offsets(self, labels: str, num_partitions: int) -> dict[TopicPartition, OffsetAndMetadata]:
        """Returns what to commit for this pair: the oldest offsets still needed, and how far the outputs reach."""
        _, _, oldest_impression, oldest_feedback = self._reach()
        watermark = self._watermark

        def progress(next_offset: int, clock: TopicClock) -> str:
            reach = (next_offset, self.core.watermark_ms, clock.event_ms)
            return encode_progress(Progress(METADATA_VERSION, *reach, labels, self._lineage, num_partitions))

        return {
            self.impressions: OffsetAndMetadata(
                oldest_impression, progress(self._next_impression, watermark.impressions)
            ),
            self.feedback: OffsetAndMetadata(oldest_feedback, progress(self._next_feedback, watermark.feedback)),
        }

    def forget_committed(self) -> JoinCounters:
        """Prunes what the committed transaction holds; returns what it counts."""
        self.emissions = []
        self.core.outcomes = []
        self.dead_letters = []
        self._committed = self._reach()
        self._committed_watermark_ms = self.core.watermark_ms
        counters, self.core.counters = self.core.counters, JoinCounters()
        return counters

    def take_note_of_snapshot(self, now_ms: int) -> None:
        """Takes note that a snapshot holds the state as it is."""
        self._saved, self.saved_ms = self._reach(), now_ms

    def snapshot_record(self, labels: str) -> SnapshotRecord:
        """Returns of when the state is; for a snapshot, while it `is_as_committed`."""
        return SnapshotRecord(
            labels=labels,
            lineage=self._lineage,
            next_impression=self._next_impression,
            next_feedback=self._next_feedback,
            watermark_ms=self.core.watermark_ms,
            traffic={task: traffic.state() for task, traffic in self.core.traffic.items()},
        )

    def _decode(self, message: Message, decoder: EventDecoder) -> Impression | Feedback:
        decode = decoder.impression if message.topic == self.impressions.topic else decoder.feedback
        event: Impression | Feedback = decode(message.value)
        # Judged by the log's own clock, never by ours: a replay must refuse what was refused before.
        if message.timestamp_ms > 0 and event.ts > message.timestamp_ms + self._config.refuse_ahead_ms:
            raise DecodeError(
                f"ts: {event.ts} is more than {self._config.refuse_ahead_ms} ms after {message.timestamp_ms}, when the "
                "message was logged; at most refuse_ahead_ms"
            )
        return event
