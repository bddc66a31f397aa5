"""P5: how many examples per second does a whole trainer process learn from Kafka?

The topic `examples` is written first (slates of 20 with 20 fields of Zipf distributed ids, 3 scenarios, 2 tasks, labels
joined by our join core); then `freshrank train` of a new model line reads it from the beginning, decodes, learns,
publishes to Redis every second and writes checkpoints. The rate is that of the examples after the first fifth, as the
process's own metric counts them; CPU is user + system of that process. Broker and Redis are processes of their own on
the same cores. `bfloat16` is the same with `model.precision: bfloat16`, the ceiling steps
from memory.
"""

import os
import statistics
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
import yaml

from benchmarks.harness import Figure, cpu_rate
from benchmarks.hinet_step import NUM_ROWS, SCHEMA, learner_step
from benchmarks.joiner_process import broker
from benchmarks.recorded_examples import SLATE, messages
from freshrank.children import Child
from freshrank.embedded import start_redis
from freshrank.ports import bind
from model.config import ModelConfig
from model.features import EncodingConfig
from model.precision import Precision
from stream.kafka_producer import KafkaProducer
from stream.log import EXAMPLES, KafkaConfig, topic_name
from stream.topics import create_topics

COMMAND = "python -m benchmarks.trainer_process"
WARM_SHARE = 0.2
TIMEOUT_S = 120.0
_CLOCK_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Reading(NamedTuple):
    """One look at a trainer process."""

    examples: float
    wall_s: float
    cpu_s: float


def write(kafka: KafkaConfig, values: list[bytes]) -> None:
    """Writes the messages in turn into all partitions."""
    producer = KafkaProducer(kafka)
    for number, value in enumerate(values):
        while not producer.produce(topic_name(kafka, EXAMPLES), str(number).encode(), value):
            time.sleep(0.01)
    if producer.flush(60_000) or producer.num_failed:
        raise RuntimeError("the log could not be written")


@contextmanager
def trainer(kafka: KafkaConfig, redis_port: int, precision: Precision, folder: Path) -> Iterator[tuple[Child, int]]:
    """Runs `freshrank train` on a new model line; yields it and the port of its metrics."""
    port, line = _free_port(), uuid.uuid4().hex[:8]
    settings = {
        "scenarios": list(SCHEMA.scenarios),
        "tasks": {name: {"action": task.action, "window_ms": task.window_ms} for name, task in SCHEMA.tasks.items()},
        "features": {
            side: dict.fromkeys(getattr(SCHEMA.features, side), "categorical") for side in ("user", "item", "context")
        },
        "kafka": {
            "bootstrap_servers": kafka.bootstrap_servers,
            "topic_prefix": kafka.topic_prefix,
            "num_partitions": kafka.num_partitions,
        },
        "redis": {"url": f"redis://127.0.0.1:{redis_port}/0"},
        "checkpoint": {"folder": str(folder / line)},
        "model": {"precision": precision, "encoding": {"history_length": 0}},
        "trainer": {"model_name": line},
        "monitor": {"trainer": f"127.0.0.1:{port}"},
    }
    path = folder / f"{line}.yaml"
    path.write_text(yaml.safe_dump(settings))
    child = Child([sys.executable, "-m", "freshrank.cli", "train", "--config", str(path)], folder / f"{line}.log")
    try:
        yield child, port
    finally:
        child.stop(20)


def readings(child: Child, port: int, num_examples: int) -> tuple[Reading, Reading]:
    """Returns how far the process was after a fifth of the examples, and at the end of them."""
    warm: Reading | None = None
    deadline_s = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline_s and child.exit_code() is None:
        reading = _read(child.pid, port)
        if reading is not None and warm is None and reading.examples >= WARM_SHARE * num_examples:
            warm = reading
        if reading is not None and warm is not None and reading.examples >= num_examples:
            return warm, reading
        time.sleep(0.05)
    raise RuntimeError(f"the trainer did not learn everything: {child.last_words()}")


def _read(pid: int, port: int) -> Reading | None:
    """Returns what the process says of itself; None while it does not answer yet."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=2) as answer:
            text = answer.read().decode()
    except OSError:
        return None
    examples = next(float(row.split()[1]) for row in text.splitlines() if row.startswith("freshrank_trainer_examples"))
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return Reading(examples, time.perf_counter(), (int(fields[11]) + int(fields[12])) / _CLOCK_TICKS_PER_S)


def _free_port() -> int:
    with bind("127.0.0.1", 0, "benchmark") as listener:
        return int(listener.getsockname()[1])


def measure(num_slates: int = 6_000, repeats: int = 3) -> dict[str, Figure]:
    """Returns P5 with float32 products, bfloat16 and the ceiling beside it."""
    values, num_examples = messages(num_slates), num_slates * SLATE
    rates: dict[Precision, list[float]] = {"float32": [], "bfloat16": []}
    cpu_rates: list[float] = []
    with broker() as (kind, address), tempfile.TemporaryDirectory() as name:
        kafka = KafkaConfig(bootstrap_servers=address, topic_prefix=f"b{uuid.uuid4().hex[:8]}-")
        create_topics(kafka)
        write(kafka, values)
        redis_port = _free_port()
        redis = start_redis(Path(name) / "redis", redis_port)
        try:
            for precision in [one for one in rates for _ in range(repeats)]:
                with trainer(kafka, redis_port, precision, Path(name)) as (child, port):
                    warm, end = readings(child, port, num_examples)
                rates[precision].append((end.examples - warm.examples) / (end.wall_s - warm.wall_s))
                if precision == "float32":
                    cpu_rates.append((end.examples - warm.examples) / (end.cpu_s - warm.cpu_s))
        finally:
            redis.stop()
    torch.set_num_threads(1)
    ceiling = cpu_rate(learner_step(ModelConfig(encoding=EncodingConfig(history_length=0)), -(-NUM_ROWS // SLATE)))
    return {
        "P5": Figure(
            value=statistics.median(rates["float32"]),
            unit="examples/s",
            ci=(min(rates["float32"]), max(rates["float32"])),
            command=COMMAND,
            peers={
                "bfloat16 products": statistics.median(rates["bfloat16"]),
                "per CPU-second": statistics.median(cpu_rates),
                "steps alone, from memory": ceiling.per_wall_s,
            },
            note=f"preset small, one thread, slates of {SLATE}, two partitions, broker {kind}",
        )
    }


if __name__ == "__main__":
    for key, figure in measure().items():
        print(key, figure.as_json())
