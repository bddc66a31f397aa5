"""Where a whole log is read from: a broker, a folder saved from one, or a recorded log.

A saved log is what the broker had, message by message: one Arrow IPC file per topic, `impressions.arrow`,
`feedback.arrow`, `examples.arrow`, `outcomes.arrow` and `dead-letter.arrow`, and `log.json`, written last, that says
what is in them.
"""

import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import msgspec
import pyarrow as pa

from stream.exceptions import LogUnavailableError
from stream.log import (
    DEAD_LETTER,
    EXAMPLES,
    FEEDBACK,
    IMPRESSIONS,
    OUTCOMES,
    KafkaConfig,
    Message,
    Reader,
    TopicPartition,
)
from stream.log import topic_name as full_name
from stream.recorded import ReplayOrder, find_file

TOPICS = (EXAMPLES, OUTCOMES, DEAD_LETTER, IMPRESSIONS, FEEDBACK)
"""The topics of an audit, in the order in which their ends are asked for: causes of what is read must be read too."""
_POLL_MESSAGES = 2_000
_POLL_MS = 200
_BATCH_MESSAGES = 1_000
_SCHEMA = pa.schema(
    {
        "offset": pa.int64(),
        "timestamp_ms": pa.int64(),
        "key": pa.binary(),
        "value": pa.binary(),
        "header_names": pa.list_(pa.string()),
        "header_values": pa.list_(pa.binary()),
    }
)


class LogSource(Protocol):
    """A log that stands still while it is read."""

    num_partitions: int
    """Of impressions, feedback and examples each."""
    as_of_ms: int | None
    """When its ends were taken; None for a recorded log, which nobody goes on writing."""

    def messages(self, topic: str, partition: int) -> Iterator[Message]:
        """Yields the messages of one partition in offset order. Topics go without their prefix."""

    def partitions(self, topic: str) -> int:
        """Returns how many partitions a topic has; 0 if the source does not have it."""

    def is_cut(self, topic: str, partition: int) -> bool:
        """Returns whether messages at the beginning of the partition are gone."""


class ReaderSource:
    """A broker, up to where it was when this was made."""

    def __init__(self, reader: Reader, kafka: KafkaConfig, now_ms: Callable[[], int]) -> None:
        """Raises LogUnavailableError: no answer, or one of the topics is missing."""
        self._reader = reader
        self._kafka = kafka
        self._counts = {topic: reader.num_partitions(full_name(kafka, topic)) for topic in TOPICS}
        for topic in (IMPRESSIONS, FEEDBACK, EXAMPLES):
            if self._counts[topic] != self._counts[IMPRESSIONS] or not self._counts[topic]:
                raise LogUnavailableError(
                    f"topic {full_name(kafka, topic)} has {self._counts[topic]} partitions, and "
                    f"{full_name(kafka, IMPRESSIONS)} has {self._counts[IMPRESSIONS]}; both need the same number"
                )
        self.num_partitions = self._counts[IMPRESSIONS]
        places = [self._at(topic, number) for topic in TOPICS for number in range(self._counts[topic])]
        self._ends: dict[TopicPartition, int] = {}
        for place in places:
            self._ends |= reader.end_offsets([place])
        self._begins = reader.begin_offsets(places)
        self.as_of_ms: int | None = now_ms()

    def partitions(self, topic: str) -> int:
        """Returns how many partitions a topic has; 0 if it does not exist."""
        return self._counts[topic]

    def is_cut(self, topic: str, partition: int) -> bool:
        """Returns whether retention has deleted messages."""
        return self._begins[self._at(topic, partition)] > 0

    def messages(self, topic: str, partition: int) -> Iterator[Message]:
        """Yields the messages up to the end that the partition had."""
        place = self._at(topic, partition)
        position, end = self._begins[place], self._ends[place]
        self._reader.assign({place: position})
        while position < end:
            messages = self._reader.poll(_POLL_MESSAGES, _POLL_MS)
            for message in messages:
                position = message.offset + 1
                if message.offset >= end:
                    return
                yield message
            # The marks of transactions have offsets too; only at the very end the reader knows that no more will come.
            if not messages and self._reader.end_offsets([place])[place] <= position:
                return

    def _at(self, topic: str, partition: int) -> TopicPartition:
        return TopicPartition(full_name(self._kafka, topic), partition)


