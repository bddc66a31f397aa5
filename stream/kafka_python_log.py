"""The reading side of the log on Kafka with kafka-python, a client without C: the same contract as `stream.kafka_log`.

The writing side is in `stream.kafka_python_producer`. What differs from librdkafka:

- Far slower: every message is encoded and decoded in Python.
- A member that another process has replaced under its `instance_id` is not told while it polls. It learns it from its
  next commit, which the broker refuses: nothing is committed twice, it only stops later.
- A topic that is deleted while it is read is not told either: polls stay empty.
- A transaction that is open while the broker restarts may not come to an end: it is given up after a minute with
  LogUnavailableError, and the process starts again from what is committed.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from kafka import KafkaConsumer
from kafka import TopicPartition as Position
from kafka.consumer.subscription_state import ConsumerRebalanceListener
from kafka.coordinator.assignors.range import RangePartitionAssignor
from kafka.errors import KafkaError, LogTruncationError, NoOffsetForPartitionError, OffsetOutOfRangeError

from stream.exceptions import LogUnavailableError
from stream.kafka_python_client import REQUEST_TIMEOUT_S, build_client, client_settings, translate, within
from stream.log import KafkaConfig, Message, OffsetAndMetadata, Poll, TopicPartition

T = TypeVar("T")

_READING: dict[str, Any] = {
    "isolation_level": "read_committed",
    "enable_auto_commit": False,
    "auto_offset_reset": "none",  # an offset that is gone is an error to be told, never a silent jump
    "allow_auto_create_topics": False,
    "fetch_max_wait_ms": 20,  # a read_committed fetch is not woken by the end of a transaction, only by this timer
    "metrics_enabled": False,
}
_COMMITTED_TIMEOUT_MS = 60_000
"""A dead member's open transaction hides the committed offsets until the broker times it out: it is asked again."""


