"""Joiners and rankers on hosts of their own: `make scale`, or `python -m tests.scale [--rate 25]`.

Writes `benchmarks/results/scale.json`. The exit code is 1 if a label was lost, double, contradictory or wrong, or an
answer was. Needs KAFKA_HOME, root (network namespaces) and HAProxy.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.__main__ import RESULTS, machine
from tests.scale.cluster import Cluster
from tests.scale.hosts import missing
from tests.scale.run import drill


def main() -> int:
    """Does what is asked for; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.scale", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rate", type=float, default=25.0, help="rank requests per second")
    parser.add_argument("--out", type=Path, default=RESULTS / "scale.json", help="where the figures go")
    given = parser.parse_args()
    lacking = what_is_missing()
    if lacking is not None:
        print(lacking, file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # nothing is to be left behind
    folder = Path(tempfile.mkdtemp(prefix="freshrank-scale-"))
    cluster = Cluster(folder, Path(os.environ["KAFKA_HOME"]), num_joiners=3, num_rankers=3)
    try:
        found = drill(cluster, given.rate, say)
    finally:
        cluster.close()
    write(given.out, {"hosts": found | {"command": "python -m tests.scale", "rate_per_s": given.rate}})
    print("\n".join([json.dumps(found["audit"]), *found["problems"], f"figures in {given.out}"]))
    if found["problems"]:
        print(f"logs of all processes in {folder}/logs")
        return 1
    shutil.rmtree(folder)
    return 0


def what_is_missing() -> str | None:
    """Returns in one line what this machine lacks; None if nothing."""
    if not os.environ.get("KAFKA_HOME"):
        return "KAFKA_HOME is not set: it must name the folder of an unpacked Apache Kafka 4"
    if shutil.which("haproxy") is None:
        return "haproxy is not on the PATH"
    return missing()


def write(path: Path, figures: dict[str, Any]) -> None:
    """Writes figures; what else is in the file stays."""
    kept = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(kept | {"machine": machine()} | figures, indent=2) + "\n")


def say(what: str) -> None:
    """Tells what is being done."""
    print(f"{time.strftime('%H:%M:%S')} {what}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
