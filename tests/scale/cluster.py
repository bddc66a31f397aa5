"""Kafka, Redis and a trainer here; joiners, rankers and the load balancer on hosts of their own."""

import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path

import msgspec

from freshrank.children import Child
from freshrank.config import load_config
from freshrank.scrape import Scrape
from stream.topics import create_topics
from tests.chaos.broker import Broker
from tests.drills.cluster import free_port
from tests.drills.network import Network
from tests.drills.services import RedisServer
from tests.scale.fleet import Fleet
from tests.scale.hosts import Host, Switch
from tests.scale.names import NameServer

CONFIG = "configs/demo.yaml"
BALANCER = Path("docker/haproxy.cfg")
NUM_PARTITIONS = 6
JOINER_PORT, RANKER_PORT = 8611, 8620
_OWNS = "freshrank_joiner_open_slates"
_ASK_S = 1.0


class Cluster:
    """To be used from the main thread; close it whatever happens."""

    def __init__(self, folder: Path, kafka_home: Path, *, num_joiners: int, num_rankers: int) -> None:
        """Starts everything; `joiner-1`, ..., `ranker-1`, ... are there when it returns, but need not work yet."""
        self._stack = ExitStack()
        try:
            self._start(folder, kafka_home, num_joiners, num_rankers)
        except BaseException:
            self.close()
            raise

    def _start(self, folder: Path, kafka_home: Path, num_joiners: int, num_rankers: int) -> None:
        self.switch = Switch()
        self._stack.callback(self.switch.close)
        here = Network()
        here.host = self.switch.address
        ports = [free_port() for _ in range(4)]
        self.broker = Broker(folder / "kafka", (ports[0], ports[1]), kafka_home, host=here.host)
        self._stack.callback(self.broker.close)
        self.redis = RedisServer(folder / "redis", ports[2], here)
        self._stack.callback(self.redis.close)
        self.names = NameServer(here.host)
        self._stack.callback(self.names.close)
        settings = {
            "kafka.bootstrap_servers": self.broker.endpoint,
            "kafka.num_partitions": NUM_PARTITIONS,
            "redis.url": self.redis.url,
            "checkpoint.folder": folder / "checkpoints",
            "blender.explore.share": "0.0",
            "trainer.publish_interval_ms": 500,
            "monitor.controls": "false",
            "monitor.joiner": f"0.0.0.0:{JOINER_PORT}",
            "monitor.trainer": f"127.0.0.1:{ports[3]}",
            "ranker.server.host": "0.0.0.0",
            "ranker.server.port": RANKER_PORT,
            "ranker.server.drain_s": 3,
            "ranker.door.allow_anonymous": "true",
        }
        self.overrides = [f"{name}={value}" for name, value in settings.items()]
        self.options = ["--config", CONFIG, *_sets(self.overrides)]
        self.run = load_config(Path(CONFIG), self.overrides)
        create_topics(self.run.kafka)
        self.hosts: dict[str, Host] = {}
        self.fleet = Fleet(folder / "logs")
        self._stack.callback(self.fleet.close)
        self.fleet.start("trainer", None, "train", *self.options)
        for number in range(num_joiners):
            self.add(f"joiner-{number + 1}")
        for number in range(num_rankers):
            self.add(f"ranker-{number + 1}")
        self.balancer = self._start_balancer(folder)

    def _start_balancer(self, folder: Path) -> str:
        host = self.switch.add("balancer")
        self.switch.use_names_of(host, self.switch.address)
        argv = [*host.enter, "haproxy", "-db", "-f", str(BALANCER)]
        child = Child(argv, folder / "logs" / "balancer.log", {**os.environ, "RANKERS": f"ranker:{RANKER_PORT}"})
        self._stack.callback(child.kill)
        return f"{host.address}:{RANKER_PORT}"

    def add(self, name: str, *overrides: str) -> None:
        """Starts another joiner or ranker, by its name, on a host of its own; a ranker gets into the common name."""
        self.hosts[name] = host = self.switch.add(name)
        kind = name.partition("-")[0]
        self.fleet.start(name, host, {"joiner": "join", "ranker": "rank"}[kind], *self.options, *_sets(overrides))
        if kind == "ranker":
            self.names.addresses = [*self.names.addresses, host.address]

    def leave(self, name: str) -> None:
        """Ends one for good, as an orchestrator does: SIGTERM, and its address is forgotten."""
        host = self.hosts[name]
        self.names.addresses = [each for each in self.names.addresses if each != host.address]
        self.fleet.leave(name)

    def owned(self) -> dict[str, set[int]]:
        """Returns which partitions each joiner that can be reached says to own."""
        found: dict[str, set[int]] = {}
        for name, host in self.hosts.items():
            if name.startswith("joiner"):
                text = _get(f"http://{host.address}:{JOINER_PORT}/metrics")
                if text is not None:
                    samples = Scrape.parse(text.decode()).samples
                    found[name] = {int(labels[0]) for metric, labels in samples if metric == _OWNS}
        return found

    def is_dealt(self, *names: str) -> bool:
        """Returns whether these joiners, and nobody else, own all partitions, each one once, and none has nothing."""
        owned = {name: numbers for name, numbers in self.owned().items() if numbers}
        numbers = [number for each in owned.values() for number in each]
        return set(owned) == set(names) and sorted(numbers) == list(range(NUM_PARTITIONS))

    def versions(self) -> dict[str, int]:
        """Returns which version each ranker serves that is ready for clients."""
        found: dict[str, int] = {}
        for name, host in self.hosts.items():
            if name.startswith("ranker") and _get(f"http://{host.address}:{RANKER_PORT}/v1/health") is not None:
                text = _get(f"http://{host.address}:{RANKER_PORT}/v1/model")
                found[name] = 0 if text is None else int(msgspec.json.decode(text)["version"])
        return found

    def wait(self, seconds: float) -> None:
        """Lets time pass."""
        self.wait_for(lambda: False, seconds)

    def wait_for(self, condition: Callable[[], object], timeout_s: float) -> bool:
        """Lets time pass until a condition holds; returns whether it does."""
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() >= deadline_s:
                return False
            self.fleet.tick()
            time.sleep(0.1)
        return True

    def close(self) -> None:
        """Ends everything, the last started first."""
        self._stack.close()


def _sets(overrides: Iterable[str]) -> list[str]:
    return [word for each in overrides for word in ("--set", each)]


def _get(url: str) -> bytes | None:
    try:
        with urllib.request.urlopen(url, timeout=_ASK_S) as answer:  # noqa: S310 - the address is our own
            return bytes(answer.read())
    except (urllib.error.URLError, OSError):
        return None
