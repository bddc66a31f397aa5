"""P3: how many events per CPU-second does a whole joiner process take from Kafka JSON to committed Arrow?

The log is written first; then a joiner of a new group reads it from the beginning, decodes, joins, encodes and commits
every 100 ms, until every label is committed. CPU-seconds are user + system of the process with librdkafka's threads;
the broker is another process: Apache Kafka where KAFKA_HOME names one, else the embedded broker. Slates carry three
features per item and one score; a click on a quarter of them. The ceiling is the same read and decoded only. Garbage
collection is set as `freshrank join` sets it.
"""

import gc
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.harness import Figure, cpu_rate
from benchmarks.join_core import GRACE_MS, JITTER_MS, WINDOW_MS, arrivals, dict_join
from benchmarks.peers.joiner import join
from freshrank.embedded import BrokerKind, start_broker
from freshrank.join import GC_THRESHOLDS
from stream.codec import EventDecoder, encode
from stream.join import JoinConfig
from stream.kafka_log import KafkaReader
from stream.kafka_producer import KafkaProducer
from stream.log import FEEDBACK, IMPRESSIONS, KafkaConfig, TopicPartition, topic_name
from stream.schema import FeatureConfig, FeaturesConfig, Feedback, Impression, Items, SchemaConfig, TaskConfig
from stream.topics import create_topics

SCHEMA = SchemaConfig(
    scenarios=("home",),
    tasks={"click": TaskConfig(action="click", window_ms=WINDOW_MS)},
    features=FeaturesConfig(
        user={"city": FeatureConfig(kind="categorical")},
        item={
            "category": FeatureConfig(kind="categorical"),
            "price": FeatureConfig(kind="numeric"),
            "tags": FeatureConfig(kind="categorical", many=True),
        },
        context={"device": FeatureConfig(kind="categorical")},
    ),
)
CONFIG = JoinConfig(grace_ms=GRACE_MS, out_of_orderness_ms=JITTER_MS, max_ahead_ms=0, idle_ms=3_600_000)
COMMAND = "python -m benchmarks.joiner_process"
ENDS_AFTER_MS = 600_000


def with_features(events: list[Impression | Feedback], seed: int = 2) -> list[Impression | Feedback]:
    """Returns the events with the columns a real slate has, moved to the last hour.

    At the end stands one event of each of many users, far later: it closes all labels.
    """
    rng = np.random.default_rng(seed)
    shift_ms = time.time_ns() // 1_000_000 - 3_600_000 - events[0].ts
    users: dict[str, None] = {}
    for event in events:
        event.ts += shift_ms
        users[event.user_id] = None
        if isinstance(event, Impression):
            count = len(event.items.id)
            event.items.features = {
                "category": [f"c{n}" for n in rng.integers(40, size=count)],
                "price": rng.gamma(2.0, 15.0, count).round(2).tolist(),
                "tags": [[f"t{n}", f"t{n + 7}"] for n in rng.integers(90, size=count)],
            }
            event.items.scores = {"click": rng.beta(1.2, 20, count).round(6).tolist()}
            event.user = {"city": f"city-{rng.integers(300)}"}
            event.context = {"device": "ios" if rng.random() < 0.5 else "android"}
    end_ms = max(event.ts for event in events) + ENDS_AFTER_MS
    for user in list(users)[:64]:
        events.append(Impression(f"end-{user}", user, "home", end_ms, Items(["end"])))
        events.append(Feedback("end", user, "end", "none", end_ms, event_id=f"end-{user}"))
    return events


def write(kafka: KafkaConfig, events: list[Impression | Feedback]) -> None:
    """Writes the log."""
    producer = KafkaProducer(kafka)
    for event in events:
        topic = topic_name(kafka, IMPRESSIONS if isinstance(event, Impression) else FEEDBACK)
        value = encode(event)
        while not producer.produce(topic, event.user_id.encode(), value):
            time.sleep(0.01)
    if producer.flush(60_000) or producer.num_failed:
        raise RuntimeError("the log could not be written")


