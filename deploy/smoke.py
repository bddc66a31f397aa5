"""The compose file for real: all services up, a ranking that changes, a trainer that dies and goes on, nothing left.

    python3 deploy/smoke.py               # make smoke; the compose job of CI
    python3 deploy/smoke.py --json result.json

Needs Docker with Compose 2.24 or newer and the standard library alone. Ports and tokens are those of the compose file
and `.env`. Prints how long each step took; ends with 1, and the services' last lines, if one fails.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

ROOT = Path(__file__).parents[1]
LIMIT_S = 300.0
"""How long one step may take; a machine of CI is slow, not broken."""
PAUSE_S = 0.25
RESUMED = re.compile(r"Resumed from a checkpoint step=(\d+)")
PUBLISHING = re.compile(r"Publishing starts epoch=(\d+) after_version=(\d+)")
KILL = "kill -9 $(cat /proc/1/task/1/children)"
"""Ends the process that the container's init watches, as a crash would: `docker kill` counts as wanted."""


class SmokeError(Exception):
    """A step did not come to its end."""


def run(*argv: str) -> str:
    """Returns what a command prints; its errors go to the terminal."""
    done = subprocess.run(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SmokeError(f"{' '.join(argv)}: exit code {done.returncode}")
    return done.stdout


def compose(*argv: str) -> str:
    """Returns what `docker compose ...` prints."""
    return run("docker", "compose", "--progress", "quiet", *argv)


class Stack:
    """The services of the compose file as their users see them: over HTTP, at the ports published."""

    def __init__(self, asks: str = "ranker") -> None:
        self.asks = asks
        """The service that answers `/v1/rank`: `ranker`, or `balancer`."""
        self.config: dict[str, Any] = json.loads(compose("config", "--format", "json"))
        self.services: dict[str, Any] = self.config["services"]
        token = str(self.services["ranker"]["environment"].get("FRESHRANK_API_TOKENS") or "").partition(",")[0]
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        self.num_asked = self.num_failed = 0
        self.request: dict[str, Any] = {}

    def get(self, service: str, path: str) -> Any:
        """Returns the JSON, or else the text, that a service answers."""
        return self._ask(service, path, None)

    def post(self, service: str, path: str, body: object) -> Any:
        """Returns the answer of a service to a JSON body."""
        return self._ask(service, path, json.dumps(body).encode())

    def rank(self) -> dict[str, Any]:
        """Returns the present ranking for one user of the simulated world; counts those that fail."""
        if not self.request:
            user_id = self.get("monitor", "/api/users")["users"][0]
            found = self.get("monitor", f"/api/candidates?user_id={user_id}&scenario=home")
            keys = ("candidates", "user", "context")
            self.request = {"user_id": user_id, "scenario": "home", "size": 10} | {key: found[key] for key in keys}
        self.num_asked += 1
        try:
            answer: dict[str, Any] = self.post(self.asks, "/v1/rank", self.request)
        except OSError:
            self.num_failed += 1
            raise
        return answer

    def _ask(self, service: str, path: str, body: bytes | None) -> Any:
        port = self.services[service]["ports"][0]["published"].partition("-")[0]  # of a range the first is always taken
        request = Request(f"http://127.0.0.1:{port}{path}", body, self._headers)
        with urlopen(request, timeout=10) as answer:  # noqa: S310 - the address is our own
            text = answer.read().decode()
            return json.loads(text) if "json" in answer.headers.get("Content-Type", "") else text


def until(what: str, condition: Callable[[], Any]) -> Any:
    """Returns the first true value of a condition; a service that does not answer yet is asked again."""
    deadline_s = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline_s:
        try:
            if value := condition():
                return value
        except (URLError, ConnectionError, TimeoutError):
            pass
        time.sleep(PAUSE_S)
    raise SmokeError(f"not within {LIMIT_S:g} s: {what}")


def changed_ranking(stack: Stack) -> str:
    """Clicks the last item shown and waits for another order from a version that knows the click."""
    before = until("a ranking by a model", lambda: (answer := stack.rank())["snapshot"] and answer)
    order = [item["id"] for item in before["items"]]
    clicked_ms = int(time.time() * 1_000)
    click = {"request_id": before["request_id"], "item_id": order[-1], "action": "click", "ts": clicked_ms}
    stack.post("ranker", "/v1/feedback", click | {"user_id": stack.request["user_id"]})

    def changed() -> Any:
        answer = stack.rank()
        knows = time.time() * 1_000 - answer["model_age_ms"] >= clicked_ms and not answer["explore"]
        return knows and [item["id"] for item in answer["items"]] != order and answer

    after = until("another order", changed)
    return f"version {before['snapshot']} to {after['snapshot']}"


def measured_freshness(stack: Stack) -> str:
    """Waits until a ranker has measured its freshness."""
    found = until("freshness is measured", lambda: (f := stack.get("ranker", "/v1/model")["freshness"])["n"] and f)
    return f"p50 {found['p50_ms']:.0f} ms, p99 {found['p99_ms']:.0f} ms, {found['n']} actions"


def page(stack: Stack) -> str:
    """Asks for the page and what it shows."""
    if "<title>" not in stack.get("monitor", "/"):
        raise SmokeError("the monitor answers / without a page")
    return f"{len(stack.get('monitor', '/api/state'))} parts of its state"


def targets(stack: Stack) -> str:
    """Waits until Prometheus has every target up."""

    def all_up() -> Any:
        found = stack.get("prometheus", "/api/v1/targets")["data"]["activeTargets"]
        return found and all(target["health"] == "up" for target in found) and found

    return f"{len(until('all targets are up', all_up))} targets"


def checkpoint(stack: Stack) -> str:
    """Waits for the trainer's first checkpoint."""
    query = "/api/v1/query?query=freshrank_trainer_checkpoints_total"

    def written() -> Any:
        found = stack.get("prometheus", query)["data"]["result"]
        return found and int(found[0]["value"][1])

    return f"{until('a checkpoint is written', written)} written"


def comes_back(stack: Stack, end: Callable[[], Any]) -> str:
    """Ends the trainer and waits until what it publishes, having resumed, is served; asks for rankings meanwhile."""
    asked, failed = stack.num_asked, stack.num_failed
    epoch = int(PUBLISHING.findall(compose("logs", "--no-log-prefix", "trainer"))[-1][0])
    end()

    def publishing() -> Any:
        stack.rank()
        logs = compose("logs", "--no-log-prefix", "trainer")
        found = PUBLISHING.findall(logs)
        return found and int(found[-1][0]) > epoch and (RESUMED.findall(logs)[-1:], int(found[-1][1]))

    steps, last_version = until("the trainer publishes again", publishing)
    if not steps:
        raise SmokeError("the trainer began anew: no checkpoint was resumed")
    version = until("a newer version is served", lambda: (v := stack.rank()["snapshot"]) > last_version and v)
    if stack.num_failed > failed:
        raise SmokeError(f"{stack.num_failed - failed} of {stack.num_asked - asked} rankings failed meanwhile")
    return f"from step {steps[0]}, version {last_version} to {version}; {stack.num_asked - asked} rankings, none failed"


def memory(stack: Stack) -> str:
    """Returns what our own containers use, together."""
    ours = [name for name, service in stack.services.items() if service["image"].startswith("freshrank")]
    ids = compose("ps", "--quiet", *ours).split()
    used = run("docker", "stats", "--no-stream", "--format", "{{.MemUsage}}", *ids)
    units = {"KiB": 1 / 1024, "MiB": 1.0, "GiB": 1024.0}
    found = [re.match(r"([\d.]+)(\wiB)", line) for line in used.splitlines()]
    mib = sum(float(number[1]) * units[number[2]] for number in found if number)
    return f"{mib:.0f} MiB in {len(ids)} containers"


def nothing_left(stack: Stack) -> str:
    """Takes everything down and looks for what is left of it."""
    compose("down", "--volumes", "--remove-orphans")
    label = f"label=com.docker.compose.project={stack.config['name']}"
    for kind, argv in {
        "containers": ("ps", "--all"),
        "volumes": ("volume", "ls"),
        "networks": ("network", "ls"),
    }.items():
        if left := run("docker", *argv, "--quiet", "--filter", label).split():
            raise SmokeError(f"{len(left)} {kind} are left")
    return "no container, volume or network"


def main() -> int:
    """Runs all steps; returns the exit code."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the steps and their seconds here")
    parser.add_argument("--keep", action="store_true", help="leave the services running at the end")
    arguments = parser.parse_args()
    rows: list[tuple[str, float, str]] = []

    def step(name: str, act: Callable[[], str]) -> None:
        print(f"{name} ...", file=sys.stderr, flush=True)
        start_s = time.monotonic()
        found = act()
        rows.append((name, round(time.monotonic() - start_s, 1), found))

    stack = Stack()
    code = 0
    try:
        step("image", lambda: compose("build", "--quiet") or "built")
        step("up --wait", lambda: compose("up", "--detach", "--wait") or "all healthy")
        step("changed ranking", lambda: changed_ranking(stack))
        step("freshness", lambda: measured_freshness(stack))
        step("live page", lambda: page(stack))
        step("Prometheus", lambda: targets(stack))
        if "grafana" in stack.services:
            step("Grafana", lambda: str(until("Grafana answers", lambda: stack.get("grafana", "/api/health"))))
        step("first checkpoint", lambda: checkpoint(stack))
        step("trainer crashes", lambda: comes_back(stack, lambda: compose("exec", "-T", "trainer", "sh", "-c", KILL)))
        step(
            "trainer killed, up again",
            lambda: comes_back(
                stack, lambda: (compose("kill", "trainer"), compose("up", "--detach", "--no-deps", "trainer"))
            ),
        )
        step("memory", lambda: memory(stack))
    except SmokeError as error:
        print(f"smoke: {error}\n{compose('logs', '--tail', '20')}", file=sys.stderr)
        rows.append(("failed", 0.0, str(error)))
        code = 1
    finally:
        if not arguments.keep:
            step("down", lambda: nothing_left(stack))
    for name, seconds, found in rows:
        print(f"{name:26} {seconds:7.1f} s   {found}")
    if arguments.json:
        arguments.json.write_text(json.dumps([dict(zip(("step", "s", "found"), row, strict=True)) for row in rows]))
    return code


if __name__ == "__main__":
    sys.exit(main())
