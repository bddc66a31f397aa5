"""What do the agents cost at the demo's load, with and without online metrics?

A process of `freshrank agents` reads, in real time, the feedback and the examples of 48 slates of 20 a second (about
1,150 events) of the demo's scenarios and tasks, on two partitions; the joiner's own core makes the examples, every
100 ms. Its `/metrics` are asked for every second, as by the live page. CPU-seconds are user + system of the process, a
few seconds after its start; embedded broker and Redis are other processes. Beside it the fold alone: messages of
`examples` to online metrics, state encoded every second of the log, nothing read or written.
"""

import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.demo import ROOT, free_ports
from benchmarks.harness import Figure, cpu_rate
from freshrank.children import Child
from freshrank.config import RunConfig, load_config
from freshrank.embedded import start_broker, start_redis
from freshrank.scrape import Scrape
from freshrank.supervisor import python_argv
from stream.codec import encode
from stream.examples import ExampleEncoder
from stream.join import JoinConfig, JoinCore
from stream.kafka_producer import KafkaProducer
from stream.log import EXAMPLES, FEEDBACK
from stream.online_metrics import PartitionMetrics
from stream.online_metrics_config import OnlineMetricsConfig
from stream.schema import Feedback, Impression, Items, SchemaConfig, Served
from stream.settled_labels import read_settled
from stream.topics import create_topics

COMMAND = "python -m benchmarks.agents"
TICK_MS = 100
SLATES_PER_TICK, SLATE = 2.4, 20
RATES = {"click": 0.18, "order": 0.02, "hide": 0.01}
LEAD_S = 8
"""Seconds of the log before windows close as fast as they open, and the process has started and read what was there."""


class Tick(NamedTuple):
    """What one partition's users and its joiner write in `TICK_MS`."""

    feedback: list[tuple[bytes, bytes]]
    examples: list[bytes]


