"""What is done to the hosts, one thing after the other under load, and what it cost. Needs root, Kafka and HAProxy."""

import json
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from freshrank.command import now_ms
from freshrank.exits import ExitCode
from freshrank.supervisor import python_argv
from tests.drills.load import RANK, Reply, Users
from tests.scale.cluster import Cluster
from tests.scale.labels import emitted

_READY_S = 180.0
"""Longest wait for what must come; a busy machine takes long to import PyTorch."""
_SETTLE_S = 10.0
_CUT_S = 15.0
"""Longer than the session of a joiner (6 s), the limit of its watchdog (7 s) and a transaction (10 s)."""
_VERIFY_S = 300.0
TASK = "click"
_ALLOWED = {
    "joiner": {ExitCode.OK, ExitCode.FENCED, ExitCode.BROKER_GONE},
    "ranker": {ExitCode.OK},
    "trainer": {ExitCode.OK},
}
"""How each may end by itself, or when asked to."""


@dataclass(slots=True, kw_only=True)
class Step:
    """One thing that was done, and what was seen from then until a while after all was well again."""

    name: str
    from_ms: int
    from_s: float
    well_after_s: float = 0.0
    to_ms: int = 0
    to_s: float = 0.0
    ends: list[str] = field(default_factory=list)
    """Processes that ended meanwhile, with exit code and last words."""
    warnings: list[str] = field(default_factory=list)
    """What joiners had to say."""
    requests: dict[str, Any] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)


class Run:
    """A cluster, users who check every answer, and what was found."""

    def __init__(self, cluster: Cluster, rate_per_s: float, say: Callable[[str], None]) -> None:
        self.cluster, self._say = cluster, say
        self.users = Users(cluster.run, cluster.balancer, rate_per_s, 0, now_ms)
        self.steps: list[Step] = []
        self.problems: list[str] = []

    def warm_up(self, joiners: list[str], rankers: list[str]) -> None:
        """Lets the users come and waits until everybody works.

        Raises:
            RuntimeError: they do not.
        """
        names = [*joiners]
        if not self.cluster.wait_for(lambda: self.cluster.is_dealt(*names), _READY_S):
            raise RuntimeError(f"the partitions are not dealt: {self.cluster.owned()}")
        if not self.cluster.wait_for(lambda: len(self.cluster.versions()) == len(rankers), _READY_S):
            raise RuntimeError(f"not all rankers are ready: {self.cluster.versions()}")
        self.users.start()
        if not self.cluster.wait_for(lambda: self._all_above(1, len(rankers)), _READY_S):
            raise RuntimeError(f"nothing is learned: {self.cluster.versions()}")
        self.users.replies.clear()  # of before anybody could rank

    def step(self, name: str, act: Callable[[], object], well: Callable[[], bool], settle_s: float = _SETTLE_S) -> None:
        """Does something, waits until all is well, and a while longer."""
        self._say(name)
        step = Step(name=name, from_ms=now_ms(), from_s=time.monotonic())
        num_ends, before = len(self.cluster.fleet.ends), self.cluster.fleet.warnings()
        act()
        if not self.cluster.wait_for(well, _READY_S):
            owned, versions = self.cluster.owned(), self.cluster.versions()
            self.problems.append(f"{name}: not well within {_READY_S:g} s: {owned}, {versions}")
        step.well_after_s = round(time.monotonic() - step.from_s, 1)
        self.cluster.wait(settle_s)
        step.to_ms, step.to_s = now_ms(), time.monotonic()
        step.warnings = [line for line in self.cluster.fleet.warnings() if line not in before][:5]
        for end in self.cluster.fleet.ends[num_ends:]:
            step.ends.append(f"{end.name} ended with {end.code}: {end.words}")
            if end.code not in _ALLOWED[end.name.partition("-")[0]]:
                self.problems.append(step.ends[-1])
        self.steps.append(step)

    def finish(self) -> dict[str, Any]:
        """Lets the users go, waits until all labels are out, and returns what `freshrank verify-join` and they say."""
        versions = self.cluster.versions()
        self.users.close()
        self._say("the users have gone")
        join = self.cluster.run.join
        self.cluster.wait(
            (self.cluster.run.schema.max_window_ms + join.grace_ms + 2 * join.idle_ms) / 1_000 + _SETTLE_S
        )
        argv = python_argv("freshrank.cli", "verify-join", "--json", *self.cluster.options)
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=_VERIFY_S)
        if not done.stdout:
            raise RuntimeError(f"verify-join ended with {done.returncode}: {done.stderr.strip()[-300:]}")
        report = json.loads(done.stdout)
        found = emitted(self.cluster.run, TASK)
        for step in self.steps:
            step.labels = found.within(step.from_ms, step.to_ms).figures()
            step.requests = requests(self.users.replies, step.from_s, step.to_s)
        self._judge(report, versions)
        return {
            "audit": {name: report[name] for name in ("lost", "double", "contradictory", "wrong", "late", "unmatched")},
            "judged_labels": report["judged"],
            "impressions": report["impressions"],
            "steps": [_row(step) for step in self.steps],
            "requests": requests(self.users.replies, 0.0, time.monotonic()),
            "versions_at_the_end": versions,
            "problems": self.problems,
        }

    def _all_above(self, version: int, count: int) -> bool:
        versions = self.cluster.versions()
        return len(versions) == count and min(versions.values()) > version

    def _judge(self, report: dict[str, Any], versions: dict[str, int]) -> None:
        faults = {name: report[name] for name in ("lost", "double", "contradictory", "wrong") if report[name]}
        if faults:
            self.problems.append(f"verify-join finds {faults}: {report.get('findings', [])[:3]}")
        wrong = Counter(problem for reply in self.users.replies for problem in reply.problems)
        self.problems += [f"{count} answers: {problem}" for problem, count in wrong.items()]
        if max(versions.values()) - min(versions.values()) > 2:
            self.problems.append(f"rankers do not keep up with each other: {versions}")


