"""The supervisor with real processes: restarts with backoff, stops in reverse, leaves nothing behind."""

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from freshrank.exits import ExitCode
from freshrank.supervisor import ChildSpec, Supervisor, SupervisorConfig

WaitUntil = Callable[..., None]
WAIT = "import time\nwhile True: time.sleep(60)"


class Clock:
    now_ms = 0

    def __call__(self) -> int:
        return self.now_ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def supervise(tmp_path: Path, clock: Clock) -> Iterator[Callable[..., Supervisor]]:
    started: list[Supervisor] = []

    def start(*specs: ChildSpec, **config: int) -> Supervisor:
        supervisor = Supervisor(specs, tmp_path, clock, SupervisorConfig(**config))
        started.append(supervisor)
        supervisor.start()
        return supervisor

    yield start
    for supervisor in started:
        supervisor.stop()


def python(name: str, code: str, **more: object) -> ChildSpec:
    return ChildSpec(name=name, argv=(sys.executable, "-c", code), **more)


def is_alive(pid: int) -> bool:
    """Whether the process runs: a zombie that nobody has reaped yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def state_is(supervisor: Supervisor, state: str) -> Callable[[], bool]:
    def look() -> bool:
        supervisor.poll()
        return supervisor.status()[0].state == state

    return look


def test_output_and_environment_reach_the_log_file(supervise, wait_until: WaitUntil) -> None:
    code = "import os; print('hello', os.environ['COLOUR'], flush=True)\n" + WAIT
    status = supervise(python("talker", code, env={"COLOUR": "blue"})).status()[0]
    wait_until(lambda: "hello blue" in status.log_path.read_text(), "the child's line in its log")
    assert status.log_path.name == "talker.log"


def test_status_tells_pid_and_memory(supervise, wait_until: WaitUntil) -> None:
    supervisor = supervise(python("a", WAIT))
    wait_until(lambda: supervisor.status()[0].rss_bytes > 1_000_000, "its resident memory")
    status = supervisor.status()[0]
    assert status.state == "running"
    assert status.pid is not None and is_alive(status.pid)
    assert (status.num_restarts, status.exit_code) == (0, None)


def test_a_killed_child_is_started_again_after_the_backoff_and_the_log_says_so(
    supervise, clock: Clock, wait_until: WaitUntil, caplog: pytest.LogCaptureFixture
) -> None:
    supervisor = supervise(python("a", "print('last thing', flush=True)\n" + WAIT), backoff_ms=100)
    first = supervisor.status()[0]
    wait_until(lambda: "last thing" in first.log_path.read_text(), "the child is up")
    assert first.pid is not None
    with caplog.at_level(logging.WARNING):
        os.kill(first.pid, signal.SIGKILL)
        wait_until(state_is(supervisor, "waiting"), "the end is noticed")
    assert supervisor.status()[0].exit_code == -signal.SIGKILL
    assert "process=a exit_code=-9 last_words='last thing'" in caplog.text
    clock.now_ms += 99
    supervisor.poll()
    assert supervisor.status()[0].state == "waiting"
    clock.now_ms += 1
    supervisor.poll()
    again = supervisor.status()[0]
    assert (again.state, again.num_restarts) == ("running", 1)
    assert again.pid != first.pid


def test_the_backoff_doubles_to_its_most_and_starts_anew_after_a_healthy_run(
    supervise, clock: Clock, wait_until: WaitUntil, caplog: pytest.LogCaptureFixture
) -> None:
    supervisor = supervise(python("a", "raise SystemExit(1)"), backoff_ms=100, max_backoff_ms=300, healthy_ms=10_000)
    waits, failures = [], []
    with caplog.at_level(logging.WARNING):
        for run_ms in (0, 0, 0, 10_000):
            clock.now_ms += run_ms
            caplog.clear()
            wait_until(state_is(supervisor, "waiting"), "the end is noticed")
            waits.append(int(caplog.text.split("wait_ms=")[1].split()[0]))
            failures.append(supervisor.status()[0].num_failures)
            clock.now_ms += waits[-1]
            supervisor.poll()
    assert waits == [100, 200, 300, 100]
    assert failures == [1, 2, 3, 1], "in a row: over a long life a process may be started again any number of times"


def test_a_process_that_misses_a_service_is_tried_again_soon_and_is_no_failure(
    supervise, clock: Clock, wait_until: WaitUntil, caplog: pytest.LogCaptureFixture
) -> None:
    spec = python("a", f"raise SystemExit({ExitCode.BROKER_GONE:d})")
    supervisor = supervise(spec, backoff_ms=100, max_backoff_ms=10_000, service_gone_ms=150)
    waits = []
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            caplog.clear()
            wait_until(state_is(supervisor, "waiting"), "the end is noticed")
            waits.append(int(caplog.text.split("wait_ms=")[1].split()[0]))
            clock.now_ms += waits[-1]
            supervisor.poll()
    assert waits == [100, 150, 150]
    assert supervisor.status()[0].num_failures == 0


@pytest.mark.parametrize(("restart", "code"), [(False, 0), (False, 1), (True, 2)])
def test_not_to_be_restarted_or_a_users_mistake_stays_ended(
    supervise, clock: Clock, wait_until: WaitUntil, restart: bool, code: int
) -> None:
    supervisor = supervise(python("a", f"raise SystemExit({code})", restart=restart))
    wait_until(state_is(supervisor, "ended"), "the end is noticed")
    clock.now_ms += 1_000_000
    supervisor.poll()
    status = supervisor.status()[0]
    assert (status.state, status.exit_code, status.num_restarts) == ("ended", code, 0)


def test_stop_is_in_reverse_order_and_a_deaf_child_is_killed(supervise, tmp_path: Path, wait_until: WaitUntil) -> None:
    ends = tmp_path / "ends"
    polite = (
        "import signal, sys\n"
        f"def end(*_):\n    open({str(ends)!r}, 'a').write(sys.argv[1] + ' ')\n    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\nprint('up', flush=True)\n" + WAIT
    )
    deaf = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('up', flush=True)\n" + WAIT
    specs = [
        ChildSpec(name="first", argv=(sys.executable, "-c", polite, "first")),
        python("deaf", deaf),
        ChildSpec(name="last", argv=(sys.executable, "-c", polite, "last")),
    ]
    supervisor = supervise(*specs, stop_ms=300)
    logs = [status.log_path for status in supervisor.status()]
    wait_until(lambda: all("up" in log.read_text() for log in logs), "all children are up")
    pids = [status.pid for status in supervisor.status()]
    assert supervisor.stop() == {"first": 0, "deaf": -signal.SIGKILL, "last": 0}
    assert ends.read_text() == "last first "
    assert not any(is_alive(pid) for pid in pids if pid is not None)


GRANDCHILD = f"import subprocess, sys\nprint(subprocess.Popen([sys.executable, '-c', {WAIT!r}]).pid, flush=True)\n"


def test_what_a_child_leaves_behind_is_swept_up(supervise, wait_until: WaitUntil) -> None:
    supervisor = supervise(python("a", GRANDCHILD, restart=False))
    log = supervisor.status()[0].log_path
    wait_until(state_is(supervisor, "ended"), "the child has ended")
    grandchild = int(log.read_text())
    wait_until(lambda: not is_alive(grandchild), "its own child has ended too")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
def test_killing_the_supervisor_leaves_no_child(tmp_path: Path, wait_until: WaitUntil) -> None:
    code = f"""
