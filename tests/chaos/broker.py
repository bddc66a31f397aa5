"""Apache Kafka as in production: a controller of its own that stays up, and a broker that is taken down and comes back.

Kafka's documentation advises against one process for both where it matters ("Process Roles"), and Apache Kafka 4.3.0
loses transaction markers when such a process is killed and restarted (KAFKA-20734; docs/chaos.md, finding 2).
"""

import os
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from freshrank.children import Child
from freshrank.embedded import LONE_BROKER
from tests.chaos.cluster import wait_for

HOST = "127.0.0.1"
_CLUSTER_ID = "ZnJlc2hyYW5rLWNoYW9zLQ"
_READY_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 15.0
_PROPERTIES = """\
process.roles={role}
node.id={node}
controller.quorum.voters=1@{host}:{controller_port}
controller.listener.names=CONTROLLER
listeners={listener}://{host}:{port}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={folder}/data
# A broker that was killed may register again only when its last session is over.
broker.heartbeat.interval.ms=500
broker.session.timeout.ms=3000
"""


class Broker:
    """A controller and one broker on a folder of their own; the caller need not wait while the broker is away."""

    def __init__(
        self,
        folder: Path,
        ports: tuple[int, int],
        kafka_home: Path,
        *,
        host: str = HOST,
        enter: Sequence[str] = (),
    ) -> None:
        """Starts both; `ports` are the broker's and the controller's.

        `host` is the address they listen on, `enter` what their command lines begin with, to run in another namespace.

        Raises:
            RuntimeError: one of them does not start.
        """
        self.kafka_home = kafka_home
        self._enter = enter
        port, controller_port = ports
        self.endpoint = f"{host}:{port}"
        self._folders = {"controller": folder / "controller", "broker": folder / "broker"}
        for node, (role, listener, own_port) in enumerate(
            (("controller", "CONTROLLER", controller_port), ("broker", "PLAINTEXT", port)), start=1
        ):
            home = self._folders[role]
            home.mkdir(parents=True, exist_ok=True)
            (home / "server.properties").write_text(
                _PROPERTIES.format(
                    role=role, node=node, host=host, controller_port=controller_port,
                    listener=listener, port=own_port, folder=home.resolve(),
                )
                + LONE_BROKER
            )  # fmt: skip
        # One thread for all their lives: a child is killed by the kernel when the thread that started it ends.
        self._thread = ThreadPoolExecutor(1)
        self._controller: Future[Child] = self._thread.submit(self._launch, "controller")
        self._coming: Future[Child] = self._thread.submit(self._start)
        self._coming.result()

    def restart(self, *, pause_ms: float, is_hard: bool) -> None:
        """Ends the broker, by SIGKILL if `is_hard`, else SIGTERM, and starts it `pause_ms` later; returns at once."""
        self._coming = self._thread.submit(self._restart, self._coming.result(), pause_ms, is_hard)

    def pause(self) -> None:
        """Stops the broker in its tracks (SIGSTOP): connections stay, nothing is answered."""
        os.kill(self._coming.result().pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Lets it go on (SIGCONT)."""
        os.kill(self._coming.result().pid, signal.SIGCONT)

    @property
    def is_up(self) -> bool:
        """Whether it answers, or has failed to come back."""
        return self._coming.done()

    def wait(self) -> None:
        """Waits until it answers.

        Raises:
            RuntimeError: it does not come back.
        """
        self._coming.result()

    def close(self) -> None:
        """Ends both for good."""
        try:
            for process in (self._coming, self._controller):
                process.result().stop(_STOP_TIMEOUT_S)
        finally:
            self._thread.shutdown()

    def _restart(self, process: Child, pause_ms: float, is_hard: bool) -> Child:
        if is_hard:
            process.kill()
        else:
            process.stop(_STOP_TIMEOUT_S)
        time.sleep(pause_ms / 1_000)
        return self._start()

    def _start(self) -> Child:
        process = self._launch("broker")
        if not wait_for(self._answers(process), _READY_TIMEOUT_S) or process.exit_code() is not None:
            words = process.last_words()
            process.kill()
            raise RuntimeError(f"the broker does not come up: {words} (log: {process.log_path})")
        return process

    def _launch(self, role: str) -> Child:
        """Starts one of the two; formats its folder the first time."""
        folder, programs = self._folders[role], self.kafka_home / "bin"
        properties = str(folder / "server.properties")
        env = {"KAFKA_HEAP_OPTS": "-Xms256m -Xmx256m", **os.environ, "LOG_DIR": str(folder.resolve() / "logs")}
        if not (folder / "data" / "meta.properties").exists():
            argv = [str(programs / "kafka-storage.sh"), "format", "-t", _CLUSTER_ID, "-c", properties]
            formatting = Child(argv, folder / "format.log", env)
            if not formatting.ends_within(_READY_TIMEOUT_S) or formatting.exit_code() != 0:
                formatting.kill()
                raise RuntimeError(f"cannot format {folder}: {formatting.last_words()} (log: {formatting.log_path})")
        argv = [*self._enter, str(programs / "kafka-server-start.sh"), properties]
        return Child(argv, folder / f"{role}.log", env)

    def _answers(self, process: Child) -> Callable[[], bool]:
        client = AdminClient(
            {
                "bootstrap.servers": self.endpoint,
                "broker.address.family": "v4",
                "reconnect.backoff.ms": 20,
                "reconnect.backoff.max.ms": 50,  # by default ten seconds pass after a few refusals
                "log_level": 0,
            }
        )

        def answers() -> bool:
            if process.exit_code() is not None:
                return True  # there is nothing left to wait for
            try:
                return bool(client.list_topics(timeout=1.0).brokers)
            except KafkaException:
                return False

        return answers
