"""The whole system as in production, on one machine: real Kafka and Redis, and all processes under a supervisor."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from freshrank import launch
from freshrank.config import RunConfig, load_config
from freshrank.places import addresses
from freshrank.supervisor import ChildSpec, Supervisor
from stream.topics import create_topics
from tests.chaos.broker import Broker
from tests.drills.network import Network
from tests.drills.services import RedisServer, SmallDisk

CONFIG = Path("configs/demo.yaml")
_KAFKA_PORT, _CONTROLLER_PORT, _REDIS_PORT = 9092, 9093, 6379
_OVERRIDES = {
    "blender.learn.method": "reward_regression",
    "blender.reward.values": "{click: 1.0, order: 5.0, hide: -2.0}",
    "join.outcome_window_ms": "6000",
    "trainer.checkpoint_interval_ms": "10000",
    "trainer.publish_interval_ms": "500",
    "sim.requests_per_s": "10",
    "sim.slate": "10",
}
_DISK_MB = 256
_TICK_S = 0.1
_SLICE_S = 0.2
"""A slowed process runs and rests in turns of so long together."""


def free_port() -> int:
    """Returns a port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Cluster:
    """Services, processes, and everything that can be done to them. To be used from the main thread."""

    def __init__(self, folder: Path, network: Network, kafka_home: Path, overrides: Mapping[str, str]) -> None:
        """Starts everything; close it whatever happens."""
        self.network = network
        self._stack = ExitStack()
        self._slow: dict[str, threading.Event] = {}
        self.folder = folder
        try:
            self._start(folder, kafka_home, overrides)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Cluster":
        """Returns itself: everything runs."""
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    disk: SmallDisk | None
    """Where checkpoints and the joiner's state are; None where no file system may be mounted."""
    broker_disk: SmallDisk | None
    """Where the broker's log is; the same."""

    def _start(self, folder: Path, kafka_home: Path, overrides: Mapping[str, str]) -> None:
        try:
            self.disk = SmallDisk(folder / "disk", _DISK_MB)
            self._stack.callback(self.disk.close)
            self.broker_disk = SmallDisk(folder / "kafka" / "broker" / "data", _DISK_MB)
            self._stack.callback(self.broker_disk.close)
        except OSError:
            self.disk = self.broker_disk = None
        is_shared = self.network.host == Network.host
        ports = [free_port() for _ in range(3)] if is_shared else [_KAFKA_PORT, _CONTROLLER_PORT, _REDIS_PORT]
        self.broker = Broker(
            folder / "kafka", (ports[0], ports[1]), kafka_home, host=self.network.host, enter=self.network.enter
        )
        self._stack.callback(self.broker.close)
        self.redis = RedisServer(folder / "redis", ports[2], self.network)
        self._stack.callback(self.redis.close)
        self.run = _configure(folder, self.broker.endpoint, self.redis.url, overrides)
        launch.check_config(self.run)
        create_topics(self.run.kafka)
        launch.allow_exploration(self.run)
        specs = [self._with_own_clock(spec) for spec in launch.specs(self.run)]
        self.supervisor = Supervisor(specs, folder, lambda: time.monotonic_ns() // 1_000_000)
        self._stack.callback(self.supervisor.stop)
        self.supervisor.start()

    @property
    def processes(self) -> list[str]:
        """Names of our own processes, in the order of start."""
        return [status.name for status in self.supervisor.status()]

    @property
    def ranker(self) -> str:
        """`host:port` of the ranker."""
        return addresses(self.run.monitor.ranker)[0]

    def targets(self) -> dict[str, str]:
        """Returns where each process shows its metrics."""
        named = self.run.monitor.targets() | {"monitor": f"{self.run.monitor.host}:{self.run.monitor.port}"}
        return {name: address for name, address in named.items() if name in self.processes}

    def kill(self, name: str) -> None:
        """Ends a process (SIGKILL); the supervisor starts it again."""
        pid = self._pid(name)
        if pid is not None:
            os.kill(pid, signal.SIGKILL)

    def slow_down(self, name: str, share: float) -> None:
        """Lets a process run only for a share of the time, until `speed_up`."""
        over = self._slow[name] = threading.Event()

        def brake() -> None:
            while not over.is_set():
                for number, lasts_s in ((signal.SIGSTOP, (1 - share) * _SLICE_S), (signal.SIGCONT, share * _SLICE_S)):
                    self._signal(name, number)
                    time.sleep(lasts_s)

        threading.Thread(target=brake, name=f"brake-{name}", daemon=True).start()

    def speed_up(self, name: str) -> None:
        """Lets a slowed process run freely again."""
        self._slow.pop(name).set()

    def set_clock(self, name: str, ahead_s: int) -> None:
        """Moves a process's wall clock to so many seconds ahead of ours, at once."""
        path = self._clock_path(name)
        path.with_suffix(".new").write_text(str(ahead_s))
        path.with_suffix(".new").replace(path)

    def num_restarts(self) -> dict[str, int]:
        """Returns how often each process was started again."""
        return {status.name: status.num_restarts for status in self.supervisor.status()}

    def tick(self) -> None:
        """Lets a moment pass: the supervisor looks after its processes."""
        self.supervisor.poll()
        time.sleep(_TICK_S)

    def wait(self, seconds: float) -> None:
        """Lets time pass."""
        self.wait_for(lambda: False, seconds)

    def wait_for(self, condition: Callable[[], object], timeout_s: float) -> bool:
        """Lets time pass until a condition holds; returns whether it does."""
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() >= deadline_s:
                return False
            self.tick()
        return True

    def close(self) -> None:
        """Ends everything, the last started first."""
        for over in self._slow.values():
            over.set()
        self._stack.close()

    def _pid(self, name: str) -> int | None:
        return next(status.pid for status in self.supervisor.status() if status.name == name)

    def _signal(self, name: str, number: int) -> None:
        pid = self._pid(name)
        if pid is not None:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                return  # it has just ended; the supervisor will notice

    def _clock_path(self, name: str) -> Path:
        return self.folder / f"{name}.clock"

    def _with_own_clock(self, spec: ChildSpec) -> ChildSpec:
        """Returns a process that reads the time of day through `tests.drills.clock`."""
        self.set_clock(spec.name, 0)
        python, _, _, *command = spec.argv
        return replace(spec, argv=(python, "-m", "tests.drills.clock", str(self._clock_path(spec.name)), *command))


def _configure(folder: Path, kafka: str, redis_url: str, overrides: Mapping[str, str]) -> RunConfig:
    ports = {name: f"127.0.0.1:{free_port()}" for name in ("joiner", "trainer", "agents", "blender", "simulator")}
    ranker = free_port()
    places = {
        "kafka.bootstrap_servers": kafka,
        "redis.url": redis_url,
        "checkpoint.folder": str(folder / "disk" / "checkpoints"),
        "spill.directory": str(folder / "disk" / "join"),
        "spill.snapshot_interval_ms": "5000",
        "ranker.server.port": str(ranker),
        "monitor.port": str(free_port()),
        "monitor.ranker": f"127.0.0.1:{ranker}",
        **{f"monitor.{name}": address for name, address in ports.items()},
    }
    settings = {**places, **_OVERRIDES, **overrides}
    return load_config(CONFIG, [f"{name}={value}" for name, value in settings.items()])
