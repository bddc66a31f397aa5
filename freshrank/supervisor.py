"""Keeps a set of processes running: starts them in order, restarts what dies, stops them in reverse.

| a process that ends by itself | what follows |
|---|---|
| normally | it waits `backoff_ms`, twice as long each time up to `max_backoff_ms`, and is started again |
| after it ran for `healthy_ms` | the same, from `backoff_ms` again |
| because Kafka or Redis is gone | it waits at most `service_gone_ms`: they may be back at any moment |
| with exit code `USAGE`, or not to be restarted | it stays ended |
"""

import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from freshrank.children import Child
from freshrank.exits import ExitCode

_LOG = logging.getLogger(__name__)

State = Literal["waiting", "running", "ended"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSpec:
    """A process to keep running."""

    name: str
    """What it is called in logs and in the status line; also the name of its log file."""
    argv: Sequence[str]
    """Program and arguments."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Environment variables on top of ours."""
    restart: bool = True
    """Whether it is started again when it ends by itself, whatever its exit code except `USAGE`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorConfig:
    """How patient a supervisor is."""

    backoff_ms: int = 250
    """Wait before the first restart; at least 1."""
    max_backoff_ms: int = 10_000
    """Longest wait before a restart; at least `backoff_ms`."""
    service_gone_ms: int = 2_000
    """Longest wait before a restart of a process that ended because Kafka or Redis is gone; at least 1."""
    healthy_ms: int = 30_000
    """A process that ran this long starts again at `backoff_ms`; at least 1."""
    stop_ms: int = 10_000
    """How long one process may take to stop by itself before it is killed; at least 1."""

    def __post_init__(self) -> None:
        for name in ("backoff_ms", "service_gone_ms", "healthy_ms", "stop_ms"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not allowed; at least 1")
        if self.max_backoff_ms < self.backoff_ms:
            raise ValueError(f"max_backoff_ms: {self.max_backoff_ms} is not allowed; at least backoff_ms")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildStatus:
    """What a status line or a health check wants to know of one process."""

    name: str
    state: State
    pid: int | None
    num_restarts: int
    num_failures: int
    """Ends by itself in a row, since it last ran for `healthy_ms`; those that were asked for (`kill`), or because Kafka
    or Redis is gone, do not count."""
    exit_code: int | None
    """How it ended last; a signal's number is negative. None if it never did."""
    rss_bytes: int
    log_path: Path


class _Kept:
    """One spec and what has become of it."""

    def __init__(self, spec: ChildSpec, log_path: Path, backoff_ms: int) -> None:
        self.spec = spec
        self.log_path = log_path
        self.state: State = "waiting"
        self.child: Child | None = None
        self.backoff_ms = backoff_ms
        self.started_ms = 0
        self.due_ms = 0
        self.num_starts = 0
        self.num_failures = 0
        self.is_killed = False
        self.exit_code: int | None = None


class Supervisor:
    """Call `start`, then `poll` several times a second, and `stop` at the end, all from the main thread."""

    def __init__(
        self,
        specs: Sequence[ChildSpec],
        run_dir: Path,
        now_ms: Callable[[], int],
        config: SupervisorConfig | None = None,
    ) -> None:
        """Prepares to keep `specs`; their output goes to `run_dir`/logs/<name>.log.

        `now_ms` is a clock that never moves back, in ms.
        """
        self._config = config or SupervisorConfig()
        self._now_ms = now_ms
        self._kept = [_Kept(spec, run_dir / "logs" / f"{spec.name}.log", self._config.backoff_ms) for spec in specs]

    def start(self) -> None:
        """Starts all processes, in order."""
        for kept in self._kept:
            self._start(kept)

    def poll(self) -> None:
        """Looks at every process; plans restarts for those that ended, and carries out those that are due."""
        for kept in self._kept:
            if kept.state == "running" and kept.child is not None:
                code = kept.child.exit_code()
                if code is not None:
                    self._take_end(kept, kept.child, code)
            elif kept.state == "waiting" and self._now_ms() >= kept.due_ms:
                self._start(kept)

    def status(self) -> list[ChildStatus]:
        """Returns the state of each process, in order of start."""
        return [
            ChildStatus(
                name=kept.spec.name,
                state=kept.state,
                pid=kept.child.pid if kept.child is not None and kept.state == "running" else None,
                num_restarts=max(0, kept.num_starts - 1),
                num_failures=kept.num_failures,
                exit_code=kept.exit_code,
                rss_bytes=kept.child.rss_bytes() if kept.child is not None and kept.state == "running" else 0,
                log_path=kept.log_path,
            )
            for kept in self._kept
        ]

    def kill(self, name: str) -> bool:
        """Kills a process as a fault would; `poll` finds it ended and starts it again. Returns whether it ran."""
        for kept in self._kept:
            if kept.spec.name == name and kept.state == "running" and kept.child is not None:
                kept.child.kill()
                kept.is_killed = True
                return True
        return False

    def stop(self) -> dict[str, int | None]:
        """Stops all processes, the last started first; returns how each ended. None of them is left."""
        for kept in reversed(self._kept):
            if kept.child is not None and kept.state == "running":
                kept.exit_code = kept.child.stop(self._config.stop_ms / 1_000)
                _LOG.info("stopped. process=%s exit_code=%d", kept.spec.name, kept.exit_code)
            kept.state = "ended"
        return {kept.spec.name: kept.exit_code for kept in self._kept}

    def _start(self, kept: _Kept) -> None:
        kept.started_ms = self._now_ms()
        kept.num_starts += 1
        kept.child = Child(kept.spec.argv, kept.log_path, {**os.environ, **kept.spec.env})
        kept.state = "running"
        _LOG.info("started. process=%s pid=%d log=%s", kept.spec.name, kept.child.pid, kept.log_path)

    def _take_end(self, kept: _Kept, child: Child, code: int) -> None:
        kept.exit_code = code
        how = f"process={kept.spec.name} exit_code={code} last_words={child.last_words()!r} log={kept.log_path}"
        if not kept.spec.restart or code == ExitCode.USAGE:
            kept.state = "ended"
            _LOG.log(logging.INFO if code == 0 else logging.ERROR, "ended, and is not started again. %s", how)
            return
        if self._now_ms() - kept.started_ms >= self._config.healthy_ms:
            kept.backoff_ms, kept.num_failures = self._config.backoff_ms, 0
        is_gone = code in (ExitCode.BROKER_GONE, ExitCode.REDIS_GONE)
        wait_ms = min(kept.backoff_ms, self._config.service_gone_ms) if is_gone else kept.backoff_ms
        kept.num_failures += not (kept.is_killed or is_gone)
        kept.is_killed = False
        kept.state = "waiting"
        kept.due_ms = self._now_ms() + wait_ms
        _LOG.warning("ended by itself, starting it again. wait_ms=%d %s", wait_ms, how)
        kept.backoff_ms = min(2 * kept.backoff_ms, self._config.max_backoff_ms)


def python_argv(module: str, *arguments: str) -> tuple[str, ...]:
    """Returns the command line that runs a module with the interpreter we run in."""
    return (sys.executable, "-m", module, *arguments)
