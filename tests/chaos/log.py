"""Both ends of a chaos run: the load goes into the log as its time comes, and everything is read back at the end."""

import io
import threading
import time
from collections import Counter
from collections.abc import Sequence

import pyarrow as pa

from stream.codec import EventDecoder, encode
from stream.kafka_log import KafkaReader
from stream.kafka_producer import KafkaProducer
from stream.log import EXAMPLES, FEEDBACK, IMPRESSIONS, KafkaConfig, Message, TopicPartition, topic_name
from stream.schema import KINDS, Feedback, Impression, SchemaConfig
from tests.chaos.traffic import LAST, Arrival, Event
from tests.stream.oracle import Label, labels_of

_READ_TIMEOUT_S = 60.0
_FLUSH_TIMEOUT_MS = 60_000


class Feeder(threading.Thread):
    """Sends each arrival when it is due; what a broker that is gone does not take waits in the producer's buffer."""

    def __init__(self, kafka: KafkaConfig, load: Sequence[Arrival]) -> None:
        super().__init__(daemon=True)
        self._kafka, self._load = kafka, load
        self._producer = KafkaProducer(kafka)
        self.num_sent = 0

    def run(self) -> None:
        """Sends the whole load."""
        started_s = time.monotonic()
        for arrival in self._load:
            wait_s = started_s + arrival.at_ms / 1_000 - time.monotonic()
            if wait_s > 0:
                self._producer.poll()
                time.sleep(wait_s)
            self.send(arrival.event)

    def send(self, event: Event) -> None:
        """Sends one event now, by the key that keeps a user's slates and actions together."""
        topic = topic_name(self._kafka, IMPRESSIONS if isinstance(event, Impression) else FEEDBACK)
        while not self._producer.produce(topic, event.user_id.encode(), encode(event)):
            time.sleep(0.01)
        self.num_sent += 1

    def finish(self, ends: Sequence[Event]) -> None:
        """Waits for the load to be in the log, then sends the events that end it."""
        self.join()
        self._flush()  # the end of time must not overtake a message that is still waiting to be sent again
        for event in ends:
            self.send(event)
        self._flush()

    def _flush(self) -> None:
        num_left = self._producer.flush(_FLUSH_TIMEOUT_MS)
        if num_left or self._producer.num_failed:
            raise RuntimeError(f"{num_left} messages are not sent and {self._producer.num_failed} are given up")


def read_topic(kafka: KafkaConfig, topic: str) -> list[Message]:
    """Returns every committed message of a topic, in offset order per partition."""
    name = topic_name(kafka, topic)
    reader = KafkaReader(kafka)
    try:
        position = reader.begin_offsets([TopicPartition(name, n) for n in range(kafka.num_partitions)])
        reader.assign(position)
        messages: list[Message] = []
        deadline_s = time.monotonic() + _READ_TIMEOUT_S
        # Of what has been read to its end, the end does not count the marks of transactions.
        while time.monotonic() < deadline_s:
            read = reader.poll(2_000, 200)
            messages += read
            for message in read:
                position[TopicPartition(name, message.partition)] = message.offset + 1
            if not read and reader.end_offsets(list(position)) == position:
                return messages
    finally:
        reader.close()
    raise RuntimeError(f"{name} could not be read to its end in {_READ_TIMEOUT_S:g} s")


def read_events(kafka: KafkaConfig, schema: SchemaConfig) -> tuple[list[Impression], list[Feedback]]:
    """Returns the load as it is in the log, duplicates of the producer's own included."""
    decoder = EventDecoder(schema)
    return (
        [decoder.impression(message.value) for message in read_topic(kafka, IMPRESSIONS)],
        [decoder.feedback(message.value) for message in read_topic(kafka, FEEDBACK)],
    )


def expected_labels(schema: SchemaConfig, impressions: list[Impression], feedback: list[Feedback]) -> Counter[Label]:
    """Returns how often each label must be in the examples if nothing was late, the end of the run left out."""
    slates: dict[str, list[Impression]] = {}
    actions: dict[str, list[Feedback]] = {}
    for impression in impressions:
        if not impression.request_id.startswith(LAST):
            slates.setdefault(impression.request_id, []).append(impression)
    for action in feedback:
        actions.setdefault(action.request_id, []).append(action)
    expected: Counter[Label] = Counter()
    for request_id, copies in slates.items():  # by request, for the oracle compares every slate with every action
        expected.update(labels_of(schema, copies, actions.get(request_id, [])))
    return expected


def read_labels(kafka: KafkaConfig, schema: SchemaConfig) -> Counter[Label]:
    """Returns how often each label is in the examples, those of the events that end a run left out."""
    found: Counter[Label] = Counter()
    for message in read_topic(kafka, EXAMPLES):
        for row in pa.ipc.open_stream(io.BytesIO(message.value)).read_all().to_pylist():
            if row["request_id"].startswith(LAST):
                continue
            for task in schema.tasks:
                columns = (row["item_id"], row[f"kind.{task}"], row[f"label.{task}"], row[f"delay_ms.{task}"])
                for item, kind, label, delay_ms in zip(*columns, strict=True):
                    if KINDS[kind] != "none":
                        found[(row["request_id"], item, task, KINDS[kind], label, delay_ms)] += 1
    return found
