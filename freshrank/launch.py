"""What `freshrank up` starts, and how each of them is told the same run."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from freshrank.config import RunConfig
from freshrank.embedded import BrokerKind, Service, start_broker, start_redis
from freshrank.exits import CommandError, ExitCode
from freshrank.places import addresses
from freshrank.ports import bind
from freshrank.strict import ConfigError
from freshrank.supervisor import ChildSpec, python_argv

LOOPBACK = ("localhost", "127.0.0.1")
COMMANDS = {
    "joiner": ("join", "--instance", "joiner"),
    "trainer": ("train",),
    "agents": ("agents", "--instance", "agents"),
    "blender": ("blend",),
    "ranker": ("rank",),
    "monitor": ("monitor",),
    "simulator": ("simulate",),
}
"""Process and the command it runs, in the order of start; they stop in reverse, so that the last events are learned."""
CHILD_ENV = {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2", "PYTHONUNBUFFERED": "1"}
"""One arithmetic thread each, the processes share the cores; few heap arenas: they cost memory, not time, here."""


def commands(run: RunConfig) -> dict[str, tuple[str, ...]]:
    """Returns the processes of a run: no blend worker where no weights are learned, no simulator without an address."""
    is_wanted = {"blender": run.blender.learn.method != "off", "simulator": bool(run.monitor.simulator)}
    return {name: command for name, command in COMMANDS.items() if is_wanted.get(name, True)}


def check_config(run: RunConfig) -> None:
    """Checks the whole configuration in a child, because the sections of the model import torch and `up` must not.

    Raises:
        ConfigError: the first mistake.
    """
    path, overrides = run.arguments[1], run.arguments[2:]
    argv = python_argv("freshrank.cli", "config", "check", path, *overrides)
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != ExitCode.OK:
        raise ConfigError(done.stderr.strip().rpartition("\n")[2].removeprefix("freshrank: "))


def check_ports(run: RunConfig) -> None:
    """Checks that every port our own processes will listen on is free.

    Raises:
        CommandError: one is taken; the sentence names it and its setting.
    """
    for setting, address in listening(run):
        host, _, port = address.rpartition(":")
        bind(host, int(port), setting).close()


def listening(run: RunConfig) -> Iterator[tuple[str, str]]:
    """Yields setting and address of every port that our own processes listen on."""
    yield "monitor.port", f"{run.monitor.host}:{run.monitor.port}"
    for process in ("joiner", "trainer", "agents", "blender", "simulator"):
        if process in commands(run):
            yield f"monitor.{process}", addresses(getattr(run.monitor, process))[0]
    yield "ranker.server.port and monitor.ranker", addresses(run.monitor.ranker)[0]


def embedded_port(setting: str, host: str | None, port: int | None, option: str) -> int:
    """Returns the port an embedded service is to listen on.

    Raises:
        ConfigError: the address is another machine's, so it can only be used, not started.
    """
    if host not in LOOPBACK or port is None:
        raise ConfigError(f"{setting}: {host}:{port} is not this machine's; to use a service that runs, say {option}")
    return port


def start_services(
    run: RunConfig, folder: Path, *, broker: BrokerKind | None, kafka_home: Path | None, with_redis: bool
) -> Iterator[Service]:
    """Starts the embedded services and yields each as soon as it answers."""
    if broker is not None:
        host, _, port = addresses(run.kafka.bootstrap_servers)[0].rpartition(":")
        setting = "kafka.bootstrap_servers"
        number = embedded_port(setting, host, int(port) if port.isdigit() else None, "--kafka HOST:PORT")
        yield start_broker(folder / "kafka", number, broker, kafka_home=kafka_home, setting=setting)
    if with_redis:
        parts = urlsplit(run.redis.url)
        number = embedded_port("redis.url", parts.hostname, parts.port, "--redis URL")
        yield start_redis(folder / "redis", number, setting="redis.url")


def allow_exploration(run: RunConfig) -> None:
    """Switches exploration on in a Redis of our own, where the configuration has a share for it.

    In a Redis that was there before, the switch is left as it is: `freshrank blender explore on`.
    """
    from utility_blender.store_redis import RedisBlenderStore

    if run.blender.explore.share > 0:
        store = RedisBlenderStore(run.redis.address, run.trainer.model_name, run.blender.store)
        store.set_exploration(True, "freshrank up")
        store.close()


def specs(run: RunConfig, door: Path | None = None) -> list[ChildSpec]:
    """Returns our own processes, in the order of start; the monitor is told of the door of `freshrank up`."""
    more = {"monitor": ("--door", str(door))} if door is not None else {}
    return [
        ChildSpec(
            name=name, argv=python_argv("freshrank.cli", *command, *more.get(name, ()), *run.arguments), env=CHILD_ENV
        )
        for name, command in commands(run).items()
    ]


def not_coming_back(name: str, exit_code: int | None, log_path: Path) -> CommandError:
    """Returns the failure of a process that was given up, with the end of its own log."""
    lines = log_path.read_text(errors="replace").strip().splitlines() if log_path.exists() else []
    last = lines[-1].removeprefix("freshrank: ") if lines else "it said nothing"
    return CommandError(ExitCode.CHILD_FAILED, f"{name} ended with exit code {exit_code}: {last} (log: {log_path})")
