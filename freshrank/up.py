"""`freshrank up`: the whole loop on this machine under one supervisor.

1 check the configuration and the ports   2 start broker and Redis, create topics   3 start all processes
4 once per second: look after them, probe, say how it goes   5 stop the processes, then the services   6 report
"""

import json
import logging
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import httpx

from freshrank import launch
from freshrank.command import elapsed_ms, now_ms, run_options, stop_signal
from freshrank.config import RunConfig
from freshrank.control_door import ControlDoor
from freshrank.doors import own_headers
from freshrank.embedded import BrokerKind
from freshrank.exits import CommandError, ExitCode
from freshrank.faults import Faults
from freshrank.memory import resident_bytes
from freshrank.probe import Probe, ProbeFacts
from freshrank.summary import run_report, status_line, summary
from freshrank.supervisor import Supervisor

_logger = logging.getLogger(__name__)
RUNS = Path("run")
DOOR = "control.sock"
"""Socket in the run's folder; its path is told to the monitor alone."""
MAX_RESTARTS = 5
"""A process that was started again so often without staying up is given up, and the run with it."""
PROBE_SIZE = 10
STATE_TIMEOUT_S = 1.0


@click.command()
@run_options(default=Path("configs/demo.yaml"))
@click.option("--kafka", metavar="HOST:PORT", envvar="FRESHRANK_KAFKA", help="Use this Kafka instead of starting one.")
@click.option("--redis", metavar="URL", envvar="FRESHRANK_REDIS", help="Use this Redis instead of starting one.")
@click.option(
    "--broker",
    type=click.Choice(["noida", "kafka"]),
    default="noida",
    show_default=True,
    help="Which broker to start: the embedded one, or the Apache Kafka in the folder KAFKA_HOME.",
)
@click.option("--for", "seconds", type=click.FloatRange(min=1), metavar="SECONDS", help="End after so many seconds.")
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures as JSON at the end.")
@click.option(
    "--dir", "folder", type=click.Path(file_okay=False, path_type=Path),
    help="Keep logs, checkpoints and data here; run/<time> if absent.",
)  # fmt: skip
def up(
    run: RunConfig,
    kafka: str | None,
    redis: str | None,
    broker: BrokerKind,
    seconds: float | None,
    report: Path | None,
    folder: Path | None,
) -> int:
    """Runs the whole loop on this machine.

    Starts a broker, Redis and all processes, prints the address of the live page and one line per second, and leaves
    nothing behind at the end. Exit code 0 says that a ranking was served by a snapshot trained from this run's events.

    \b
    Example:
      freshrank up
      freshrank up --for 60 --report report.json
      freshrank up --kafka localhost:9092 --redis redis://localhost:6379/0
    """  # noqa: D301 - click wants the character
    should_stop = stop_signal()
    started_ms = now_ms()
    folder = folder or RUNS / time.strftime("%Y%m%d-%H%M%S")
    # What the environment says the processes read there: an address may hold a password, and arguments are public.
    redis_url = None if redis == os.environ.get("FRESHRANK_REDIS") else redis
    given = {"kafka.bootstrap_servers": kafka, "redis.url": redis_url, "checkpoint.folder": str(folder / "checkpoints")}
    run = run.with_overrides([f"{name}={json.dumps(value)}" for name, value in given.items() if value])
    launch.check_config(run)  # 1
    launch.check_ports(run)
    with ExitStack() as services:
        home = Path(os.environ["KAFKA_HOME"]) if os.environ.get("KAFKA_HOME") else None
        started = []
        for service in launch.start_services(  # 2
            run, folder, broker=None if kafka else broker, kafka_home=home, with_redis=not redis
        ):
            services.callback(service.stop)
            started.append(service)
        from stream.topics import create_topics

        create_topics(run.kafka)
        if not redis:
            launch.allow_exploration(run)
        door_path = folder / DOOR if run.monitor.controls else None
        supervisor = Supervisor(launch.specs(run, door_path), folder, elapsed_ms)
        door = open_door(door_path, Faults(supervisor, started, elapsed_ms)) if door_path is not None else None
        services.callback(supervisor.stop)  # 5
        if door is not None:
            services.callback(door.close)
        supervisor.start()  # 3
        click.echo(f"The page:  http://{run.monitor.host}:{run.monitor.port}/   (Ctrl-C stops; logs in {folder}/logs)")
        watch = Watch(run, supervisor, started_ms, time.sleep if door is None else door.wait)
        watch.run(lambda: should_stop() or (seconds is not None and now_ms() - started_ms >= seconds * 1_000))  # 4
    return finish(watch.report(), report)  # 6


