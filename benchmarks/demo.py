"""P1, P11, P12: what does the whole loop give here: freshness, memory, and time to the first changed ranking?

Runs the demo as a user does, `freshrank up`, for a minute: embedded broker, Redis, all processes and simulated users on
the same cores. Ports of its own, so that a demo may be running beside it, though not to the good of the figures.

    python -m benchmarks.demo
    python -m benchmarks.demo --seconds 40 --set trainer.max_wait_ms=20 --set join.commit_interval_ms=50
"""

import argparse
import json
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.harness import Figure

COMMAND = "python -m benchmarks.demo"
ROOT = Path(__file__).parents[1]
SECONDS = 60
REQUESTS_PER_S = 44
"""With slates of 20 and their feedback about 1,000 events per second, as P1 asks; the demo itself has fewer."""
PORTS = {
    "monitor.port": "{}",
    "monitor.joiner": "127.0.0.1:{}",
    "monitor.trainer": "127.0.0.1:{}",
    "monitor.agents": "127.0.0.1:{}",
    "monitor.simulator": "127.0.0.1:{}",
    "kafka.bootstrap_servers": "127.0.0.1:{}",
    "redis.url": "redis://127.0.0.1:{}/0",
}


def free_ports(number: int) -> list[int]:
    """Returns so many different TCP ports nobody listens on right now."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(number)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def run_demo(folder: Path, seconds: int, changes: Sequence[str] = ()) -> dict[str, Any]:
    """Returns the report of a demo that ran for so long with these settings changed. Raises if it did not learn."""
    *ports, ranker = free_ports(len(PORTS) + 1)
    settings = [f"{name}={value.format(port)}" for (name, value), port in zip(PORTS.items(), ports, strict=True)]
    settings += [f"ranker.server.port={ranker}", f"monitor.ranker=127.0.0.1:{ranker}"]
    settings += [f"sim.requests_per_s={REQUESTS_PER_S}", *changes]
    report = folder / "report.json"
    argv = [sys.executable, "-m", "freshrank.cli", "up", "--config", str(ROOT / "configs/demo.yaml")]
    argv += ["--for", str(seconds), "--report", str(report), "--dir", str(folder / "run"), "--log-level", "warning"]
    argv += [part for setting in settings for part in ("--set", setting)]
    subprocess.run(argv, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    found: dict[str, Any] = json.loads(report.read_text())
    return found


def measure(seconds: int = SECONDS, changes: Sequence[str] = ()) -> dict[str, Figure]:
    """Returns P1 (p99, with p50 and the stages beside it), P11 and P12 of one run."""
    with tempfile.TemporaryDirectory() as folder:
        report = run_demo(Path(folder), seconds, changes)
    fresh, rate = report["freshness_ms"], report["events_per_s"]
    note = f"one run of {report['seconds']:.0f} s from a cold start, {rate:.0f} events/s at its end"
    stages = ", ".join(f"{name} {found['p50']:.0f} / {found['p99']:.0f}" for name, found in report["stages_ms"].items())
    return {
        "P1": one_run(
            fresh["p99"],
            "ms",
            f"p99 of {fresh['n']} actions, p50 {fresh['p50']:.0f} ms; stages, p50 / p99 in ms: {stages}; {note}",
        ),
        "P11": one_run(report["memory_bytes"] / 2**30, "GiB", f"resident, most of all processes together; {note}"),
        "P12": one_run(report["time_to_first_changed_ranking_s"], "s", f"from the command to the change; {note}"),
    }


def one_run(value: float, unit: str, note: str) -> Figure:
    """Returns a figure of a single run, which has no range."""
    return Figure(value=value, unit=unit, ci=(value, value), command=COMMAND, note=note)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measures the demo once.")
    parser.add_argument("--seconds", type=int, default=SECONDS)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="changes")
    asked = parser.parse_args()
    for goal, figure in measure(asked.seconds, asked.changes).items():
        print(goal, figure.as_json())
