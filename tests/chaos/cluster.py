"""Real processes to torment: `freshrank join` on Apache Kafka, killed, stalled, started and stopped by name."""

import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import yaml

from freshrank.children import Child
from freshrank.exits import ExitCode
from stream.log import KafkaConfig
from stream.schema import SchemaConfig, TaskConfig

TAKEN_UP = "taking up a partition"
"""What a joiner logs for each partition pair it begins to work on."""
RESTARTABLE = (ExitCode.FENCED, ExitCode.BROKER_GONE)
"""Ends that a supervisor answers with a new start: nothing is wrong with the joiner itself."""
STOPPED = (ExitCode.OK, *RESTARTABLE, -signal.SIGTERM)
"""Ends that may follow a SIGTERM; the last one of a process that has only just begun to start."""
_STOP_TIMEOUT_S = 30.0


def write_run(path: Path, kafka: KafkaConfig, schema: SchemaConfig, join: dict[str, int | str]) -> Path:
    """Writes the settings of a run as `freshrank join --config` reads them; returns the path."""
    tasks = {name: {k: v for k, v in asdict(task).items() if v != _DEFAULTS[k]} for name, task in schema.tasks.items()}
    settings = {
        "scenarios": list(schema.scenarios),
        "tasks": tasks,
        "kafka": {
            "bootstrap_servers": kafka.bootstrap_servers,
            "topic_prefix": kafka.topic_prefix,
            "num_partitions": kafka.num_partitions,
            "client": dict(kafka.client),
        },
        "join": join,
        "monitor": {"joiner": "127.0.0.1:0"},  # each process takes a port of its own
    }
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return path


_DEFAULTS = asdict(TaskConfig(action="-", window_ms=1)) | {"action": None, "window_ms": None}


class End(NamedTuple):
    """How a joiner ended that was not killed."""

    name: str
    code: int
    is_static: bool
    was_asked: bool
    """It got a SIGTERM."""


class Joiners:
    """`freshrank join` processes of one group by name; each name logs into one file, over all its lives."""

    def __init__(self, run: Path, folder: Path, *, spills: bool = False) -> None:
        self._run, self._folder, self._spills = run, folder, spills
        self._children: dict[str, Child] = {}
        self._static: dict[str, bool] = {}
        self._stalled: set[str] = set()
        self._leaving: set[str] = set()
        self.exits: Counter[int] = Counter()
        """How often processes ended by themselves, by exit code."""

    def start(self, name: str, *, static: bool = False, instance: str | None = None) -> None:
        """Starts a joiner; `static` gives the group its name (KIP-345), or another one's whom it is to replace."""
        argv = [sys.executable, "-m", "freshrank.cli", "join", "--config", str(self._run)]
        argv += ["--instance", instance or name] if static else []
        if self._spills:
            # Next to nothing in memory and a snapshot at nearly every commit; each joiner has a folder of its own.
            spill = {"directory": self._folder / f"{name}.state", "hot_items": 50, "snapshot_interval_ms": 500}
            argv += [word for key, value in spill.items() for word in ("--set", f"spill.{key}={value}")]
        self._children[name] = Child(argv, self.log_path(name), {**os.environ, "PYTHONFAULTHANDLER": "1"})
        self._static[name] = static

    def kill(self, name: str) -> None:
        """Ends it with SIGKILL, unless it has just ended by itself: then `reap` will tell."""
        if self._children[name].exit_code() is None:
            self._children.pop(name).kill()
            self._stalled.discard(name)

    def ask_to_leave(self, name: str) -> None:
        """Sends SIGTERM, as an operator does; `reap` tells how it ended."""
        if self._children[name].exit_code() is None:
            os.kill(self._children[name].pid, signal.SIGTERM)
            self._leaving.add(name)

    def stop(self, name: str) -> int:
        """Ends it with SIGTERM, as an operator does; returns its exit code."""
        return self._children.pop(name).stop(_STOP_TIMEOUT_S)

    def stall(self, name: str) -> None:
        """Stops it in its tracks (SIGSTOP): it keeps its connections and knows nothing of the time that passes."""
        os.kill(self._children[name].pid, signal.SIGSTOP)
        self._stalled.add(name)

    def wake(self, name: str) -> None:
        """Lets it go on (SIGCONT), if it is still there."""
        if name not in self._stalled:
            return
        os.kill(self._children[name].pid, signal.SIGCONT)
        self._stalled.discard(name)

    def running(self) -> list[str]:
        """Returns the names of those that run, are not stalled and were not asked to leave, sorted."""
        return sorted(self._children.keys() - self._stalled - self._leaving)

    def reap(self) -> list[End]:
        """Forgets those that have ended and tells how."""
        found = []
        for name, child in list(self._children.items()):
            code = child.exit_code()
            if code is not None:
                del self._children[name]
                self._stalled.discard(name)
                self.exits[code] += 1
                found.append(End(name, code, self._static[name], name in self._leaving))
                self._leaving.discard(name)
        return found

    def is_static(self, name: str) -> bool:
        """Returns whether the group knows it by its name."""
        return self._static[name]

    def exit_code(self, name: str) -> int | None:
        """Returns how one has ended; None while it runs."""
        return self._children[name].exit_code()

    def last_words(self, name: str) -> str:
        """Returns the last line it printed: the sentence that says how it failed; empty if there is none."""
        return (self.log_path(name).read_text().strip().splitlines() or [""])[-1]

    def log_path(self, name: str) -> Path:
        """Returns where its output goes."""
        return self._folder / f"{name}.log"

    def num_takeovers(self, name: str) -> int:
        """Returns how many partition pairs it has begun to work on, over all its lives."""
        path = self.log_path(name)
        return path.read_text().count(TAKEN_UP) if path.exists() else 0

    def num_takeovers_of(self, partition: int) -> int:
        """Returns how often one partition pair was begun to work on by any of them."""
        begun = f"{TAKEN_UP}. partition={partition} "
        return sum(path.read_text().count(begun) for path in self._folder.glob("*.log"))

    def close(self) -> dict[str, int]:
        """Stops all, at once; returns how each ended. One that hangs is aborted, with its stacks in its log."""
        for name in sorted(self._stalled):
            self.wake(name)
        for child in self._children.values():
            if child.exit_code() is None:
                os.kill(child.pid, signal.SIGTERM)
        deadline_s = time.monotonic() + _STOP_TIMEOUT_S
        for child in self._children.values():
            if not child.ends_within(deadline_s - time.monotonic()):
                os.kill(child.pid, signal.SIGABRT)
        ends = {name: child.stop(_STOP_TIMEOUT_S) for name, child in self._children.items()}
        self._children.clear()
        return ends


def wait_for(condition: Callable[[], object], timeout_s: float) -> bool:
    """Polls until `condition()` holds, for at most `timeout_s`; returns whether it does."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.05)
    return True
