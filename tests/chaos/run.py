"""One seed of chaos: load and blows at once, then quiet, then the question whether every label is right, once."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from freshrank.exits import ExitCode
from freshrank.join import GROUP_ID, MAX_POLL_INTERVAL
from stream.audit import FAULTS
from stream.log import EXAMPLES, KafkaConfig, topic_name
from stream.schema import OBSERVING_POLICIES, PolicyName, SchemaConfig, TaskConfig
from stream.topics import create_topics, topic_lag
from tests.chaos.broker import Broker
from tests.chaos.cluster import RESTARTABLE, STOPPED, Joiners, wait_for, write_run
from tests.chaos.faults import Fault, FaultConfig, faults
from tests.chaos.hanging import OFFSETS_TOPIC, abort_hanging
from tests.chaos.log import Feeder, expected_labels, read_events, read_labels
from tests.chaos.traffic import TrafficConfig, arrivals
from tests.chaos.verdict import judge

NUM_PARTITIONS = 4
MAX_JOINERS = 3
POLICIES: tuple[PolicyName, ...] = (
    "fnw", "es_dfm", "defer", "vanilla", "fnc", "defer_neg", "vanilla_dup", "dfm", "fnw_rn", "defuse", "fsiw",
)  # fmt: skip
"""Beside `wait` and `eager`, which every seed has: three at a time, so that four seeds have had them all."""
_DATED_BACK_MS = 120_000
"""The load is dated back, so that the events that end it are not in the future."""
_RESTART_MS = 1_500
"""How long a supervisor waits before it starts one again that has ended."""
_DRAIN_TIMEOUT_S = 90.0
_VERIFY_TIMEOUT_S = 120.0
_TICK_S = 0.05


@dataclass(slots=True, kw_only=True)
class Outcome:
    """One row of the table."""

    seed: int
    events: int = 0
    """Messages of the load, duplicates included."""
    kills: int = 0
    rebalances: int = 0
    """How often all partitions were dealt out anew."""
    stalls: int = 0
    fenced: int = 0
    """Joiners that ended because another one had taken over."""
    broker_restarts: int = 0
    hanging: int = 0
    """Transactions of dead joiners that the broker had lost sight of and an operator had to abort."""
    labels: int = 0
    """Labels that had to go out."""
    report: dict[str, Any] = field(default_factory=dict)
    """What `freshrank verify-join --json` says; empty if the run did not get so far."""
    problems: list[str] = field(default_factory=list)
    """What else went wrong: unforeseen exits, a log that was not joined in time."""
    took_s: float = 0.0

    @property
    def is_right(self) -> bool:
        """Whether every label is there, right and once, and nothing else went wrong."""
        return bool(self.report) and not any(self.report[fault] for fault in FAULTS) and not self.problems


def schema_of(seed: int) -> SchemaConfig:
    """Returns five tasks on three actions, with windows of one to five seconds; each seed has other policies."""
    chosen = [POLICIES[(3 * seed + index) % len(POLICIES)] for index in range(3)]
    tasks = {
        "click": TaskConfig(action="click", window_ms=1_000, policy="eager"),
        "order": TaskConfig(action="order", window_ms=5_000, policy="wait"),
    }
    for action, window_ms, policy in zip(("click", "order", "like"), (3_000, 2_000, 4_000), chosen, strict=True):
        observe_ms = window_ms // 4 if policy in OBSERVING_POLICIES else None
        tasks[f"{action}_{policy}"] = TaskConfig(
            action=action, window_ms=window_ms, policy=policy, observe_ms=observe_ms
        )
    return SchemaConfig(scenarios=("home",), tasks=tasks)


def join_settings(rng: np.random.Generator) -> dict[str, int | str]:
    """Returns settings of the joiner under which none of the load is late, other ones for each seed."""
    return {
        "grace_ms": int(rng.choice([0, 1_000])),
        "out_of_orderness_ms": 2_000,
        "duplicate_ms": int(rng.choice([0, 3_000])),
        "idle_ms": 3_600_000,  # the log's own last events end a run: else a broker's silence would count as idleness
        "commit_interval_ms": int(rng.choice([20, 100, 250])),
        "batch_items": int(rng.choice([16, 512])),
    }


class Run:
    """One seed on a broker of the caller's; the topics are its own."""

    def __init__(
        self,
        seed: int,
        broker: Broker,
        folder: Path,
        traffic: TrafficConfig,
        blows: FaultConfig,
        say: Callable[[str], None],
    ) -> None:
        self._rng = np.random.default_rng(seed)
        self._broker, self._say = broker, say
        self._schema = schema_of(seed)
        self._kafka = KafkaConfig(
            bootstrap_servers=broker.endpoint,
            topic_prefix=f"c{seed}-",
            num_partitions=NUM_PARTITIONS,
            # A joiner that hangs is ended after 20 s; readers, which know no session, must be told of one as short.
            client={MAX_POLL_INTERVAL: "20000", "session.timeout.ms": "6000"},
        )
        self._traffic, self._blows = traffic, blows
        folder.mkdir(parents=True, exist_ok=True)
        self._config = write_run(folder / "run.yaml", self._kafka, self._schema, join_settings(self._rng))
        self._joiners = Joiners(self._config, folder, spills=seed % 2 == 1)
        self._num_started = 0
        self._later: list[tuple[float, Callable[[], None]]] = []
        self.outcome = Outcome(seed=seed)

    def run(self) -> Outcome:
        """Runs it; the outcome says how it went."""
        started_s = time.monotonic()
        create_topics(self._kafka)
        try:
            for static in (True, False, True):
                self._start_new(static=static)
            wait_for(lambda: self._num_dealt() > 0, 30)
            start_ms = time.time_ns() // 1_000_000 - _DATED_BACK_MS
            load, ends = arrivals(self._schema, self._traffic, start_ms, self._rng)
            feeder = Feeder(self._kafka, load)
            feeder.start()
            self._torment(faults(self._blows, self._rng), feeder)
            feeder.finish(ends)
            self.outcome.events = feeder.num_sent - len(ends)
            self._drain()
        finally:
            self._say("all is joined, or it takes too long")
            ended = self._joiners.close()
        self.outcome.problems += [f"{name} ended with {code}" for name, code in ended.items() if code not in STOPPED]
        self.outcome.fenced = self._joiners.exits[ExitCode.FENCED]
        self.outcome.rebalances = self._num_dealt()
        self._judge()
        self.outcome.took_s = round(time.monotonic() - started_s, 1)
        return self.outcome

    def _judge(self) -> None:
        """Asks `freshrank verify-join`, as a user would, and a second oracle that knows that nothing was late."""
        argv = [sys.executable, "-m", "freshrank.cli", "verify-join", "--config", str(self._config), "--json"]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=_VERIFY_TIMEOUT_S)
        try:
            self.outcome.report = json.loads(done.stdout)
        except ValueError:
            self.outcome.problems.append(f"verify-join ended with {done.returncode}: {done.stderr.strip()[-300:]}")
        verdict = judge(
            expected_labels(self._schema, *read_events(self._kafka, self._schema)),
            read_labels(self._kafka, self._schema),
        )
        self.outcome.labels = verdict.labels
        if not verdict.is_right:
            self.outcome.problems.append(f"the oracle of the tests finds {verdict}")

    def _torment(self, blows: list[Fault], feeder: Feeder) -> None:
        """Lets the blows fall when their time has come; returns when all have, and their ends too."""
        started_s = time.monotonic()
        for blow in blows:
            while time.monotonic() < started_s + blow.at_ms / 1_000:
                self._tick()
            self._strike(blow)
        while feeder.is_alive() or self._later or not self._broker.is_up:
            self._tick()
        self._broker.wait()

    def _strike(self, blow: Fault) -> None:
        running = self._joiners.running()
        name = str(self._rng.choice(running)) if running else ""
        self._say(f"{blow.kind} {name if blow.kind in ('kill', 'stall', 'leave') else ''}")
        if blow.kind == "broker":
            self._broker.restart(pause_ms=blow.lasts_ms, is_hard=blow.is_hard)
            self.outcome.broker_restarts += 1
        elif blow.kind == "join":
            if len(running) < MAX_JOINERS:
                self._start_new(static=bool(self._rng.random() < 0.5))
        elif not name:
            return
        elif blow.kind == "kill":
            is_static = self._joiners.is_static(name)
            self._joiners.kill(name)
            self._after(blow.lasts_ms, partial(self._joiners.start, name, static=is_static))
            self.outcome.kills += 1
        elif blow.kind == "stall":
            self._joiners.stall(name)
            self._after(blow.lasts_ms, partial(self._joiners.wake, name))
            self.outcome.stalls += 1
        elif len(running) > 1:
            self._joiners.ask_to_leave(name)

    def _drain(self) -> None:
        """Waits until everything in the log is joined."""
        group_id = self._kafka.topic_prefix + GROUP_ID

        def is_joined() -> bool:
            self._tick()
            lag = topic_lag(self._kafka, group_id)
            return len(lag) == 2 * NUM_PARTITIONS and not any(each.num_messages for each in lag.values())

        self._say("the load is over")
        if wait_for(is_joined, _DRAIN_TIMEOUT_S / 2):
            return
        self.outcome.hanging = abort_hanging(
            self._broker.kafka_home, self._broker.endpoint, (OFFSETS_TOPIC, topic_name(self._kafka, EXAMPLES))
        )
        self._say(f"{self.outcome.hanging} transactions that the broker had lost sight of are aborted")
        if not wait_for(is_joined, _DRAIN_TIMEOUT_S):
            self.outcome.problems.append(f"not all is joined {_DRAIN_TIMEOUT_S:g} s after the end")

    def _tick(self) -> None:
        """Lets a moment pass: what is due happens, and who has ended is started again."""
        time.sleep(_TICK_S)
        due = [do for at_s, do in self._later if at_s <= time.monotonic()]
        self._later = [each for each in self._later if each[1] not in due]
        for do in due:
            do()
        for end in self._joiners.reap():
            words = self._joiners.last_words(end.name)
            self._say(f"{end.name} has ended with {end.code}: {words}")
            if end.code not in (STOPPED if end.was_asked else RESTARTABLE):
                self.outcome.problems.append(f"{end.name} ended with {end.code}: {words}")
            if not end.was_asked:
                self._after(_RESTART_MS, partial(self._joiners.start, end.name, static=end.is_static))

    def _after(self, pause_ms: float, do: Callable[[], None]) -> None:
        self._later.append((time.monotonic() + pause_ms / 1_000, do))

    def _start_new(self, *, static: bool) -> None:
        self._num_started += 1
        self._joiners.start(f"joiner-{self._num_started}", static=static)

    def _num_dealt(self) -> int:
        """Returns how often partition 0 was taken up: once in each generation of the group."""
        return self._joiners.num_takeovers_of(0)