def open_door(path: Path, faults: Faults) -> ControlDoor | None:
    """Returns the door for orders of the live page; None where none can be made, which the log says."""
    try:
        return ControlDoor(path, faults)
    except OSError as error:
        _logger.warning("No process can be killed from the page. socket=%s error=%s", path, error)
        return None


def finish(figures: dict[str, Any] | None, path: Path | None) -> int:
    """Prints the summary, writes the report. Returns the exit code."""
    if figures is None:
        raise CommandError(ExitCode.NOT_LEARNED, "The run ended before the monitor had anything to say")
    click.echo("")
    for line in summary(figures):
        click.echo(line)
    if path is not None:
        path.write_text(json.dumps(figures, indent=2) + "\n")
    if not figures["learned"]:
        raise CommandError(ExitCode.NOT_LEARNED, "No ranking was served by a snapshot trained from this run's events")
    return ExitCode.OK


class Watch:
    """Looks after a run once per second: supervisor, probe, state, memory, status line."""

    def __init__(
        self, run: RunConfig, supervisor: Supervisor, started_ms: int, wait: Callable[[float], None] = time.sleep
    ) -> None:
        """Takes a run whose processes have been started; `wait` lets so many seconds pass."""
        from sim.world import World

        self._supervisor, self._started_ms, self._wait = supervisor, started_ms, wait
        page_url, headers = f"http://{run.monitor.host}:{run.monitor.port}", own_headers()
        self._monitor = httpx.Client(base_url=page_url, timeout=STATE_TIMEOUT_S, headers=headers)
        action = next(iter(run.schema.tasks.values())).action
        ranker = run.monitor.ranker_url
        has_users = bool(run.monitor.simulator)  # without simulated users the run is left to those who come
        self._probe = Probe(World(run.sim), action, ranker, PROBE_SIZE, now_ms, headers) if has_users else None
        self._state: dict[str, Any] | None = None
        self._peak_bytes: int | None = None
        self._ended_ms = started_ms

    @property
    def facts(self) -> ProbeFacts | None:
        """What the probe has seen; None where there are no simulated users, and so no probe."""
        return None if self._probe is None else self._probe.facts

    def run(self, should_stop: Callable[[], bool]) -> None:
        """Goes on until told to stop.

        Raises:
            CommandError: a process ended and will not come back.
        """
        try:
            while not should_stop():
                second_s = time.monotonic()
                self.step()
                self._wait(max(0.0, 1.0 - (time.monotonic() - second_s)))
        finally:
            if self._probe is not None:
                self._probe.close()
            self._monitor.close()

    def step(self) -> None:
        """Makes one round and prints its line."""
        self._supervisor.poll()
        for status in self._supervisor.status():
            if status.state == "ended" or status.num_failures > MAX_RESTARTS:
                raise launch.not_coming_back(status.name, status.exit_code, status.log_path)
        if self._probe is not None:
            self._probe.step()
        self._state = self._fetch() or self._state
        memory = resident_bytes(os.getpid())
        if memory is not None:
            self._peak_bytes = max(memory, self._peak_bytes or 0)
        self._ended_ms = now_ms()
        click.echo(status_line((self._ended_ms - self._started_ms) / 1_000, self._state, memory))

    def report(self) -> dict[str, Any] | None:
        """Returns the figures of the run so far; None if the monitor never answered."""
        if self._state is None:
            return None
        return run_report(
            self._state,
            self.facts,
            started_ms=self._started_ms,
            ended_ms=self._ended_ms,
            peak_memory_bytes=self._peak_bytes,
            restarts=sum(status.num_restarts for status in self._supervisor.status()),
        )

    def _fetch(self) -> dict[str, Any] | None:
        try:
            answer = self._monitor.get("/api/state")
            answer.raise_for_status()
        except httpx.HTTPError as error:
            _logger.debug("The monitor does not answer. error=%s", error)
            return None
        state: dict[str, Any] = answer.json()
        return state
