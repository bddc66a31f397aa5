"""The reading side of the log on Kafka: a group member for the joiner, a reader of chosen partitions for the trainer.

The writing side is in `stream.kafka_producer`.

Both read as fast as messages come in and return as soon as there is one: librdkafka's `consume(n, timeout)` alone
would wait for n messages or the whole timeout, so one `poll` waits for the first and `consume(n, 0)` takes what is
there with it.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException
from confluent_kafka import TopicPartition as Position

from stream.exceptions import LogUnavailableError
from stream.kafka_client import (
    MAX_POLL_EXCEEDED,
    NO_SUCH_OFFSET,
    NO_SUCH_TOPIC,
    PARTITION_EOF,
    REQUEST_TIMEOUT_S,
    Connection,
    build_client,
    client_settings,
    translate,
    unavailable,
)
from stream.log import KafkaConfig, Message, OffsetAndMetadata, Poll, TopicPartition

_LOG = logging.getLogger(__name__)

_READING_DEFAULTS: dict[str, Any] = {
    # A read_committed fetch is not woken by the end of a transaction, only by this timer.
    "fetch.wait.max.ms": 20,
    # Default 1,000: after a full local queue the next fetch would wait a second.
    "fetch.queue.backoff.ms": 10,
    "queued.max.messages.kbytes": 32_768,
    # The embedded broker ignores fetch limits and answers with everything it has.
    "receive.message.max.bytes": 1_000_000_000,
}
_READING_OURS: dict[str, Any] = {
    "isolation.level": "read_committed",
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    # An offset that is gone is an error to be told, never a silent jump.
    "auto.offset.reset": "error",
    "enable.partition.eof": True,
}
_COMMITTED_ATTEMPTS = 6
"""A dead member's open transaction hides the committed offsets until the broker times it out: we ask again."""