def join_all(kafka: KafkaConfig, num_items: int, num_positives: int) -> None:
    """Runs one joiner of a new group until all labels are committed, and checks how many there are."""
    counters = join(kafka, SCHEMA, CONFIG, num_items)
    if counters.labels != num_items or counters.positives != num_positives:
        raise RuntimeError(f"wrong labels: {counters}, {num_items} items, {num_positives} positives expected")


def decode_all(kafka: KafkaConfig, num_messages: int) -> None:
    """Reads and decodes the log, and does nothing with it."""
    reader, decoder = KafkaReader(kafka), EventDecoder(SCHEMA)
    shown, done = topic_name(kafka, IMPRESSIONS), topic_name(kafka, FEEDBACK)
    reader.assign({TopicPartition(topic, n): 0 for topic in (shown, done) for n in range(kafka.num_partitions)})
    try:
        while num_messages > 0:
            messages = reader.poll(2_000, 100)
            for message in messages:
                (decoder.impression if message.topic == shown else decoder.feedback)(message.value)
            num_messages -= len(messages)
    finally:
        reader.close()


def rates(broker: str, num_slates: int, slate_size: int, repeats: int) -> dict[str, tuple[float, tuple[float, float]]]:
    """Returns events per CPU-second with their range, of the joiner and of reading and decoding alone."""
    kafka = KafkaConfig(bootstrap_servers=broker, topic_prefix=f"b{uuid.uuid4().hex[:8]}-")
    create_topics(kafka)
    events = arrivals(num_slates, slate_size)
    num_events = sum(len(event.items.id) if isinstance(event, Impression) else 1 for event in events)
    num_positives, num_items = dict_join(events)[1], num_slates * slate_size
    write(kafka, with_features(events))
    num_messages = len(events)
    del events

    def measured(work: Callable[[], None]) -> tuple[float, tuple[float, float]]:
        def once() -> int:
            work()
            return num_events

        rate = cpu_rate(once, repeats=repeats)
        return rate.per_cpu_s, rate.per_cpu_s_range

    return {
        "joiner": measured(lambda: join_all(kafka, num_items, num_positives)),
        "decode": measured(lambda: decode_all(kafka, num_messages)),
    }


@contextmanager
def broker() -> Iterator[tuple[BrokerKind, str]]:
    """Starts the best broker there is; yields its kind and address."""
    home = os.environ.get("KAFKA_HOME")
    kind: BrokerKind = "kafka" if home else "noida"
    with tempfile.TemporaryDirectory() as folder:
        service = start_broker(Path(folder), _free_port(), kind, kafka_home=Path(home).resolve() if home else None)
        try:
            yield kind, service.endpoint
        finally:
            service.stop()


def _free_port() -> int:
    from freshrank.ports import bind

    with bind("127.0.0.1", 0, "benchmark") as listener:
        return int(listener.getsockname()[1])


def measure(num_events: int = 60_000, repeats: int = 3) -> dict[str, Figure]:
    """Returns P3 for single-item slates, with slates of 20 and the ceilings beside it."""
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    with broker() as (kind, address):
        single = rates(address, num_events, 1, repeats)
        twenty = rates(address, num_events // 10, 20, repeats)
    return {
        "P3": Figure(
            value=single["joiner"][0],
            unit="events/CPU-s",
            ci=single["joiner"][1],
            command=COMMAND,
            peers={
                "this joiner, slates of 20": twenty["joiner"][0],
                "read and decode only, single items": single["decode"][0],
                "read and decode only, slates of 20": twenty["decode"][0],
            },
            note=f"impression items + feedback, single-item slates, two partitions, broker {kind}",
        )
    }


if __name__ == "__main__":
    for key, figure in measure().items():
        print(key, figure.as_json())
