"""The quick start, word by word: its shell commands are taken from the document and run against a loop of their own."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

REPO_ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"```bash\n(.*?)```", (REPO_ROOT / "docs/quickstart.md").read_text(encoding="utf-8"), re.DOTALL)
START_S = 120
LEARN_S = 120


@pytest.fixture
def ranker_port(free_port: Callable[[], int], tmp_path: Path) -> Iterator[int]:
    """A loop without simulated users, as the document starts it, on ports of its own."""
    ports = {name: free_port() for name in ("ranker", "page", "kafka", "redis", "joiner", "trainer", "agents")}
    settings = {
        "ranker.server.port": ports["ranker"],
        "monitor.port": ports["page"],
        "kafka.bootstrap_servers": f"127.0.0.1:{ports['kafka']}",
        "redis.url": f"redis://127.0.0.1:{ports['redis']}/0",
    } | {f"monitor.{name}": f"127.0.0.1:{ports[name]}" for name in ("ranker", "joiner", "trainer", "agents")}
    sets = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    argv = [sys.executable, "-m", "freshrank.cli", "up", "--config", "configs/quickstart.yaml", *sets]
    child = subprocess.Popen(
        [*argv, "--dir", str(tmp_path), "--log-level", "warning"],
        cwd=REPO_ROOT,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield ports["ranker"]
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            raise


def test_one_click_changes_the_order(ranker_port: int) -> None:
    rank, feedback, again = (block.replace("8620", str(ranker_port)) for block in BLOCKS)
    asked = until(rank, lambda lines: lines[-1:] == ["red green blue black white"], START_S)
    assert asked == ["red green blue black white"]

    taught = run(rank + feedback)
    assert taught[-1] == '{"accepted":1}'

    functions = rank.split("answer=")[0]
    learned = until(functions + again, lambda lines: lines[-1].startswith("white "), LEARN_S)
    assert sorted(learned[-1].split()) == sorted(asked[0].split()) and learned[-1].startswith("white ")


def until(script: str, is_there: Callable[[list[str]], bool], timeout_s: float) -> list[str]:
    """Returns the lines a script prints, the first time they are as wanted, else the last ones."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        lines = run(script)
        if (lines and is_there(lines)) or time.monotonic() > deadline_s:
            return lines
        time.sleep(0.5)


def run(script: str) -> list[str]:
    """Returns the lines a script of the document prints."""
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False).stdout.splitlines()
