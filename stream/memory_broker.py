"""A broker in memory: partitions, transactions, consumer groups, and crashes on schedule. Clients: `stream.memory_log`.

It keeps Kafka's promises, and its unpleasant sides with them: the end of a transaction takes up an offset of its own,
an open transaction hides what comes after it, a rebalance takes everything from everybody first, and a member that was
given up for dead cannot commit any more. One lock around everything makes it usable from several threads.
"""

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from stream.exceptions import FencedError
from stream.log import Message, OffsetAndMetadata, TopicPartition

StepName = Literal["poll", "produce", "send_offsets", "commit", "committed"]
"""Where a client can be made to crash: before the named call takes effect; `committed`: after a commit has."""


class Crash(BaseException):
    """The process dies here, like after kill -9. Not an `Exception`: nobody may catch it."""


@dataclass(slots=True)
class CrashSchedule:
    """Crash tokens: raises `Crash` at chosen steps of the clients that share it, numbered from 0 as they happen."""

    crash_at: set[int] = field(default_factory=set)
    """Numbers of the steps to crash at."""
    steps: list[StepName] = field(default_factory=list)
    """The steps so far: run once without crashes to learn how many there are to crash at."""
    meanwhile: Callable[[StepName], None] | None = None
    """Called at each step before it takes effect: what other processes do while this one is there."""

    def step(self, name: StepName) -> None:
        """Counts one step, and crashes if it is its turn."""
        if self.meanwhile is not None:
            self.meanwhile(name)
        self.steps.append(name)
        if len(self.steps) - 1 in self.crash_at:
            raise Crash(f"step {len(self.steps) - 1}, {name}")


@dataclass(slots=True)
class Transaction:
    """Messages and offsets that become visible together or not at all."""

    state: Literal["open", "committed", "aborted"] = "open"
    partitions: set[TopicPartition] = field(default_factory=set)
    offsets: list[tuple[str, Mapping[TopicPartition, OffsetAndMetadata]]] = field(default_factory=list)


@dataclass(slots=True)
class _Record:
    message: Message
    transaction: Transaction | None = None
    is_marker: bool = False


@dataclass(slots=True)
class _Partition:
    records: list[_Record] = field(default_factory=list)
    begin: int = 0
    """Offset of `records[0]`; rises when retention deletes."""


