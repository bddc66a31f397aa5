"""Where the trainer's messages come from: the protocol, shaped by `model.trainer`, and its in-memory implementation."""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, Protocol


class ExampleMessage(NamedTuple):
    """One message of the topic `examples`."""

    partition: int
    offset: int
    value: bytes
    written_ms: int = -1
    """When it was written to the log, by the writer's clock or the broker's; -1 unknown."""


class ExampleSource(Protocol):
    """Where examples come from. Offsets rise within a partition, gaps are allowed."""

    def partitions(self) -> Collection[int]:
        """Returns the partitions that are this trainer's."""

    def seek(self, offsets: Mapping[int, int]) -> None:
        """Goes on reading each partition at its offset; one that is not named, at its beginning."""

    def poll(self, max_messages: int, timeout_ms: int) -> list[ExampleMessage]:
        """Returns up to `max_messages` as soon as there are any; none after `timeout_ms`."""

    def finished(self) -> Collection[int]:
        """Returns the partitions of which all messages were polled and no more will come; none of a live log."""


class MemoryExampleSource:
    """A log in memory: per partition its messages, offsets 0, 1, 2, ... For tests and replay.

    `ends` says whether it is finished when all was polled, or goes on waiting for `append`.
    """

    def __init__(self, log: Mapping[int, Sequence[bytes]], *, ends: bool = True) -> None:
        self._log = {partition: list(messages) for partition, messages in log.items()}
        self._ends = ends
        self._next = dict.fromkeys(self._log, 0)

    def append(self, partition: int, value: bytes) -> None:
        """Adds a message."""
        self._log[partition].append(value)

    def partitions(self) -> Collection[int]:
        """See `ExampleSource.partitions`."""
        return self._log.keys()

    def seek(self, offsets: Mapping[int, int]) -> None:
        """See `ExampleSource.seek`."""
        self._next = dict.fromkeys(self._log, 0) | dict(offsets)

    def poll(self, max_messages: int, timeout_ms: int) -> list[ExampleMessage]:
        """See `ExampleSource.poll`; never waits."""
        polled: list[ExampleMessage] = []
        for partition, messages in self._log.items():
            start = self._next[partition]
            end = min(len(messages), start + max_messages - len(polled))
            polled += [ExampleMessage(partition, offset, messages[offset]) for offset in range(start, end)]
            self._next[partition] = end
        return polled

    def finished(self) -> Collection[int]:
        """See `ExampleSource.finished`."""
        return [p for p, messages in self._log.items() if self._ends and self._next[p] >= len(messages)]