def requests(replies: list[Reply], from_s: float, to_s: float) -> dict[str, Any]:
    """Returns what became of the rank requests that ended within a span of time, and how long some failed.

    One that was under way when something was done belongs to what was done.
    """
    ended = [reply for reply in replies if reply.path == RANK and from_s <= reply.done_s < to_s]
    failed = [reply for reply in ended if reply.status != 200]
    latency_ms = [1_000 * (reply.done_s - reply.due_s) for reply in ended if reply.status == 200] or [float("nan")]
    return {
        "asked": len(ended),
        "failed": dict(Counter(str(reply.status) for reply in failed)),
        "failed_for_s": round(failed[-1].done_s - failed[0].due_s, 1) if failed else 0.0,
        "unranked": sum("no_model" in reply.degraded for reply in ended),
        "p50_ms": round(float(np.percentile(latency_ms, 50)), 1),
        "p99_ms": round(float(np.percentile(latency_ms, 99)), 1),
        "by_ranker": dict(Counter(reply.ranker for reply in ended if reply.ranker)),
    }


def drill(cluster: Cluster, rate_per_s: float, say: Callable[[str], None]) -> dict[str, Any]:
    """Moves joiners and rankers in every way; returns the figures and what was not as it must be."""
    run, fleet, hosts = Run(cluster, rate_per_s, say), cluster.fleet, cluster.hosts
    run.warm_up(["joiner-1", "joiner-2", "joiner-3"], ["ranker-1", "ranker-2", "ranker-3"])

    def dealt(*numbers: int) -> Callable[[], bool]:
        return lambda: cluster.is_dealt(*(f"joiner-{number}" for number in numbers))

    def ready(*numbers: int) -> Callable[[], bool]:
        return lambda: set(cluster.versions()) == {f"ranker-{number}" for number in numbers}

    def while_cut(name: str) -> None:
        hosts[name].cut()
        cluster.wait(_CUT_S)
        hosts[name].mend()

    def while_asleep(name: str) -> None:
        fleet.suspend(name)
        cluster.wait(_CUT_S)
        fleet.resume(name)

    run.step("nothing is done", lambda: None, dealt(1, 2, 3), 15.0)
    # It commits seldom, so that it holds labels when it falls asleep, and wakes up wanting to commit them.
    run.step("a joiner joins", lambda: cluster.add("joiner-4", "join.commit_interval_ms=900"), dealt(1, 2, 3, 4))
    run.step("a joiner leaves", lambda: cluster.leave("joiner-1"), dealt(2, 3, 4))
    run.step("a joiner is killed", lambda: fleet.kill("joiner-2"), dealt(2, 3, 4))
    run.step("a joiner's cable is cut for 15 s", lambda: while_cut("joiner-3"), dealt(2, 3, 4))
    run.step("a joiner sleeps for 15 s", lambda: while_asleep("joiner-4"), dealt(2, 3, 4))
    if not any(f"ended with {int(ExitCode.FENCED)}:" in end for end in run.steps[-1].ends):
        say("it was told first, and dropped what it held; nobody had to refuse it")
    run.step("a ranker is killed", lambda: fleet.kill("ranker-1"), ready(1, 2, 3))
    run.step("a ranker is added", lambda: cluster.add("ranker-4"), ready(1, 2, 3, 4))
    run.step("a ranker leaves", lambda: cluster.leave("ranker-2"), ready(1, 3, 4))
    run.step("a ranker's cable is cut for 15 s", lambda: while_cut("ranker-3"), ready(1, 3, 4))
    return run.finish()


def _row(step: Step) -> dict[str, Any]:
    row = asdict(step)
    return {name: value for name, value in row.items() if name not in ("from_ms", "to_ms", "from_s", "to_s")} | {
        "lasted_s": round(step.to_s - step.from_s, 1)
    }
