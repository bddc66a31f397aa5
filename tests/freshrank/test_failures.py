"""What can be foreseen to fail has a sentence and an exit code, in every process, and no traceback."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from freshrank.exits import ExitCode

REPO_ROOT = Path(__file__).parents[2]
DEMO = str(REPO_ROOT / "configs" / "demo.yaml")


def run_command(*arguments: str, cwd: Path = REPO_ROOT) -> tuple[int, str]:
    """Returns the exit code and the last line on stderr; fails if there was a traceback."""
    command = [sys.executable, "-m", "freshrank.cli", *arguments]
    env = {name: value for name, value in os.environ.items() if not name.startswith("FRESHRANK_")}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=90)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr.strip().splitlines()[-1]


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield int(listener.getsockname()[1])


def test_up_names_the_taken_port_and_its_setting(taken_port: int, tmp_path: Path) -> None:
    code, line = run_command("up", "--config", DEMO, "--set", f"monitor.port={taken_port}", "--dir", str(tmp_path))
    assert code == ExitCode.PORT_TAKEN
    assert line == f"freshrank: Port {taken_port} is taken; stop the other program or change monitor.port"


def test_ranker_and_monitor_name_the_taken_port(taken_port: int) -> None:
    sets = ["--set", f"ranker.server.port={taken_port}", "--set", f"monitor.ranker=127.0.0.1:{taken_port}"]
    code, line = run_command("rank", "--config", DEMO, *sets)
    assert code == ExitCode.PORT_TAKEN
    assert f"port {taken_port}" in line
    assert "ranker.server.port" in line
    code, line = run_command("monitor", "--config", DEMO, "--set", f"monitor.port={taken_port}")
    assert code == ExitCode.PORT_TAKEN
    assert "monitor.port" in line


def test_up_refuses_to_start_a_broker_on_another_machine(tmp_path: Path, free_port: Callable[[], int]) -> None:
    ranker = free_port()
    sets: dict[str, object] = {
        "kafka.bootstrap_servers": "elsewhere:9092",
        "monitor.port": free_port(),
        "ranker.server.port": ranker,
        "monitor.ranker": f"127.0.0.1:{ranker}",
    } | {f"monitor.{name}": f"127.0.0.1:{free_port()}" for name in ("joiner", "trainer", "agents", "simulator")}
    given = [part for name, value in sets.items() for part in ("--set", f"{name}={value}")]
    code, line = run_command("up", "--config", DEMO, *given, "--dir", str(tmp_path))
    assert code == ExitCode.USAGE
    assert "kafka.bootstrap_servers" in line
    assert "--kafka HOST:PORT" in line


def test_the_joiner_refuses_a_reward_window_shorter_than_a_label_window() -> None:
    code, line = run_command("join", "--config", DEMO, "--set", "join.outcome_window_ms=1")
    assert code == ExitCode.USAGE
    assert line.startswith("freshrank: join.outcome_window_ms: 1 is not allowed; at least the longest window_ms")


def test_up_checks_the_whole_configuration_before_it_starts_anything(tmp_path: Path) -> None:
    code, line = run_command("up", "--config", DEMO, "--set", "trainer.batch_rows=soon", "--dir", str(tmp_path / "run"))
    assert (code, line) == (ExitCode.USAGE, 'freshrank: trainer.batch_rows: "soon" is not an integer')
    assert not (tmp_path / "run").exists()


def test_broker_that_is_gone_is_told_by_every_process(free_port: Callable[[], int], tmp_path: Path) -> None:
    broker = f"127.0.0.1:{free_port()}"
    sets = {
        "kafka.bootstrap_servers": broker,
        "checkpoint.folder": str(tmp_path),
        "monitor.agents": f"127.0.0.1:{free_port()}",
    }
    given = [part for name, value in sets.items() for part in ("--set", f"{name}={value}")]
    commands = [["join"], ["train"], ["agents"], ["topics", "create"]]
    with ThreadPoolExecutor() as pool:  # each of them waits ten seconds for an answer
        ends = list(pool.map(lambda command: run_command(*command, "--config", DEMO, *given), commands))
    for command, (code, line) in zip(commands, ends, strict=True):
        assert code == ExitCode.BROKER_GONE, (command, line)
        assert broker in line, command


def test_redis_that_is_gone_is_told(free_port: Callable[[], int]) -> None:
    code, line = run_command(
        "snapshot", "list", "--config", DEMO, "--set", f"redis.url=redis://127.0.0.1:{free_port()}/0"
    )
    assert code == ExitCode.REDIS_GONE
    assert "does not answer" in line


def test_checkpoint_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    code, line = run_command("train", "--config", DEMO, "--set", f"checkpoint.folder={tmp_path}/file/checkpoints")
    assert code == ExitCode.DISK
    assert "checkpoint.folder" in line
