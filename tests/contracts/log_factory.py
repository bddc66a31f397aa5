"""What an implementation of the log must offer to run the contract suite: a way to make topics and clients."""

import time
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from stream.log import GroupMember, Message, Poll, Producer, Reader, TopicPartition, TransactionalProducer
from stream.memory_broker import MemoryBroker
from stream.memory_log import MemoryGroupMember, MemoryProducer, MemoryReader, MemoryTransactionalProducer

DEADLINE_S = 60.0
POLL_MS = 100


class LogFactory(Protocol):
    """Makes topics and clients on one broker. Whoever provides it closes what is left open at the end."""

    def create_topic(self, topic: str, num_partitions: int) -> None:
        """Creates a topic that did not exist."""

    def member(self, group: str, name: str, topics: Sequence[str]) -> GroupMember:
        """Returns a new member of a group; `name` is unique within the group."""

    def reader(self) -> Reader:
        """Returns a new reader."""

    def producer(self) -> Producer:
        """Returns a new producer."""

    def transactional_producer(self, transactional_id: str) -> TransactionalProducer:
        """Returns a new transactional producer; it fences an older one with the same id."""


class MemoryLogFactory:
    """The in-memory log."""

    def __init__(self) -> None:
        self._broker = MemoryBroker(lambda: 1_700_000_000_000)

    def create_topic(self, topic: str, num_partitions: int) -> None:
        self._broker.create_topic(topic, num_partitions)

    def member(self, group: str, name: str, topics: Sequence[str]) -> GroupMember:
        return MemoryGroupMember(self._broker, group, name, topics)

    def reader(self) -> Reader:
        return MemoryReader(self._broker)

    def producer(self) -> Producer:
        return MemoryProducer(self._broker)

    def transactional_producer(self, transactional_id: str) -> TransactionalProducer:
        return MemoryTransactionalProducer(self._broker, transactional_id)


T = TypeVar("T")


def until(try_once: Callable[[], T | None], what: str) -> T:
    """Calls again and again until something comes back that is not None; fails with `what` after a deadline."""
    deadline_s = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline_s:
        result = try_once()
        if result is not None:
            return result
    raise AssertionError(f"not within {DEADLINE_S} s: {what}")


def read(reader: Reader | GroupMember, count: int) -> list[Message]:
    """Returns the next `count` messages, and fails if more come with them."""
    messages: list[Message] = []

    def poll() -> list[Message] | None:
        polled = reader.poll(1_000, POLL_MS)
        messages.extend(polled.messages if isinstance(polled, Poll) else polled)
        return messages if len(messages) >= count else None

    if count:
        until(poll, f"{count} messages; have {len(messages)}")
    poll()
    assert len(messages) == count
    return messages


def assigned(
    *members: GroupMember, partitions: int, before: Sequence[set[TopicPartition]] = ()
) -> list[set[TopicPartition]]:
    """Polls the members in turn until each owns something and together `partitions`; returns what each owns.

    `before` is what they own already; without it, nothing.
    """
    owned = [set(mine) for mine in before] or [set() for _ in members]

    def poll() -> list[set[TopicPartition]] | None:
        for member, mine in zip(members, owned, strict=True):
            polled = member.poll(1_000, POLL_MS)
            assert set(polled.revoked) <= mine, "only what was owned can be revoked"
            mine.difference_update(polled.revoked)
            mine.update(polled.assigned)
        return owned if sum(map(len, owned)) == partitions and all(owned) else None

    return until(poll, f"{partitions} partitions assigned to {len(members)} members")