class _Reading:
    """A consumer, the offsets it goes on from, and what polls and questions have in common."""

    def __init__(self, config: KafkaConfig, ours: Mapping[str, Any]) -> None:
        self._config = config
        settings = client_settings(config, {**_READING, **ours})
        self._consumer: KafkaConsumer = build_client(config, KafkaConsumer, settings)
        self._next: dict[TopicPartition, int] = {}

    def begin_offsets(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """Returns the oldest offset still kept of each partition."""
        return self._bounds(self._consumer.beginning_offsets, partitions)

    def end_offsets(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """Returns the offset after the last readable message of each partition.

        The broker also counts the marks that end transactions. Of a partition this client has read to its end the
        answer is exact; of another it may be larger by the marks at its end.
        """
        ends = self._bounds(self._consumer.end_offsets, partitions)
        return {
            partition: self._next[partition] if self._is_at(partition, end) else end for partition, end in ends.items()
        }

    def num_partitions(self, topic: str) -> int:
        """Returns how many partitions the topic has; 0 if it does not exist."""
        doing = f"asking for topic {topic}"
        known = self._try(doing, lambda: within(self._config, REQUEST_TIMEOUT_S, doing, self._consumer.topics))
        return len(self._consumer.partitions_for_topic(topic)) if topic in known else 0

    def close(self) -> None:
        """Leaves the group, if it is in one, and releases the connection."""
        self._try("closing", lambda: self._consumer.close(timeout_ms=int(REQUEST_TIMEOUT_S * 1_000)))

    def _receive(self, max_messages: int, timeout_ms: int) -> list[Message]:
        """Returns the next messages of whatever is read; none after `timeout_ms`."""
        polled = self._try("reading", lambda: self._consumer.poll(timeout_ms, max_records=max_messages))
        messages = [
            Message(
                record.topic,
                record.partition,
                record.offset,
                record.key,
                record.value or b"",
                record.timestamp,
                tuple(record.headers),
            )
            for records in polled.values()
            for record in records
        ]
        for message in messages:
            self._next[TopicPartition(message.topic, message.partition)] = message.offset + 1
        return messages

    def _is_at(self, partition: TopicPartition, end: int) -> bool:
        """Returns whether everything before `end` was read, marks of transactions included."""
        if partition not in self._next or Position(*partition) not in self._consumer.assignment():
            return False
        position: int | None = self._consumer.position(Position(*partition), timeout_ms=0)
        return position is not None and position >= end

    def _bounds(self, ask: Callable[..., Any], partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        doing = f"asking for the ends of {', '.join(sorted({partition.topic for partition in partitions}))}"
        asked = [Position(*partition) for partition in partitions]
        found = self._try(doing, lambda: ask(asked, timeout_ms=int(REQUEST_TIMEOUT_S * 1_000)))
        return {partition: found[Position(*partition)] for partition in partitions}

    def _try(self, doing: str, step: Callable[[], T]) -> T:
        try:
            return step()
        except (OffsetOutOfRangeError, NoOffsetForPartitionError, LogTruncationError) as error:
            raise LogUnavailableError(
                f"the log does not hold the offset to go on from ({error}): "
                "it was deleted by retention, or the topic was made anew"
            ) from error
        except KafkaError as error:
            raise translate(self._config, error, doing) from error


class KafkaPythonGroupMember(_Reading):
    """A member of a consumer group on Kafka: `stream.log.GroupMember`.

    Between being assigned a partition and the caller's `seek` nothing is fetched: the partition is paused at once.
    `instance_id`: see `stream.kafka_log.KafkaGroupMember`, and the text above.
    """

    def __init__(
        self,
        config: KafkaConfig,
        group_id: str,
        topics: Sequence[str],
        *,
        instance_id: str | None = None,
        session_timeout_ms: int = 6_000,
    ) -> None:
        super().__init__(
            config,
            {
                "group_id": group_id,
                "group_instance_id": instance_id,
                "partition_assignment_strategy": [RangePartitionAssignor],
                "session_timeout_ms": session_timeout_ms,
                "heartbeat_interval_ms": session_timeout_ms // 6,
                "max_poll_interval_ms": 120_000,
                # A topic that gets more partitions is noticed before the writers, who ask every five minutes, use them.
                "metadata_max_age_ms": 10_000,
            },
        )
        self._owned: list[TopicPartition] = []
        self._assigned: list[TopicPartition] = []
        self._revoked: list[TopicPartition] = []
        self._is_dealt = False
        self._metadata = self._consumer.group_metadata()
        self._consumer.subscribe(list(topics), listener=_Rebalances(self._on_assign, self._on_revoke))
        for topic in topics:  # a leader that does not know a topic yet assigns nothing of it
            self.num_partitions(topic)

    def poll(self, max_messages: int, timeout_ms: int) -> Poll:
        """Returns up to `max_messages`, or fewer after `timeout_ms`, in offset order per partition.

        Raises:
            LogUnavailableError: the offset to go on from is gone. A broker that is gone raises nothing: polls stay
                empty until it is back.
        """
        messages = self._receive(max_messages, timeout_ms)
        if not (self._assigned or self._revoked or self._is_dealt):
            return Poll(messages)
        # All partitions change hands at once; what the same call had received before is of the old generation.
        self._next.clear()
        polled = Poll([], self._assigned, self._revoked, self._is_dealt)
        self._assigned, self._revoked, self._is_dealt = [], [], False
        return polled

    def committed(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, OffsetAndMetadata | None]:
        """Returns the group's committed offset and metadata of each partition; None where nothing is committed.

        Waits for transactions over these offsets that are still open, of a member that died, to end: the broker
        aborts them after their timeout.
        """
        return {partition: self._committed(Position(*partition)) for partition in partitions}

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Starts (or restarts) reading an assigned partition at `offset`, with the next poll."""
        if partition not in self._owned:
            raise ValueError(f"seek: {partition.topic}[{partition.partition}] is not assigned to this member")
        self._next[partition] = offset
        self._consumer.seek(Position(*partition), offset)
        self._consumer.resume(Position(*partition))

    def _committed(self, partition: Position) -> OffsetAndMetadata | None:
        found = self._try(
            "asking for committed offsets",
            lambda: self._consumer.committed(partition, metadata=True, timeout_ms=_COMMITTED_TIMEOUT_MS),
        )
        # confluent-kafka sends a string's closing NUL along, and takes it off again when it reads.
        return OffsetAndMetadata(found.offset, found.metadata.rstrip("\0")) if found is not None else None

    @property
    def group_metadata(self) -> Any:
        """The group generation this member's partitions were assigned in: commits of an older one are refused."""
        return self._metadata

    # Both are called from kafka-python's own thread, but only while `poll` waits for it.
    def _on_assign(self, partitions: Iterable[Position]) -> None:
        for partition in partitions:
            self._consumer.seek(partition, 0)  # without a position it would look for one, and find none
            self._consumer.pause(partition)
        self._metadata = self._consumer.group_metadata()
        self._owned = sorted(TopicPartition(*partition) for partition in partitions)
        self._assigned = list(self._owned)
        self._is_dealt = True

    def _on_revoke(self, _partitions: Iterable[Position]) -> None:
        # Assigned and revoked within one poll: the caller never hears of it.
        self._revoked += [partition for partition in self._owned if partition not in self._assigned]
        self._assigned, self._owned = [], []
        self._next.clear()


class _Rebalances(ConsumerRebalanceListener):  # type: ignore[misc]  # kafka-python has no types
    """Hands rebalances on; losing partitions is giving them up too late, which the caller need not tell apart."""

    def __init__(
        self, on_assign: Callable[[Iterable[Position]], None], on_revoke: Callable[[Iterable[Position]], None]
    ) -> None:
        self._on_assign = on_assign
        self._on_revoke = on_revoke

    def on_partitions_assigned(self, assigned: Iterable[Position]) -> None:
        self._on_assign(assigned)

    def on_partitions_revoked(self, revoked: Iterable[Position]) -> None:
        self._on_revoke(revoked)


class KafkaPythonReader(_Reading):
    """Reads partitions of its own choice on Kafka: `stream.log.Reader`. Nothing is ever committed."""

    def __init__(self, config: KafkaConfig) -> None:
        super().__init__(config, {})

    def assign(self, positions: Mapping[TopicPartition, int]) -> None:
        """Replaces what is read: each partition from the given offset on.

        Raises:
            LogUnavailableError: a partition does not exist; kafka-python would wait for it without a word.
        """
        for topic in sorted({partition.topic for partition in positions}):
            num_partitions = self.num_partitions(topic)
            for partition in positions:
                if partition.topic == topic and partition.partition >= num_partitions:
                    raise LogUnavailableError(
                        f"{topic}[{partition.partition}] does not exist; create it with `freshrank topics`"
                    )
        self._next = dict(positions)
        self._consumer.assign([Position(*partition) for partition in positions])
        for partition, offset in positions.items():
            self._consumer.seek(Position(*partition), offset)

    def poll(self, max_messages: int, timeout_ms: int) -> list[Message]:
        """Returns up to `max_messages`, or fewer after `timeout_ms`, in offset order per partition.

        Raises:
            LogUnavailableError: the offset to go on from is gone. A broker that is gone raises nothing: polls stay
                empty until it is back.
        """
        return self._receive(max_messages, timeout_ms)
