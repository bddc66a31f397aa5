"""How long is the first hop of P1, from a click in Kafka to its labelled example, at 1,000 events/s through a joiner?

An open loop: 500 slates and 500 clicks per second, each click 50 ms after its slate; the joiner commits every 100 ms
and a read_committed reader notes when the positive label comes. The joiner runs as the program does, in a process of
its own. Everything shares this machine's cores.

    python -m benchmarks.joiner_hop [seconds]
"""

import io
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.harness import Figure
from benchmarks.joiner_process import broker
from freshrank.children import Child
from stream.codec import encode
from stream.kafka_log import KafkaReader
from stream.kafka_producer import KafkaProducer
from stream.log import EXAMPLES, FEEDBACK, IMPRESSIONS, KafkaConfig, TopicPartition, topic_name
from stream.schema import Feedback, Impression, Items
from stream.topics import create_topics

COMMAND = "python -m benchmarks.joiner_hop"
SLATES_PER_S = 500
CLICK_AFTER_S = 0.05
WARMUP_S = 5.0
PROGRAM = """
import sys, time
from stream.join import JoinConfig
from stream.joiner import Joiner
from stream.kafka_log import KafkaGroupMember
from stream.kafka_producer import KafkaTransactionalProducer
from stream.log import KafkaConfig
from stream.schema import SchemaConfig, TaskConfig
kafka = KafkaConfig(bootstrap_servers=sys.argv[1])
member = KafkaGroupMember(kafka, "hop", ["impressions", "feedback"])
producer = KafkaTransactionalProducer(kafka, "hop")
schema = SchemaConfig(scenarios=("home",), tasks={"click": TaskConfig(action="click", window_ms=10_000)})
Joiner(schema, JoinConfig(), member, producer, kafka, lambda: time.time_ns() // 1_000_000).run(lambda: False)
"""


class Reading(threading.Thread):
    """Notes when each positive label becomes readable."""

    def __init__(self, kafka: KafkaConfig, clicked_s: dict[str, float]) -> None:
        super().__init__()
        self._reader = KafkaReader(kafka)
        self._reader.assign({TopicPartition(topic_name(kafka, EXAMPLES), n): 0 for n in range(kafka.num_partitions)})
        self._clicked_s = clicked_s
        self.latency_s: dict[str, float] = {}
        self.is_over = False

    def run(self) -> None:
        """Reads until `is_over`."""
        while not self.is_over:
            for message in self._reader.poll(1_000, 100):
                seen_s = time.perf_counter()
                table = pa.ipc.open_stream(io.BytesIO(message.value)).read_all()
                for request_id, labels in zip(
                    table["request_id"].to_pylist(), table["label.click"].to_pylist(), strict=True
                ):
                    if 1 in labels:
                        self.latency_s[request_id] = seen_s - self._clicked_s[request_id]
        self._reader.close()


def feed(kafka: KafkaConfig, clicked_s: dict[str, float], seconds: float) -> None:
    """Sends slates and clicks on time, whatever the joiner does."""
    producer = KafkaProducer(kafka)
    started_s = time.perf_counter()
    num_shown = num_clicked = 0
    while (elapsed_s := time.perf_counter() - started_s) < seconds:
        now_ms = time.time_ns() // 1_000_000
        while num_shown < elapsed_s * SLATES_PER_S:
            user = f"u{num_shown % 997}"
            slate = Impression(
                f"r{num_shown}", user, "home", now_ms, Items([f"i{num_shown % 83}", f"i{num_shown % 71}x"])
            )
            producer.produce(topic_name(kafka, IMPRESSIONS), user.encode(), encode(slate))
            num_shown += 1
        while num_clicked < (elapsed_s - CLICK_AFTER_S) * SLATES_PER_S:
            user, name = f"u{num_clicked % 997}", f"r{num_clicked}"
            click = Feedback(name, user, f"i{num_clicked % 83}", "click", now_ms, event_id=f"e{num_clicked}")
            clicked_s[name] = time.perf_counter()
            producer.produce(topic_name(kafka, FEEDBACK), user.encode(), encode(click))
            num_clicked += 1
        producer.poll()
        time.sleep(0.001)
    producer.flush(10_000)


def measure(seconds: float = 20.0) -> dict[str, Figure]:
    """Returns the p50 of the hop, its p99 beside it."""
    with broker() as (kind, address), tempfile.TemporaryDirectory() as folder:
        kafka = KafkaConfig(bootstrap_servers=address)
        create_topics(kafka)
        joiner = Child([sys.executable, "-c", PROGRAM, address], Path(folder) / "joiner.log")
        clicked_s: dict[str, float] = {}
        reading = Reading(kafka, clicked_s)
        reading.start()
        feed(kafka, clicked_s, seconds)
        deadline_s = time.monotonic() + 20
        while len(reading.latency_s) < len(clicked_s) and time.monotonic() < deadline_s:
            time.sleep(0.05)
        reading.is_over = True
        reading.join()
        joiner.stop(10)
        if len(reading.latency_s) != len(clicked_s):
            raise RuntimeError(f"{len(clicked_s) - len(reading.latency_s)} labels lost; {joiner.last_words()}")
    warm = list(reading.latency_s.values())[int(WARMUP_S * SLATES_PER_S) :]
    p50, p99 = (float(ms) for ms in np.percentile(warm, [50, 99]) * 1_000)
    note = (
        f"broker {kind}, a transaction every 100 ms, {len(warm)} clicks, load of the machine {os.getloadavg()[0]:.1f}"
    )
    return {"P1.hop": Figure(value=p50, unit="ms", ci=(p50, p50), command=COMMAND, peers={"p99": p99}, note=note)}


if __name__ == "__main__":
    for key, figure in measure(float(sys.argv[1]) if len(sys.argv) > 1 else 20.0).items():
        print(key, figure.as_json())