class _Reading:
    """A consumer, the offsets it goes on from, and what polls and questions have in common."""

    def __init__(self, config: KafkaConfig, ours: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        self._config = config
        self._connection = Connection(config)
        settings = client_settings(config, {**_READING_OURS, **ours}, {**_READING_DEFAULTS, **defaults})
        self._consumer: Consumer = build_client(Consumer, settings | {"error_cb": self._connection.told})
        self._next: dict[TopicPartition, int] = {}
        self._end: dict[TopicPartition, int] = {}
        try:
            self._connection.check(self._consumer, REQUEST_TIMEOUT_S)
        except LogUnavailableError:
            self._consumer.close()
            raise

    @property
    def num_errors(self) -> int:
        """Errors of the connection since the start; while the broker is gone they come several times a second."""
        return self._connection.num_errors

    def begin_offsets(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """Returns the oldest offset still kept of each partition."""
        return {partition: self._bounds(partition)[0] for partition in partitions}

    def end_offsets(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """Returns the offset after the last readable message of each partition.

        The broker also counts the marks that end transactions. Of a partition this client has read to its end the
        answer is exact; of another it may be larger by the marks at its end.
        """
        ends = {partition: self._bounds(partition)[1] for partition in partitions}
        return {
            partition: self._next[partition] if self._end.get(partition, -1) >= end else end
            for partition, end in ends.items()
        }

    def num_partitions(self, topic: str) -> int:
        """Returns how many partitions the topic has; 0 if it does not exist."""
        try:
            described = self._consumer.list_topics(topic, timeout=REQUEST_TIMEOUT_S).topics[topic]
        except KafkaException as error:
            raise unavailable(self._config, error, f"asking for topic {topic}") from error
        return 0 if described.error is not None else len(described.partitions)

    def close(self) -> None:
        """Leaves the group, if it is in one, and releases the connection."""
        self._consumer.close()

    def _receive(self, max_messages: int, timeout_ms: int) -> list[Message]:
        """Returns the next messages of whatever is read; none after `timeout_ms`, or earlier at an end."""
        first = self._consumer.poll(timeout_ms / 1_000)
        if first is None:
            return []
        messages: list[Message] = []
        record: Any
        for record in (first, *self._consumer.consume(max_messages - 1, 0)):
            error = record.error()
            if error is not None:
                self._take_event(record, error)
                continue
            topic, partition, offset = record.topic(), record.partition(), record.offset()
            self._next[(topic, partition)] = offset + 1  # type: ignore[index]  # an equal key, made in half the time
            headers = record.headers()
            fields = (
                topic,
                partition,
                offset,
                record.key(),
                record.value() or b"",
                record.timestamp()[1],
                tuple(headers) if headers else (),
            )
            messages.append(tuple.__new__(Message, fields))  # NamedTuple's own __new__ costs as much as all the rest
        return messages

    def _take_event(self, record: Any, error: KafkaError) -> None:
        """Takes what is not a message: the end of a partition, or an error."""
        code = error.code()
        where = f"{record.topic()}[{record.partition()}]"
        if code == PARTITION_EOF:
            self._end[TopicPartition(record.topic(), record.partition())] = record.offset()
        elif code in NO_SUCH_OFFSET:
            raise LogUnavailableError(
                f"{where} does not hold the offset to go on from ({error.str()}): "
                "it was deleted by retention, or the topic was made anew"
            )
        elif code in NO_SUCH_TOPIC:
            raise LogUnavailableError(f"{where} does not exist; create it with `freshrank topics`")
        elif error.fatal() or not (error.retriable() or code == MAX_POLL_EXCEEDED):
            raise translate(self._config, KafkaException(error), "reading")
        else:
            self._connection.told(error)

    def _read_from(self) -> None:
        """Makes the consumer read every partition of `_next`, from there on."""
        self._end.clear()
        self._consumer.assign([Position(*partition, offset) for partition, offset in self._next.items()])

    def _bounds(self, partition: TopicPartition) -> tuple[int, int]:
        try:
            return self._consumer.get_watermark_offsets(Position(*partition), timeout=REQUEST_TIMEOUT_S, cached=False)
        except KafkaException as error:
            if error.args[0].code() in NO_SUCH_TOPIC:  # also what it says, at once, while the broker is gone
                raise LogUnavailableError(
                    f"kafka at {self._config.bootstrap_servers} does not tell the ends of {partition.topic}"
                    f"[{partition.partition}]: it does not answer, or there is no such partition"
                ) from error
            raise unavailable(self._config, error, f"asking for the ends of {partition.topic}") from error


class KafkaGroupMember(_Reading):
    """A member of a consumer group on Kafka: `stream.log.GroupMember`.

    Between being assigned a partition and the caller's `seek` nothing is fetched: the consumer is told to read only
    what `seek` has named. With `instance_id` (KIP-345) a member that comes back within `session_timeout_ms` under the
    same id has its partitions again at once, and nobody else is disturbed; without it, others take over as soon as
    this one leaves. The id must be one process's own.
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
        ours: dict[str, Any] = {"group.id": group_id, "partition.assignment.strategy": "range"}
        if instance_id is not None:
            ours["group.instance.id"] = instance_id
        defaults = {
            "session.timeout.ms": session_timeout_ms,
            "heartbeat.interval.ms": session_timeout_ms // 6,
            "max.poll.interval.ms": 120_000,
            # A topic that gets more partitions is noticed before the writers, who ask every five minutes, use them.
            "topic.metadata.refresh.interval.ms": 10_000,
        }
        super().__init__(config, ours, defaults)
        self._owned: list[TopicPartition] = []
        self._assigned: list[TopicPartition] = []
        self._revoked: list[TopicPartition] = []
        self._is_dealt = False
        self._has_moved = False
        self._is_closing = False
        self._metadata = self._consumer.consumer_group_metadata()
        self._consumer.subscribe(
            list(topics), on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_revoke
        )

    def poll(self, max_messages: int, timeout_ms: int) -> Poll:
        """Returns up to `max_messages`, or fewer after `timeout_ms`, in offset order per partition.

        Raises:
            FencedError: another process has joined with the same `instance_id`.
            LogUnavailableError: a topic, or the offset to go on from, is gone. A broker that is gone raises nothing:
                polls stay empty until it is back.
        """
        if self._has_moved:
            self._has_moved = False
            self._read_from()
        messages = self._receive(max_messages, timeout_ms)
        if not (self._assigned or self._revoked or self._is_dealt):
            return Poll(messages)
        # All partitions change hands at once; what the same call had received before is of the old generation.
        self._next.clear()
        self._end.clear()
        polled = Poll([], self._assigned, self._revoked, self._is_dealt)
        self._assigned, self._revoked, self._is_dealt = [], [], False
        return polled

    def committed(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, OffsetAndMetadata | None]:
        """Returns the group's committed offset and metadata of each partition; None where nothing is committed.

        Waits for transactions over these offsets that are still open, of a member that died, to end: the broker
        aborts them after their timeout.
        """
        asked = [Position(*partition) for partition in partitions]
        for attempt in range(_COMMITTED_ATTEMPTS):
            try:
                found = self._consumer.committed(asked, timeout=REQUEST_TIMEOUT_S)
                break
            except KafkaException as error:
                if attempt == _COMMITTED_ATTEMPTS - 1:
                    raise unavailable(self._config, error, "asking for committed offsets") from error
                _LOG.info("committed offsets are not told yet, asking again. error=%s", error.args[0].name())
        for position in found:
            if position.error is not None:
                raise translate(self._config, KafkaException(position.error), "asking for committed offsets")
        return {
            TopicPartition(position.topic, position.partition): (
                OffsetAndMetadata(position.offset, position.metadata or "") if position.offset >= 0 else None
            )
            for position in found
        }

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Starts (or restarts) reading an assigned partition at `offset`, with the next poll."""
        if partition not in self._owned:
            raise ValueError(f"seek: {partition.topic}[{partition.partition}] is not assigned to this member")
        self._next[partition] = offset
        self._end.pop(partition, None)
        self._has_moved = True

    @property
    def group_metadata(self) -> Any:
        """The group generation this member's partitions were assigned in: commits of an older one are refused."""
        return self._metadata

    def close(self) -> None:
        """Leaves the group and releases the connection."""
        # A rebalance that was never polled for is told from within: the client deals with it if we do nothing.
        self._is_closing = True
        super().close()

    def _on_assign(self, consumer: Consumer, partitions: list[Position]) -> None:
        if self._is_closing:
            return
        consumer.assign([])
        self._metadata = consumer.consumer_group_metadata()
        self._owned = [TopicPartition(position.topic, position.partition) for position in partitions]
        self._assigned = list(self._owned)
        self._is_dealt = True

    def _on_revoke(self, consumer: Consumer, _partitions: list[Position]) -> None:
        if self._is_closing:
            return
        consumer.unassign()
        # Assigned and revoked within one poll: the caller never hears of it.
        self._revoked += [partition for partition in self._owned if partition not in self._assigned]
        self._assigned, self._owned = [], []
        self._next.clear()
        self._end.clear()


class KafkaReader(_Reading):
    """Reads partitions of its own choice on Kafka: `stream.log.Reader`. Nothing is ever committed."""

    def __init__(self, config: KafkaConfig) -> None:
        super().__init__(config, {"group.id": "freshrank-reader"}, {})

    def assign(self, positions: Mapping[TopicPartition, int]) -> None:
        """Replaces what is read: each partition from the given offset on."""
        self._next = dict(positions)
        self._read_from()

    def poll(self, max_messages: int, timeout_ms: int) -> list[Message]:
        """Returns up to `max_messages`, or fewer after `timeout_ms`, in offset order per partition.

        Raises:
            LogUnavailableError: a topic, or the offset to go on from, is gone. A broker that is gone raises nothing:
                polls stay empty until it is back.
        """
        return self._receive(max_messages, timeout_ms)
