"""Logs to be verified: made by the real joiner on the in-memory broker, then spoilt as a test says."""

import random
from collections.abc import Callable, Iterator
from typing import Any, Self

import pyarrow as pa

from freshrank.log_source import TOPICS, ReaderSource
from stream.join import JoinConfig
from stream.log import EXAMPLES, KafkaConfig, Message
from stream.memory_log import MemoryReader
from stream.schema import KIND_CODE, Feedback, Impression, SchemaConfig, TaskConfig
from tests.stream.build import did, schema, shown
from tests.stream.cluster import Cluster

Event = Impression | Feedback
USERS = ("u1", "u11", "u0", "u5")
"""Of both partitions, and so are the last two."""
START_MS, END_MS, BEAT_MS = 25_001, 60_000, 5_000
"""When the traffic begins and ends. Something comes all the time, so that no topic counts as quiet but at first."""
CONFIG = JoinConfig(
    grace_ms=500, out_of_orderness_ms=2_000, max_ahead_ms=0, idle_ms=20_000, duplicate_ms=1_000, commit_interval_ms=100
)
"""No pause of the traffic below is so long that a topic would count as quiet."""
SCHEMA = schema(
    click=TaskConfig(action="click", window_ms=10_000, policy="eager"),
    hide=TaskConfig(action="hide", window_ms=5_000, policy="wait"),
    long_view=TaskConfig(action="view", window_ms=10_000, at_least=3.0, policy="es_dfm", observe_ms=3_000),
    order=TaskConfig(action="order", window_ms=12_000, policy="fnw"),
)


def traffic(
    seed: int, tasks: SchemaConfig, num_slates: int = 12, disorder_ms: int = 2_000, wild_share: float = 0.0
) -> list[tuple[int, Event]]:
    """Returns (arrival, event): disorder, duplicates, feedback before its impression.

    A share of it comes far too late or is dated ahead.
    """
    rng = random.Random(seed)
    arrivals: list[tuple[int, Event]] = []
    actions = [task.action for task in tasks.tasks.values()]

    def send(event: Event) -> None:
        for _ in range(1 + (rng.random() < 0.15)):
            is_wild = rng.random() < wild_share
            delay_ms = rng.randrange(-15_000, 30_000) if is_wild else rng.randrange(disorder_ms)
            arrivals.append((max(0, event.ts + delay_ms), event))

    for at_ms in range(0, END_MS, BEAT_MS):
        for user in USERS[-2:]:
            send(shown(f"beat-{user}-{at_ms}", at=at_ms, user=user))
            send(did("share", at=at_ms, on=f"beat-{user}-{at_ms}", user=user))
    for number in range(num_slates):
        at_ms = START_MS + rng.randrange(30_000)
        user = rng.choice(USERS)
        items = [f"i{index}" for index in range(rng.randint(1, 4))]
        send(shown(f"r{number}", *items, at=at_ms, user=user))
        for _ in range(rng.randrange(7)):
            window_ms = rng.choice(list(tasks.tasks.values())).window_ms
            delay_ms = rng.choice([0, 1, 2_999, 3_000, 3_001, window_ms, window_ms + 1, rng.randrange(14_000)])
            value = rng.choice([1.0, 3.0])
            item = rng.choice([*items, "other"])
            action = rng.choice([*actions, "share"])
            send(did(action, item, at=at_ms + delay_ms, on=f"r{number}", value=value, user=user))
    return sorted(arrivals, key=lambda arrival: arrival[0])


def joined(
    arrivals: list[tuple[int, Event]],
    tasks: SchemaConfig,
    *,
    config: JoinConfig = CONFIG,
    tick_ms: int = 700,
    crash_at: set[int] | None = None,
) -> Cluster:
    """Returns a cluster that has joined all of it, its windows closed, killed at the given steps on the way."""
    cluster = Cluster(tasks, config)
    cluster.crashes.crash_at = crash_at or set()
    cluster.start()
    waiting = list(arrivals)
    while waiting:
        cluster.now_ms += tick_ms
        while waiting and waiting[0][0] <= cluster.now_ms:
            cluster.send(waiting.pop(0)[1])
        cluster.turn()
    cluster.settle()
    return cluster


def source_of(cluster: Cluster) -> ReaderSource:
    return ReaderSource(MemoryReader(cluster.broker), KafkaConfig(), lambda: cluster.now_ms)


Row = dict[str, Any]


class EditedLog:
    """A log in memory whose rows of examples a test may change; a `LogSource`."""

    def __init__(self, cluster: Cluster) -> None:
        source = source_of(cluster)
        self.num_partitions = source.num_partitions
        self.as_of_ms: int | None = source.as_of_ms
        self.cut: set[tuple[str, int]] = set()
        self.log = {
            (topic, number): list(source.messages(topic, number))
            for topic in TOPICS
            for number in range(source.partitions(topic))
        }

    def partitions(self, topic: str) -> int:
        return self.num_partitions if (topic, 0) in self.log else 0

    def is_cut(self, topic: str, partition: int) -> bool:
        return (topic, partition) in self.cut

    def messages(self, topic: str, partition: int) -> Iterator[Message]:
        yield from self.log[topic, partition]

    def edit(self, change: Callable[[list[Row]], None], topic: str = EXAMPLES) -> Self:
        """Gives all rows of a partition, in order, to `change`; each is its own message from then on."""
        for number in range(self.num_partitions):
            rows: list[Row] = []
            layout = None
            for message in self.log[topic, number]:
                table = pa.ipc.open_stream(message.value).read_all()
                layout = table.schema
                rows += [{"logged": message.timestamp_ms, **row} for row in table.to_pylist()]
            change(rows)
            self.log[topic, number] = [
                Message(topic, number, offset, None, _message(row, layout), row["logged"])
                for offset, row in enumerate(rows)
            ]
        return self


def _message(row: Row, layout: pa.Schema) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, layout) as writer:
        writer.write_batch(pa.RecordBatch.from_pylist([row], schema=layout))
    value: bytes = sink.getvalue().to_pybytes()
    return value


def cells(rows: list[Row], task: str, kind: str) -> Iterator[tuple[int, int]]:
    """Yields (row, item) of the labels of a kind."""
    for number, row in enumerate(rows):
        for item, code in enumerate(row[f"kind.{task}"]):
            if code == KIND_CODE[kind]:
                yield number, item
