"""What do two and three joiners do that one does not? `python -m benchmarks.joiners`, into `results/scale.json`.

As many `freshrank join` processes as named share six partitions of Apache Kafka (KAFKA_HOME). When all have theirs, a
log of single-item slates and clicks is written in one go, encoded before; the clock stops when the last label is
committed. Events per second of wall time say what this machine does with broker and writer on the same cores;
CPU-seconds per million events say what the joiners themselves cost, wherever they run.
"""

import argparse
import json
import os
import sys
import tempfile
import time
import urllib.request
import uuid
from pathlib import Path
from typing import Any

from benchmarks.__main__ import RESULTS, machine
from benchmarks.join_core import GRACE_MS, JITTER_MS, arrivals
from benchmarks.joiner_process import SCHEMA, broker, with_features
from freshrank.children import Child
from freshrank.ports import bind
from freshrank.scrape import Scrape
from freshrank.supervisor import python_argv
from stream.codec import encode
from stream.kafka_producer import KafkaProducer
from stream.log import FEEDBACK, IMPRESSIONS, KafkaConfig, topic_name
from stream.schema import Impression
from stream.topics import create_topics
from tests.chaos.cluster import write_run

NUM_PARTITIONS = 6
COMMAND = "python -m benchmarks.joiners"
_JOIN: dict[str, int | str] = {
    "grace_ms": GRACE_MS,
    "out_of_orderness_ms": JITTER_MS,
    "max_ahead_ms": 0,
    "idle_ms": 3_600_000,
}
_LIMIT_S = 300.0
_LOOK_S = 0.1


class Joiner:
    """A process that joins, and what it says of itself."""

    def __init__(self, run: Path, number: int) -> None:
        with bind("127.0.0.1", 0, "benchmark") as listener:
            self._address = f"127.0.0.1:{listener.getsockname()[1]}"
        argv = python_argv("freshrank.cli", "join", "--config", str(run), "--set", f"monitor.joiner={self._address}")
        self.child = Child(argv, run.parent / f"joiner-{number}.log")

    def figures(self) -> Scrape:
        """Returns its metrics; none while it starts."""
        try:
            with urllib.request.urlopen(f"http://{self._address}/metrics", timeout=2) as answer:  # noqa: S310 - our own
                return Scrape.parse(answer.read().decode())
        except OSError:
            return Scrape({})

    def cpu_s(self) -> float:
        """Returns the CPU-seconds it has used, user and system."""
        fields = Path(f"/proc/{self.child.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measured(address: str, folder: Path, num_joiners: int, num_slates: int) -> dict[str, Any]:
    """Returns how fast so many joiners were, and what they cost."""
    kafka = KafkaConfig(
        bootstrap_servers=address, topic_prefix=f"b{uuid.uuid4().hex[:8]}-", num_partitions=NUM_PARTITIONS
    )
    create_topics(kafka)
    folder.mkdir()
    run = write_run(folder / "run.yaml", kafka, SCHEMA, _JOIN)
    events = with_features(arrivals(num_slates, 1))
    encoded = [
        (
            topic_name(kafka, IMPRESSIONS if isinstance(event, Impression) else FEEDBACK),
            event.user_id.encode(),
            encode(event),
        )
        for event in events
    ]
    del events
    joiners = [Joiner(run, number) for number in range(num_joiners)]
    try:
        _until(lambda: sorted(map(_num_pairs, joiners)) == [NUM_PARTITIONS // num_joiners] * num_joiners)
        before_s = [joiner.cpu_s() for joiner in joiners]
        producer = KafkaProducer(kafka)
        start_s = time.perf_counter()
        for topic, key, value in encoded:
            while not producer.produce(topic, key, value):
                producer.poll()
                time.sleep(0.001)
        if producer.flush(60_000):
            raise RuntimeError("the log could not be written")
        written_s = time.perf_counter() - start_s
        _until(lambda: sum(map(_num_labels, joiners)) >= num_slates)
        took_s = time.perf_counter() - start_s
        used_s = [joiner.cpu_s() - before for joiner, before in zip(joiners, before_s, strict=True)]
    finally:
        for joiner in joiners:
            joiner.child.stop(30)
    return {
        "joiners": num_joiners,
        "events": len(encoded),
        "events_per_s": round(len(encoded) / took_s),
        "written_per_s": round(len(encoded) / written_s),
        "cpu_s_per_million_events": round(1e6 * sum(used_s) / len(encoded), 1),
        "cpu_share_of_each": [round(used / took_s, 2) for used in used_s],
        "load_average": round(os.getloadavg()[0], 1),
    }


def _num_pairs(joiner: Joiner) -> int:
    return sum(name == "freshrank_joiner_open_slates" for name, _ in joiner.figures().samples)


def _num_labels(joiner: Joiner) -> float:
    return joiner.figures().value("freshrank_joiner_labels_total") or 0.0


def _until(condition: Any) -> None:
    deadline_s = time.monotonic() + _LIMIT_S
    while not condition():
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"not within {_LIMIT_S:g} s")
        time.sleep(_LOOK_S)


def main() -> int:
    """Measures one, two and three joiners in turn; returns the exit code."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--slates", type=int, default=120_000, help="single-item slates in the log")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each number of joiners")
    parser.add_argument("--out", type=Path, default=RESULTS / "scale.json", help="where the figures go")
    given = parser.parse_args()
    if not os.environ.get("KAFKA_HOME"):
        print("KAFKA_HOME is not set: it must name the folder of an unpacked Apache Kafka 4", file=sys.stderr)
        return 2
    rows = []
    with broker() as (_, address), tempfile.TemporaryDirectory() as folder:
        for repeat in range(given.repeats):
            for number in (1, 2, 3):
                rows.append(measured(address, Path(folder) / f"{repeat}-{number}", number, given.slates))
                print(json.dumps(rows[-1]), flush=True)
    kept = json.loads(given.out.read_text()) if given.out.exists() else {}
    figures = {"machine": machine(), "joiners": {"command": COMMAND, "rows": rows}}
    given.out.write_text(json.dumps(kept | figures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
