"""The log of a peer that reads Kafka, written before it starts, and its labels, read after it has ended.

Every topic has one partition, every label topic is read as committed. An event a minute after the others ends the log.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Literal

import pyarrow as pa
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from benchmarks.peers.events import END, END_AFTER_MS, Event
from benchmarks.peers.join_core import decoded
from benchmarks.peers.joiner import WARM_UP
from stream.codec import encode
from stream.log import EXAMPLES, FEEDBACK, IMPRESSIONS, TOPICS
from stream.schema import Impression

Form = Literal["one topic", "two topics", "ours"]
"""How a peer reads the log: one topic in order of arrival, a topic per kind, or slates and feedback in our codec."""
_TIMEOUT_S = 30.0
_LABELS = "labels"


def write(broker: str, prefix: str, form: Form, events: Sequence[Event]) -> None:
    """Creates the topics and writes the log.

    Raises:
        RuntimeError: the broker did not take all of it.
    """
    last = Event("impression", END, END, END, END, max(event.ts for event in events) + END_AFTER_MS, END)
    messages = list(_messages(prefix, form, [*events, last._replace(kind="feedback"), last]))
    topics = {topic for topic, _, _, _ in messages} | {
        prefix + name for name in (TOPICS if form == "ours" else [_LABELS])
    }
    if form == "ours":
        topics |= {prefix + WARM_UP + name for name in TOPICS}
    admin = AdminClient({"bootstrap.servers": broker, "broker.address.family": "v4"})
    keep = {"retention.ms": "-1"}  # the events are of long ago
    for created in admin.create_topics([NewTopic(topic, 1, 1, config=keep) for topic in sorted(topics)]).values():
        created.result(_TIMEOUT_S)
    producer = Producer(
        {
            "bootstrap.servers": broker,
            "broker.address.family": "v4",
            "queue.buffering.max.messages": len(messages) + 1,
            "enable.idempotence": True,
        }
    )
    newest_ms = 0
    for topic, key, value, ts in messages:
        newest_ms = max(newest_ms, ts)  # as the broker's clock at the time of arrival
        producer.produce(topic, value, key, timestamp=newest_ms)
    if producer.flush(_TIMEOUT_S):
        raise RuntimeError("the log could not be written")


def labels(broker: str, prefix: str, form: Form) -> list[tuple[str, int]]:
    """Returns all (key, label) that the peer has committed."""
    rows: list[tuple[str, int]] = []
    for value in _values(broker, prefix + (EXAMPLES if form == "ours" else _LABELS)):
        if form == "ours":
            rows += labels_of_examples(value)
        else:
            row = json.loads(value)
            rows.append((row["key"], row["label"]))
    return rows


def _messages(prefix: str, form: Form, events: Sequence[Event]) -> Iterator[tuple[str, bytes, bytes, int]]:
    """Yields topic, key, value and event time in order of arrival."""
    if form == "ours":
        for log in (prefix + WARM_UP, prefix):
            for decoded_event in decoded(events):
                topic = log + (IMPRESSIONS if isinstance(decoded_event, Impression) else FEEDBACK)
                yield topic, decoded_event.user_id.encode(), encode(decoded_event), decoded_event.ts
        return
    topics = {"impression": IMPRESSIONS, "feedback": FEEDBACK} if form == "two topics" else {}
    for event in events:
        topic = prefix + topics.get(event.kind, "events")
        yield topic, event.key.encode(), json.dumps(event._asdict()).encode(), event.ts


def _values(broker: str, topic: str) -> Iterator[bytes]:
    consumer = Consumer(
        {
            "bootstrap.servers": broker,
            "broker.address.family": "v4",
            "group.id": "join-peers",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "isolation.level": "read_committed",
        }
    )
    consumer.assign([TopicPartition(topic, 0, 0)])
    try:
        while True:
            message = consumer.poll(_TIMEOUT_S)
            if message is None:
                raise RuntimeError(f"{topic}: no answer within {_TIMEOUT_S:g} s")
            error = message.error()
            if error is None:
                yield message.value() or b""
            elif error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001 - its public name
                return
            else:
                raise RuntimeError(f"{topic}: {error}")
    finally:
        consumer.close()


def labels_of_examples(value: bytes) -> Iterator[tuple[str, int]]:
    """Yields the labels of one message of ours."""
    for row in pa.ipc.open_stream(value).read_all().select(["request_id", "item_id", "label.click"]).to_pylist():
        for item_id, label in zip(row["item_id"], row["label.click"], strict=True):
            yield f"{row['request_id']}/{item_id}", label
