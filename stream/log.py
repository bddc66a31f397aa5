"""The log as four small protocols, shaped by the workers that call them.

Adapters: `stream.kafka_log` (confluent-kafka), `stream.kafka_python_log` (kafka-python) and `stream.memory_log` (in
memory, with crash tokens). One contract suite in `tests/contracts/` runs on all. `stream.kafka_adapter` chooses.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol


class TopicPartition(NamedTuple):
    """One partition of one topic."""

    topic: str
    partition: int


class OffsetAndMetadata(NamedTuple):
    """A committed offset and the string committed with it."""

    offset: int
    metadata: str = ""


class Message(NamedTuple):
    """One record of a log. `timestamp_ms` is the broker's or the producer's, -1 if unknown."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes
    timestamp_ms: int = -1
    headers: tuple[tuple[str, bytes], ...] = ()


class Poll(NamedTuple):
    """What one poll brought. Rebalances are values: `revoked` is to be dropped before `assigned` is taken up.

    A group member starts reading an assigned partition only after `GroupMember.seek` on it.
    """

    messages: Sequence[Message]
    assigned: Sequence[TopicPartition] = ()
    revoked: Sequence[TopicPartition] = ()
    is_dealt: bool = False
    """The group has dealt its partitions out anew; this member's share is `assigned`, which may be nothing."""


class GroupMember(Protocol):
    """A member of a consumer group, read_committed, range assignor: the joiner's input."""

    def poll(self, max_messages: int, timeout_ms: int) -> Poll:
        """Returns up to `max_messages`, or fewer after `timeout_ms`, in offset order per partition."""

    def committed(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, OffsetAndMetadata | None]:
        """Returns the group's committed offset and metadata of each partition; None where nothing is committed."""

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Starts (or restarts) reading an assigned partition at `offset`."""

    def begin_offsets(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """Returns the oldest offset still kept of each partition."""

    def end_offsets(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """Returns the offset after the last readable message of each partition."""

    def num_partitions(self, topic: str) -> int:
        """Returns how many partitions the topic has; 0 if it does not exist."""

    def close(self) -> None:
        """Leaves the group."""


class Reader(Protocol):
    """Reads partitions of its own choice, read_committed, without a group: the trainer's input."""

    def assign(self, positions: Mapping[TopicPartition, int]) -> None:
        """Replaces what is read: each partition from the given offset on."""

    def poll(self, max_messages: int, timeout_ms: int) -> list[Message]:
        """Returns up to `max_messages`, or fewer after `timeout_ms`, in offset order per partition."""

    def begin_offsets(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """Returns the oldest offset still kept of each partition."""

    def end_offsets(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """Returns the offset after the last readable message of each partition."""

    def num_partitions(self, topic: str) -> int:
        """Returns how many partitions the topic has; 0 if it does not exist."""

    def close(self) -> None:
        """Releases the connection."""


class Producer(Protocol):
    """Sends without waiting: the ranker's impressions and feedback, dead letters."""

    def produce(self, topic: str, key: bytes | None, value: bytes, headers: Sequence[tuple[str, bytes]] = ()) -> bool:
        """Queues one message. Returns False, without blocking, if the buffer is full: the caller counts it."""

    def poll(self) -> None:
        """Serves delivery reports; call it regularly."""

    @property
    def num_failed(self) -> int:
        """Messages that were queued and then given up by the client."""

    def flush(self, timeout_ms: int) -> int:
        """Waits for the queue to empty. Returns how many messages are still in it after `timeout_ms`."""


class TransactionalProducer(Protocol):
    """One transaction at a time: outputs and input offsets become visible together or not at all.

    Every method raises `stream.exceptions.FencedError` if another producer with the same transactional id, or a newer
    generation of the group, has taken over; the process must stop without committing.
    """

    @property
    def call(self) -> int | None:
        """Number of the client's call that is being waited for; None if none is. May be read from another thread."""

    def begin(self) -> None:
        """Opens a transaction."""

    def produce(self, topic: str, key: bytes | None, value: bytes, headers: Sequence[tuple[str, bytes]] = ()) -> None:
        """Adds one message to the open transaction; waits while the buffer is full."""

    def send_offsets(self, offsets: Mapping[TopicPartition, OffsetAndMetadata], member: GroupMember) -> None:
        """Adds the group's input offsets, with metadata, to the open transaction (KIP-447)."""

    def commit(self) -> None:
        """Makes all of it visible. Returns only when it is durable."""

    def abort(self) -> None:
        """Drops all of it."""

    def close(self) -> None:
        """Aborts what is open and releases the connection."""


AdapterName = Literal["confluent", "kafka-python"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaConfig:
    """Where the log is. The environment variable FRESHRANK_KAFKA overrides `bootstrap_servers`."""

    bootstrap_servers: str = "localhost:9092"
    """`host:port`, several separated by commas."""
    topic_prefix: str = ""
    """Put in front of every topic name, so that several runs can share a cluster."""
    num_partitions: int = 2
    """Partitions of each topic when we create it; `impressions` and `feedback` always get the same number."""
    replication_factor: int = 1
    """Copies of each partition when we create a topic."""
    adapter: AdapterName = "confluent"
    """The client library of joiner, trainer and ranker: `confluent` (librdkafka, fast) or `kafka-python` (pure)."""
    client: dict[str, str] = field(default_factory=dict)
    """Further librdkafka settings. Those of security (security.*, sasl.*, ssl.*) are translated for every client."""


IMPRESSIONS = "impressions"
FEEDBACK = "feedback"
EXAMPLES = "examples"
OUTCOMES = "outcomes"
DEAD_LETTER = "dead-letter"
TOPICS = (IMPRESSIONS, FEEDBACK, EXAMPLES, OUTCOMES, DEAD_LETTER)


def topic_name(config: KafkaConfig, topic: str) -> str:
    """Returns the full name of one of `TOPICS`."""
    return config.topic_prefix + topic