@dataclass(slots=True)
class _Group:
    """A consumer group. A rebalance begins with `joined` empty and ends when every member has come back."""

    topics: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Subscribed topics by member."""
    joined: set[str] = field(default_factory=set)
    generation: int = 0
    assignment: dict[str, list[TopicPartition]] = field(default_factory=dict)
    committed: dict[TopicPartition, OffsetAndMetadata] = field(default_factory=dict)


class MemoryBroker:
    """Holds the topics. `now_ms` stamps the messages; nothing in here waits, time is the caller's."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self.now_ms = now_ms
        self.lock = threading.RLock()
        self._topics: dict[str, list[_Partition]] = {}
        self._groups: dict[str, _Group] = {}
        self._epochs: Counter[str] = Counter()
        self._open: dict[str, Transaction] = {}
        self._round_robin = 0

    # Topics

    def create_topic(self, topic: str, num_partitions: int) -> None:
        """Creates an empty topic; one of that name before is gone."""
        with self.lock:
            self._topics[topic] = [_Partition() for _ in range(num_partitions)]

    def grow_topic(self, topic: str, num_partitions: int) -> None:
        """Gives a topic more partitions; its groups notice at once, and deal all partitions out anew."""
        with self.lock:
            partitions = self._topics[topic]
            partitions += [_Partition() for _ in range(num_partitions - len(partitions))]
            for group in list(self._groups):
                self._begin_rebalance(group)

    def num_partitions(self, topic: str) -> int:
        """Returns how many partitions the topic has; 0 if it does not exist."""
        return len(self._topics.get(topic, ()))

    def append(
        self,
        topic: str,
        key: bytes | None,
        value: bytes,
        headers: tuple[tuple[str, bytes], ...] = (),
        transaction: Transaction | None = None,
    ) -> TopicPartition:
        """Appends one message to the partition of its key; without a key, to each partition in turn."""
        with self.lock:
            if key is None:
                self._round_robin += 1
            number = (self._round_robin if key is None else partition_hash(key)) % self.num_partitions(topic)
            at = TopicPartition(topic, number)
            partition = self._topics[topic][number]
            offset = partition.begin + len(partition.records)
            message = Message(topic, number, offset, key, value, self.now_ms(), headers)
            partition.records.append(_Record(message, transaction))
            if transaction is not None:
                transaction.partitions.add(at)
            return at

    def read(self, at: TopicPartition, offset: int, max_messages: int) -> tuple[list[Message], int]:
        """Returns the next committed messages from `offset` on, and the offset to go on from."""
        with self.lock:
            partition = self._topics[at.topic][at.partition]
            messages: list[Message] = []
            offset = max(offset, partition.begin)
            for record in partition.records[offset - partition.begin :]:
                if len(messages) == max_messages or (record.transaction and record.transaction.state == "open"):
                    break
                offset += 1
                if not record.is_marker and not (record.transaction and record.transaction.state == "aborted"):
                    messages.append(record.message)
            return messages, offset

    def begin_offset(self, at: TopicPartition) -> int:
        """Returns the oldest offset still kept."""
        return self._topics[at.topic][at.partition].begin

    def end_offset(self, at: TopicPartition) -> int:
        """Returns the offset after the last readable message."""
        with self.lock:
            messages, _ = self.read(at, 0, len(self._topics[at.topic][at.partition].records))
            return messages[-1].offset + 1 if messages else self.begin_offset(at)

    def delete_before(self, at: TopicPartition, offset: int) -> None:
        """Deletes messages as retention does."""
        with self.lock:
            partition = self._topics[at.topic][at.partition]
            del partition.records[: max(0, offset - partition.begin)]
            partition.begin = max(partition.begin, offset)

    # Transactions

    def open_producer(self, transactional_id: str) -> int:
        """Returns the epoch of a new producer with this id; one before it is fenced, its open transaction aborted."""
        with self.lock:
            self._epochs[transactional_id] += 1
            self.end_transaction(transactional_id, self._epochs[transactional_id], is_commit=False)
            return self._epochs[transactional_id]

    def close_producer(self, transactional_id: str, epoch: int) -> None:
        """Aborts the open transaction of a producer, unless another has taken its place."""
        with self.lock:
            if epoch == self._epochs[transactional_id]:
                self.end_transaction(transactional_id, epoch, is_commit=False)

    def check_epoch(self, transactional_id: str, epoch: int) -> None:
        """Raises FencedError if a newer producer has taken the id."""
        if epoch != self._epochs[transactional_id]:
            raise FencedError(f"another producer has taken over transactional id {transactional_id}; stop this one")

    def transaction(self, transactional_id: str, epoch: int) -> Transaction:
        """Returns the open transaction of a producer; opens one if there is none."""
        with self.lock:
            self.check_epoch(transactional_id, epoch)
            return self._open.setdefault(transactional_id, Transaction())

    def end_transaction(self, transactional_id: str, epoch: int, *, is_commit: bool) -> None:
        """Makes the open transaction visible, or drops it; either leaves a marker in each of its partitions."""
        with self.lock:
            self.check_epoch(transactional_id, epoch)
            transaction = self._open.pop(transactional_id, None)
            if transaction is None:
                return
            transaction.state = "committed" if is_commit else "aborted"
            for at in transaction.partitions:
                partition = self._topics[at.topic][at.partition]
                offset = partition.begin + len(partition.records)
                partition.records.append(_Record(Message(*at, offset, None, b""), is_marker=True))
            if is_commit:
                for group, offsets in transaction.offsets:
                    self._group(group).committed.update(offsets)

    # Groups

    def join(self, group: str, member: str, topics: tuple[str, ...]) -> None:
        """Adds a member, and begins a rebalance."""
        with self.lock:
            self._group(group).topics[member] = topics
            self._begin_rebalance(group)

    def leave(self, group: str, member: str) -> None:
        """Removes a member that leaves or is given up for dead, and begins a rebalance."""
        with self.lock:
            self._group(group).topics.pop(member, None)
            self._begin_rebalance(group)

    def rejoin(self, group: str, member: str) -> int:
        """Lets a member come back during a rebalance; returns the generation, which rises when all have."""
        with self.lock:
            state = self._group(group)
            if member not in state.topics:
                raise FencedError(f"{member} was given up for dead by group {group}; stop it")
            if member not in state.joined:
                state.joined.add(member)
                if state.joined == set(state.topics):
                    state.generation += 1
                    self._assign(state)
            return state.generation

    def is_stable(self, group: str, member: str) -> bool:
        """Returns whether the member takes part in the current generation, and no rebalance is under way."""
        state = self._group(group)
        return member in state.joined and state.joined == set(state.topics)

    def assignment(self, group: str, member: str) -> list[TopicPartition]:
        """Returns what the current generation has given to a member."""
        return list(self._group(group).assignment.get(member, ()))

    def check_generation(self, group: str, member: str, generation: int) -> None:
        """Raises FencedError if the group has gone on without the member."""
        state = self._group(group)
        if member not in state.topics or generation != state.generation:
            raise FencedError(f"group {group} has gone on without {member}; stop it without committing")

    def committed(self, group: str, at: TopicPartition) -> OffsetAndMetadata | None:
        """Returns what the group has committed for a partition."""
        return self._group(group).committed.get(at)

    def is_stable_offset(self, group: str, at: TopicPartition) -> bool:
        """Returns whether no open transaction holds an offset of the partition, which it may yet commit (KIP-447)."""
        sent = [offsets for transaction in self._open.values() for offsets in transaction.offsets]
        return not any(of == group and at in offsets for of, offsets in sent)

    def _group(self, group: str) -> _Group:
        return self._groups.setdefault(group, _Group())

    def _begin_rebalance(self, group: str) -> None:
        state = self._group(group)
        state.joined = set()
        state.assignment = {}

    def _assign(self, state: _Group) -> None:
        """Range assignor: of each topic, contiguous partitions to the members in order of their names."""
        members = sorted(state.topics)
        state.assignment = {member: [] for member in members}
        for topic in sorted({topic for topics in state.topics.values() for topic in topics}):
            takers = [member for member in members if topic in state.topics[member]]
            share, extra = divmod(self.num_partitions(topic), len(takers))
            number = 0
            for index, member in enumerate(takers):
                for _ in range(share + (index < extra)):
                    state.assignment[member].append(TopicPartition(topic, number))
                    number += 1


def partition_hash(key: bytes) -> int:
    """Returns what Kafka's default partitioner takes modulo the number of partitions: murmur2, made positive.

    >>> [partition_hash(key) % 12 for key in (b"u1", b"u2", b"foobar")]
    [4, 6, 6]
    """
    length, mask, factor = len(key), 0xFFFFFFFF, 0x5BD1E995
    value = 0x9747B28C ^ length
    for start in range(0, length - length % 4, 4):
        part = int.from_bytes(key[start : start + 4], "little") * factor & mask
        part = (part ^ part >> 24) * factor & mask
        value = (value * factor & mask) ^ part
    rest = key[length - length % 4 :]
    if rest:
        value = (value ^ int.from_bytes(rest, "little")) * factor & mask
    value = (value ^ value >> 13) * factor & mask
    return (value ^ value >> 15) & 0x7FFFFFFF