class SavedSource:
    """A folder that `save_log` has written."""

    def __init__(self, folder: Path) -> None:
        """Raises ValueError: not a saved log."""
        self._folder = folder
        try:
            contents = json.loads((folder / "log.json").read_bytes())
            self.as_of_ms: int | None = contents["as_of_ms"]
            self._topics: dict[str, dict[str, list[Any]]] = contents["topics"]
            self.num_partitions = len(self._topics[IMPRESSIONS]["is_cut"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{folder / 'log.json'}: cannot be read: {error}") from error

    def partitions(self, topic: str) -> int:
        """Returns how many partitions a topic has; 0 if it was not saved."""
        return len(self._topics[topic]["is_cut"]) if topic in self._topics else 0

    def is_cut(self, topic: str, partition: int) -> bool:
        """Returns whether messages were gone from the broker when it was saved."""
        return bool(self._topics[topic]["is_cut"][partition])

    def messages(self, topic: str, partition: int) -> Iterator[Message]:
        """Yields the messages of one partition."""
        path = self._folder / f"{topic}.arrow"
        try:
            with pa.memory_map(str(path)) as saved, pa.ipc.open_file(saved) as file:
                for index, owner in enumerate(self._topics[topic]["batches"]):
                    if owner == partition:
                        columns = [column.to_pylist() for column in file.get_batch(index).columns]
                        for offset, at_ms, key, value, names, values in zip(*columns, strict=True):
                            headers = tuple(zip(names, values, strict=True))
                            yield Message(topic, partition, offset, key, value, at_ms, headers)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path}: cannot be read: {error}") from error


class RecordedSource:
    """A recorded log with `examples.arrow` beside it, as `freshrank replay --examples-out` writes it."""

    num_partitions = 1
    as_of_ms: int | None = None

    def __init__(self, folder: Path, order: ReplayOrder) -> None:
        """Raises ValueError: one of the three files is missing."""
        self._files = {topic: find_file(folder, topic) for topic in (IMPRESSIONS, FEEDBACK)}
        self._examples = folder / "examples.arrow"
        if not self._examples.is_file():
            raise ValueError(f"{self._examples}: no such file; `freshrank replay --examples-out` writes it")
        self._order = order

    def partitions(self, topic: str) -> int:
        """Returns 1, and 0 for dead letters and outcomes: a replay writes none."""
        return int(topic not in (DEAD_LETTER, OUTCOMES))

    def is_cut(self, topic: str, partition: int) -> bool:
        """Returns False: a recorded log is all there is."""
        return False

    def messages(self, topic: str, partition: int) -> Iterator[Message]:
        """Yields the lines of a file in the order of the replay; of examples, the batches."""
        if topic == EXAMPLES:
            yield from self._batches()
            return
        lines = [Message(topic, 0, number, None, line, at_ms) for number, at_ms, line in self._lines(topic)]
        if self._order == "ts":
            lines.sort(key=lambda message: message.timestamp_ms)
        yield from lines

    def _lines(self, topic: str) -> Iterator[tuple[int, int, bytes]]:
        """Yields number, arrival and text of each line: by event time, that is when it arrived."""
        path, at_ms = self._files[topic], 0
        try:
            with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
                for number, line in enumerate(lines):
                    if not line.strip():
                        continue
                    times = _times(line)
                    if times is not None and self._order == "ts":
                        at_ms = times.ts
                    elif times is not None:
                        at_ms = max(at_ms, times.ts if times.arrival_ts is None else times.arrival_ts)
                    yield number, at_ms, line
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: cannot be read: {error}") from error

    def _batches(self) -> Iterator[Message]:
        try:
            with pa.memory_map(str(self._examples)) as saved, pa.ipc.open_file(saved) as file:
                for index in range(file.num_record_batches):
                    sink = pa.BufferOutputStream()
                    with pa.ipc.new_stream(sink, file.schema) as stream:
                        stream.write_batch(file.get_batch(index))
                    yield Message(EXAMPLES, 0, index, None, sink.getvalue().to_pybytes())
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{self._examples}: cannot be read: {error}") from error


class _Times(msgspec.Struct):
    ts: int
    arrival_ts: int | None = None


def _times(line: bytes) -> _Times | None:
    try:
        return msgspec.json.decode(line, type=_Times)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def open_folder(folder: Path, order: ReplayOrder = "arrival") -> LogSource:
    """Returns a saved or a recorded log, whichever the folder holds.

    Raises:
        ValueError: it holds neither.
    """
    return SavedSource(folder) if (folder / "log.json").exists() else RecordedSource(folder, order)


def save_log(source: LogSource, folder: Path) -> None:
    """Writes a log into a folder that `SavedSource` reads; one that is there already is replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest = folder / "log.json"
    manifest.unlink(missing_ok=True)
    topics: dict[str, dict[str, list[Any]]] = {}
    for topic in TOPICS:
        numbers = range(source.partitions(topic))
        batches: list[int] = []
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with pa.ipc.new_file(str(folder / f"{topic}.arrow"), _SCHEMA, options=options) as file:
            for number in numbers:
                for batch in _in_batches(source.messages(topic, number)):
                    file.write_batch(_record_batch(batch))
                    batches.append(number)
        topics[topic] = {"is_cut": [source.is_cut(topic, number) for number in numbers], "batches": batches}
    aside = manifest.with_name("log.json.part")
    aside.write_text(json.dumps({"as_of_ms": source.as_of_ms, "topics": topics}), encoding="utf-8")
    aside.replace(manifest)


def _in_batches(messages: Iterable[Message]) -> Iterator[Sequence[Message]]:
    waiting = iter(messages)
    while batch := list(islice(waiting, _BATCH_MESSAGES)):
        yield batch


def _record_batch(messages: Sequence[Message]) -> pa.RecordBatch:
    columns = {
        "offset": [message.offset for message in messages],
        "timestamp_ms": [message.timestamp_ms for message in messages],
        "key": [message.key for message in messages],
        "value": [message.value for message in messages],
        "header_names": [[name for name, _ in message.headers] for message in messages],
        "header_values": [[value for _, value in message.headers] for message in messages],
    }
    return pa.RecordBatch.from_pydict(columns, schema=_SCHEMA)
