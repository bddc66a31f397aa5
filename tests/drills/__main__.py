"""Failure drills on real Kafka and Redis: `python -m tests.drills [--seconds 60] [--only NAME ...] [--soak 600]`.

Does one drill after the other under a steady load of users who check every answer, prints a table, and writes it with
`--json`. The exit code is 1 if anything was not as it must be. Needs KAFKA_HOME; cut cables and full disks need root.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.__main__ import machine
from freshrank.supervisor import python_argv
from tests.drills.cluster import Cluster
from tests.drills.drills import all_drills
from tests.drills.network import best_network
from tests.drills.report import drill_lines, markdown
from tests.drills.run import Drilled
from tests.drills.soak import soak

_VERIFY_TIMEOUT_S = 600.0
_FAULTS = ("lost", "double", "contradictory", "wrong")
_EXPLAINED = ("judged", "slates", "late", "unmatched", "open", "malformed")


def main() -> int:
    """Does the drills; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.drills", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="how long Redis, Kafka and the network are gone")
    parser.add_argument("--short", type=float, default=12.0, help="how long disks are full, clocks wrong, others slow")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="only the drills whose name has this")
    parser.add_argument("--soak", type=float, metavar="SECONDS", help="instead: load and random kills for so long")
    parser.add_argument("--rate", type=float, default=10.0, help="rank requests per second, beside the simulator's 10")
    parser.add_argument("--seed", type=int, default=0, help="of the users, and of who is killed in the soak")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures; what was not run stays in it")
    given = parser.parse_args()
    if not os.environ.get("KAFKA_HOME"):
        print("KAFKA_HOME is not set: it must name the folder of an unpacked Apache Kafka 4", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # nothing is to be left behind
    folder = Path(tempfile.mkdtemp(prefix="freshrank-drills-"))
    network = best_network()
    try:
        with Cluster(folder, network, Path(os.environ["KAFKA_HOME"]), {}) as cluster:
            num_problems = _run(cluster, given)
    finally:
        network.close()
    if num_problems:
        print(f"{num_problems} things are not as they must be; logs of all processes in {folder}/logs")
        return 1
    shutil.rmtree(folder)
    return 0


def _run(cluster: Cluster, given: argparse.Namespace) -> int:
    """Does the drills, or the soak, then looks at all labels; returns how many things are not as they must be."""
    print(f"services: {'a network namespace' if cluster.network.can_cut else 'loopback, which cannot be cut'}")
    rows: list[dict[str, Any]] = []
    with Drilled(cluster, given.rate, given.seed, _tell) as drilled:
        if given.soak is not None:
            rows.append(soak(drilled, given.soak, given.seed, _tell))
            _show_soak(rows[0])
        else:
            for drill in all_drills(cluster, given.seconds, given.short):
                if given.only and not any(part in drill.name for part in given.only):
                    continue
                rows.append(drilled.drill(drill))
                print("\n".join(drill_lines(rows[-1])), flush=True)
                _write(given.json, rows)  # what follows may take long
        cluster.wait(10.0)
    if given.soak is None:
        print("\n".join(markdown(rows)))
    labels = _verify(cluster)
    print("labels: " + ", ".join(f"{name} {value}" for name, value in labels.items()))
    for row in rows:
        row["labels"] = labels
    _write(given.json, rows)
    return sum(len(row["problems"]) for row in [*rows, labels])


def _verify(cluster: Cluster) -> dict[str, Any]:
    """Ends our own processes; returns what `freshrank verify-join` says of every label of the run."""
    cluster.supervisor.stop()
    argv = python_argv("freshrank.cli", "verify-join", "--json", *cluster.run.arguments)
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=_VERIFY_TIMEOUT_S)
    try:
        report = json.loads(done.stdout)
    except ValueError:
        return {"problems": [f"verify-join ended with {done.returncode}: {done.stderr.strip()[-300:]}"]}
    found = {name: report[name] for name in (*_EXPLAINED, *_FAULTS)}
    return found | {"problems": [f"{found[name]} labels {name}" for name in _FAULTS if found[name]]}


def _show_soak(found: dict[str, Any]) -> None:
    print(f"{'minute':>6}{'requests':>10}{'wrong':>7}{'unanswered':>12}{'degraded':>10}{'p50 ms':>8}{'p99 ms':>8}")
    for number, users in enumerate([*found["minutes"], found["users"]], start=1):
        name = number if number <= len(found["minutes"]) else "all"
        print(
            f"{name!s:>6}{users['requests']:>10}{users['wrong']:>7}{users['unanswered']:>12}"
            f"{100 * (users['degraded_share'] or 0):>9.1f}%{users['p50_ms'] or 0:>8.0f}{users['p99_ms'] or 0:>8.0f}"
        )
    print(
        f"{len(found['kills'])} kills, {found['versions']} versions served, {found['unanswered_own']} calls unanswered"
    )
    for problem in found["problems"]:
        print(f"    ! {problem}")


def _write(path: Path | None, rows: list[dict[str, Any]]) -> None:
    """Writes the figures; drills and a soak that are in the file and were not run again stay."""
    if path is None:
        return
    kept = json.loads(path.read_text())["runs"] if path.exists() else []
    by_name = {row["name"]: row for row in [*kept, *rows]}
    path.write_text(json.dumps({"machine": machine(), "runs": list(by_name.values())}, indent=1) + "\n")


def _tell(what: str) -> None:
    print(f"    {time.strftime('%H:%M:%S')} {what}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
