"""The log in memory: the protocols of `stream.log` on a `MemoryBroker`, for tests and for runs without Kafka.

A poll that finds nothing does not wait: it calls `idle(timeout_ms)` instead and looks once more, so that a test can
move its clock there and a thread can sleep. With a `CrashSchedule` a client dies at any step, as a process would.
"""

from collections.abc import Callable, Mapping, Sequence

from stream.log import GroupMember, Message, OffsetAndMetadata, Poll, TopicPartition
from stream.memory_broker import CrashSchedule, MemoryBroker


def _do_nothing(timeout_ms: int) -> None:
    """The default of `idle`: what is not there yet will be there at a later poll."""


class _MemoryReading:
    """What a member and a reader share: positions, and questions about the topics."""

    def __init__(self, broker: MemoryBroker, idle: Callable[[int], None]) -> None:
        self._broker = broker
        self._idle = idle
        self._positions: dict[TopicPartition, int] = {}

    def begin_offsets(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """Returns the oldest offset still kept of each partition."""
        return {at: self._broker.begin_offset(at) for at in partitions}

    def end_offsets(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """Returns the offset after the last readable message of each partition."""
        return {at: self._broker.end_offset(at) for at in partitions}

    def num_partitions(self, topic: str) -> int:
        """Returns how many partitions the topic has; 0 if it does not exist."""
        return self._broker.num_partitions(topic)

    def _fetch(self, max_messages: int, timeout_ms: int) -> list[Message]:
        messages = self._take(max_messages)
        if not messages and timeout_ms > 0:
            self._idle(timeout_ms)
            messages = self._take(max_messages)
        return messages

    def _take(self, max_messages: int) -> list[Message]:
        messages: list[Message] = []
        for at, position in self._positions.items():
            read, self._positions[at] = self._broker.read(at, position, max_messages - len(messages))
            messages += read
        # The next poll begins with another partition, so that a long one cannot starve the rest.
        self._positions = dict([*list(self._positions.items())[1:], *list(self._positions.items())[:1]])
        return messages


class MemoryGroupMember(_MemoryReading):
    """`stream.log.GroupMember` in memory. Joins the group at once; the first polls bring the assignment."""

    def __init__(
        self,
        broker: MemoryBroker,
        group: str,
        member: str,
        topics: Sequence[str],
        *,
        idle: Callable[[int], None] = _do_nothing,
        crashes: CrashSchedule | None = None,
    ) -> None:
        super().__init__(broker, idle)
        self.group = group
        self.member = member
        self.generation = -1
        self._crashes = crashes or CrashSchedule()
        self._assigned: list[TopicPartition] = []
        broker.join(group, member, tuple(topics))

    def poll(self, max_messages: int, timeout_ms: int) -> Poll:
        """Returns up to `max_messages`; none while a rebalance waits for the other members."""
        self._crashes.step("poll")
        with self._broker.lock:
            revoked: list[TopicPartition] = []
            if not self._broker.is_stable(self.group, self.member):
                revoked, self._assigned, self._positions = self._assigned, [], {}
                self._broker.rejoin(self.group, self.member)
            if not self._broker.is_stable(self.group, self.member):
                return Poll((), revoked=revoked)
            generation, self.generation = self.generation, self._broker.rejoin(self.group, self.member)
            current = self._broker.assignment(self.group, self.member)
            if current != self._assigned:
                if not all(self._broker.is_stable_offset(self.group, at) for at in current):
                    # On Kafka asking for committed offsets waits here; nothing waits in memory.
                    return Poll((), revoked=revoked)
                self._assigned = current
                return Poll((), assigned=current, revoked=revoked, is_dealt=True)
            if not current and generation != self.generation:
                return Poll((), revoked=revoked, is_dealt=True)
        return Poll(self._fetch(max_messages, timeout_ms))

    def committed(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, OffsetAndMetadata | None]:
        """Returns the group's committed offset and metadata of each partition; None where nothing is committed."""
        return {at: self._broker.committed(self.group, at) for at in partitions}

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Starts (or restarts) reading an assigned partition at `offset`."""
        if partition not in self._assigned:
            raise ValueError(f"partition: {partition} is not assigned to {self.member}")
        self._positions[partition] = offset

    def close(self) -> None:
        """Leaves the group."""
        self._broker.leave(self.group, self.member)


class MemoryReader(_MemoryReading):
    """`stream.log.Reader` in memory."""

    def __init__(self, broker: MemoryBroker, *, idle: Callable[[int], None] = _do_nothing) -> None:
        super().__init__(broker, idle)

    def assign(self, positions: Mapping[TopicPartition, int]) -> None:
        """Replaces what is read: each partition from the given offset on."""
        self._positions = dict(positions)

    def poll(self, max_messages: int, timeout_ms: int) -> list[Message]:
        """Returns up to `max_messages`, or fewer if there are no more, in offset order per partition."""
        return self._fetch(max_messages, timeout_ms)

    def close(self) -> None:
        """Stops reading."""
        self._positions = {}


class MemoryProducer:
    """`stream.log.Producer` in memory: what is produced is there at once."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker

    def produce(self, topic: str, key: bytes | None, value: bytes, headers: Sequence[tuple[str, bytes]] = ()) -> bool:
        """Appends one message; the buffer is never full."""
        self._broker.append(topic, key, value, tuple(headers))
        return True

    def poll(self) -> None:
        """Does nothing: there is nothing on its way."""

    @property
    def num_failed(self) -> int:
        """Always 0."""
        return 0

    def flush(self, timeout_ms: int) -> int:
        """Returns 0: nothing is on its way."""
        return 0


class MemoryTransactionalProducer:
    """`stream.log.TransactionalProducer` in memory. A second one with the same id fences the first."""

    def __init__(self, broker: MemoryBroker, transactional_id: str, *, crashes: CrashSchedule | None = None) -> None:
        self._broker = broker
        self._id = transactional_id
        self._epoch = broker.open_producer(transactional_id)
        self._crashes = crashes or CrashSchedule()

    @property
    def call(self) -> int | None:
        """Returns None: nobody waits here."""
        return None

    def begin(self) -> None:
        """Opens a transaction."""
        self._broker.transaction(self._id, self._epoch)

    def produce(self, topic: str, key: bytes | None, value: bytes, headers: Sequence[tuple[str, bytes]] = ()) -> None:
        """Adds one message to the open transaction."""
        self._crashes.step("produce")
        transaction = self._broker.transaction(self._id, self._epoch)
        self._broker.append(topic, key, value, tuple(headers), transaction)

    def send_offsets(self, offsets: Mapping[TopicPartition, OffsetAndMetadata], member: GroupMember) -> None:
        """Adds the group's input offsets, with metadata, to the open transaction."""
        self._crashes.step("send_offsets")
        if not isinstance(member, MemoryGroupMember):
            raise ValueError(f"member: {type(member).__name__} is not allowed; a MemoryGroupMember of the same broker")
        self._broker.check_generation(member.group, member.member, member.generation)
        transaction = self._broker.transaction(self._id, self._epoch)
        transaction.offsets.append((member.group, dict(offsets)))

    def commit(self) -> None:
        """Makes all of it visible."""
        self._crashes.step("commit")
        self._broker.end_transaction(self._id, self._epoch, is_commit=True)
        self._crashes.step("committed")

    def abort(self) -> None:
        """Drops all of it."""
        self._broker.end_transaction(self._id, self._epoch, is_commit=False)

    def close(self) -> None:
        """Aborts what is open; a producer that was fenced has nothing open any more."""
        self._broker.close_producer(self._id, self._epoch)
