"""The joiner as a process on real brokers: killed at random points, joined by a second one, and still exact."""

import io
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from freshrank.children import Child
from stream.codec import encode
from stream.kafka_log import KafkaReader
from stream.kafka_producer import KafkaProducer
from stream.log import EXAMPLES, FEEDBACK, IMPRESSIONS, OUTCOMES, KafkaConfig, TopicPartition, topic_name
from stream.schema import KINDS, Feedback, Impression, SchemaConfig, TaskConfig
from tests.stream.build import did, explored, shown
from tests.stream.cluster import outcomes_in
from tests.stream.oracle import Deeds, Label, labels_of, outcomes_of

WaitUntil = Callable[..., None]
PROGRAM = """
import logging, signal, sys, threading, time
from stream import kafka_adapter
from stream.join import JoinConfig
from stream.joiner import Joiner
from stream.log import KafkaConfig
from stream.schema import SchemaConfig, TaskConfig

broker, prefix, adapter, name = sys.argv[1:]
logging.basicConfig(level=logging.INFO)
stopped = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stopped.set())
kafka = KafkaConfig(bootstrap_servers=broker, topic_prefix=prefix, adapter=adapter)
schema = SchemaConfig(scenarios=("home", "search"), tasks={"click": TaskConfig(action="click", window_ms=1_000)})
# The log's own last events end the test, not the clock on the wall.
config = JoinConfig(idle_ms=3_600_000, outcome_window_ms=1_100)
topics = [f"{prefix}impressions", f"{prefix}feedback"]
member = kafka_adapter.group_member(kafka, f"{prefix}joiner", topics, instance_id=name)
producer = kafka_adapter.transactional_producer(kafka, f"{prefix}{name}")
Joiner(schema, config, member, producer, kafka, lambda: time.time_ns() // 1_000_000).run(stopped.is_set)
producer.close()
member.close()
"""
SCHEMA = SchemaConfig(scenarios=("home", "search"), tasks={"click": TaskConfig(action="click", window_ms=1_000)})
OUTCOME_MS = 1_100
NUM_SLATES = 1_200
EXPLORED_EVERY = 7
NUM_CHUNKS = 30
SLATE_EVERY_MS = 10
DISORDER_MS = 1_500
LAST = "last"


class World:
    """The log of a test: what was shown and done, in the order in which it arrives."""

    def __init__(self, rng: np.random.Generator, start_ms: int, users_of_all_partitions: list[str]) -> None:
        events: list[tuple[float, Impression | Feedback]] = []
        for n in range(NUM_SLATES):
            at, user = start_ms + n * SLATE_EVERY_MS, f"u{n % 40}"
            slate = shown(f"r{n}", "a", "b", at=at, user=user)
            if n % EXPLORED_EVERY == 0:
                explored(slate, SCHEMA.tasks, "c")
            events.append((at + rng.uniform(0, DISORDER_MS), slate))
            if rng.random() < 0.5:
                click = did(
                    "share" if n % 3 == 0 else "click",
                    str(rng.choice(["a", "b"])),
                    at=at + int(rng.integers(0, 1_200)),
                    on=f"r{n}",
                    user=user,
                )
                events.append((click.ts + rng.uniform(0, DISORDER_MS), click))
        events += [(at + rng.uniform(0, 300), event) for at, event in events if rng.random() < 0.05]
        self.arrivals = [event for _, event in sorted(events, key=lambda arrival: arrival[0])]
        self.ends: list[Impression | Feedback] = []
        for user in users_of_all_partitions:
            end_ms = start_ms + NUM_SLATES * SLATE_EVERY_MS + 20_000
            self.ends += [shown(LAST, at=end_ms, user=user), did(at=end_ms, on=LAST, user=user)]

    def expected(self) -> tuple[Counter[Label], Counter[tuple[str, Deeds]]]:
        """Returns labels and outcomes."""
        impressions = [event for event in self.arrivals if isinstance(event, Impression)]
        clicks = [event for event in self.arrivals if isinstance(event, Feedback)]
        return labels_of(SCHEMA, impressions, clicks), outcomes_of(impressions, clicks, OUTCOME_MS)


