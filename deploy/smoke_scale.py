"""The profile `scale` for real: three joiners and rankers behind the balancer, stopped, killed and added under load.

    python3 deploy/smoke_scale.py [--json result.json]

Needs what `deploy/smoke.py` needs. Somebody asks the balancer ten times per second throughout; each step says how many
of these requests were not answered, and for how long. At the end `freshrank verify-join` looks at every label.
"""

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

from smoke import KILL, SmokeError, Stack, compose, nothing_left, run, until

PERIOD_S = 0.1
SETTLE_S = 8.0
"""How long is asked on after each step: longer than health checks and rebalances take."""


class Asker(threading.Thread):
    """Asks for rankings, one after the other; notes what came back and when."""

    def __init__(self, stack: Stack) -> None:
        super().__init__(daemon=True)
        self._stack = stack
        self.replies: list[tuple[float, int]] = []
        """Time and HTTP status; 0: no answer."""
        self.is_over = threading.Event()

    def run(self) -> None:
        """Asks until it is over."""
        while not self.is_over.wait(PERIOD_S):
            try:
                self._stack.rank()
                status = 200
            except HTTPError as error:
                status = error.code
            except OSError:
                status = 0
            self.replies.append((time.monotonic(), status))

    def since(self, start_s: float) -> str:
        """Returns in words what became of the requests since then."""
        replies = [(at_s, status) for at_s, status in self.replies if at_s >= start_s]
        failed = [(at_s, status) for at_s, status in replies if status != 200]
        if not failed:
            return f"{len(replies)} requests, none failed"
        lasted_s = failed[-1][0] - failed[0][0]
        return f"{len(replies)} requests, {len(failed)} failed within {lasted_s:.1f} s: {[s for _, s in failed]}"


def containers(service: str) -> list[str]:
    """Returns the containers of a service that run."""
    return compose("ps", "--quiet", "--status", "running", service).split()


def up(*arguments: str) -> str:
    """Brings up three of each, or as many as the arguments say."""
    counts = {"joiner": 3, "ranker": 3} | dict((name, int(n)) for name, _, n in (a.partition("=") for a in arguments))
    scale = [word for name, number in counts.items() for word in ("--scale", f"{name}={number}")]
    compose("up", "--detach", "--wait", "--no-recreate", *scale)
    return ", ".join(f"{number} of {name}" for name, number in counts.items())


def page(stack: Stack) -> str:
    """Waits until the page has all six and says they are up."""
    wanted = {f"{kind}-{number}" for kind in ("joiner", "ranker") for number in (1, 2, 3)}

    def all_up() -> Any:
        found = {process["name"]: process["up"] for process in stack.get("monitor", "/api/state")["processes"]}
        return wanted <= found.keys() and all(found.values()) and found

    return ", ".join(until("the page has all replicas", all_up))


def targets(stack: Stack) -> str:
    """Waits until Prometheus has found all replicas."""

    def all_up() -> Any:
        found = stack.get("prometheus", "/api/v1/query?query=sum%20by%20(job)%20(up)")["data"]["result"]
        counts = {row["metric"]["job"]: int(row["value"][1]) for row in found}
        return (counts.get("joiner"), counts.get("ranker"), counts.get("balancer")) == (3, 3, 1) and counts

    return str(until("Prometheus has all replicas", all_up))


def audit(_: Stack) -> str:
    """Lets `freshrank verify-join` judge all labels, once the users have gone."""
    compose("stop", "simulator")
    time.sleep(2 * SETTLE_S)
    argv = ("run", "--rm", "--no-deps", "-T", "trainer", "verify-join", "--config", "configs/compose.yaml", "--json")
    report = json.loads(compose(*argv))
    faults = {name: report[name] for name in ("lost", "double", "contradictory", "wrong")}
    if any(faults.values()):
        raise SmokeError(f"labels are not as they must be: {faults}")
    return f"{report['judged']} labels of {report['slates']} slates: {faults}"


def main() -> int:
    """Runs all steps; returns the exit code."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the steps and their seconds here")
    arguments = parser.parse_args()
    os.environ["COMPOSE_PROFILES"] = "scale"
    stack, rows = Stack(asks="balancer"), list[dict[str, Any]]()
    asker = Asker(stack)

    def step(name: str, act: Callable[[], object], settle_s: float = 0.0) -> None:
        print(f"{name} ...", file=sys.stderr, flush=True)
        start_s = time.monotonic()
        found = act()
        took_s = round(time.monotonic() - start_s, 1)
        time.sleep(settle_s)
        rows.append({"step": name, "s": took_s, "found": asker.since(start_s) if settle_s else str(found)})

    def end(service: str, *argv: str) -> None:
        run("docker", *argv, containers(service)[0], *(("sh", "-c", KILL) if argv[0] == "exec" else ()))

    code = 0
    try:
        step("image", lambda: compose("build", "--quiet") or "built")
        step("three of each, up --wait", up)
        step("live page", lambda: page(stack))
        step("Prometheus", lambda: targets(stack))
        until("a ranking by a model", lambda: stack.rank()["snapshot"])
        asker.start()
        step("nothing", lambda: None, SETTLE_S)
        step("a ranker is stopped", lambda: end("ranker", "stop"), SETTLE_S)
        step("it is started again", up, SETTLE_S)
        step("a ranker crashes", lambda: end("ranker", "exec"), SETTLE_S)
        step("a fourth ranker", lambda: up("ranker=4"), SETTLE_S)
        step("a joiner is stopped", lambda: end("joiner", "stop"), SETTLE_S)
        step("it is started again", up, SETTLE_S)
        step("a joiner crashes", lambda: end("joiner", "exec"), SETTLE_S)
        step("all labels", lambda: audit(stack))
    except SmokeError as error:
        print(f"smoke: {error}\n{compose('logs', '--tail', '20')}", file=sys.stderr)
        rows.append({"step": "failed", "s": 0.0, "found": str(error)})
        code = 1
    finally:
        asker.is_over.set()
        step("down", lambda: nothing_left(stack))
    for row in rows:
        print(f"{row['step']:26} {row['s']:7.1f} s   {row['found']}")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
