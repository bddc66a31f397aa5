"""Torments the joiner, seed after seed: `python -m tests.chaos [--seeds 20] [--first 0]`, or `make chaos SEEDS=20`.

Prints a table and writes `benchmarks/results/chaos.json`; other seeds that are in the file already stay there, so that
a long series can be run in parts. The exit code is 1 if a label of any seed was lost, double, contradictory or wrong,
or anything else went wrong. Needs KAFKA_HOME.
"""

import argparse
import json
import logging
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.__main__ import RESULTS, machine
from tests.chaos.broker import Broker
from tests.chaos.faults import FaultConfig
from tests.chaos.run import Outcome, Run
from tests.chaos.traffic import TrafficConfig

COLUMNS = (
    "seed", "events", "labels", "kills", "rebalances", "stalls", "fenced", "broker_restarts", "hanging",
    "lost", "double", "contradictory", "wrong", "took_s",
)  # fmt: skip


REPORTED = ("lost", "double", "contradictory", "wrong", "late", "unmatched", "open", "judged")
"""Figures taken over from `freshrank verify-join`."""


def main() -> int:
    """Runs the seeds; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=20, help="how many seeds to run")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--out", type=Path, default=RESULTS / "chaos.json", help="where the figures go")
    parser.add_argument("--verbose", action="store_true", help="tell every blow as it falls")
    given = parser.parse_args()
    if not os.environ.get("KAFKA_HOME"):
        print("KAFKA_HOME is not set: it must name the folder of an unpacked Apache Kafka 4", file=sys.stderr)
        return 2
    logging.getLogger("stream.librdkafka").setLevel(logging.ERROR)  # a broker that is taken down is no news
    os.environ.setdefault("KAFKA_OPTS", "-XX:TieredStopAtLevel=1")  # a broker that is restarted must be back soon
    folder = Path(tempfile.mkdtemp(prefix="freshrank-chaos-"))
    print(_line({name: name for name in COLUMNS}), flush=True)
    broker = Broker(folder / "kafka", (_free_port(), _free_port()), Path(os.environ["KAFKA_HOME"]))
    rows: list[dict[str, Any]] = []
    blows = FaultConfig(duration_ms=15_000)
    try:
        for seed in range(given.first, given.first + given.seeds):
            outcome = run_seed(seed, broker, folder / f"seed-{seed}", _tell if given.verbose else _be_silent, blows)
            rows.append(as_row(outcome))
            print("\n    ".join([_line(rows[-1]), *outcome.problems]), flush=True)
            _write(given.out, rows)
    finally:
        broker.close()
    num_right = sum(row["right"] for row in rows)
    print(f"{num_right} of {len(rows)} seeds are right; figures in {given.out}")
    if num_right == len(rows):
        shutil.rmtree(folder)
        return 0
    print(f"logs of all processes in {folder}")
    return 1


def run_seed(seed: int, broker: Broker, folder: Path, say: Callable[[str], None], blows: FaultConfig) -> Outcome:
    """Returns how a seed went: load and blows for `blows.duration_ms`, then quiet and the verdict."""
    return Run(seed, broker, folder, TrafficConfig(duration_ms=blows.duration_ms), blows, say).run()


def as_row(outcome: Outcome) -> dict[str, Any]:
    """Returns an outcome as the results file has it."""
    row = asdict(outcome)
    report = row.pop("report")
    return row | {name: report[name] for name in REPORTED if name in report} | {"right": outcome.is_right}


def _line(row: Mapping[str, object]) -> str:
    return "  ".join(f"{row.get(name, '-')!s:>{max(len(name), 6)}}" for name in COLUMNS)


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes the figures; seeds that are in the file and were not run again stay."""
    kept = json.loads(path.read_text())["seeds"] if path.exists() else []
    by_seed = {row["seed"]: row for row in [*kept, *rows]}
    path.write_text(json.dumps({"machine": machine(), "seeds": [by_seed[n] for n in sorted(by_seed)]}, indent=2) + "\n")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _tell(what: str) -> None:
    print(f"    {time.strftime('%H:%M:%S')} {what}", flush=True)


def _be_silent(what: str) -> None:
    pass


if __name__ == "__main__":
    sys.exit(main())