class Joiners:
    """Joiner processes by name, the feeder, and a reader of what they commit."""

    def __init__(self, kafka: KafkaConfig, folder: Path) -> None:
        self._kafka, self._folder = kafka, folder
        self._children: dict[str, Child] = {}
        self._producer = KafkaProducer(kafka)
        self._reader = KafkaReader(kafka)
        outputs = [topic_name(kafka, topic) for topic in (EXAMPLES, OUTCOMES)]
        self._reader.assign({TopicPartition(topic, n): 0 for topic in outputs for n in range(kafka.num_partitions)})
        self.seen: Counter[Label] = Counter()
        self.outcomes: Counter[tuple[str, Deeds]] = Counter()

    def start(self, name: str) -> None:
        kafka = self._kafka
        argv = [sys.executable, "-c", PROGRAM, kafka.bootstrap_servers, kafka.topic_prefix, kafka.adapter, name]
        self._children[name] = Child(argv, self._folder / f"{name}.log")

    def kill(self, name: str) -> None:
        assert self._children[name].kill() == -9

    def send(self, events: list[Impression | Feedback]) -> None:
        for event in events:
            topic = topic_name(self._kafka, IMPRESSIONS if isinstance(event, Impression) else FEEDBACK)
            assert self._producer.produce(topic, event.user_id.encode(), encode(event))
        assert self._producer.flush(30_000) == 0

    def look(self, timeout_ms: int = 50) -> int:
        """Reads what has been committed; returns how many labels that makes so far."""
        for name, child in self._children.items():
            assert child.exit_code() in (None, -9), f"{name}: {child.log_path.read_text()}"
        for message in self._reader.poll(1_000, timeout_ms):
            if message.topic.endswith(OUTCOMES):
                self.outcomes.update(outcomes_in(message.value))
                continue
            for row in pa.ipc.open_stream(io.BytesIO(message.value)).read_all().to_pylist():
                for item, label, kind, delay in zip(
                    row["item_id"], row["label.click"], row["kind.click"], row["delay_ms.click"], strict=True
                ):
                    if KINDS[kind] != "none" and row["request_id"] != LAST:
                        self.seen[(row["request_id"], item, "click", KINDS[kind], label, delay)] += 1
        return self.seen.total()

    def num_takeovers(self, name: str) -> int:
        return self._children[name].log_path.read_text().count("taking up a partition")

    def close(self) -> list[int]:
        self._reader.close()
        return [child.stop(20) for child in self._children.values()]


@pytest.fixture
def joiners(kafka: KafkaConfig, tmp_path: Path) -> Iterator[Joiners]:
    joiners = Joiners(kafka, tmp_path)
    yield joiners
    joiners.close()


def test_no_label_is_lost_or_double_through_kills_and_a_rebalance(joiners: Joiners, wait_until: WaitUntil) -> None:
    rng = np.random.default_rng(7)
    # The forty users are in all partitions, so that the end of time comes to each of them.
    world = World(rng, time.time_ns() // 1_000_000 - 60_000, [f"u{n}" for n in range(40)])
    joiners.start("one")
    num_starts, taken_up = 1, 0
    chunks = [list(chunk) for chunk in np.array_split(np.array(world.arrivals, dtype=object), NUM_CHUNKS)]
    for number, chunk in enumerate(chunks):
        joiners.send(chunk)
        if number % 6 == 5:
            before = joiners.seen.total()
            wait_until(
                lambda before=before, taken_up=taken_up: (
                    joiners.look() > before and joiners.num_takeovers("one") > taken_up
                ),
                "the last one started has taken over, and labels come out",
                timeout_s=60,
            )
            if number == 11:
                joiners.start("two")
            else:
                for _ in range(int(rng.integers(1, 4))):
                    joiners.look(timeout_ms=int(rng.integers(0, 80)))
                joiners.kill("one")
                taken_up = joiners.num_takeovers("one")
                joiners.start("one")
                num_starts += 1
    joiners.send(world.ends)
    expected, outcomes = world.expected()
    wait_until(
        lambda: joiners.look() >= expected.total() and joiners.outcomes.total() >= outcomes.total(),
        "all labels and outcomes are out",
        timeout_s=90,
    )
    assert joiners.close() == [0, 0]
    assert joiners.num_takeovers("two") == 1
    assert joiners.num_takeovers("one") >= num_starts >= 4
    assert joiners.seen - expected == Counter(), "double or wrong"
    assert expected - joiners.seen == Counter(), "lost"
    assert joiners.outcomes == outcomes
    assert sum(bool(deeds) for _, deeds in outcomes) > NUM_SLATES // EXPLORED_EVERY // 4
