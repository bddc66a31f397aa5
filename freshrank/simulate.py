"""`freshrank simulate`: the world with known truth, as users of the ranker or as a recorded log."""

import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from freshrank.command import now_ms, run_options, stop_signal
from freshrank.config import RunConfig
from freshrank.doors import own_headers
from freshrank.health import Heartbeat
from freshrank.places import addresses

if TYPE_CHECKING:
    from freshrank.metrics import Reading
    from sim.loop import Simulator

_logger = logging.getLogger(__name__)


@click.command()
@run_options()
@click.option(
    "--events-only",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write a recorded log with a random ranking, and its truth, into this folder; needs no service.",
)
@click.option("--requests", type=click.IntRange(min=1), default=10_000, show_default=True, help="With --events-only.")
@click.option("--seed", type=click.IntRange(min=0), help="Which world; sim.seed if absent.")
def simulate(run: RunConfig, folder: Path | None, requests: int, seed: int | None) -> None:
    """Acts as the users of a world with known truth.

    Asks the ranker for slates over HTTP and sends feedback, in a closed loop; the same seed gives the same world.

    \b
    Example:
      freshrank simulate --config configs/demo.yaml
      freshrank simulate --config configs/demo.yaml --events-only recorded --requests 20000 --seed 7
    """  # noqa: D301 - click wants the character
    import dataclasses

    config = run.sim if seed is None else dataclasses.replace(run.sim, seed=seed)
    if folder is not None:
        from sim.record import write_recorded_log

        written = write_recorded_log(folder, requests, config.seed, config)
        click.echo(f"{folder}: {written.impressions} impressions of {written.items} items, {written.feedback} feedback")
        return
    import numpy as np

    from freshrank.metrics import serve_metrics
    from freshrank.simulator_door import with_control
    from sim.loop import Simulator
    from sim.world import World

    heartbeat = Heartbeat(stop_signal())
    ranker_url, rng = run.monitor.ranker_url, np.random.default_rng(config.seed)
    simulator = Simulator(World(config), config, ranker_url, now_ms=now_ms, rng=rng, headers=own_headers())
    address = addresses(run.monitor.simulator)[0]
    doors = partial(with_control, change=simulator.change) if run.monitor.controls else lambda app: app
    serve_metrics("simulator", address, lambda: readings(simulator), heartbeat.problem, doors)
    _logger.info("Users have come. ranker=%s seed=%s requests_per_s=%s", ranker_url, config.seed, config.requests_per_s)
    simulator.run(heartbeat.should_stop)
    _logger.info("Users have left. requests=%s", simulator.counters.requests)


def readings(simulator: "Simulator") -> "Iterator[Reading]":
    """Yields the simulator's metrics; figures per request only once there was one."""
    from freshrank.metrics import Reading, read_counters

    yield from read_counters("simulator", simulator.counters)
    now = simulator.now()
    yield Reading("freshrank_simulator_rate_requests", now.requests_per_s)
    yield Reading("freshrank_simulator_bots_ratio", now.bot_share)
    for scenario, is_open in now.is_open.items():
        yield Reading("freshrank_simulator_open_ratio", is_open, (scenario,))
    recent, lifetime = simulator.lift.window, simulator.lift.lifetime
    if recent.requests:
        for ranking, utility in (("served", recent.served), ("random", recent.random), ("oracle", recent.best)):
            yield Reading("freshrank_simulator_utility_ratio", utility / recent.requests, (ranking,))
        yield Reading("freshrank_simulator_lift_ratio", recent.share, ("recent",))
        yield Reading("freshrank_simulator_lift_ratio", lifetime.share, ("lifetime",))