def ticks(schema: SchemaConfig, join: JoinConfig, num_ticks: int, partition: int) -> Iterator[Tick]:
    """Yields a partition's log, from now on."""
    rng = np.random.default_rng(partition)
    core, encoder = JoinCore(schema, join), ExampleEncoder(schema, join)
    start_ms = time.time_ns() // 1_000_000
    offset = 0
    due: list[Feedback] = []
    for tick in range(num_ticks):
        now_ms = start_ms + tick * TICK_MS
        emissions = []
        for _ in range(rng.poisson(SLATES_PER_TICK)):
            offset += 1
            request, user = f"r{partition}.{offset}", f"u{partition}.{rng.integers(1_000)}"
            ids = [f"i{n}" for n in rng.permutation(200)[:SLATE]]
            scores = {task: (rate * rng.gamma(4, 0.25, SLATE)).clip(0, 1) for task, rate in RATES.items()}
            columns = {task: values.tolist() for task, values in scores.items()}
            scenario = schema.scenarios[int(rng.integers(len(schema.scenarios)))]
            shown = Impression(request, user, scenario, now_ms, Items(ids, scores=columns), served=Served(tick // 3))
            emissions += core.observe_impression(shown, offset)
            for task, values in scores.items():
                for place in np.flatnonzero(rng.random(SLATE) < values):
                    at_ms = now_ms + int(rng.exponential(500))
                    name = f"{request}.{place}.{task}"
                    due.append(Feedback(request, user, ids[place], task, at_ms, event_id=name))
        done = [event for event in due if event.ts <= now_ms]
        due = [event for event in due if event.ts > now_ms]
        for event in done:
            offset += 1
            emissions += core.observe_feedback(event, offset)
        emissions += core.advance(now_ms - join.out_of_orderness_ms)
        yield Tick([(event.user_id.encode(), encode(event)) for event in done], encoder.encode(emissions))


class Process(NamedTuple):
    """What a process has used."""

    cpu_s: float
    resident_mb: float


def scraped(run: RunConfig) -> Process:
    """Returns what the agents say of themselves."""
    with urllib.request.urlopen(f"http://{run.monitor.agents}/metrics", timeout=5) as answer:
        scrape = Scrape.parse(answer.read().decode())
    cpu_s, resident = (scrape.value(f"process_{name}") for name in ("cpu_seconds_total", "resident_memory_bytes"))
    if cpu_s is None or resident is None:
        raise RuntimeError("this system does not tell a process's CPU time and memory")
    return Process(cpu_s, resident / 1e6)


def share_of_a_core(run: RunConfig, argv: Sequence[str], folder: Path, seconds: int) -> tuple[float, float, float]:
    """Returns the process's CPU-seconds per second, its resident MB and the events written per second."""
    producer = KafkaProducer(run.kafka)
    logs = [ticks(run.schema, run.join, 10 * (seconds + LEAD_S), partition) for partition in range(2)]
    child = Child(argv, folder / "agents.log")
    try:
        num_events = 0
        start_s = time.monotonic()
        for number, both in enumerate(zip(*logs, strict=True)):
            for partition, tick in enumerate(both):
                for user, value in tick.feedback:
                    producer.produce(FEEDBACK, user, value)
                for value in tick.examples:
                    producer.produce(EXAMPLES, str(partition).encode(), value)
                num_events += (len(tick.feedback) + round(SLATES_PER_TICK * SLATE)) * (number >= 10 * LEAD_S)
            producer.poll()
            if number == 10 * LEAD_S:
                first = scraped(run)
            elif number > 10 * LEAD_S and number % 10 == 0:
                scraped(run)
            time.sleep(max(0.0, start_s + (number + 1) * TICK_MS / 1_000 - time.monotonic()))
        last = scraped(run)
        return (last.cpu_s - first.cpu_s) / seconds, last.resident_mb, num_events / seconds
    finally:
        child.stop(10)
        producer.flush(5_000)


def fold_rate(run: RunConfig, num_ticks: int, repeats: int) -> tuple[float, tuple[float, float]]:
    """Returns labels per CPU-second of the fold alone, with their range."""
    log = [value for tick in ticks(run.schema, run.join, num_ticks, 0) for value in tick.examples]

    def fold() -> int:
        metrics, num_labels = PartitionMetrics(OnlineMetricsConfig()), 0
        for offset, value in enumerate(log):
            num_labels += metrics.fold(offset, read_settled(value, tuple(run.schema.tasks))).num_labels
            if offset % 10 == 0:
                metrics.encode()
        return num_labels

    rate = cpu_rate(fold, repeats=repeats)
    return rate.per_cpu_s, rate.per_cpu_s_range


def measure(seconds: int = 20, repeats: int = 3) -> dict[str, Figure]:
    """Returns the share of a core with online metrics, without them beside it, and the rate of the fold."""
    shares = {}
    for is_on in (True, False):
        with tempfile.TemporaryDirectory() as name:
            folder, (kafka, redis, agents) = Path(name), free_ports(3)
            settings = [
                f"kafka.bootstrap_servers=127.0.0.1:{kafka}",
                f"redis.url=redis://127.0.0.1:{redis}/0",
                f"monitor.agents=127.0.0.1:{agents}",
                f"agents.metrics.enabled={str(is_on).lower()}",
            ]
            run = load_config(ROOT / "configs/demo.yaml", settings)
            services = [start_redis(folder / "redis", redis), start_broker(folder / "broker", kafka, "noida")]
            try:
                create_topics(run.kafka)
                argv = python_argv("freshrank.cli", "agents", *run.arguments)
                shares[is_on] = share_of_a_core(run, argv, folder, seconds)
            finally:
                for service in reversed(services):
                    service.stop()
    (share, mb, events), (share_off, mb_off, _) = shares[True], shares[False]
    rate, rate_range = fold_rate(run, 300, repeats)
    return {
        "agents": Figure(
            value=100 * share,
            unit="% of a core",
            ci=(100 * share, 100 * share),
            command=COMMAND,
            peers={"without online metrics": 100 * share_off},
            note=f"{events:.0f} events/s; {mb:.0f} MB resident with online metrics, {mb_off:.0f} without",
        ),
        "agents-fold": Figure(
            value=rate,
            unit="labels/CPU-s",
            ci=rate_range,
            command=COMMAND,
            note="messages of examples to online metrics, one partition, as the demo writes them",
        ),
    }


if __name__ == "__main__":
    for key, figure in measure().items():
        print(key, figure.as_json())
