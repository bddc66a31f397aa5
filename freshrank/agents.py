"""`freshrank agents`: the Faust app on Kafka and Redis."""

import logging
import tempfile
from pathlib import Path

import click

from freshrank.command import instance_option, run_options, stop_signal
from freshrank.config import RunConfig
from freshrank.health import Heartbeat
from freshrank.places import addresses

_logger = logging.getLogger(__name__)


@click.command()
@run_options()
@instance_option
def agents(run: RunConfig, instance: str | None) -> None:
    """Keeps each user's last actions in Redis.

    The ranker reads them at the next request and logs what it used. Start several for more throughput.

    \b
    Example:
      freshrank agents --config configs/demo.yaml --instance agents-1
    """  # noqa: D301 - click wants the character
    from freshrank.metrics import read_counters, serve_metrics
    from stream.agents import AgentCounters, run_agents

    heartbeat = Heartbeat(stop_signal())
    counters = AgentCounters()
    address = addresses(run.monitor.agents)[0]
    serve_metrics("agents", address, lambda: read_counters("agents", counters), heartbeat.problem)
    _logger.info("Keeping sequences. length=%s", run.agents.sequence_length)
    with tempfile.TemporaryDirectory(prefix="freshrank-agents-") as folder:  # Faust wants one, and keeps nothing in it
        run_agents(
            run.kafka,
            run.agents,
            run.redis.address,
            run.schema,
            counters,
            Path(folder),
            heartbeat.should_stop,
            instance_id=instance,
        )
    _logger.info("Stopped after the last write. events=%s", counters.events)
