"""Apache Kafka that is taken down, hard or softly, and comes back with its log."""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from freshrank.embedded import Service, start_broker


class Broker:
    """One broker on a folder and a port of its own; the caller need not wait while it is away."""

    def __init__(self, folder: Path, port: int, kafka_home: Path) -> None:
        self._folder, self._port, self.kafka_home = folder, port, kafka_home
        # One thread for all its lives: a child is killed by the kernel when the thread that started it ends.
        self._thread = ThreadPoolExecutor(1)
        self._coming: Future[Service] = self._thread.submit(self._start)
        self.endpoint = self._coming.result().endpoint

    def restart(self, *, pause_ms: float, is_hard: bool) -> None:
        """Ends it, with SIGKILL if `is_hard`, else SIGTERM, and starts it `pause_ms` later; returns at once."""
        self._coming = self._thread.submit(self._restart, self._coming.result(), pause_ms, is_hard)

    @property
    def is_up(self) -> bool:
        """Whether it answers, or has failed to come back."""
        return self._coming.done()

    def wait(self) -> None:
        """Waits until it answers.

        Raises:
            CommandError: it does not come back.
        """
        self._coming.result()

    def close(self) -> None:
        """Ends it for good."""
        try:
            self._coming.result().stop()
        finally:
            self._thread.shutdown()

    def _restart(self, service: Service, pause_ms: float, is_hard: bool) -> Service:
        if is_hard:
            service.process.kill()
        else:
            service.stop()
        time.sleep(pause_ms / 1_000)
        return self._start()

    def _start(self) -> Service:
        return start_broker(self._folder, self._port, "kafka", kafka_home=self.kafka_home)
