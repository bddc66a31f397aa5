"""Writes `freshrank/per_core.json`, what `freshrank plan` rests on, from the results of the benchmarks.

    python -m benchmarks.per_core            # after `make bench`; says what has changed
    python -m benchmarks.per_core --check    # exit code 1 where the file is not what the results say

Four sorts of rows: `Taken` from a figure of `results/latest.json` (its value, or one of its peers), `Drilled` from the
failure drills, `Quoted` from the words of a document, `Assumed` for a reason. What can be measured belongs into
a benchmark, and then here.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from freshrank.plan_costs import Cost, Costs, decode_costs

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "freshrank/per_core.json"
RESULTS = ROOT / "benchmarks/results"
MIB = 2**20


class Taken(NamedTuple):
    """A figure of `latest.json`, turned into another unit."""

    unit: str
    goal: str
    peer: str | None
    turned: Callable[[float], float]


class Quoted(NamedTuple):
    """The number in the words of a document or a note, times a factor."""

    unit: str
    document: str
    pattern: str
    factor: float
    command: str


class Assumed(NamedTuple):
    """A figure that nobody has measured here."""

    unit: str
    value: float
    why: str


class Drilled(NamedTuple):
    """Seconds of a failure drill, from `drills.json`."""

    drill: str
    path: tuple[str, ...]


def _us(per_cpu_s: float) -> float:
    return 1e6 / per_cpu_s


def _same(value: float) -> float:
    return value


def _per(number: float, factor: float = 1.0) -> Callable[[float], float]:
    return lambda value: factor * value / number


def _used(service: str) -> Quoted:
    pattern = rf"\| {service} \| \d+ MiB \| (\d+) MiB \|"
    return Quoted("bytes", "docs/deploy.md", pattern, MIB, "python3 deploy/smoke.py")


_OPEN, _DELTA_ROWS, _DELTA_BYTES, _FULL_ROWS = 400_000, 10_800, 2_587_848, 650_000
Row = Taken | Quoted | Assumed | Drilled
TABLE: dict[str, Row] = {
    "joiner.event_single": Taken("CPU us/event", "P3", None, _us),
    "joiner.event_of_20": Taken("CPU us/event", "P3", "this joiner, slates of 20", _us),
    "joiner.open_single": Taken("bytes/open item", "spill.peak", "in memory", _per(_OPEN, MIB)),
    "joiner.open_of_20": Taken("bytes/open item", "spill.peak", "in memory slates of 20", _per(_OPEN, MIB)),
    "joiner.disk_single": Taken("bytes/open item", "spill.disk", None, _per(_OPEN, MIB)),
    "joiner.disk_of_20": Taken("bytes/open item", "spill.disk", "slates of 20", _per(_OPEN, MIB)),
    "joiner.spilled_close": Taken("CPU us/slate", "spill.close", "slates of 20", _us),
    "joiner.spilled_feedback": Taken("CPU us/event", "spill.feedback", "slates of 20", _us),
    "joiner.base": _used("joiner"),
    "joiner.hop_p50": Taken("ms", "P1.hop", None, _same),
    "joiner.hop_p99": Taken("ms", "P1.hop", "p99", _same),
    "joiner.way": Assumed("ms", 5.0, "linger of the producer (2 ms), the broker, the joiner's fetch"),
    "joiner.commit": Assumed("ms", 5.0, "median of a transaction; makes the simulated hop P1.hop"),
    "joiner.commit_spread": Assumed("log", 0.7, "its spread (of the logarithm), likewise"),
    "trainer.row": Taken("CPU us/row", "P5", "per CPU-second", _us),
    "trainer.read": Taken("CPU us/row", "plan.trainer", "reading", _same),
    "trainer.lead": Taken("CPU us/row", "plan.trainer", "the rest", _same),
    "trainer.step": Taken("CPU ms", "plan.step", None, _same),
    "trainer.step_row": Taken("CPU us/row", "plan.step", "per row us", _same),
    "trainer.step_published": Taken("CPU ms", "plan.step", "published", _same),
    "trainer.step_row_published": Taken("CPU us/row", "plan.step", "published per row us", _same),
    "trainer.base": _used("trainer"),
    "ranks.collective": Assumed("ms", 0.2, "a collective of a few bytes between hosts"),
    "ranks.collectives": Assumed("per step", 8.0, "metadata, rows there and back, counts, gradients, columns"),
    "ranks.lead_column": Assumed("bytes/row", 64.0, "logits, labels, masks, times, served scores of two tasks"),
    "ranks.distinct": Assumed("rows/row", 4.0, "distinct embedding rows per row of a micro-batch"),
    "publish.row": Taken("CPU us/row", "P9", "CPU of the trainer", _per(_DELTA_ROWS, 1e3)),
    "apply.row": Taken("CPU us/row", "P9", "CPU of the ranker", _per(_DELTA_ROWS, 1e3)),
    "apply.full_row": Taken("CPU us/row", "swap.cold_start", "of it CPU", _per(_FULL_ROWS, 1e6)),
    "redis.byte": Taken("ns/byte", "P9", "the same bytes as one SET and GET", _per(2 * _DELTA_BYTES, 1e6)),
    "ranker.request": Taken("CPU ms", "P7", "CPU of the server per request", _same),
    "ranker.request_published": Taken("CPU ms", "P7.published", "CPU of the server per request", _same),
    "ranker.scored": Taken("CPU ms", "P7.in_process", "CPU of a request", _same),
    "ranker.scored_published": Taken("CPU ms", "P7.in_process.published", "CPU of a request", _same),
    "ranker.probe": Taken("CPU us/row", "P7.in_process", "CPU of score", _per(500, 1e3)),
    "ranker.probe_published": Taken("CPU us/row", "P7.in_process.published", "CPU of score", _per(500, 1e3)),
    "ranker.base": _used("ranker, each of two"),
    "wire.impression": Taken("bytes", "plan.wire", "impression", _same),
    "wire.feedback": Taken("bytes", "plan.wire", "feedback", _same),
    "wire.examples": Taken("bytes", "plan.wire", "examples of a slate", _same),
    "wire.sequence": Taken("bytes", "plan.wire", "sequence of 100", _same),
    "restart.joiner": Drilled("kill-joiner", ("recovered_s",)),
    "restart.trainer": Drilled("kill-trainer", ("training_again", "wall_s")),
    "restart.ranker": Drilled("kill-ranker", ("recovered_s",)),
    "restart.redis": Drilled("redis-restarted", ("recovered_s",)),
    "restart.kafka": Drilled("kafka-paused", ("recovered_s",)),
    "network.link": Assumed("bytes/s", 1.25e9, "10 Gbit/s per host"),
    "kafka.partition": Assumed("bytes/s", 5e6, "what one partition takes in, with room"),
    "kafka.broker": Assumed("bytes/s", 1e8, "what one broker writes, copies included"),
    "failures.process": Assumed("days", 30.0, "mean time between failures of one process or its host"),
    "failures.outage": Assumed("s", 60.0, "how long Redis or Kafka is away when it fails"),
    "zipf.items": Assumed("exponent", 0.9, "how items' popularity falls; decides how many rows a delta holds"),
    "zipf.users": Assumed("exponent", 0.5, "how users' activity falls"),
    "reach.whole": Quoted(
        "events/s", "benchmarks/results/latest.json", r"(\d+) events/s at its end", 1.0, "python -m benchmarks.demo"
    ),
    "reach.joiners": Assumed("processes", 2.0, "joiners that have been run side by side; one core each was measured"),
    "reach.ranks": Assumed("processes", 2.0, "ranks that have been run side by side"),
    "reach.rankers": Assumed("processes", 2.0, "rankers that have been run side by side"),
    "reach.delta_rows": Taken("rows", "P9", None, lambda value: float(_DELTA_ROWS)),
}  # fmt: skip
"""Every figure of a plan, and where it is from."""


def cost(row: Row, latest: dict[str, Any], drills: dict[str, Any]) -> Cost:
    """Returns a row's figure.

    Raises:
        KeyError: the results do not have it; run the benchmark.
    """
    match row:
        case Taken(unit, goal, peer, turned):
            figure = latest[goal]
            value = turned(figure["value"] if peer is None else figure["peers"][peer])
            of = f"latest.json, {goal}" + (f", {peer}" if peer else "")
            return Cost(value=_rounded(value), unit=unit, kind="measured", source=of, command=figure["command"])
        case Quoted(unit, document, pattern, factor, command):
            found = re.search(pattern, (ROOT / document).read_text(encoding="utf-8"))
            if found is None:
                raise KeyError(f"{document}: nothing like {pattern!r} in it")
            value = factor * float(found[1])
            return Cost(value=value, unit=unit, kind="measured", source=f"{document}: {found[0]}", command=command)
        case Drilled(drill, path):
            seconds: Any = next(run for run in drills["runs"] if run["name"] == drill)
            for part in path:
                seconds = seconds[part]
            where = f"drills.json, {drill}, {path[-1]}"
            return Cost(value=float(seconds), unit="s", kind="measured", source=where, command="make drills")
        case Assumed(unit, value, why):
            return Cost(value=value, unit=unit, kind="assumed", source=why)


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def costs() -> dict[str, Cost]:
    """Returns the whole table as the results stand now."""
    latest = json.loads((RESULTS / "latest.json").read_text(encoding="utf-8"))
    drills = json.loads((RESULTS / "drills.json").read_text(encoding="utf-8"))
    return {name: cost(row, latest, drills) for name, row in TABLE.items()}


def written(found: dict[str, Cost]) -> bytes:
    """Returns the file."""
    return msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n"


def changes(old: Costs, new: dict[str, Cost]) -> list[str]:
    """Returns a line for each figure that is not what it was."""
    known = set(old.names())
    lines = [f"{name}: gone" for name in sorted(known - new.keys())]
    for name, one in new.items():
        before = old[name] if name in known else None
        if before != one.value:
            lines.append(f"{name}: {before} -> {one.value:g} {one.unit}")
    return lines


def main() -> int:
    """Writes the file, or only compares; returns the exit code."""
    parser = argparse.ArgumentParser(description="Writes what `freshrank plan` rests on.")
    parser.add_argument("--check", action="store_true")
    found = costs()
    old = decode_costs(TARGET.read_bytes()) if TARGET.exists() else Costs({})
    for line in changes(old, found):
        print(line)
    if parser.parse_args().check:
        return 0 if TARGET.exists() and TARGET.read_bytes() == written(found) else 1
    TARGET.write_bytes(written(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
