"""One run of `freshrank up` for several tests: they look at it while it runs, and at what it leaves behind."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from freshrank.scrape import Scrape

REPO_ROOT = Path(__file__).parents[2]
PROCESSES = ("joiner", "trainer", "agents", "ranker", "simulator")


@dataclass(slots=True)
class UpRun:
    """A running `freshrank up` with ports of its own."""

    child: subprocess.Popen[str]
    page_url: str
    ranker_url: str
    folder: Path
    report_path: Path
    addresses: dict[str, str]
    """Where each process but the monitor shows its metrics."""
    kafka: str
    """`host:port` of its broker."""
    redis_url: str
    lines: list[str] = field(default_factory=list)
    """What it printed; filled in when it has ended."""

    def state(self) -> dict[str, Any]:
        """Returns the monitor's state; empty while it does not answer."""
        try:
            with urllib.request.urlopen(f"{self.page_url}api/state", timeout=2) as answer:
                found: dict[str, Any] = json.load(answer)
                return found
        except OSError:
            return {}

    def metric(self, process: str, name: str, *labels: str) -> float:
        """Returns a metric of a process, by its name and the values of its labels.

        Raises:
            OSError: the process does not answer.
        """
        with urllib.request.urlopen(f"http://{self.addresses[process]}/metrics", timeout=2) as answer:
            found = Scrape.parse(answer.read().decode()).value(name, *labels)
        assert found is not None, f"{process} has no {name} {labels}"
        return found

    def end(self, timeout_s: float) -> int:
        """Waits for the end and returns the exit code."""
        output, _ = self.child.communicate(timeout=timeout_s)
        self.lines = output.splitlines()
        return self.child.returncode

    def report(self) -> dict[str, Any]:
        """Returns what it wrote at the end."""
        found: dict[str, Any] = json.loads(self.report_path.read_text())
        return found

    def left_behind(self) -> list[str]:
        """Returns the command lines of processes that still name the run's folder."""
        found = []
        for status in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                text = status.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(self.folder) in text and int(status.parent.name) != os.getpid():
                found.append(text)
        return found


StartUp = Callable[..., UpRun]


def start_up(folder: Path, free_port: Callable[[], int], *arguments: str) -> UpRun:
    """Starts `freshrank up` with free ports."""
    ranker, page = free_port(), free_port()
    addresses = {name: f"127.0.0.1:{ranker if name == 'ranker' else free_port()}" for name in PROCESSES}
    settings = {
        "kafka.bootstrap_servers": f"127.0.0.1:{free_port()}",
        "redis.url": f"redis://127.0.0.1:{free_port()}/0",
        "ranker.server.port": ranker,
        "monitor.port": page,
        "sim.requests_per_s": 25,  # half of the demo's: these tests ask whether it learns, not how fast
    } | {f"monitor.{name}": address for name, address in addresses.items()}
    sets = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    report = folder / "report.json"
    argv = [sys.executable, "-m", "freshrank.cli", "up", "--config", "configs/demo.yaml", "--log-level", "warning"]
    child = subprocess.Popen(
        [*argv, *sets, "--dir", str(folder / "run"), "--report", str(report), *arguments],
        cwd=REPO_ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    return UpRun(
        child, f"http://127.0.0.1:{page}/", f"http://127.0.0.1:{ranker}/", folder / "run", report, addresses,
        str(settings["kafka.bootstrap_servers"]), str(settings["redis.url"]),
    )  # fmt: skip


@pytest.fixture(scope="module")
def up_run(
    request: pytest.FixtureRequest, free_port: Callable[[], int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[UpRun]:
    """`freshrank up`, started with the arguments of the module's `UP_ARGUMENTS`; killed if a test leaves it running."""
    run = start_up(tmp_path_factory.mktemp("up"), free_port, *request.module.UP_ARGUMENTS)
    try:
        yield run
    finally:
        if run.child.poll() is None:
            run.child.send_signal(signal.SIGTERM)
            try:
                run.child.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                os.killpg(run.child.pid, signal.SIGKILL)
                run.child.communicate(timeout=10)


def wait_for_state(
    run: UpRun, condition: Callable[[dict[str, Any]], object], what: str, timeout_s: float
) -> dict[str, Any]:
    """Returns the first state that meets a condition; fails naming `what`, with the end of what the run said."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        state = run.state()
        if state and condition(state):
            return state
        if run.child.poll() is not None:
            pytest.fail(f"the run ended with {run.end(5)} before {what}: {run.lines[-5:]}")
        if time.monotonic() > deadline_s:
            pytest.fail(f"not within {timeout_s:g} s: {what}")
        time.sleep(0.25)