import sys, time
from pathlib import Path
from freshrank.supervisor import ChildSpec, Supervisor
specs = [ChildSpec(name=name, argv=(sys.executable, "-c", {WAIT!r})) for name in "abc"]
supervisor = Supervisor(specs, Path({str(tmp_path)!r}), lambda: time.monotonic_ns() // 1_000_000)
supervisor.start()
print(*(status.pid for status in supervisor.status()), flush=True)
{WAIT}
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 3
        # A child runs its own command line once it has asked the kernel to be ended with its parent.
        wait_until(lambda: all(b"prctl" not in _argv(pid) for pid in pids), "all run")
    finally:
        parent.kill()
        parent.communicate()
    wait_until(lambda: not any(is_alive(pid) for pid in pids), "the children have ended with their parent")


def _argv(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def test_a_program_that_does_not_exist_is_told_at_once(tmp_path: Path, clock: Clock) -> None:
    supervisor = Supervisor([ChildSpec(name="a", argv=("no-such-program",))], tmp_path, clock)
    with pytest.raises(FileNotFoundError, match="no-such-program"):
        supervisor.start()


@pytest.mark.parametrize("config", [{"backoff_ms": 0}, {"max_backoff_ms": 1}, {"healthy_ms": 0}, {"stop_ms": 0}])
def test_impatient_settings_are_refused(config: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(config))):
        SupervisorConfig(**config)
