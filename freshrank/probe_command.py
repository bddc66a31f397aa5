"""`freshrank probe`: freshness as a user would measure it, as metrics."""

import logging
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from freshrank.command import now_ms, run_options, stop_signal
from freshrank.config import RunConfig

if TYPE_CHECKING:
    from freshrank.live_probe import LiveProbe
    from freshrank.metrics import Buckets, Reading

_logger = logging.getLogger(__name__)
REQUEST_TIMEOUT_S = 5.0
STOP_CHECK_S = 0.2


@click.command()
@run_options()
@click.option(
    "--every",
    "every_s",
    type=click.FloatRange(min=5),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="Time between two actions.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=1),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="When an action that no ranking knows is given up.",
)
def probe(run: RunConfig, every_s: float, timeout_s: float) -> None:
    """Acts as a made-up user once in a while and measures when the rankings know it.

    It asks the first ranker of monitor.ranker, over HTTP alone, and shows what it finds as metrics at
    monitor.probe. Its user and item are its own; its slate and its action are learned like any others.

    \b
    Example:
      freshrank probe --config configs/demo.yaml
      freshrank probe --config run.yaml --every 60 --set monitor.probe=0.0.0.0:8616
    """  # noqa: D301 - click wants the character
    import httpx

    from freshrank.doors import own_headers
    from freshrank.health import Heartbeat
    from freshrank.live_probe import LiveProbe
    from freshrank.metrics import serve_metrics

    heartbeat = Heartbeat(stop_signal())

    def wait(seconds: float) -> bool:
        end_s = time.monotonic() + seconds
        while not heartbeat.should_stop() and (left_s := end_s - time.monotonic()) > 0:
            time.sleep(min(left_s, STOP_CHECK_S))
        return heartbeat.should_stop()

    action = next(iter(run.schema.tasks.values())).action
    with httpx.Client(base_url=run.monitor.ranker_url, headers=own_headers(), timeout=REQUEST_TIMEOUT_S) as http:
        live = LiveProbe(
            http, run.schema.scenarios[0], action, timeout_ms=int(timeout_s * 1_000), clock_ms=now_ms, wait=wait
        )
        serve_metrics("probe", run.monitor.probe, lambda: readings(live), heartbeat.problem)
        _logger.info("Probing. ranker=%s action=%s every_s=%s", run.monitor.ranker_url, action, every_s)
        while not wait(every_s):
            live.round()
    _logger.info("Stopped. actions=%s known=%s", live.counters.actions, live.counters.known)


def readings(live: "LiveProbe") -> "Iterator[Reading | Buckets]":
    """Yields the probe's metrics."""
    from freshrank.metrics import Buckets, read_counters

    yield from read_counters("probe", live.counters)
    yield Buckets.of_ms("freshrank_probe_freshness_seconds", live.freshness_ms)
