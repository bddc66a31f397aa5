"""`freshrank agents`: the Faust app on Kafka and Redis."""

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from freshrank.command import instance_option, run_options, stop_signal
from freshrank.config import RunConfig
from freshrank.health import Heartbeat
from freshrank.places import addresses

if TYPE_CHECKING:
    from freshrank.metrics import Reading
    from stream.agents import Agents

_logger = logging.getLogger(__name__)


@click.command()
@run_options()
@instance_option
def agents(run: RunConfig, instance: str | None) -> None:
    """Keeps each user's last actions in Redis, and online metrics.

    The ranker reads the actions at the next request and logs what it used. The metrics, of what was served, are on
    its `/metrics`. Start several for more throughput.

    \b
    Example:
      freshrank agents --config configs/demo.yaml --instance agents-1
    """  # noqa: D301 - click wants the character
    from freshrank.metrics import serve_metrics
    from stream.agents import Agents

    heartbeat = Heartbeat(stop_signal())
    own = Agents(run.kafka, run.agents, run.redis.address, run.schema)
    serve_metrics("agents", addresses(run.monitor.agents)[0], lambda: readings(own), heartbeat.problem)
    _logger.info(
        "Keeping sequences. length=%s online_metrics=%s", run.agents.sequence_length, run.agents.metrics.enabled
    )
    with tempfile.TemporaryDirectory(prefix="freshrank-agents-") as folder:  # Faust wants one, and keeps nothing in it
        own.run(Path(folder), heartbeat.should_stop, instance_id=instance)
    _logger.info("Stopped after the last write. events=%s labels=%s", own.counters.events, own.counters.labels)


def readings(agents: "Agents") -> Iterator["Reading"]:
    """Yields what `/metrics` shows; a ratio that has no value yet is left out."""
    from freshrank.metrics import Reading, read_counters

    yield from read_counters("agents", agents.counters)
    cells = agents.figures()
    alarms = dict.fromkeys((figures.cell for figures in cells), 0) | agents.alarms()
    for (scenario, task), num_alarms in alarms.items():
        yield Reading("freshrank_agents_drift_alarms_total", num_alarms, (task, scenario))
    for figures in cells:
        scenario, task = figures.cell
        cell = (task, scenario)
        yield Reading("freshrank_agents_online_rows", figures.num_labels, cell)
        yield Reading("freshrank_agents_online_positives", figures.num_positives, cell)
        yield Reading("freshrank_agents_online_expected_positives", figures.score_sum, cell)
        if figures.num_labels:
            yield Reading("freshrank_agents_online_ctr_ratio", figures.num_positives / figures.num_labels, cell)
        if figures.auc is not None:
            yield Reading("freshrank_agents_online_auc_ratio", figures.auc, cell)
        for name, cohort in figures.cohorts.items():
            tally, labels = cohort.tally, (*cell, name)
            yield Reading("freshrank_agents_cohort_version", cohort.last_version, labels)
            yield Reading("freshrank_agents_cohort_rows", tally.num_labels, labels)
            yield Reading("freshrank_agents_cohort_positives", tally.num_positives, labels)
            yield Reading("freshrank_agents_cohort_expected_positives", tally.score_sum, labels)
            if tally.num_positives:
                calibration = tally.score_sum / tally.num_positives
                yield Reading("freshrank_agents_online_calibration_ratio", calibration, labels)
            if (auc := tally.auc()) is not None:
                yield Reading("freshrank_agents_cohort_auc_ratio", auc, labels)
